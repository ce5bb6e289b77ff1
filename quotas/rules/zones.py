"""Time zones by the rules of the tzdata package, and only by them.

`zoneinfo` prefers the zone files of the machine: two machines, or one worker that started before an update of
those files and another one after it, would disagree about midnight. The package is locked with the release.
"""

import importlib.metadata
import importlib.resources
from datetime import date
from functools import cache
from zoneinfo import ZoneInfo

_PACKAGE = importlib.resources.files("tzdata")
NAMES = frozenset(_PACKAGE.joinpath("zones").read_text().split())
VERSION = importlib.metadata.version("tzdata")  # such as 2026.6, which is IANA's 2026f


@cache
def zone(name: str) -> ZoneInfo:
    """Return the zone. Raises KeyError for a name that is not in NAMES."""
    if name not in NAMES:
        raise KeyError(name)
    with _PACKAGE.joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def is_old(today: date) -> bool:
    """Whether the data is of an earlier year, and that year ended more than three months ago.

    Every year some countries change their rules, often with a notice of weeks.
    """
    return today >= date(int(VERSION.split(".")[0]) + 1, 4, 1)
