"""Verify a delivery; walk Clerk's users. The only file that speaks Clerk's API and wire format.

What Clerk sends is read leniently: only the members that are used are looked at, so that one odd
user, or a member that Clerk adds, never costs more than itself.
"""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
from django.conf import settings

from quotas.rules.values import USER_ID

DELIVERY_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
SIGNED_HEADERS = ("svix-id", "svix-timestamp", "svix-signature")
HEADERS_LIMIT = 8_192  # characters; a signature takes 47, and every one of them is compared
EMAIL_LIMIT = 320  # characters
SLUG = re.compile("[!-~]{1,128}")

PAGE_LIMIT = 500  # users; Clerk's own limit
ASKED_LIMIT = 100  # users by id in one request; Clerk's own limit too
TIMEOUT = httpx.Timeout(30, connect=5)  # seconds
THROTTLED_TRIES = 10  # answers of 429 in a row
FAILED_TRIES = 5  # answers of 5xx and lost connections in a row
LONGEST_WAIT = 60  # seconds
SECRET_KEY = re.compile(r"sk_(test|live)_[!-~]+")

Params = Mapping[str, str | Sequence[str]]  # a list is sent as a parameter that is repeated

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
SANE = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


class NotConfigured(Exception):
    """A setting that is needed is missing or malformed; the text names it and its form."""


class DeliveryRefused(Exception):
    """A delivery that is not Clerk's, or cannot be read; `detail` is one sentence with the fix."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Delivery:
    """One verified event. `data` is {} if Clerk sent none."""

    id: str  # stable over every resend
    instance_id: str  # "" if Clerk named none
    type: str  # at most 128 printable characters, else "unknown"
    occurred_at: datetime | None
    data: dict[str, object]


class OddUser(ValueError):
    """A user that cannot be given a quota; the text is the reason, without the value."""


@dataclass(frozen=True, slots=True)
class ClerkUser:
    user_id: str
    email: str  # the primary one, or ""
    updated_at: datetime | None
    plan: str | None = None  # the slug in his metadata, "" if there is none; None if none is to be read


@dataclass(frozen=True, slots=True)
class ClerkItem:
    """What is billed: somebody pays for a plan."""

    item_id: str
    user_id: str  # "" if an organization pays
    plan: str  # its slug, "" if there is none
    updated_at: datetime | None


class ClerkError(Exception):
    """Clerk's API did not give what was asked; the text can be shown to an operator as it is."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,  # None: no answer came
        code: str = "",
        trace_id: str = "",
        advice: str = "",
        retry_after: float = 0.0,  # seconds
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.trace_id = message, status, code, trace_id
        self.advice, self.retry_after = advice, retry_after

    def __str__(self) -> str:
        answered = f"Clerk answered {self.status}: " if self.status else ""
        marks = [f"{name} {mark}" for name, mark in (("code", self.code), ("trace", self.trace_id)) if mark]
        known_by = f" ({', '.join(marks)})" if marks else ""
        return f"{answered}{self.message.rstrip('.')}{known_by}. {self.advice}".rstrip()


def verify(body: bytes, headers: Mapping[str, str]) -> Delivery:
    """Return the delivery, if one of the configured secrets signed exactly these bytes just now.

    Raises DeliveryRefused, or NotConfigured if there is no secret to verify with.
    """
    secrets = [secret for secret in settings.CLERK_WEBHOOK_SIGNING_SECRET if not secret_fault(secret)]
    if not secrets:
        raise NotConfigured(
            "CLERK_WEBHOOK_SIGNING_SECRET holds no usable secret: set it to the endpoint's signing secret "
            "(whsec_…) from Clerk's dashboard."
        )
    signed = _signed_headers(headers)
    # Importing svix takes up to a second, so a process pays for it with its first delivery, not its start.
    from svix.webhooks import Webhook, WebhookVerificationError

    for secret in secrets:
        try:
            Webhook(secret).verify(body, signed)  # None if it holds; garbled input raises ValueError
        except (WebhookVerificationError, ValueError) as error:
            fault = str(error)
        else:
            return _read_delivery(signed["svix-id"], body)
    if "timestamp too" in fault:
        raise DeliveryRefused(
            "The svix-timestamp is more than five minutes from this server's clock: "
            "set the clock, or have the message sent again."
        )
    raise DeliveryRefused(
        f"The signature does not match any of the {len(secrets)} configured secrets: set "
        "CLERK_WEBHOOK_SIGNING_SECRET to this endpoint's own signing secret, and pass the body on unchanged."
    )


def secret_fault(secret: str) -> str | None:
    """Say what is wrong with a signing secret, without its value; None if it can be used."""
    if not secret.startswith("whsec_"):
        return "it must begin with whsec_"
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        return "what follows whsec_ must be base64"
    if not 24 <= len(key) <= 64:
        return f"it must hold 24 to 64 bytes, not {len(key)}"
    return None


def read_user(data: Mapping[str, object]) -> ClerkUser:
    """Read a user as both the user.* events and the Backend API show it.

    Raises OddUser for an id or an e-mail that cannot be stored; what else is ill-typed reads as absent.
    """
    user_id = data.get("id")
    if not isinstance(user_id, str) or not user_id:
        raise OddUser("the id is missing")
    if not USER_ID.fullmatch(user_id):
        raise OddUser("the id is not 1 to 128 of the characters A-Z a-z 0-9 _ : . @ -")
    return ClerkUser(user_id, _primary_email(data), _instant(data.get("updated_at")), _plan_in_metadata(data))


def read_item(data: Mapping[str, object]) -> ClerkItem:
    """Read the subscription item of a subscriptionItem.* event.

    Raises OddUser for an item that cannot be told from others, or that nobody pays for.
    """
    item_id, payer, plan = data.get("id"), data.get("payer"), data.get("plan")
    if not isinstance(item_id, str) or not DELIVERY_ID.fullmatch(item_id):
        raise OddUser("the item's id is missing, or not 1 to 128 letters, digits, dots, _ or -")
    payer = payer if isinstance(payer, dict) else {}
    user_id = payer.get("user_id") or ""  # Clerk writes "" where an organization pays
    if not user_id and not payer.get("organization_id"):
        raise OddUser("nobody pays for the item")
    if user_id and not (isinstance(user_id, str) and USER_ID.fullmatch(user_id)):
        raise OddUser("the payer's id is not 1 to 128 of the characters A-Z a-z 0-9 _ : . @ -")
    slug = _slug(plan.get("slug")) if isinstance(plan, dict) else ""
    return ClerkItem(item_id, str(user_id), slug, _instant(data.get("updated_at")))


def signed_up_at(data: Mapping[str, object]) -> datetime | None:
    """Read when a user of the Backend API was made, which is also his place in the walk."""
    return _instant(data.get("created_at"))


def count_users(*, since: datetime | None = None, on_wait: Callable[[float], None] = time.sleep) -> int:
    """Return how many users Clerk has, made at `since` or later. Raises as `walk_users` does."""
    with _connect() as client:
        answer = _get(client, "/users/count", _made(since), on_wait)
    count = answer.get("total_count") if isinstance(answer, dict) else None
    if not isinstance(count, int):
        raise ClerkError("The count of users holds no total_count", status=200)
    return count


def find_users(
    user_ids: Sequence[str], *, on_wait: Callable[[float], None] = time.sleep
) -> list[dict[str, object]]:
    """Return those of the users whom Clerk has. Raises as `walk_users` does."""
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

    `after` begins behind that user, `since` with those made then or later. Where the one to go on
    behind was deleted meanwhile, it goes on with those made when he was: some may come twice, and
    none is left out. A 429 is waited out, a Clerk that is down for a moment is asked again; `on_wait`
    is given the seconds. Raises ClerkError when that is in vain, NotConfigured without a key.
    """
    cursor, refused, reached = after, "", since
    with _connect() as client:
        while True:
            behind = {"starting_after": cursor} if cursor else {}
            try:
                page = _list(client, {"order_by": "+created_at", **behind, **_made(since)}, on_wait)
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
                raise ClerkError("A page of users holds no id to go on from", status=200)
            cursor = last_id(page)
            reached = next((at for user in reversed(page) if (at := signed_up_at(user))), reached)


def last_id(page: list[dict[str, object]]) -> str:
    """Return the id to go on behind: the page's last one that is an id, or ""."""
    ids = (user.get("id") for user in reversed(page))
    return next((one for one in ids if isinstance(one, str) and USER_ID.fullmatch(one)), "")


def _signed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the three headers that are signed, whole and of a bearable size."""
    given = {name.lower(): value for name, value in headers.items()}
    signed = {name: given.get(name, "") for name in SIGNED_HEADERS}
    if missing := [name for name, value in signed.items() if not value]:
        raise DeliveryRefused(
            f"The delivery lacks {', '.join(missing)}: have any proxy in front pass these headers on."
        )
    if sum(map(len, signed.values())) > HEADERS_LIMIT:
        raise DeliveryRefused(f"The svix headers are longer than {HEADERS_LIMIT} characters: send fewer.")
    if not DELIVERY_ID.fullmatch(signed["svix-id"]):
        raise DeliveryRefused("The svix-id must be 1 to 128 letters, digits, dots, underscores or hyphens.")
    return signed


def _read_delivery(delivery_id: str, body: bytes) -> Delivery:
    envelope = _parse(body)
    if not isinstance(envelope, dict):
        raise DeliveryRefused("The body is not a JSON object: send a Clerk event.")
    timestamp, data = envelope.get("timestamp"), envelope.get("data")
    instance_id = envelope.get("instance_id")
    return Delivery(
        id=delivery_id,
        instance_id=instance_id if isinstance(instance_id, str) else "",
        type=_event_type(envelope.get("type")),
        # Milliseconds in Clerk's documentation, seconds in its own examples.
        occurred_at=_instant(timestamp) or _instant(timestamp, timedelta(seconds=1)),
        data=data if isinstance(data, dict) else {},
    )


def _event_type(name: object) -> str:
    is_name = isinstance(name, str) and 0 < len(name) <= 128 and name.isprintable()
    return str(name) if is_name else "unknown"


def _primary_email(data: Mapping[str, object]) -> str:
    primary_id, addresses = data.get("primary_email_address_id"), data.get("email_addresses")
    if not isinstance(primary_id, str) or not isinstance(addresses, list):
        return ""
    for address in addresses:
        if isinstance(address, dict) and address.get("id") == primary_id:
            email = address.get("email_address")
            return _storable(email) if isinstance(email, str) else ""
    return ""


def _plan_in_metadata(data: Mapping[str, object]) -> str | None:
    key, metadata = settings.CLERK_PLAN_METADATA_KEY, data.get("public_metadata")
    if not key:
        return None
    return _slug(metadata.get(key)) if isinstance(metadata, dict) else ""


def _slug(value: object) -> str:
    """Return the slug of a plan, which need not be known here; "" for what can be none."""
    return value if isinstance(value, str) and SLUG.fullmatch(value) else ""


def _storable(email: str) -> str:
    if len(email) > EMAIL_LIMIT:
        raise OddUser(f"the e-mail is longer than {EMAIL_LIMIT} characters")
    if re.search("[\0\ud800-\udfff]", email):
        raise OddUser("the e-mail holds U+0000 or half of a surrogate pair")
    return email


def _instant(value: object, unit: timedelta = MILLISECOND) -> datetime | None:
    """Read a whole count of `unit` since 1970; None unless it falls in this century."""
    if not isinstance(value, int):
        return None
    try:
        instant = EPOCH + value * unit
    except OverflowError:
        return None
    return instant if SANE[0] <= instant < SANE[1] else None


def _parse(body: bytes) -> object:
    """Parse JSON; None if it is none, or nested too deeply to be read."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _connect() -> httpx.Client:
    # Checked here because httpx shows a key with a line break in it, whole, in its own error.
    if not SECRET_KEY.fullmatch(settings.CLERK_SECRET_KEY):
        raise NotConfigured(
            "CLERK_SECRET_KEY is needed to ask Clerk for its users: set it to the key (sk_test_… or "
            "sk_live_…) that Clerk's dashboard shows under API keys."
        )
    return httpx.Client(
        base_url=settings.CLERK_API_URL,
        headers={"Authorization": f"Bearer {settings.CLERK_SECRET_KEY}"},
        timeout=TIMEOUT,
        follow_redirects=False,
    )


def _made(since: datetime | None) -> Params:
    """The filter of users made at `since` or later; Clerk's own leaves out those made right then."""
    return {} if since is None else {"created_at_after": str((since - EPOCH) // MILLISECOND - 1)}


def _list(client: httpx.Client, params: Params, on_wait: Callable[[float], None]) -> list[dict[str, object]]:
    answer = _get(client, "/users", {"limit": str(PAGE_LIMIT), **params}, on_wait)
    if not isinstance(answer, list):
        raise ClerkError("The list of users is not an array", status=200)
    return [user if isinstance(user, dict) else {} for user in answer]


def _get(client: httpx.Client, path: str, params: Params, on_wait: Callable[[float], None]) -> object:
    """Return the JSON of a 200, in as many tries as are fair."""
    throttled = failed = 0
    while True:
        try:
            return _ask(client, path, params)
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


def _ask(client: httpx.Client, path: str, params: Params) -> object:
    try:
        response = client.get(path, params=params)
    except httpx.RequestError as error:
        lost = f"Clerk cannot be reached: {type(error).__name__} {_plain(str(error))}"
        raise ClerkError(lost, advice="Check CLERK_API_URL and the network.") from error
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
    """Return the seconds that Clerk asks to wait, held between 1 and 60; 10 if it does not say."""
    seconds = response.headers.get("Retry-After", "")
    if not re.fullmatch("[0-9]{1,9}", seconds):
        return 10.0
    return float(min(max(int(seconds), 1), LONGEST_WAIT))


def _plain(text: object) -> str:
    """Return what a server said as one short line that can be shown: no control characters, no key."""
    if not isinstance(text, str):
        return ""
    hidden = text.replace(settings.CLERK_SECRET_KEY, "[CLERK_SECRET_KEY]")
    return "".join(char for char in hidden if char.isprintable())[:300]
