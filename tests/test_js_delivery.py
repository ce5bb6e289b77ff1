"""Deliveries signed by Svix's own JavaScript: the other end of the wire, written by others."""

import json
import shutil
import subprocess
import time
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import time_machine
from pytest_django import Settings

from webhooks.clerk import DeliveryRefused, verify

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "js_delivery.json").read_text("utf-8"))
PACKAGE = "svix@1.99.1"
SECRET = "whsec_" + b64encode(b"throw-away, made for this run only").decode()


def run(*command: str | Path, stdin: str = "", cwd: Path = HERE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, encoding="utf-8", timeout=120)


@pytest.fixture
def signer(tmp_path: Path) -> Path:
    """Return the signing script in a folder where its npm package is installed, or skip."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not on PATH")
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefix", tmp_path)
    try:
        installed = run("npm", "install", *options, PACKAGE, cwd=tmp_path)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm install {PACKAGE} took more than two minutes")
    if installed.returncode:
        why = [line for line in installed.stderr.splitlines() if line.startswith("npm error")]
        pytest.skip(f"npm cannot install {PACKAGE}: {' '.join(why)[:200]}")
    return Path(shutil.copy(HERE / "sign_delivery.mjs", tmp_path))


@pytest.mark.full
def test_a_delivery_that_javascript_signs_now_is_verified(signer: Path, settings: Settings) -> None:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [SECRET]
    signed = run("node", signer, SECRET, str(int(time.time())), stdin=RECORDED["body"])
    assert signed.returncode == 0, signed.stderr
    sent: dict[str, Any] = json.loads(signed.stdout)
    assert verify(sent["body"].encode(), sent["headers"]).data["id"] == "user_2js"


def test_a_recorded_delivery_of_javascript_is_verified_at_its_time(settings: Settings) -> None:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [RECORDED["secret"]]
    with at_its_time():
        delivery = verify(RECORDED["body"].encode(), RECORDED["headers"])
    assert (delivery.type, delivery.data["first_name"]) == ("user.updated", "Zoë 🎉 é")


def test_what_is_signed_is_the_bytes_and_not_their_meaning(settings: Settings) -> None:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [RECORDED["secret"]]
    again = json.dumps(json.loads(RECORDED["body"])).encode()
    with at_its_time(), pytest.raises(DeliveryRefused, match="does not match"):
        verify(again, RECORDED["headers"])


def at_its_time() -> time_machine.travel:
    instant = datetime.fromtimestamp(int(RECORDED["headers"]["svix-timestamp"]), UTC)
    return time_machine.travel(instant, tick=False)
