"""Service keys by command: listed without a secret, revoked, rotated without an outage."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import StringIO
from threading import Barrier

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from quotas.access import service_keys
from quotas.models import CannotRotate, LedgerEntry, ServiceKey
from tests.api.test_service import Service

pytestmark = pytest.mark.django_db
SCOPES = ["consume", "read"]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def _no_key_is_remembered() -> Iterator[None]:
    service_keys._cache.clear()
    yield
    service_keys._cache.clear()


def run(command: str, *arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command(f"{command}_service_key", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def listed(*arguments: str) -> str:
    out = StringIO()
    call_command("list_service_keys", *arguments, stdout=out)
    return out.getvalue()


def status(text: str) -> int:
    return Service(text.strip()).get("quota").status_code


def let_expire(key: ServiceKey, at: datetime) -> None:
    ServiceKey.objects.filter(pk=key.pk).update(expires_at=at)


# The list


def test_the_list_shows_what_each_key_may_do_and_its_state() -> None:
    ServiceKey.make("worker", SCOPES)
    ServiceKey.make("old", ["admin"], datetime.now(UTC) - DAY)
    key, _ = ServiceKey.make("lost", ["read"])
    key.revoke()
    header, *rows = (re.split(r"  +", line) for line in listed().splitlines())
    assert header == ["NAME", "KEY", "SCOPES", "STATE", "CREATED", "LAST USED", "EXPIRES"]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("lost", "read", "revoked"),
        ("old", "admin", "expired"),
        ("worker", "consume, read", "active"),
    ]
    assert rows[2][5:] == ["never", "never"]
    assert rows[0][1] == f"qs_{key.prefix}"


def test_the_list_for_programs_has_every_instant() -> None:
    key, text = ServiceKey.make("worker", SCOPES, datetime(2099, 1, 1, tzinfo=UTC))
    assert status(text) == 200
    [row] = map(json.loads, listed("--json").splitlines())
    assert (row["id"], row["prefix"], row["scopes"]) == (str(key.id), f"qs_{key.prefix}", SCOPES)
    assert (row["expires_at"], row["revoked_at"]) == ("2099-01-01T00:00:00.000000Z", None)
    assert row["last_used_at"] >= row["created_at"]


def test_no_list_shows_a_secret() -> None:
    key, text = ServiceKey.make("worker", SCOPES)
    for shown in (listed(), listed("--json")):
        assert text[12:] not in shown
        assert key.digest not in shown


def test_a_name_sends_nothing_to_the_terminal() -> None:
    ServiceKey.make("\x1b[2Jworker", SCOPES)
    assert "\x1b" not in listed()


# Revoking


@pytest.mark.parametrize("wanted", ["worker", "{key.id}", "qs_{key.prefix}", "{text}"])
def test_a_key_is_revoked_by_its_name_id_or_first_characters(wanted: str) -> None:
    key, text = ServiceKey.make("worker", SCOPES)
    out, _ = run("revoke", wanted.format(key=key, text=text))
    assert out == f"worker (qs_{key.prefix}_…) is revoked, and stops working within 10 seconds.\n"
    assert status(text) == 401


def test_revoking_again_changes_nothing() -> None:
    key, _ = ServiceKey.make("worker", SCOPES)
    run("revoke", f"qs_{key.prefix}")
    first = ServiceKey.objects.get().revoked_at
    assert "is revoked already." in run("revoke", f"qs_{key.prefix}")[0]
    assert ServiceKey.objects.get().revoked_at == first


@pytest.mark.parametrize(
    "wanted",
    ["wörker", "", "x" * 500, "\udcff", "qs_00000000", "00000000-0000-0000-0000-000000000000"],
)
@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_a_key_that_does_not_exist_is_said_in_one_line(command: str, wanted: str) -> None:
    ServiceKey.make("worker", SCOPES)
    with pytest.raises(CommandError, match=r"^There is no service key .*list_service_keys shows all\.$"):
        run(command, wanted)
    assert ServiceKey.objects.get().state == "active"


def test_the_message_does_not_repeat_a_whole_key() -> None:
    with pytest.raises(CommandError) as refused:
        run("revoke", f"qs_00000000_{'x' * 43}")
    assert "xxx" not in str(refused.value)


def test_a_name_that_two_active_keys_have_is_not_guessed() -> None:
    for _ in range(2):
        ServiceKey.make("worker", SCOPES)
    with pytest.raises(CommandError, match="2 active keys have this name: say which, qs_"):
        run("revoke", "worker")


# Rotating


def test_the_new_key_has_the_name_and_scopes_of_the_old_one() -> None:
    old, old_text = ServiceKey.make("worker", SCOPES)
    out, err = run("rotate", "worker")
    assert re.fullmatch(r"qs_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n", out)
    assert out.strip() not in err
    new = ServiceKey.objects.exclude(pk=old.pk).get()
    assert (new.name, new.scopes, new.expires_at) == ("worker", SCOPES, None)
    assert status(out) == status(old_text) == 200


def test_the_old_key_ends_after_the_overlap() -> None:
    old, text = ServiceKey.make("worker", SCOPES)
    _, err = run("rotate", "worker", "--overlap", "2")
    old.refresh_from_db()
    assert old.expires_at
    assert timedelta(hours=1.9) < old.expires_at - datetime.now(UTC) <= 2 * HOUR
    assert f"worker (qs_{old.prefix}_…), works until {old.expires_at:%Y-%m-%dT%H:%M:%S}" in err
    let_expire(old, datetime.now(UTC))
    service_keys._cache.clear()
    assert status(text) == 401


def test_without_an_overlap_the_old_key_ends_now() -> None:
    _, text = ServiceKey.make("worker", SCOPES)
    out, _ = run("rotate", "worker", "--overlap", "0")
    assert (status(text), status(out)) == (401, 200)


def test_a_rotation_never_prolongs_a_key() -> None:
    soon = datetime.now(UTC) + HOUR
    old, _ = ServiceKey.make("worker", SCOPES, soon)
    run("rotate", "worker", "--days", "90", "--overlap", "24")
    old.refresh_from_db()
    assert old.expires_at == soon


def test_a_key_that_expires_is_not_replaced_by_one_that_never_does() -> None:
    ServiceKey.make("worker", SCOPES, datetime.now(UTC) + DAY)
    with pytest.raises(CommandError, match="say with --days"):
        run("rotate", "worker")
    run("rotate", "worker", "--days", "90")
    expires_in = max(key.expires_at for key in ServiceKey.objects.all() if key.expires_at) - datetime.now(UTC)
    assert 89 * DAY < expires_in <= 90 * DAY


def test_a_retry_with_the_new_key_spends_nothing_more() -> None:
    """Idempotency keys are by kind of caller, so servers may be changed between a request and its retry."""
    _, old = ServiceKey.make("worker", SCOPES)
    spent = Service(old).post("consume", {"cost": 2}, key="order-17")
    new, _ = run("rotate", "worker")
    again = Service(new.strip()).post("consume", {"cost": 2}, key="order-17")
    assert (again.status_code, again["Idempotent-Replayed"]) == (201, "true")
    assert again.json()["id"] == spent.json()["id"]
    assert LedgerEntry.objects.filter(kind="consumed").count() == 1


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_key_that_has_ended_is_not_rotated(end: str) -> None:
    key, _ = ServiceKey.make("worker", SCOPES)
    if end == "revoked":
        key.revoke()
    else:
        let_expire(key, datetime.now(UTC) - DAY)
    with pytest.raises(CommandError, match=f"is {end}: create a new key"):
        run("rotate", f"qs_{key.prefix}")
    assert ServiceKey.objects.count() == 1


def test_a_rotated_key_is_not_rotated_again() -> None:
    old, _ = ServiceKey.make("worker", SCOPES)
    run("rotate", "worker")
    with pytest.raises(CommandError, match=r"is active too: if .* was rotated already, use that one"):
        run("rotate", f"qs_{old.prefix}")
    assert ServiceKey.objects.count() == 2


@pytest.mark.parametrize("wrong", [("--overlap", "-1"), ("--overlap", "8785"), ("--days", "0")])
def test_a_life_that_makes_no_sense_is_refused(wrong: tuple[str, str]) -> None:
    ServiceKey.make("worker", SCOPES)
    with pytest.raises(CommandError, match="must be a whole number from"):
        run("rotate", "worker", *wrong)
    assert ServiceKey.objects.count() == 1


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_eight_rotations_at_once_make_one_key() -> None:
    key, _ = ServiceKey.make("worker", SCOPES)
    start = Barrier(8)

    def rotate() -> bool:
        try:
            start.wait()
            key.rotate(DAY)
        except CannotRotate:
            return False
        else:
            return True
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        done = [future.result() for future in [threads.submit(rotate) for _ in range(8)]]
    assert done.count(True) == 1
    assert ServiceKey.objects.count() == 2
