"""The restore drill of docs/operations.md: a restored backup is complete, and its ledger is sound."""

from uuid import uuid4

import pytest

from quotas.models import ChallengeQuota, Plan, PlanVersion
from quotas.store import plan_cache
from tests.rules.test_verbs import FREE
from tests.tools.forked import manage
from tests.tools.postgres import Server

pytestmark = pytest.mark.once
WHOLE = "3 users, 23 entries, 0 faults"
SPEND = (
    "from quotas.models import ChallengeQuota as Q; [Q.objects.consume(f'user_{n % 3}') for n in range(20)]"
)


def run(server, program, *arguments):
    """Run one of PostgreSQL's programs as the user that runs the server."""
    path = server.programs / program
    if not path.exists():
        pytest.skip(f"{program} is not installed here")
    server._run(path, *arguments)


@pytest.fixture(scope="module")
def server():
    with Server(fsync=False, in_memory=True) as server:
        assert manage("migrate", "-v0", DATABASE_URL=server.url).returncode == 0
        assert manage("shell", "-v0", "-c", SPEND, DATABASE_URL=server.url).returncode == 0
        yield server


def audit(url):
    return manage("audit_ledger", DATABASE_URL=url).stdout


def test_a_dump_comes_back_whole(server):
    dump, to = str(server.folder / "quotas.dump"), ("--port", str(server.port), "--username=quotasite")
    host = "--host=127.0.0.1"
    run(server, "pg_dump", "--format=custom", "--no-owner", "--file", dump, server.url)
    run(server, "createdb", host, *to, "restored")
    run(server, "pg_restore", "--exit-on-error", "--no-owner", host, *to, "--dbname=restored", dump)
    restored = f"{server.url.rpartition('/')[0]}/restored"
    assert audit(restored).startswith(WHOLE)
    assert manage("migrate", "--check", DATABASE_URL=restored).returncode == 0


def test_a_copy_of_the_whole_server_starts_and_is_whole(server):
    copy = server.folder / "copy"
    run(
        server,
        "pg_basebackup",
        "--pgdata",
        str(copy),
        "--checkpoint=fast",
        "--no-sync",
        "--dbname",
        server.url,
    )
    server.stop()
    original, server.data = server.data, copy
    try:
        server.start()
        assert audit(server.url).startswith(WHOLE)
    finally:
        server.stop()
        server.data = original
        server.start()


# Beside running processes


def new_limit() -> int | None:
    return ChallengeQuota.objects.current(f"user_{uuid4().hex}").quota_limit


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_a_version_number_that_comes_again_has_its_new_rules() -> None:
    """A backup of before version 2 was restored, and the plan edited anew, while this process went on."""
    plan = Plan.objects.get(is_default=True)
    first = PlanVersion.objects.get(plan=plan)
    plan.allowance = 1_000
    plan.save()
    assert [new_limit() for _ in range(3)] == [1_000] * 3
    PlanVersion.objects.filter(version=2).delete()
    Plan.objects.update(allowance=20, version=1, version_id=first.id)
    plan.refresh_from_db()
    plan.allowance = 30
    plan.save()
    assert plan.version == 2
    assert [new_limit() for _ in range(3)] == [30] * 3


def test_a_version_of_another_plan_is_not_remembered_by_this_ones_id() -> None:
    mine, other = FREE._replace(name="mine"), FREE._replace(name="other")
    newest_id = uuid4()
    plan_cache.remember(newest_id, mine, other, None)
    assert plan_cache.get(newest_id, "mine", 1) == mine
    assert plan_cache.get(newest_id, "other", 1) is None
    assert plan_cache.get(uuid4(), "mine", 1) is None
