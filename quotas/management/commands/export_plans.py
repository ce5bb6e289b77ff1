"""Print the plans as a file for apply_plans."""

from typing import Any

from django.core.management.base import BaseCommand

from quotas.management.failures import explain_database_errors
from quotas.models import Plan
from quotas.operations.plan_file import export


class Command(BaseCommand):
    help = "Print all plans as a file that apply_plans takes back unchanged, here or in another deployment."

    def handle(self, **options: Any) -> None:
        with explain_database_errors():
            self.stdout.write(export(Plan.objects.all()), ending="")
