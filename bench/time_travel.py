"""Let time pass for a user by moving their rows into the past, with plain SQL."""

from typing import LiteralString

# The instants of the database's clock. `clerk_updated_at` is of Clerk's clock and stays.
INSTANTS: dict[LiteralString, tuple[LiteralString, ...]] = {
    "challenge_quotas": (
        "last_reset_date",
        "resets_at",
        "anchor_at",
        "refused_at",
        "left_until",
        "updated_at",
        "deleted_at",
    ),
    "ledger_entries": ("last_reset_date", "anchor_at", "resets_at", "created_at"),
}


def age_by(interval: LiteralString) -> list[LiteralString]:
    """Return the statements that move a user's rows back by an interval of SQL; parameter: the user's id."""
    statements: list[LiteralString] = []
    for table, columns in INSTANTS.items():
        moved = ", ".join(f"{column} = {column} - interval '{interval}'" for column in columns)
        statements.append(f"UPDATE {table} SET {moved} WHERE user_id = %s")
    return statements
