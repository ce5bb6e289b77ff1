"""The built client where apps run it: Cloudflare's workerd, Chromium with React 18 and 19, Next.js."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from selenium.webdriver import ActionChains

from tests.clients.npm import app, run
from tests.tools import keys
from tests.tools.ledger import assert_sound, spent
from tests.tools.postgres import free_port
from tests.tools.site import served, url_of_the_test_database
from tests.tools.waiting import wait_until

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

pytestmark = pytest.mark.full
USER = "user_runtime"
OFFLINE = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
ONLINE = OFFLINE | {"offline": False}


@contextmanager
def files(folder: Path) -> Iterator[str]:
    """Serve a folder, and below /moved redirects; yield the URL."""

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            if not self.path.startswith("/moved/"):
                return super().do_GET()
            self.send_response(307)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.end_headers()
            return None

        def log_message(self, *_: object) -> None:
            """Log nothing, to keep the output of the tests clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def token() -> str:
    return keys.mint(sub=USER, exp=int(time()) + 600)


@contextmanager
def worker(folder: Path, **bindings: str) -> Iterator[str]:
    """Run the Worker of the folder in workerd; yield its URL."""
    port = free_port()
    command = ["node_modules/.bin/workerd", "serve", "config.capnp", f"--socket-addr=http=127.0.0.1:{port}"]
    environment = {"PATH": os.environ["PATH"], **bindings}
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until(lambda: accepts(port), 30)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # the program of npm starts another, which it would leave
            process.wait(30)


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_client_works_in_cloudflare_s_workerd(packed: Path, tmp_path: Path) -> None:
    folder = app("workers", packed, tmp_path)
    with (
        served(url_of_the_test_database(), workers=1) as port,
        files(tmp_path) as site,
        worker(folder, SITE=f"http://127.0.0.1:{port}", MOVED=f"{site}/moved", TOKEN=token()) as url,
    ):
        saw = json.load(urlopen(url))
    assert saw == {
        "read": 20,
        "spent": 18,
        "again": [15, 2, 1],  # the balance, after two attempts with one key
        "exhausted": [True, 15, True],
        "moved": [True, "The quota service could not be reached: the response (307) redirects."],
    }
    assert spent(USER) == 5
    assert_sound(USER)


@pytest.fixture(scope="module")
def pages(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page that uses the hook, once for each version of React."""
    folder = app("browser", packed, tmp_path_factory.mktemp("browser"))
    for version in ("18", "19"):
        old = ["--alias:react=react-18", "--alias:react-dom=react-dom-18"] if version == "18" else []
        bundle = ["--bundle", "--format=esm", "--jsx=automatic", f"--outfile={version}.js", *old]
        done = run("node_modules/.bin/esbuild", "app.jsx", *bundle, cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / f"{version}.html").write_text(
            f'<!doctype html><div id="root"></div><script type="module" src="{version}.js"></script>'
        )
    return folder


class Page:
    def __init__(self, driver: WebDriver) -> None:
        self.driver = driver

    def text(self, selector: str) -> str:
        return self.driver.find_element("css selector", selector).text

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def double_click(self, selector: str) -> None:
        button = self.driver.find_element("css selector", selector)
        ActionChains(self.driver).double_click(button).perform()

    def until(self, selector: str, text: str) -> None:
        wait_until(lambda: text in self.text(selector), 20)

    def sent(self) -> list[str]:
        return list(self.driver.execute_script("return window.sent.splice(0)"))

    def set_network(self, conditions: dict[str, Any]) -> None:
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)


@pytest.fixture(params=["18", "19"])
def page(request: pytest.FixtureRequest, pages: Path, transactional_db: None, chromium: WebDriver) -> Any:
    """The page in Chromium, with a button that shows the hook, and the service behind it."""
    with files(pages) as origin, served(url_of_the_test_database(), CORS_ALLOWED_ORIGINS=origin) as port:
        query = urlencode({"baseUrl": f"http://127.0.0.1:{port}", "token": token()})
        chromium.execute_cdp_cmd("Network.enable", {})
        chromium.get(f"{origin}/{request.param}.html?{query}")
        page = Page(chromium)
        wait_until(lambda: bool(chromium.find_elements("css selector", "#show")))
        yield page
        page.set_network(ONLINE)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
class TestInChromium:
    def test_strict_mode_reads_once_and_a_click_spends_once(self, page: Page) -> None:
        page.click("#show")
        page.until("output", "20 left")
        page.click("#spend")
        page.until("output", "19 left")
        page.until("b", "19 left")
        assert page.sent() == ["GET", "POST"]
        assert spent(USER) == 1
        assert_sound(USER)

    def test_a_double_click_spends_once(self, page: Page) -> None:
        page.click("#show")
        page.until("output", "20 left")
        page.set_network(ONLINE | {"latency": 500})
        page.double_click("#spend")
        page.until("b", "20 left, spending")
        page.until("output", "19 left")
        page.until("b", "19 left")
        assert page.sent() == ["GET", "POST"]
        assert spent(USER) == 1

    def test_a_page_that_starts_without_a_network_reads_when_it_returns(self, page: Page) -> None:
        page.set_network(OFFLINE)
        page.click("#show")
        page.until("[role=alert]", "no response came")
        page.set_network(ONLINE)
        page.until("output", "20 left")
        assert page.text("[role=alert]") == ""

    def test_a_spend_without_a_network_is_sent_again_with_its_key(self, page: Page) -> None:
        page.click("#show")
        page.until("output", "20 left")
        page.set_network(OFFLINE)
        page.click("#spend")
        page.until("[role=alert]", "no response came")
        page.set_network(ONLINE)
        page.sent()
        wait_until(lambda: page.sent() == ["GET"])
        assert "no response came" in page.text("[role=alert]")
        page.click("#spend")
        page.until("output", "19 left")
        assert (page.text("[role=alert]"), spent(USER)) == ("", 1)

    def test_a_redirect_is_refused(self, page: Page) -> None:
        moved = page.driver.execute_async_script(
            "window.readAt(location.origin + '/moved').then(arguments[0])"
        )
        assert moved == "QuotaUnreachable: The quota service could not be reached: the response redirects."


def test_an_app_of_next_builds_and_prerenders(packed: Path, tmp_path: Path) -> None:
    folder = app("next", packed, tmp_path)
    done = run("node_modules/.bin/next", "build", cwd=folder, NEXT_TELEMETRY_DISABLED="1")
    assert done.returncode == 0, done.stdout + done.stderr
    prerendered = (folder / ".next/server/app/index.html").read_text()
    assert "<main><p>loading</p><p>function, Symbol(react.client.reference)</p></main>" in prerendered
