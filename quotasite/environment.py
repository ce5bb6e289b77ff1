"""Readers of environment variables: each returns a usable value or raises ImproperlyConfigured.

The message names the variable and the expected form, and never the value, which may hold a password.
"""

import base64
import binascii
import os
import re
from urllib.parse import parse_qs, urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from psycopg import IsolationLevel

ENV = os.environ


def env_bool(name: str, *, default: bool = False) -> bool:
    value = ENV.get(name, "").strip().lower()
    if not value:
        return default
    if value in ("0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise ImproperlyConfigured(f"{name} must be 1 or 0 (true, yes, on; false, no, off).")


def env_int(name: str, default: int, low: int, high: int) -> int:
    value = ENV.get(name, "").strip() or str(default)
    if not re.fullmatch(r"[0-9]{1,10}", value) or not low <= int(value) <= high:
        raise ImproperlyConfigured(f"{name} must be a whole number from {low} to {high}.")
    return int(value)


def env_count(name: str) -> int:
    """Return the number from 0 to 9; a plain yes counts as 1."""
    value = ENV.get(name, "").strip()
    return int(value) if re.fullmatch(r"[0-9]", value) else int(env_bool(name))


def env_list(name: str) -> list[str]:
    return [item.strip() for item in ENV.get(name, "").split(",") if item.strip()]


def env_url(name: str, default: str) -> str:
    value = (ENV.get(name, "").strip() or default).rstrip("/")
    if value and not is_web_address(value):
        raise ImproperlyConfigured(f"{name} must be an address such as https://clerk.example.com.")
    return value


def env_origins(name: str) -> list[str]:
    """Return web origins: a scheme, a host, perhaps a port, and no path."""
    origins = [item.rstrip("/") for item in env_list(name)]
    for position, origin in enumerate(origins, start=1):
        if not is_web_address(origin) or urlsplit(origin).path:
            raise ImproperlyConfigured(
                f"{name}: item {position} must be an origin such as https://app.example.com."
            )
    return origins


def env_choice(name: str, *choices: str) -> str:
    """Return one of the choices: the first if the variable is not set."""
    value = ENV.get(name, "").strip().lower() or choices[0]
    if value not in choices:
        raise ImproperlyConfigured(f"{name} must be one of: {', '.join(choices)}.")
    return value


def is_web_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - raises if the port is not a number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def env_publishable_key() -> str:
    """Return the Frontend API that CLERK_PUBLISHABLE_KEY names (`pk_test_` + base64 of `host$`), or ''."""
    key = ENV.get("CLERK_PUBLISHABLE_KEY", "").strip()
    if not key:
        return ""
    match = re.fullmatch(r"pk_(?:test|live)_([A-Za-z0-9+/_-]+)=*", key)
    try:
        encoded = match[1] if match else ""
        host = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        host = ""
    if not re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?\$", host):
        raise ImproperlyConfigured(
            "CLERK_PUBLISHABLE_KEY must be the key that Clerk's dashboard shows: pk_test_… or pk_live_…."
        )
    return f"https://{host[:-1]}"


def looks_pooled(url: str) -> bool:
    """Return whether the URL is known to lead to a pooler in transaction mode.

    That is one of Neon's pooled hosts, Supabase's port 6543, PgBouncer's port 6432, or a URL with
    `?pgbouncer=true`, which vendors of poolers document for other clients.
    """
    try:
        parts = urlsplit(url)
        host, port, query = parts.hostname or "", parts.port, parse_qs(parts.query)
    except ValueError:  # env_database reports it
        return False
    is_neons = host.endswith(".neon.tech") and "-pooler." in host
    is_supabases = host.endswith((".supabase.com", ".supabase.co")) and port == 6543
    return is_neons or is_supabases or port == 6432 or query.get("pgbouncer") == ["true"]


def env_database(default: str, *, is_pooled: bool) -> dict[str, object]:
    """Return the default database's settings from DATABASE_URL, with the options that its engine needs."""
    url = ENV.get("DATABASE_URL", "").strip() or default
    try:
        config: dict[str, object] = {**dj_database_url.parse(url)}
    except ValueError:  # its message may hold the URL
        config = {}
    engine = config.get("ENGINE")
    if engine == "django.db.backends.postgresql" and config.get("NAME"):
        config["ENGINE"] = "quotas.store.postgresql"
        config["CONN_MAX_AGE"] = None  # stays open; the store replaces a dead one (quotas/store/errors.py),
        config["CONN_HEALTH_CHECKS"] = True  # and Django does before the ORM's first query of a request
        config["DISABLE_SERVER_SIDE_CURSORS"] = is_pooled
        config["OPTIONS"] = {
            # Uses of a statement before it is prepared on the server; None: never, the default with a pooler.
            "prepare_threshold": 5 if env_bool("DATABASE_PREPARE", default=not is_pooled) else None,
            "connect_timeout": 3,  # seconds; then the request gets a 503
            "tcp_user_timeout": 5_000,  # milliseconds
            "keepalives_idle": 30,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # Never connect to a standby, not even to read. A pooler says of a server what it was once.
            "target_session_attrs": "any" if is_pooled else "primary",
            # Of each transaction, whatever the role's default: under a stricter one a row lock is of no use.
            # Autocommit keeps that default (findings/isolation_level_in_autocommit.sh): errors.LostRace.
            "isolation_level": IsolationLevel.READ_COMMITTED,
            **config.get("OPTIONS", {}),  # type: ignore[dict-item] # the URL's query overrides these
        }
        config["OPTIONS"].pop("pgbouncer", None)  # type: ignore[attr-defined] # not an option of libpq
    elif engine == "django.db.backends.sqlite3" and config.get("NAME"):
        config["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",  # a change holds the write lock from its first read
            "timeout": 20,  # seconds
            "init_command": "PRAGMA journal_mode=WAL",
        }
    else:
        raise ImproperlyConfigured(
            "DATABASE_URL must have the form postgres://USER:PASSWORD@HOST:PORT/NAME "
            "(special characters in the password percent-encoded), or sqlite:///PATH for a first try. "
            "The value is not shown, because it may hold a password."
        )
    return config
