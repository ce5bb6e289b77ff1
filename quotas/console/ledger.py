"""The ledger in the console, and its columns in a CSV file."""

import json
from collections.abc import Iterator

from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString

from quotas.console.display import actor_label, quota_url, time_tag
from quotas.console.lists import ReadOnlyAdmin
from quotas.models import LedgerEntry
from quotas.rules import values

LEDGER_CSV_COLUMNS = (
    "seq", "id", "created_at", "kind", "cost", "delta", "balance_after", "period_consumed", "period_given",
    "plan", "plan_source", "plan_version", "quota_limit", "last_reset_date", "resets_at", "actor_kind",
    "actor_id", "act", "reason", "action", "metadata", "refund_of",
)  # fmt: skip


def entry_cells(entry: LedgerEntry) -> Iterator[object]:
    """Yield the entry's stored values, in the order of LEDGER_CSV_COLUMNS."""
    for name in LEDGER_CSV_COLUMNS:
        value = getattr(entry, name)
        if name == "metadata":
            value = value and json.dumps(value)
        yield values.rfc3339(value) if name.endswith(("_at", "_date")) else value


@admin.register(LedgerEntry)
class LedgerEntryAdmin(ReadOnlyAdmin):
    """Every entry, newest first. Only the verbs add entries."""

    list_display = ["when", "of_user", "kind", "cost", "delta", "balance_after", "who", "reason"]
    list_filter = ["kind"]
    search_fields = ["user__user_id__exact"]  # needs no join and uses the index on (user_id, seq)
    search_help_text = "Complete user id"

    @admin.display(description="when (UTC)")
    def when(self, entry: LedgerEntry) -> SafeString:
        return time_tag(entry.created_at)

    @admin.display(description="user")
    def of_user(self, entry: LedgerEntry) -> SafeString:
        return format_html('<a href="{}">{}</a>', quota_url(entry.user_id), entry.user_id)

    @admin.display
    def who(self, entry: LedgerEntry) -> str:
        return actor_label(entry)
