"""The rotations of docs/operations.md: no session of staff and no connection is lost on the way."""

import re
from collections.abc import Iterator

import psycopg
import pytest
from django.test import Client
from pytest_django import Settings

from tests import ROOT
from tests.site.test_settings import read_setting
from tests.tools.forked import manage
from tests.tools.postgres import Server
from tests.tools.staff import LIST, sign_in

OLD, NEW = "the old key " * 5, "the new key " * 5
GUIDE = (ROOT / "docs/operations.md").read_text()


@pytest.fixture
def staff(db: None, settings: Settings) -> Client:
    """Staff who signed in under the old SECRET_KEY."""
    settings.SECRET_KEY = OLD
    browser = sign_in("view_challengequota")
    assert browser.get(LIST).status_code == 200
    settings.SECRET_KEY = NEW
    return browser


def test_under_a_new_secret_key_staff_must_sign_in_again(staff: Client) -> None:
    assert staff.get(LIST).status_code == 302


def test_with_the_old_key_as_a_fallback_staff_stay_signed_in(staff: Client, settings: Settings) -> None:
    settings.SECRET_KEY_FALLBACKS = [OLD]
    assert staff.get(LIST).status_code == 200


def test_who_came_meanwhile_stays_signed_in_without_the_fallback(staff: Client, settings: Settings) -> None:
    settings.SECRET_KEY_FALLBACKS = [OLD]
    staff.get(LIST)
    settings.SECRET_KEY_FALLBACKS = []
    assert staff.get(LIST).status_code == 200


@pytest.mark.once
def test_the_fallbacks_are_a_list() -> None:
    assert read_setting("SECRET_KEY_FALLBACKS", SECRET_KEY_FALLBACKS="one, two") == "['one', 'two']"


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that asks everybody but its superuser for a password."""
    with Server(fsync=False, in_memory=True, connections=20) as server:
        with psycopg.connect(server.url, autocommit=True) as session:
            session.execute("CREATE ROLE postgres SUPERUSER LOGIN")
        rules = ("local all all trust", "host all postgres all trust", "host all all all scram-sha-256")
        (server.data / "pg_hba.conf").write_text("\n".join(rules))
        server.restart()
        yield server


@pytest.mark.postgres
@pytest.mark.once
def test_the_roles_of_the_guide_replace_each_other(server: Server) -> None:
    admin_url, first, second = (
        server.url.replace("quotasite@", f"{role}@")
        for role in ("postgres", "quotasite:pw", "quotasite_2:pw")
    )
    begun, ended = (
        block for block in re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL) if "ROLE quotasite" in block
    )
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute("ALTER ROLE quotasite RENAME TO of_the_harness")
        admin.execute("CREATE ROLE quotasite LOGIN PASSWORD 'pw'; GRANT ALL ON SCHEMA public TO quotasite")
        assert manage("migrate", "-v0", DATABASE_URL=first).returncode == 0
        admin.execute(begun.replace("NEW-PASSWORD", "pw"))
        for url in (first, second):  # both work while processes are replaced
            done = manage("create_service_key", "worker", "--scopes", "read", DATABASE_URL=url)
            assert done.returncode == 0, done.stderr
        admin.execute(ended)
    assert manage("audit_ledger", DATABASE_URL=first).returncode == 1
    with psycopg.connect(second) as session:  # so the first role owns what the next migration makes
        assert session.execute("SELECT current_user").fetchone() == ("quotasite",)
    for command in (["migrate", "quotas", "0013"], ["migrate"]):  # only the owner of a table may alter it
        done = manage(*command, "-v0", DATABASE_URL=second)
        assert done.returncode == 0, done.stderr
