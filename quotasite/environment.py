"""Readers of environment variables: each returns a usable value or raises ImproperlyConfigured.

The message names the variable and the expected form, and never the value, which may hold a password.
"""

import base64
import binascii
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from dotenv.parser import Binding, parse_stream
from psycopg import IsolationLevel, ProgrammingError
from psycopg.conninfo import make_conninfo

ENV = os.environ
FILE_VARIABLE = "ENV_FILE"
READ: set[str] = set()  # the names of all variables that were asked for

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

QUOTED = re.compile(r"([\"'`]).*\1|“.*”|‘.*’", re.DOTALL)
HOST = re.compile(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:.]+\]")
ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
ADDRESS = re.compile(r"(https?://[^/]+)(/[!-~]*)?", re.IGNORECASE)
# Options of DATABASE_URL for the pools and caches of other clients, which mean nothing to this one.
FOREIGN_OPTIONS = {
    *("connection_limit", "pgbouncer", "pool_timeout", "socket_timeout", "statement_cache_size", "supa"),
    "uselibpqcompat",
}
DEFAULT_SCHEMA = ("schema", "public")  # Prisma's way to name the schema that is used anyway
OUR_OPTIONS = {"prepare_threshold"}  # of psycopg; all others are of libpq
ADVICE = {
    "schema": " To use another schema than public, ALTER ROLE … SET search_path.",
    "ssl": " To encrypt, set sslmode=require.",
}
USUAL_PORTS = {"http://": 80, "https://": 443}
MAX_PORT = 65_535


class EnvFile(NamedTuple):
    """What the file `.env` gave."""

    path: Path
    taken: frozenset[str]  # set by the file alone
    outranked: frozenset[str]  # the environment has another value, which counts


def refuse_empty(name: str) -> None:
    """Refuse a variable that the environment sets to nothing, such as NAME="$UNSET" in a shell."""
    if name in ENV and not ENV[name].strip():
        raise ImproperlyConfigured(f"{name} is empty in the environment: give it a value, or unset it.")


def load_env_file(folder: Path) -> EnvFile | None:
    """Add the variables of `.env` to the environment. A variable that is there already stays, even if empty.

    ENV_FILE names another file; if it is empty, none is read, as for the tests and the demo.
    """
    named = ENV.get(FILE_VARIABLE)
    path = folder / ".env" if named is None else Path(named)
    if named == "" or (named is None and not path.is_file()):
        return None
    try:
        with path.open(encoding="utf-8") as stream:
            given = dict(_assignments(path.name, [*parse_stream(stream)]))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ImproperlyConfigured(f"{path.name} cannot be read: {reason}.") from None
    outranked = frozenset(name for name, value in given.items() if value and ENV.get(name, value) != value)
    taken = frozenset(name for name, value in given.items() if value and name not in ENV)
    ENV.update({name: value for name, value in given.items() if name not in ENV})
    return EnvFile(path, taken, outranked)


def _assignments(file: str, lines: list[Binding]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if not _is_usable(line):
            text = line.original.string
            blank_lines = text[: len(text) - len(text.lstrip())].count("\n")
            raise ImproperlyConfigured(
                f"{file}: line {line.original.line + blank_lines} must have the form NAME=value, or begin "
                "with #."
            )
        if line.key:
            yield line.key, line.value or ""


def _is_usable(line: Binding) -> bool:
    if line.error or "\0" in line.original.string:
        return False
    return line.key is None or (bool(NAME.fullmatch(line.key)) and line.value is not None)


def env_text(name: str) -> str:
    """Return the value without the blanks around it, or "" if it is not set."""
    READ.add(name)
    value = ENV.get(name, "").strip()
    if QUOTED.fullmatch(value):
        raise ImproperlyConfigured(
            f"{name} is in quotes: remove them. Docker's --env-file, for one, keeps them in the value."
        )
    return value


def env_bool(name: str, *, default: bool = False) -> bool:
    value = env_text(name).lower()
    if not value:
        return default
    if value in ("0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise ImproperlyConfigured(f"{name} must be 1 or 0 (true, yes, on; false, no, off).")


def env_int(name: str, default: int, low: int, high: int) -> int:
    value = env_text(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,10}", value) or not low <= int(value) <= high:
        raise ImproperlyConfigured(f"{name} must be a whole number from {low} to {high}.")
    return int(value)


def env_count(name: str) -> int:
    """Return the number from 0 to 9; a plain yes counts as 1."""
    value = env_text(name)
    return int(value) if re.fullmatch(r"[0-9]", value) else int(env_bool(name))


def env_list(name: str) -> list[str]:
    return [item.strip() for item in env_text(name).split(",") if item.strip()]


def env_url(name: str, default: str) -> str:
    """Return an address of the web, without a slash at its end."""
    value = (env_text(name) or default).rstrip("/")
    if not value:
        return ""
    match = ADDRESS.fullmatch(value)
    origin, path = match.groups(default="") if match else ("", "")
    try:
        return f"{_normal_origin(origin)}{path}"
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be an address such as https://clerk.example.com.") from None


def env_hosts(name: str) -> list[str]:
    """Return the hosts that requests may name; `.example.com` stands for all names below it, `*` for any."""
    hosts = env_list(name)
    for position, host in enumerate(hosts, start=1):
        if host != "*" and not HOST.fullmatch(host):
            raise ImproperlyConfigured(
                f"{name}: item {position} must be a host name such as quota.example.com, or .example.com for "
                "all names below it: letters (other scripts as xn--…), digits, hyphens and dots, without "
                "scheme, port and path. Separate items by commas."
            )
    return hosts


def env_origins(name: str, *, may_have_wildcard: bool = False) -> list[str]:
    """Return origins as browsers and Clerk write them. The scheme may be that of an app or an extension.

    If wildcards are allowed, https://*.example.com stands for all names below it.
    """
    origins = []
    for position, item in enumerate(env_list(name), start=1):
        wildcard = "*." if may_have_wildcard and "://*." in item else ""
        plain = item.replace("://*.", "://") if wildcard else item
        try:
            origin = _normal_origin(plain.rstrip("/"))
        except ValueError:
            raise ImproperlyConfigured(
                f"{name}: item {position} must be an origin such as https://app.example.com: a scheme, a "
                "host without * (other scripts as xn--…), perhaps a port, no path. Separate items by commas."
            ) from None
        origins.append(origin.replace("://", f"://{wildcard}"))
    return origins


def _normal_origin(text: str) -> str:
    """Return an origin as a browser writes it: in lower case, without the usual port. Raises ValueError."""
    match = ORIGIN.fullmatch(text)
    if not match or int(match[3] or 0) > MAX_PORT:
        raise ValueError("not an origin")
    scheme, host, port = match[1].lower(), match[2], match[3]
    if scheme in USUAL_PORTS:
        host = host.lower()
    has_port = port and int(port) != USUAL_PORTS.get(scheme)
    return f"{scheme}{host}:{int(port)}" if has_port else f"{scheme}{host}"


def env_choice(name: str, *choices: str) -> str:
    """Return one of the choices: the first if the variable is not set."""
    value = env_text(name).lower() or choices[0]
    if value not in choices:
        raise ImproperlyConfigured(f"{name} must be one of: {', '.join(choices)}.")
    return value


def env_publishable_key() -> str:
    """Return the Frontend API that CLERK_PUBLISHABLE_KEY names (`pk_test_` + base64 of `host$`), or ''."""
    key = env_text("CLERK_PUBLISHABLE_KEY")
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
    url = env_text("DATABASE_URL") or default
    try:
        config: dict[str, object] = {**dj_database_url.parse(url)}
    except ValueError:  # its message may hold the URL
        config = {}
    engine = config.get("ENGINE")
    name = str(config.get("NAME", ""))
    if engine == "django.db.backends.postgresql" and name and "@" not in name:  # a password may have a slash
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
            **_usable_options(config.get("OPTIONS", {})),  # type: ignore[arg-type] # the URL's override these
        }
    elif engine == "django.db.backends.sqlite3" and name:
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


def _usable_options(given: dict[str, object]) -> dict[str, object]:
    """Leave out what is for other clients. Raises ImproperlyConfigured for what PostgreSQL's refuses."""
    usable = {
        name: value
        for name, value in given.items()
        if name not in FOREIGN_OPTIONS and (name, value) != DEFAULT_SCHEMA
    }
    for name in usable.keys() - OUR_OPTIONS:
        try:
            make_conninfo(**{name: "x"})
        except ProgrammingError:
            shown = f"the option {name}" if NAME.fullmatch(name) else "an option"
            raise ImproperlyConfigured(
                f"DATABASE_URL has {shown}, which PostgreSQL's client does not know: remove it."
                f"{ADVICE.get(name, '')}"
            ) from None
    return usable
