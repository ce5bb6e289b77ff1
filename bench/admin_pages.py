"""How quick the console is at a million quotas: `python -m bench.admin_pages [--users N]`.

Starts a throw-away PostgreSQL, fills it, asks each page for its time in the server, and PostgreSQL
how it answers each query. Exits 1 if a query reads more than MOST_ROWS of a table that grows with
the users, if a page is slower than MOST_MS, or if too few of the spends' updates are HOT.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import django
from uuid_utils.compat import uuid7

from quotas.rules import outcomes, values, verbs
from quotas.rules.outcomes import Change
from quotas.rules.values import Actor, Entry, Plan, Request, Snapshot, State
from tests.tools.postgres import Server, engine

TEMPLATES = 2_000  # users whose life the rules play; all others are copies of them
PLANS = {  # name: allowance, days a period, users out of 100
    "free": (20, 1, 80),
    "pro": (200, 7, 10),
    "team": (1_000, 30, 7),
    "partner": (None, 1, 2),
    "blocked": (0, 1, 1),
}
RUNS = 5  # of a page, after one that warms the caches
MOST_MS = 100  # of the server's time, at the least: other work on this machine makes it more
MOST_ROWS = 50_000  # that one query may read: a scan that a LIMIT ends early is no harm
SPENDS, SPENDERS = 20_000, 2_000
LEAST_HOT = 95  # per cent

GROWING = QUOTAS, ENTRIES, EVENTS = "challenge_quotas", "ledger_entries", "webhook_events"

# Of a copy: its user, e-mail, instants (some seconds earlier for each), and ids ordered by time.
USER = "'user_' || substr(md5(user_id || '-' || copy), 1, 24)"
EMAIL = "CASE WHEN deleted_at IS NULL THEN substr(md5(copy || user_id), 1, 8) || '@example.com' ELSE '' END"
EARLIER = "{} - copy * interval '1 second'"
ENTRY_ID = """(
    lpad(to_hex((extract(epoch FROM created_at - copy * interval '1 second') * 1000)::bigint), 12, '0')
    || '7' || substr(md5(id::text || copy), 1, 3) || '8' || substr(md5(copy || id::text), 1, 15)
)::uuid"""
KEY = "CASE kind WHEN 'consumed' THEN 'consume:user:' || md5(copy || id::text) END"
FINGERPRINT = "CASE kind WHEN 'consumed' THEN repeat(md5(id::text), 2) ELSE '' END"

DELIVERIES = f"""
    INSERT INTO {EVENTS} (svix_id, type, user_id, email, occurred_at, handled_at, status, note)
    SELECT 'msg_' || md5(user_id),
        CASE number WHEN 0 THEN 'user.deleted' WHEN 1 THEN 'session.created' ELSE 'user.created' END,
        user_id, email, anchor_at, anchor_at, CASE number WHEN 1 THEN 'ignored' ELSE 'success' END, ''
    FROM (SELECT *, abs(hashtext(user_id)) % 200 AS number FROM {QUOTAS}) AS numbered
    ORDER BY anchor_at
"""


class Seen(NamedTuple):
    """What a page cost, in milliseconds, and its statements."""

    times: list[float]  # from request to answer
    cpu: float  # of these at the least, what Python took
    statements: list[str]


class Scan(NamedTuple):
    name: str
    rows: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.admin_pages", allow_abbrev=False)
    parser.add_argument("--users", type=int, default=1_000_000)
    users = parser.parse_args().users
    with Server(fsync=False) as server:
        os.environ.update(
            DATABASE_URL=server.url,
            DJANGO_SETTINGS_MODULE="quotasite.settings",
            SECRET_KEY="of a bench",
            ALLOWED_HOSTS="testserver",
        )
        django.setup()
        print(engine(server.url), flush=True)
        fill(users)
        are_pages_fine = measure()
        return 0 if are_spends_hot() and are_pages_fine else 1


def fill(users: int) -> None:
    """Migrate, play the templates, and copy them."""
    from django.core.management import call_command
    from django.db import connection

    began = time.monotonic()
    call_command("migrate", verbosity=0)
    play()
    with connection.cursor() as cursor:
        cursor.execute("SET work_mem = '256MB'")
        for table in (QUOTAS, ENTRIES):
            cursor.execute(f"CREATE TEMP TABLE played AS TABLE {table}")
            cursor.execute(f"TRUNCATE {table}")
            cursor.execute(copies(table), [users // TEMPLATES])
            cursor.execute("DROP TABLE played")
        cursor.execute(DELIVERIES)
        cursor.execute("VACUUM ANALYZE")
        for table in GROWING:
            cursor.execute(f"SELECT COUNT(*), pg_size_pretty(pg_total_relation_size('{table}')) FROM {table}")
            rows, size = cursor.fetchone()
            print(f"{rows:>10,} {table}, {size} with indexes")
        cursor.execute("RESET work_mem")
    print(f"made in {time.monotonic() - began:.0f} s", flush=True)


def play() -> None:
    """Store the templates: users who sign up within a month, and ask hourly, or once, or in between."""
    from quotas.models import ChallengeQuota, LedgerEntry
    from quotas.models import Plan as Plans

    for name, (allowance, days, _) in PLANS.items():
        plan = Plans.objects.filter(name=name).first() or Plans(name=name)
        plan.allowance, plan.period_seconds = allowance, days * 86_400
        plan.save()
    plans = [plan.value for plan in Plans.objects.all()]
    shares = [PLANS[plan.name][2] for plan in plans]
    chance = random.Random(20)
    lives = [
        life(f"user_{number}", plan, chance)
        for number, plan in enumerate(chance.choices(plans, shares, k=TEMPLATES))
    ]
    rows = [{column.name: getattr(state, column.name) for column in fields(State)} for state, _ in lives]
    ChallengeQuota.objects.bulk_create(ChallengeQuota(plan_id=row.pop("plan"), **row) for row in rows)
    LedgerEntry.objects.bulk_create(
        (
            LedgerEntry(**{column.name: getattr(entry, column.name) for column in fields(Entry)})
            for _, entries in lives
            for entry in entries
        ),
        batch_size=2_000,
    )


def life(user_id: str, plan: Plan, chance: random.Random) -> tuple[State, list[Entry]]:
    """What the rules make of one user's month."""
    now = datetime.now(UTC)
    clock = now - timedelta(days=30) * chance.random()
    pause = timedelta(days=1) * chance.choices([0.1, 3, 45], [1, 14, 185])[0]
    state: State | None = None
    entries: list[Entry] = []

    def ask(verb: Any) -> None:
        nonlocal state
        snapshot = Snapshot(user_id, clock, plan, plan, state, None, None, (uuid7(), uuid7()))
        outcome = verb(snapshot, Request(Actor("user", user_id)))
        if isinstance(outcome, Change):
            state = outcome.state
            entries.extend(outcome.entries)

    ask(verbs.current)
    while clock < now:
        for _ in range(chance.choice([1, 2, 3])):
            ask(partial(verbs.consume, cost=chance.choice([1, 2, 5, 10])))
        clock += pause * chance.expovariate(1)
    clock = now
    if end := chance.choices([None, verbs.delete, partial(verbs.adjust, delta=5)], [99, 0.3, 0.7])[0]:
        ask(end)
    assert state  # it was opened
    return state, entries


def copies(table: str) -> str:
    """The statement that copies what was played so many times."""
    columns = {column.name: column.name for column in fields(State if table == QUOTAS else Entry)}
    for name in columns:
        if name.endswith(("_at", "_date")):
            columns[name] = EARLIER.format(name)
    columns["user_id"] = USER
    if table == QUOTAS:
        del columns["plan"]
        columns |= {"plan_id": "plan_id", "email": EMAIL}
    else:
        columns |= {"id": ENTRY_ID, "idempotency_key": KEY, "fingerprint": FINGERPRINT}
    order = columns["anchor_at" if table == QUOTAS else "created_at"]
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} "
        f"FROM played, generate_series(1, %s) AS copy ORDER BY {order}"
    )


def pages() -> Iterator[tuple[str, str]]:
    """The pages to look at: what each is called, and where it is."""
    from quotas.console.display import quota_url
    from quotas.models import ChallengeQuota, LedgerEntry
    from webhooks.models import WebhookEvent

    quotas, ledger, inbox = (
        f"/admin/{it}/" for it in ("quotas/challengequota", "quotas/ledgerentry", "webhooks/webhookevent")
    )
    some = ChallengeQuota.objects.exclude(email="").order_by("user_id")[1_000]
    busy = ChallengeQuota.objects.filter(
        pk__in=LedgerEntry.objects.order_by("-id").values("user_id")[:1_000]
    ).order_by("-seq")[0]
    delivery = WebhookEvent.objects.order_by("pk")[1_000]
    yield "overview", "/admin/"
    yield "quotas", quotas
    yield "quotas, page 2", f"{quotas}?p=2"
    yield "quotas, page 200", f"{quotas}?p=200"
    yield "quotas, search for an id", f"{quotas}?q={some.user_id}"
    yield "quotas, search for a beginning of ids", f"{quotas}?q={some.user_id[:8]}"
    yield "quotas, search for the beginning of all ids", f"{quotas}?q=user_"
    yield "quotas, search for the beginning of an e-mail", f"{quotas}?q={some.email[:5]}"
    yield "quotas, search for nobody", f"{quotas}?q=nobody"
    for state in ("exhausted", "open", "deleted"):
        yield f"quotas, {state}", f"{quotas}?state={state}"
    for plan in PLANS:
        yield f"quotas, plan {plan}", f"{quotas}?plan__name__exact={plan}"
    yield "quotas, plan pro, deleted", f"{quotas}?plan__name__exact=pro&state=deleted"
    yield "quotas, plan pro, exhausted", f"{quotas}?plan__name__exact=pro&state=exhausted"
    yield "quotas, plan pro, search", f"{quotas}?plan__name__exact=pro&q={some.user_id[:8]}"
    yield "a quota", quota_url(some.pk)
    yield "a quota with many entries", quota_url(busy.pk)
    yield "ledger", ledger
    yield "ledger, page 200", f"{ledger}?p=200"
    yield "ledger, search for a user", f"{ledger}?q={busy.pk}"
    for kind in values.EntryKind:
        yield f"ledger, {kind}", f"{ledger}?kind__exact={kind}"
    yield "plans", "/admin/quotas/plan/"
    yield "a plan", "/admin/quotas/plan/free/change/"
    yield "inbox", inbox
    yield "inbox, page 200", f"{inbox}?p=200"
    yield "inbox, search for a beginning of users", f"{inbox}?q={some.user_id[:8]}"
    yield "inbox, search for a beginning of deliveries", f"{inbox}?q={delivery.pk[:8]}"
    yield "inbox, search for nobody", f"{inbox}?q=nobody"
    for status in ("success", "ignored"):
        yield f"inbox, {status}", f"{inbox}?status__exact={status}"
    for kind in ("user.created", "user.updated", "user.deleted", "other"):
        yield f"inbox, {kind}", f"{inbox}?type={kind}"


def measure() -> bool:
    """Print what each page costs, and how each query is answered; tell whether that is as it should be."""
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_superuser("bench"))
    first_looks(client)
    plans: dict[str, list[list[Scan]]] = {}
    times: dict[str, list[float]] = {}
    print(f"\n{'page':<48} {'median ms':>10} {'least':>6} {'CPU':>6} {'queries':>8}")
    for again in (False, True):  # what was slow, perhaps because of others, is looked at once more
        for name, path in pages():
            if again and min(times[name]) <= MOST_MS:
                continue
            seen = look(client, path)
            times[name] = seen.times
            plans[name] = [explain(statement) for statement in seen.statements if reads(statement)]
            median, least = statistics.median(seen.times), min(seen.times)
            shown = f"{median:>10.0f} {least:>6.0f} {seen.cpu:>6.0f} {len(seen.statements):>8}"
            print(f"{name:<48} {shown}{' again' if again else ''}", flush=True)
    slow = [name for name, of_page in times.items() if min(of_page) > MOST_MS]
    greedy = [
        name
        for name, of_page in plans.items()
        if any(scan.rows > MOST_ROWS for plan in of_page for scan in plan)
    ]
    print("\nHow each query on a table that grows is answered, with the rows that were read:")
    for name, of_page in plans.items():
        for plan in of_page:
            print(f"{name:<48} {', '.join(f'{scan.name} {scan.rows:,}' for scan in plan)}")
    print(f"\nslower than {MOST_MS} ms: {', '.join(slow) or 'none'}")
    print(f"more than {MOST_ROWS:,} rows read: {', '.join(greedy) or 'none'}")
    return not slow and not greedy


def first_looks(client: Any) -> None:
    """Open the overview until all days are summed, and print how long each time takes."""
    from quotas.models import HourlyTotal

    print("\noverview at first, hours summed and milliseconds:")
    before = -1
    while before < (now := HourlyTotal.objects.count()):
        before, began = now, time.monotonic()
        client.get("/admin/", secure=True)
        print(f"{HourlyTotal.objects.count():>6} {1_000 * (time.monotonic() - began):>6.0f}", flush=True)


def look(client: Any, path: str) -> Seen:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as captured:
        answer = client.get(path, secure=True)
    statements = [query["sql"] for query in captured]  # each request forgets those of the one before
    assert answer.status_code == 200, f"{path}: {answer.status_code}"
    times, cpu = [], []
    for _ in range(RUNS):
        began, own = time.perf_counter(), time.process_time()
        client.get(path, secure=True)
        times.append(1_000 * (time.perf_counter() - began))
        cpu.append(1_000 * (time.process_time() - own))
    return Seen(times, min(cpu), statements)


def reads(statement: str) -> bool:
    """Whether it reads one of the tables that grow."""
    return statement.startswith(("SELECT", "WITH")) and any(f'"{table}"' in statement for table in GROWING)


def explain(statement: str) -> list[Scan]:
    """How the statement reads the tables that grow."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}")
        plan = cursor.fetchone()[0]
    return list(scans((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))


def scans(node: dict[str, Any]) -> Iterator[Scan]:
    """The scans of a plan and how many rows each read, those included that a filter threw away."""
    if node.get("Relation Name") in GROWING:
        rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        inside = "".join(f" of {name}" for name in bitmaps(node))
        yield Scan(f"{node['Node Type']} {node.get('Index Name', node['Relation Name'])}{inside}", rows)
    for inner in node.get("Plans", []):
        yield from scans(inner)


def bitmaps(node: dict[str, Any]) -> Iterator[str]:
    """The indexes that a bitmap scan is made of."""
    for inner in node.get("Plans", []):
        if inner["Node Type"].startswith("Bitmap"):
            yield from [inner["Index Name"]] if "Index Name" in inner else bitmaps(inner)


def are_spends_hot() -> bool:
    """Spend again and again, and print the share of updates that left all indexes alone."""
    from django.db import connection

    from quotas.models import ChallengeQuota

    def updates() -> tuple[int, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute(
                f"SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = '{QUOTAS}'"
            )
            return cursor.fetchone()

    chance = random.Random(20)
    spenders = ChallengeQuota.objects.filter(deleted_at=None, plan="team").values_list("pk", flat=True)
    users = list(spenders[:SPENDERS])
    before = updates()
    for _ in range(SPENDS):
        try:
            ChallengeQuota.objects.consume(chance.choice(users))
        except outcomes.Exhausted:
            continue
    every, hot = (now - then for now, then in zip(updates(), before, strict=True))
    share = 100 * hot / every
    print(f"\nHOT: {hot:,} of {every:,} updates of {SPENDS:,} spends by {len(users):,} users, {share:.1f} %")
    return share >= LEAST_HOT


if __name__ == "__main__":
    sys.exit(main())
