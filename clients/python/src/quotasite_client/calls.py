"""What is asked of the service: one request each, without its transport."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from quotasite_client.answers import Page, decode

T = TypeVar("T")
KEY = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. `read` makes the answer from its members; a write has the Idempotency-Key `key`."""

    method: str
    path: str
    read: Callable[[Any], T]
    query: Mapping[str, str | int | None] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    key: str | None = None

    @property
    def target(self) -> str:
        given = {name: value for name, value in self.query.items() if value is not None}
        return f"{self.path}?{urlencode(given)}" if given else self.path


def get(path: str, kind: type[T], **query: str | int | None) -> Call[T]:
    return Call("GET", path, partial(decode, kind), query)


def get_list(path: str, member: str, kind: type[T]) -> Call[tuple[T, ...]]:
    def read(members: Any) -> tuple[T, ...]:
        return tuple(decode(kind, item) for item in members[member])

    return Call("GET", path, read)


def get_page(path: str, member: str, kind: type[T], **query: str | int | None) -> Call[Page[T]]:
    def read(members: Any) -> Page[T]:
        return Page(tuple(decode(kind, item) for item in members[member]), members["next_cursor"])

    return Call("GET", path, read, query)


def post(path: str, kind: type[T], body: Mapping[str, Any], key: str | None = None) -> Call[T]:
    return Call("POST", path, partial(decode, kind), body=body, key=key)


def given(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def of_user(user_id: str, *parts: str) -> str:
    """Return a path below that of the user. Raises ValueError for an id that leads elsewhere."""
    if not isinstance(user_id, str) or user_id in ("", ".", ".."):
        raise ValueError(f"user_id: pass the id of the user in Clerk, such as 'user_2abc', not {user_id!r}.")
    return "/".join(["/api/v1/users", *(quote(part, safe="") for part in (user_id, *parts))])


def checked_key(key: str) -> str:
    """Raises ValueError if the service would refuse this Idempotency-Key."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise ValueError(
            "key: pass an Idempotency-Key that names this one action, such as str(uuid.uuid4()): "
            f"1 to 128 characters from A-Z a-z 0-9 . _ ~ : / + = -, not {key!r}."
        )
    return key
