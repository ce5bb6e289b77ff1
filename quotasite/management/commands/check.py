"""Django's check, which asks the database before a deployment too."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.core.management.commands import check


class Command(check.Command):
    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--offline", action="store_true", help="with --deploy: do not ask the database, only the settings"
        )

    def handle(self, *app_labels: Any, **options: Any) -> None:
        if options["deploy"] and settings.DATABASE_URL_IS_SET and not options["offline"]:
            options["databases"] = options["databases"] or ["default"]
        super().handle(*app_labels, **options)
