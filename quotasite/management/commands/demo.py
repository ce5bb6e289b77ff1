"""Run the tour, then serve the site."""

import re
import tempfile
import threading
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from quotasite.demo import tour
from quotasite.demo.pretend_clerk import PretendClerk

ADDRESS = re.compile(r"(?:(127\.0\.0\.1|localhost):)?([0-9]{1,5})")
TOKEN_LIFE = 3_600  # seconds


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
        if connection.settings_dict["NAME"] != str(settings.BASE_DIR / "quotasite.sqlite3"):
            raise CommandError("The demo uses its own temporary database: unset DATABASE_URL first.")
        with tempfile.TemporaryDirectory(prefix="quotasite-demo-") as folder:
            try:
                self.show(Path(folder), match[1] or "127.0.0.1", int(match[2]), once=once)
            except tour.DemoFailed as error:
                raise CommandError(f"The tour failed: {error}.") from error
            except KeyboardInterrupt:
                self.stdout.write("\nStopped. Its database is removed.")

    def show(self, folder: Path, host: str, port: int, *, once: bool) -> None:
        started, clerk = time.monotonic(), PretendClerk()
        with tour.served(clerk, folder, host, port) as address:
            self.stdout.write(f"Quotasite at {address}, on a temporary SQLite database.")
            tour.Tour(clerk, address, self.stdout.write).run()
            seconds = time.monotonic() - started
            self.stdout.write(self.style.SUCCESS(f"\nAll steps succeeded in {seconds:.1f} s."))
            if once:
                return
            tour.seed_history()
            name, password = tour.make_staff()
            token = clerk.token(tour.LATE_USER, TOKEN_LIFE)
            self.stdout.write(
                f"\nPage    {address}/demo"
                f"\nAdmin   {address}/admin/   name {name}, password {password}"
                f"\nDocs    {address}/api/docs"
                f"\nAPI     curl -H 'Authorization: Bearer {token}' {address}/api/v1/quota"
                f"\nProbes  {address}/healthz  {address}/readyz"
                "\n\nCtrl-C stops the demo and removes its database."
            )
            with tour.with_page(clerk):
                threading.Event().wait()
