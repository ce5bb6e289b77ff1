"""Take the README's screenshots: `python -m tests.tools.screenshots FOLDER`.

They show `manage.py demo`, which is what a newcomer sees.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests import ROOT
from tests.tools import browser
from tests.tools.postgres import free_port

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

DEMO, ADMIN = (760, 860), (1360, 860)


class Demo(NamedTuple):
    """What the demo prints when it is ready."""

    site: str
    name: str
    password: str


@contextmanager
def demo() -> Iterator[Demo]:
    """Run the demo until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-u", "manage.py", "demo", str(free_port())],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        output = ""
        while "Ctrl-C" not in output:
            output += (line := process.stdout.readline())
            assert line, output
        match = re.search(r"(http://\S+)/admin/ +name (\S+), password (\S+)", output)
        assert match, output
        yield Demo(*match.groups())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(15)
        process.stdout.close()


def take(driver: WebDriver, shown: Demo, folder: Path) -> None:
    """Save a picture of each page that the README shows, in the light scheme."""
    browser.show_as(driver, DEMO)
    driver.implicitly_wait(10)
    driver.get(f"{shown.site}/demo")
    field = driver.find_element("id", "user_id")
    field.clear()
    field.send_keys("user_history_012", "\n")
    generate = driver.find_element("css selector", "#generate[aria-disabled=false]")
    driver.execute_script("arguments[0].click()", generate)  # the pointer must not hover over it
    driver.find_element("css selector", "#status strong")
    driver.find_element("css selector", "#generate[aria-busy=false]")
    browser.picture(driver, folder / "demo.png", whole=False)

    browser.show_as(driver, ADMIN)
    driver.get(f"{shown.site}/admin/")
    driver.find_element("id", "id_username").send_keys(shown.name)
    driver.find_element("id", "id_password").send_keys(shown.password, "\n")
    driver.find_element("id", "user-tools")
    driver.refresh()  # the first view of the overview sums the days that its time limit allows
    browser.picture(driver, folder / "overview.png", whole=False)
    often_refused = driver.find_element("css selector", ".overview table th a").get_attribute("href")
    driver.get(often_refused)
    browser.picture(driver, folder / "quota.png", whole=False)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to save the pictures, such as docs/pictures")
    folder = parser.parse_args(arguments).folder
    if browser.programs() is None:
        print(browser.MISSING, file=sys.stderr)
        return 1
    with demo() as shown, browser.started() as driver:
        take(driver, shown, folder)
    for path in sorted(folder.glob("*.png")):
        print(f"{path}  {path.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
