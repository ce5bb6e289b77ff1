"""The clients: for servers and for signed-in users, each for threads and for event loops."""

import re
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import httpx

from quotasite_client.drivers import AsyncDriver, Driver
from quotasite_client.verbs import ServiceVerbs, UserVerbs

GetToken: TypeAlias = Callable[[], str | None]
AsyncGetToken: TypeAlias = Callable[[], Awaitable[str | None]]
TIMEOUT = 15.0  # seconds without progress after which an attempt is given up
SERVICE_KEY = re.compile(r"qs_[A-Za-z0-9_-]+")
OTHER_KEYS = {
    "sk_": "This is the secret key of Clerk, which Quotasite's clients never need",
    "pk_": "This is the publishable key of Clerk",
    "eyJ": "This is a session token: QuotasiteUser takes it, as token=…",
}
HOW_TO_GET_A_KEY = (
    "pass a service key of Quotasite, which begins with qs_: manage.py create_service_key creates one."
)


class Quotasite(ServiceVerbs, Driver):
    """Every user's quota, for your own servers. The key must never reach a browser.

    Threads can share a client. `http` replaces the connections, for example to go through a proxy.
    """

    def __init__(
        self, base_url: str, *, key: str, http: httpx.Client | None = None, timeout: float = TIMEOUT
    ) -> None:
        site, key = checked_site(base_url), checked_service_key(key)
        super().__init__(site, always(key), http, timeout)


class AsyncQuotasite(ServiceVerbs, AsyncDriver):
    """As Quotasite, for an event loop: await the verbs; `history` and `users` are for `async for`."""

    def __init__(
        self, base_url: str, *, key: str, http: httpx.AsyncClient | None = None, timeout: float = TIMEOUT
    ) -> None:
        site, key = checked_site(base_url), checked_service_key(key)
        super().__init__(site, always(key), http, timeout)


class QuotasiteUser(UserVerbs, Driver):
    """The quota of one signed-in user, by their session token, or a function that returns it.

    The function is called for each call, and once more after a 401.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | GetToken,
        http: httpx.Client | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        get_token = token if callable(token) else always(checked_token(token))
        super().__init__(checked_site(base_url), get_token, http, timeout)


class AsyncQuotasiteUser(UserVerbs, AsyncDriver):
    """As QuotasiteUser, for an event loop; the function may be a coroutine function."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | GetToken | AsyncGetToken,
        http: httpx.AsyncClient | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        get_token = token if callable(token) else always(checked_token(token))
        super().__init__(checked_site(base_url), get_token, http, timeout)


def always(value: str) -> Callable[[], str]:
    return lambda: value


def checked_site(base_url: str) -> str:
    """Return the address without a slash at its end. Raises ValueError if it has more parts, or fewer."""
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            "base_url: pass the address of the service with its scheme, such as 'https://quota.example.com', "
            f"not {base_url!r}."
        )
    if url.userinfo or url.query or url.fragment or url.path.strip("/"):
        address = f"{url.scheme}://{url.netloc.decode()}"
        raise ValueError(f"base_url: pass only {address!r}, without a path, a query and a password.")
    return base_url.rstrip("/")


def checked_service_key(key: str) -> str:
    """Raises ValueError, which does not show the key, for what is no service key."""
    key = key.strip() if isinstance(key, str) else ""
    if SERVICE_KEY.fullmatch(key):
        return key
    mistake = next((text for start, text in OTHER_KEYS.items() if key.startswith(start)), "")
    raise ValueError(f"key: {mistake + '; ' if mistake else ''}{HOW_TO_GET_A_KEY}")


def checked_token(token: str) -> str:
    if not token:
        raise ValueError("token: pass the session token of the user, or a function that returns it.")
    return token
