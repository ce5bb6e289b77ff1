"""Durations as people write them: 24 h, 7 d, 1 h 30 min, 90 s."""

import re

UNITS_OF_TIME = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
DURATION = re.compile(r"(?:[0-9]{1,9} *(?:d|h|min|s) *)+")
PART = re.compile(r"([0-9]+) *(d|h|min|s)")


def duration_in_words(seconds: int) -> str:
    """Format a duration: 5400 gives "1 h 30 min"."""
    parts = []
    for unit, size in UNITS_OF_TIME.items():
        count, seconds = divmod(seconds, size)
        parts += [f"{count} {unit}"] if count else []
    return " ".join(parts) or "0 s"


def seconds_in(words: str) -> int | None:
    """Return the seconds of a duration; None without a unit: is 24 a day, or 24 seconds?"""
    words = words.strip()
    if not DURATION.fullmatch(words):
        return None
    return sum(int(count) * UNITS_OF_TIME[unit] for count, unit in PART.findall(words))
