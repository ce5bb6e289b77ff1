"""Refused deliveries, counted by day and reason, so that another process can see that there are some.

Anyone can send what is refused. So there is one row for each day and reason, a process writes it at most once
in SECONDS_BETWEEN_WRITES, and it holds nothing of the request.
"""

from collections import Counter
from datetime import UTC, datetime
from threading import Lock
from time import monotonic

from django.db import Error, connection

SECONDS_BETWEEN_WRITES = 10
COUNT = """
    INSERT INTO webhook_refusals (day, reason, times, last_at) VALUES (%s, %s, %s, %s)
    ON CONFLICT (day, reason) DO UPDATE
    SET times = webhook_refusals.times + excluded.times, last_at = excluded.last_at
"""


class RefusalCounter:
    """Counts in memory, and writes what was counted when the time has come and another one is refused."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pending: Counter[str] = Counter()
        self._next_write: dict[str, float] = {}

    def add(self, reason: str) -> None:
        """Count one refusal. A database that cannot be used is left alone until the next one is due."""
        with self._lock:
            self._pending[reason] += 1
            if monotonic() < self._next_write.get(reason, 0):
                return
            self._next_write[reason] = monotonic() + SECONDS_BETWEEN_WRITES
            times = self._pending.pop(reason)
        now = datetime.now(UTC)
        try:
            with connection.cursor() as cursor:
                cursor.execute(COUNT, [now.date(), reason, times, now])
        except Error:
            with self._lock:
                self._pending[reason] += times


REFUSALS = RefusalCounter()
