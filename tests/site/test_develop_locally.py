"""docs/develop-locally.md: an app on your own machine reaches the demo, and a service for your own Clerk."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.tools import keys
from tests.tools.pages import checkout_in, commands_of, text_of
from tests.tools.postgres import free_port

pytestmark = pytest.mark.once
APP, OTHER = "http://localhost:5173", "http://localhost:3000"
DEMO, *SETTINGS, MIGRATE, RUN, CURL = commands_of("develop-locally")
CLERK = "https://clerk.example.com"  # the instance of the page's publishable key


@contextmanager
def started(line: str, folder: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a line of the page in the checkout, and end it as Ctrl-C does."""
    process = subprocess.Popen(
        ["sh", "-c", line],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # as a terminal: Ctrl-C reaches the shell and what it started
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)


def allowed(url: str, origin: str, **headers: str) -> bool:
    """Return whether a browser would let a page of `origin` send the request and read the answer."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = httpx.options(f"{url}/consume", headers={"Origin": origin, **asked})
    answer = httpx.get(url, headers={"Origin": origin, **headers})
    assert answer.status_code == (200 if headers else 401)
    values = {response.headers.get("Access-Control-Allow-Origin") for response in (preflight, answer)}
    assert values <= {origin} or values == {None}
    return values == {origin}


def read_until(process: "subprocess.Popen[str]", pattern: str) -> "re.Match[str]":
    assert process.stdout
    seen = ""
    for line in process.stdout:
        seen += line
        if match := re.search(pattern, line):
            return match
    raise AssertionError(seen)


def test_an_app_of_the_named_origin_can_use_the_demo_with_its_token(tmp_path: Path) -> None:
    with started(f"{DEMO} {free_port()}", checkout_in(tmp_path)) as demo:
        variables = Path(read_until(demo, r"^    \. (/\S+/env)$")[1]).read_text()
        site, token = re.findall(r"^export (?:SITE|TOKEN)=(\S+)$", variables, re.MULTILINE)
        url = f"{site}/api/v1/quota"
        assert allowed(url, APP, Authorization=f"Bearer {token}")
        assert not allowed(url, OTHER, Authorization=f"Bearer {token}")


def test_an_app_of_the_named_origin_can_use_a_service_for_its_own_clerk(tmp_path: Path) -> None:
    """The key is in CLERK_JWT_KEY here, because nobody serves those of the page's instance."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/v1/quota"
    lines = "\n".join([*SETTINGS, f"{MIGRATE} -v0 && exec {RUN} --noreload {port}"])
    environment = {"DATABASE_URL": f"sqlite:///{tmp_path}/quotas.sqlite3", "CLERK_JWT_KEY": keys.public_pem}
    with started(lines, checkout_in(tmp_path), **environment) as service:
        read_until(service, "Starting development server|Quit the server")
        token = keys.mint(iss=CLERK, azp=APP)
        assert allowed(url, APP, Authorization=f"Bearer {token}")
        assert not allowed(url, OTHER, Authorization=f"Bearer {token}")
        other = httpx.get(url, headers={"Authorization": f"Bearer {keys.mint(iss=CLERK, azp=OTHER)}"})
        assert (other.status_code, other.json()["code"]) == (401, "token_azp")
        done = subprocess.run(["sh", "-c", CURL.replace("8000", str(port))], capture_output=True, text=True)
        assert f"access-control-allow-origin: {APP}" in done.stdout.lower(), done.stderr


def test_the_page_says_what_the_client_says_when_no_answer_came() -> None:
    client = (Path(__file__).parents[2] / "clients/typescript/src/connection.ts").read_text()
    [said] = re.findall(r"says \"(The quota service[^\"]*)\"", text_of("develop-locally"))
    assert said == "The quota service could not be reached: no response came."
    assert said in client
