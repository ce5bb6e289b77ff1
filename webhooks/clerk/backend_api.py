"""Clerk's Backend API: its users, page by page."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

import httpx
from django.conf import settings

from quotas.rules.values import USER_ID
from webhooks.clerk.deliveries import _parse
from webhooks.clerk.payloads import EPOCH, MILLISECOND, NotConfigured, signed_up_at

PAGE_LIMIT = 500  # users; Clerk's own limit
ASKED_LIMIT = 100  # users by id in one request; also Clerk's own
TIMEOUT = httpx.Timeout(30, connect=5)  # seconds
THROTTLED_TRIES = 10  # of one request, with a 429
FAILED_TRIES = 5  # of one request, with a 5xx or a lost connection
MAX_WAIT = 60  # seconds
SECRET_KEY_FORM = re.compile(r"sk_(test|live)_[!-~]+")

Params = Mapping[str, str | Sequence[str]]  # a list is sent as a repeated parameter


class ClerkError(Exception):
    """Clerk's API is unreachable, refuses, or returns nothing usable; the text can be shown to operators."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,  # None: no response
        code: str = "",
        trace_id: str = "",
        advice: str = "",
        retry_after: float = 0.0,  # seconds
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.trace_id = message, status, code, trace_id
        self.advice, self.retry_after = advice, retry_after

    def __str__(self) -> str:
        prefix = f"Clerk answered {self.status}: " if self.status else ""
        ids = [f"{name} {value}" for name, value in (("code", self.code), ("trace", self.trace_id)) if value]
        suffix = f" ({', '.join(ids)})" if ids else ""
        return f"{prefix}{self.message.rstrip('.')}{suffix}. {self.advice}".rstrip()


def count_users(*, since: datetime | None = None, on_wait: Callable[[float], None] = time.sleep) -> int:
    """Return how many users Clerk has, created at `since` or later if given. Raises as `walk_users` does."""
    with _connect() as client:
        answer = _get(client, "/users/count", _created(since), on_wait)
    count = answer.get("total_count") if isinstance(answer, dict) else None
    if not isinstance(count, int):
        raise ClerkError("The count of users has no total_count", status=200)
    return count


def find_users(
    user_ids: Sequence[str], *, on_wait: Callable[[float], None] = time.sleep
) -> list[dict[str, object]]:
    """Return those of the users that Clerk has. Raises as `walk_users` does."""
    with _connect() as client:
        return [
            user
            for start in range(0, len(user_ids), ASKED_LIMIT)
            for user in _list(client, {"user_id": user_ids[start : start + ASKED_LIMIT]}, on_wait)
        ]


def walk_users(
    *, after: str = "", since: datetime | None = None, on_wait: Callable[[float], None] = time.sleep
) -> Iterator[list[dict[str, object]]]:
    """Yield every user, oldest first, in pages of at most 500; users who sign up meanwhile come last.

    `after` starts after that user, `since` with users created then or later. If the user to continue
    after is deleted meanwhile, the walk continues from the time of their sign-up: some users may come
    twice, and none is left out. After a 429, a 5xx or a lost connection it tries again; `on_wait` is called
    with the seconds to wait. Raises ClerkError when the tries are used up or Clerk refuses, NotConfigured
    without a key.
    """
    cursor, refused, reached = after, "", since
    with _connect() as client:
        while True:
            position = {"starting_after": cursor} if cursor else {}
            try:
                page = _list(client, {"order_by": "+created_at", **position, **_created(since)}, on_wait)
            except ClerkError as error:
                is_about_cursor = error.status in (400, 404, 410, 422) and cursor not in ("", refused)
                if reached is None or not is_about_cursor:
                    raise
                since, refused, cursor = reached, cursor, ""
                continue
            if page:
                yield page
            if len(page) < PAGE_LIMIT:
                return
            if last_id(page) in ("", cursor):
                raise ClerkError("A page of users has no id to continue from", status=200)
            cursor = last_id(page)
            reached = next((at for user in reversed(page) if (at := signed_up_at(user))), reached)


def last_id(page: list[dict[str, object]]) -> str:
    """Return the id after which the next page starts: the page's last valid id, or ""."""
    ids = (user.get("id") for user in reversed(page))
    return next((value for value in ids if isinstance(value, str) and USER_ID.fullmatch(value)), "")


def _connect() -> httpx.Client:
    # Checked here because httpx's own error for a key with a line break would show the whole key.
    if not SECRET_KEY_FORM.fullmatch(settings.CLERK_SECRET_KEY):
        raise NotConfigured(
            "CLERK_SECRET_KEY is needed to fetch users from Clerk: set it to the key (sk_test_… or "
            "sk_live_…) that Clerk's dashboard shows under API keys."
        )
    return httpx.Client(
        base_url=settings.CLERK_API_URL,
        headers={"Authorization": f"Bearer {settings.CLERK_SECRET_KEY}"},
        timeout=TIMEOUT,
        follow_redirects=False,
    )


def _created(since: datetime | None) -> Params:
    """Return the filter for users created at `since` or later; Clerk's own excludes that millisecond."""
    return {} if since is None else {"created_at_after": str((since - EPOCH) // MILLISECOND - 1)}


def _list(client: httpx.Client, params: Params, on_wait: Callable[[float], None]) -> list[dict[str, object]]:
    answer = _get(client, "/users", {"limit": str(PAGE_LIMIT), **params}, on_wait)
    if not isinstance(answer, list):
        raise ClerkError("The list of users is not an array", status=200)
    return [user if isinstance(user, dict) else {} for user in answer]


def _get(client: httpx.Client, path: str, params: Params, on_wait: Callable[[float], None]) -> object:
    """Return the JSON of a 200, trying again after a 429, a 5xx or a lost connection."""
    throttled = failed = 0
    while True:
        try:
            return _send(client, path, params)
        except ClerkError as error:
            if error.status == 429:
                throttled, pause = throttled + 1, error.retry_after
            elif error.status is None or error.status >= 500:
                failed, pause = failed + 1, 2.0**failed
            else:
                raise
            if throttled == THROTTLED_TRIES or failed == FAILED_TRIES:
                raise
        on_wait(pause)


def _send(client: httpx.Client, path: str, params: Params) -> object:
    try:
        response = client.get(path, params=params)
    except httpx.RequestError as error:
        message = f"Clerk cannot be reached: {type(error).__name__} {_plain(str(error))}"
        raise ClerkError(message, advice="Check CLERK_API_URL and the network.") from error
    answer = _parse(response.content)
    if response.status_code != 200:
        raise _refusal(response, answer)
    if answer is None:
        raise ClerkError("The answer is not JSON", status=200, advice="Check CLERK_API_URL.")
    return answer


def _refusal(response: httpx.Response, answer: object) -> ClerkError:
    body = answer if isinstance(answer, dict) else {}
    errors = body.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    return ClerkError(
        _plain(first.get("long_message")) or _plain(first.get("message")) or "no reason given",
        status=response.status_code,
        code=_plain(first.get("code")),
        trace_id=_plain(body.get("clerk_trace_id")),
        advice=_advice(response.status_code),
        retry_after=_retry_after(response),
    )


def _advice(status: int) -> str:
    if status in (401, 403):
        return "Check CLERK_SECRET_KEY."
    if status == 404 or 300 <= status < 400:
        return "Check CLERK_API_URL."
    return ""


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds of Retry-After, at least 1 and at most 60; 10 if it is missing or malformed."""
    seconds = response.headers.get("Retry-After", "")
    if not re.fullmatch("[0-9]{1,9}", seconds):
        return 10.0
    return float(min(max(int(seconds), 1), MAX_WAIT))


def _plain(text: object) -> str:
    """Return a server's text as one short line that can be shown: no control characters, no key."""
    if not isinstance(text, str):
        return ""
    hidden = text.replace(settings.CLERK_SECRET_KEY, "[CLERK_SECRET_KEY]")
    return "".join(char for char in hidden if char.isprintable())[:300]
