"""Test the guarantees of docs/reliability.md by injecting faults: `python -m bench.chaos`, or `make chaos`.

Each scenario serves the Procfile's `web:` line on its own database in a throw-away PostgreSQL, prints one
line, and ends with the audit of the ledger. Loopback only. Exits 1 if any guarantee does not hold.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.chaos import crashes, drain, held, hot, hung, outages, spending, stalled, suites
from bench.chaos.ground import Database, Finding, Ground


class Scenario(NamedTuple):
    figure: str  # its number in docs/reliability.md; several scenarios may share one
    name: str
    must: str
    run: Callable[[Database], Finding]
    allowance: int = 1_000_000


SERVED = "tests/api/test_attacks_served.py"  # the tables of attacks, sent to the deployed site
DELIVERIES = ("tests/webhooks/test_webhook.py", "tests/webhooks/test_clerk_plans.py", SERVED)
ADMIN = (
    "tests/console/test_admin_attacks.py",
    "tests/site/test_lockout.py",
    "tests/console/test_csv_export.py",
    "tests/site/test_json_logs.py",
)
CHECKS = ("tests/operations/test_deploy_checks.py", "tests/operations/test_database_checks.py")
HELD = "others >= 0.9 of their rate, its own 503 in < 6 s, then once"
SCENARIOS = (
    Scenario("1", "overspend", "exactly 50 of 640 granted, each time", spending.overspend, 50),
    Scenario("2", "same keys", "20 units, the rest replays", spending.same_keys, 20),
    Scenario("3", "PostgreSQL killed", "lost 0, double 0, back in < 5 s", crashes.postgres_killed),
    Scenario("3", "web workers killed", "lost 0, double 0, silence < 5 s", crashes.workers_killed),
    Scenario("4", "5 % of answers cut", "lost 0, double 0", crashes.answers_cut),
    Scenario("5", "PostgreSQL stopped", "503 at once, then success without a restart", outages.stopped),
    Scenario("5", "no session left", "503, then success", outages.no_session_left),
    Scenario("5", "statement time-out", "503, nothing stored, then once", outages.waits_too_long, 20),
    Scenario("5", "full disk", "503, nothing stored, then once", outages.disk_full, 20),
    Scenario("5", "became a standby", "503, nothing stored, then once", outages.became_a_standby, 20),
    Scenario("6", "SIGHUP", "0 dropped", drain.reloaded),
    Scenario("6", "SIGTERM", "0 dropped by a server taken out first", drain.ended),
    Scenario(
        "7", "model", "0 divergences in 10,000 steps", suites.suite("--full", "tests/rules/test_model.py")
    ),
    Scenario("7", "seeded faults", "all noticed", suites.suite("--full", "tests/tools/test_mutants.py")),
    Scenario("8", "orders of deliveries", "one final state", suites.suite(*DELIVERIES, "-k", "order")),
    Scenario(
        "9",
        "forged deliveries",
        "4xx, nothing stored",
        suites.suite(*DELIVERIES, "tests/webhooks/test_clerk.py"),
    ),
    Scenario(
        "10",
        "forged tokens",
        "401, nothing stored",
        suites.suite("tests/access/test_session_tokens.py", SERVED),
    ),
    Scenario("11", "fuzzed schema", "0 failures", suites.suite("--full", "tests/api/test_schemathesis.py")),
    Scenario("13", "attacks on the admin", "0 findings", suites.suite(*ADMIN)),
    Scenario("14", "check --deploy", "clean, and each bad one refused", suites.suite(*CHECKS)),
    Scenario("15", "stalled clients", "honest clients answered despite 50", stalled.straight),
    Scenario("15", "stalled, behind nginx", "honest clients answered despite 400", stalled.behind_nginx),
    Scenario("16", "hot account", "lost 0, double 0, overspent 0", hot.hot_account),
    Scenario("17", "row held", HELD, held.held_row),
    Scenario("17", "row not yet committed", HELD, held.uncommitted_row),
    Scenario("17", "row of a prepared transaction", HELD, held.prepared_row),
    Scenario("18", "hung session", "others >= 0.9 of their rate, its own 503 in < 6 s", hung.hung_session),
    Scenario("19", "hung server", "503 in < 8 s, then once", hung.hung_server),
)


class Row(NamedTuple):
    scenario: Scenario
    finding: Finding
    audit: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", allow_abbrev=False, description=__doc__)
    parser.add_argument("--only", action="append", metavar="N", help="a figure's number, or text of a name")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to this file too")
    options = parser.parse_args()
    chosen = [scenario for scenario in SCENARIOS if is_selected(scenario, options.only)]
    if not chosen:
        parser.error(f"no such scenario; there are {', '.join(f'{s.figure} ({s.name})' for s in SCENARIOS)}")
    rows = []
    with Ground() as ground:
        for number, scenario in enumerate(chosen):
            rows.append(play(scenario, ground.database(f"chaos_{number}", allowance=scenario.allowance)))
            ground.server.start()  # in case a failed scenario left it down
            print(line(rows[-1]), flush=True)
    print(f"\n{table(rows)}")
    if options.markdown:
        options.markdown.write_text(table(rows))
    return 0 if all(row.finding.holds for row in rows) else 1


def is_selected(scenario: Scenario, only: list[str] | None) -> bool:
    return not only or any(
        text == scenario.figure if text.isdigit() else text in scenario.name for text in only
    )


def play(scenario: Scenario, database: Database) -> Row:
    """Run one scenario and audit its database; an exception of the scenario is a failure too."""
    began = time.monotonic()
    try:
        finding = scenario.run(database)
    except Exception as error:  # noqa: BLE001 - the other scenarios must still run
        finding = Finding(f"it raised {type(error).__name__}: {error}", False)
    database.server.start()
    is_sound, audit = database.audit()
    held = Finding(finding.measured, finding.holds and is_sound)
    return Row(scenario, held, audit, time.monotonic() - began)


def line(row: Row) -> str:
    verdict = "holds" if row.finding.holds else "FAILS"
    name = f"{row.scenario.figure:>2} {row.scenario.name}"
    return f"{verdict}  {name:<25} {row.finding.measured} | audit: {row.audit} | {row.seconds:.0f} s"


def table(rows: list[Row]) -> str:
    head = "| figure | scenario | must be | measured | audit | verdict |\n|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| {row.scenario.figure} | {row.scenario.name} | {row.scenario.must} | {row.finding.measured} "
        f"| {row.audit} | {'holds' if row.finding.holds else '**fails**'} |\n"
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
