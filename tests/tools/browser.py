"""A real Chromium: viewport and colour scheme, axe's findings, console errors, screenshots.

As a pytest plugin (pyproject.toml) it provides the fixtures `site` (the URL of the site as deployed, on the
test database), `chromium` (one browser a module, without state for each test) and `chromium_too` (a second).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from django.contrib.auth.models import User
    from selenium.webdriver.chrome.webdriver import WebDriver

WIDE, PHONE, NARROW = (1360, 900), (420, 800), (320, 640)
SETTLED = "Promise.allSettled(document.getAnimations().map((one) => one.finished))"
MISSING = "no Chromium here: apt-get install chromium chromium-driver"


def programs() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver, or None if either is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def started() -> Iterator[WebDriver]:
    """Start a headless Chromium with an empty profile; skip the test if none is installed."""
    from selenium import webdriver

    paths = programs()
    if paths is None:
        pytest.skip(MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location, service = paths[0], webdriver.ChromeService(paths[1])
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", "lang=en"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, service)
    driver.set_page_load_timeout(30)
    driver.set_script_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


def show_as(
    driver: WebDriver,
    size: tuple[int, int] = WIDE,
    *,
    dark: bool = False,
    reduced_motion: bool = False,
) -> None:
    """Set the current tab's viewport and user preferences, without a reload."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else "no-preference"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})


def sign_in(driver: WebDriver, site: str, user: User) -> None:
    """Sign the browser in at the admin, with a session such as the login form creates."""
    from django.test import Client

    client = Client()
    client.force_login(user)
    driver.get(f"{site}/healthz")  # a cookie can only be set for the page's own site
    driver.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value, "path": "/"})


def axe(driver: WebDriver) -> list[str]:
    """Return what axe finds wrong with the current page: one line for each violated rule.

    The driver runs scripts as the debugger does, exempt from the page's Content-Security-Policy, which stays.
    """
    driver.execute_script(axe_source())
    results: dict[str, Any] = driver.execute_async_script(
        f"const done = arguments[0]; {SETTLED}.then(() => axe.run())"
        ".then(done, error => done({error: String(error)}))"
    )
    assert "error" not in results, results
    assert results["passes"], "axe checked nothing"
    return [
        f"{rule['id']}: {rule['help']}: " + "; ".join(str(node["target"]) for node in rule["nodes"])
        for rule in results["violations"]
    ]


def axe_source() -> str:
    """Return axe-core's script: the file that AXE names, such as a newer one from npm, or the package's."""
    if named := os.environ.get("AXE"):
        return Path(named).read_text()
    package = find_spec("axe_core_python")
    assert package
    assert package.origin
    return (Path(package.origin).parent / "axe.min.js").read_text()


def console_errors(driver: WebDriver, *, but: tuple[int, ...] = ()) -> list[str]:
    """Return the console errors since the last call: of scripts, of the page's policy, of loading.

    `but` holds the statuses that the test causes: Chromium logs each as "Failed to load resource: the server
    responded with a status of 429", which no page can prevent.
    """
    severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    expected = tuple(f"the server responded with a status of {status} " for status in but)
    return [
        entry["message"]
        for entry in severe
        if not (entry["source"] == "network" and any(part in entry["message"] for part in expected))
    ]


def overflow(driver: WebDriver) -> int:
    """Return by how many pixels the page is wider than its viewport, 0 if it does not scroll sideways."""
    return int(
        driver.execute_script(
            "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
        )
    )


def picture(driver: WebDriver, path: Path, *, whole: bool = True) -> None:
    """Save the page as a PNG: all of it, or only what is in the viewport."""
    import base64

    driver.execute_async_script(f"{SETTLED}.then(arguments[0])")
    options = {"format": "png", "captureBeyondViewport": whole}
    if whole:
        size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(shot))


@pytest.fixture(scope="module")  # not longer: an open page keeps using CPU that other tests need
def _chromium() -> Iterator[WebDriver]:
    with started() as driver:
        yield driver


@pytest.fixture
def chromium(_chromium: WebDriver) -> WebDriver:
    """The module's browser without state from other tests, 1360 × 900 and light."""
    before = _chromium.window_handles
    _chromium.switch_to.new_window("tab")
    fresh = _chromium.current_window_handle
    for other in before:
        _chromium.switch_to.window(other)
        _chromium.close()
    _chromium.switch_to.window(fresh)
    _chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    _chromium.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "all"})
    show_as(_chromium)
    _chromium.get_log("browser")
    return _chromium


@pytest.fixture
def chromium_too() -> Iterator[WebDriver]:
    """A second browser, which shares nothing with the first."""
    with started() as driver:
        show_as(driver)
        yield driver


@contextmanager
def served_to_look_at(port: int | None = None, **environment: str) -> Iterator[str]:
    """Serve the site as the Procfile does, on the test database and with the demo page; yield its URL."""
    from django.conf import settings

    from tests.tools import keys
    from tests.tools.site import served, url_of_the_test_database

    variables = {
        "DEBUG": "1",  # plain http, and the demo page; the rest is as deployed
        "SECRET_KEY": settings.SECRET_KEY,  # so that `sign_in` can create sessions
        "DJANGO_SETTINGS_MODULE": "tests.tools.browser_settings",
        "TEST_SIGNING_KEY": keys.private_pem,
    }
    with served(url_of_the_test_database(), workers=2, port=port, **(variables | environment)) as actual_port:
        yield f"http://127.0.0.1:{actual_port}"


@pytest.fixture(scope="module")
def _site(django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    with django_db_blocker.unblock(), served_to_look_at() as address:
        yield address


@pytest.fixture
def site(_site: str, transactional_db: None, django_db_serialized_rollback: None) -> str:
    """The URL of the served site, on this test's data."""
    return _site
