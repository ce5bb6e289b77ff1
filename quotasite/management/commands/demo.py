"""Run the tour, then serve the site."""

import re
import shlex
import signal
import tempfile
import threading
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from quotasite.demo import tour
from quotasite.demo.pretend_clerk import ORIGIN, PretendClerk

ADDRESS = re.compile(r"(?:(127\.0\.0\.1|localhost):)?([0-9]{1,5})")
TOKEN_LIFE = 12 * 3_600  # seconds


class Command(BaseCommand):
    help = "Run the tour over HTTP on a temporary database and serve the site. Needs no settings."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("addr", nargs="?", default="8000", help="port, or 127.0.0.1:port")
        parser.add_argument(
            "--once", action="store_true", help="exit after the tour, with 0 if all steps succeeded"
        )

    def handle(self, *, addr: str, once: bool, **options: Any) -> None:
        match = ADDRESS.fullmatch(addr)
        if not match or not 1 <= int(match[2]) <= 65_515:
            raise CommandError("The demo listens only on this machine: give a port, or 127.0.0.1:PORT.")
        if settings.DATABASE_URL_IS_SET:
            raise CommandError("The demo uses its own temporary database: unset DATABASE_URL first.")
        end_by_signals()
        with tempfile.TemporaryDirectory(prefix="quotasite-demo-") as folder:
            try:
                self.show(Path(folder), match[1] or "127.0.0.1", int(match[2]), once=once)
            except tour.DemoFailed as error:
                raise CommandError(f"The tour failed: {error}.") from error
            except KeyboardInterrupt:
                self.say("\nStopped. Its database is removed.")

    def show(self, folder: Path, host: str, port: int, *, once: bool) -> None:
        started, clerk = time.monotonic(), PretendClerk()
        with tour.served(clerk, folder, host, port) as address:
            self.say(f"Quotasite at {address}, on a temporary SQLite database.")
            shown = tour.Tour(clerk, address, self.say)
            shown.run()
            seconds = time.monotonic() - started
            self.say(self.style.SUCCESS(f"\nAll steps succeeded in {seconds:.1f} s."))
            if not once:
                self.stay(clerk, folder, address, shown.key)

    def stay(self, clerk: PretendClerk, folder: Path, address: str, key: str) -> None:
        """Serve users with a history, until a signal comes."""
        self.say(f"Making {tour.HISTORY_USERS} users with {tour.HISTORY_DAYS} days of history …")
        tour.seed_history()
        name, password = tour.make_staff()
        of_an_app = {"CLERK_JWT_KEY": clerk.public_key.strip(), "CLERK_AUTHORIZED_PARTIES": ORIGIN}
        token = clerk.token(tour.LATE_USER, TOKEN_LIFE)
        variables = {"SITE": address, "TOKEN": token, "KEY": key, **of_an_app}
        lines = (f"export {variable}={shlex.quote(value)}\n" for variable, value in variables.items())
        (folder / "env").write_text("".join(lines))
        self.say(
            f"\nPage    {address}/demo"
            f"\nAdmin   {address}/admin/   name {name}, password {password}"
            f"\nDocs    {address}/api/docs"
            f"\nProbes  {address}/healthz  {address}/readyz"
            f"\nKey     {key}   a service key: {', '.join(tour.SCOPES)}"
            "\n\nFor the README's curl lines, run this in another terminal. It sets SITE, TOKEN and KEY:"
            f"\n\n    . {folder}/env"
            '\n    curl -H "Authorization: Bearer $TOKEN" $SITE/api/v1/quota'
            f'\n    curl -H "Authorization: Bearer $KEY" $SITE/api/v1/users/{tour.LATE_USER}/explain'
            "\n\nCtrl-C stops the demo and removes its database."
        )
        with tour.with_page(clerk):
            threading.Event().wait()

    def say(self, text: str) -> None:
        """Write at once: a pipe would hold the lines back."""
        self.stdout.write(text)
        self.stdout.flush()


def end_by_signals() -> None:
    """Let each signal that ends a program raise KeyboardInterrupt, so that no folder is left behind."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt the removal
        raise KeyboardInterrupt

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, end)
