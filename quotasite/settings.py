"""The settings, and the only reader of the environment.

Each variable stands once in `.env.example` with its meaning. A value that cannot be used stops the
start with the variable's name and the form wanted; the value itself is never printed, because it
may hold a password.
"""

import base64
import binascii
import os
import re
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dj_database_url
from corsheaders.defaults import default_headers
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

from quotasite.observing import json_logs

BASE_DIR = Path(__file__).resolve().parent.parent
ENV = os.environ
MAX_UNITS = 2_147_483_647


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
    """Return a digit as it is; a plain yes counts as one."""
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
    """Web origins: a scheme, a host, perhaps a port, and nothing behind them."""
    origins = [item.rstrip("/") for item in env_list(name)]
    for position, origin in enumerate(origins, start=1):
        if not is_web_address(origin) or urlsplit(origin).path:
            raise ImproperlyConfigured(
                f"{name}: item {position} must be an origin such as https://app.example.com."
            )
    return origins


def env_choice(name: str, *choices: str) -> str:
    """Return one of the choices, the first if the variable is not set."""
    value = ENV.get(name, "").strip().lower() or choices[0]
    if value not in choices:
        raise ImproperlyConfigured(f"{name} must be one of: {', '.join(choices)}.")
    return value


def is_web_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - raises on a port that is no number
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
    """Tell whether an address is known to lead to a pooler that gives each transaction another session.

    Those are Neon's pooled hosts, Supabase's transaction mode, PgBouncer's own port, and whatever is
    marked `?pgbouncer=true`, as the poolers' vendors write it for other clients.
    """
    try:
        parts = urlsplit(url)
        host, port, query = parts.hostname or "", parts.port, parse_qs(parts.query)
    except ValueError:  # env_database tells what is wrong
        return False
    is_neons = host.endswith(".neon.tech") and "-pooler." in host
    is_supabases = host.endswith((".supabase.com", ".supabase.co")) and port == 6543
    return is_neons or is_supabases or port == 6432 or query.get("pgbouncer") == ["true"]


def env_database() -> dict[str, object]:
    """Return the default database from DATABASE_URL, with what each engine needs to be safe."""
    url = ENV.get("DATABASE_URL", "").strip() or f"sqlite:///{BASE_DIR / 'quotasite.sqlite3'}"
    try:
        config: dict[str, object] = {**dj_database_url.parse(url)}
    except ValueError:  # its text may hold the URL
        config = {}
    engine = config.get("ENGINE")
    if engine == "django.db.backends.postgresql" and config.get("NAME"):
        config["CONN_MAX_AGE"] = None  # kept open; the store replaces a dead one (quotas/store.py)
        config["DISABLE_SERVER_SIDE_CURSORS"] = DATABASE_IS_POOLED
        config["OPTIONS"] = {
            # Uses of a statement before the server is asked to keep it; behind a pooler never.
            "prepare_threshold": 5 if env_bool("DATABASE_PREPARE", default=not DATABASE_IS_POOLED) else None,
            "connect_timeout": 3,  # seconds, so that a silent host is answered with a 503
            "tcp_user_timeout": 5_000,  # milliseconds
            "keepalives_idle": 30,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "target_session_attrs": "primary",  # a standby is refused while connecting, not read from
            **config.get("OPTIONS", {}),  # type: ignore[dict-item] # what the URL's query says wins
        }
        config["OPTIONS"].pop("pgbouncer", None)  # type: ignore[attr-defined] # said to us, not to psycopg
    elif engine == "django.db.backends.sqlite3" and config.get("NAME"):
        config["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",  # a change holds the write lock from its first read
            "timeout": 20,  # seconds
            "init_command": "PRAGMA journal_mode=WAL",
        }
    else:
        raise ImproperlyConfigured(
            "DATABASE_URL must have the form postgres://USER:PASSWORD@HOST:PORT/NAME "
            "(special characters in the password percent-encoded), or sqlite:///PATH for a first look. "
            "What was given is not shown, because it may hold a password."
        )
    return config


DEBUG = env_bool("DEBUG")
SECRET_KEY_IS_SET = bool(ENV.get("SECRET_KEY", "").strip())
# Without one, staff are signed out at each restart and by each other worker: quotas.E003 says so.
SECRET_KEY = ENV.get("SECRET_KEY", "").strip() or get_random_secret_key()
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS")
CSRF_TRUSTED_ORIGINS = env_origins("CSRF_TRUSTED_ORIGINS")
# Behind a pooler that shares sessions nothing may outlive a transaction: no cursor, no prepared statement.
DATABASE_LOOKS_POOLED = looks_pooled(ENV.get("DATABASE_URL", "").strip())
DATABASE_POOLED = env_choice("DATABASE_POOLED", "auto", "on", "off", "1", "0")
DATABASE_IS_POOLED = DATABASE_LOOKS_POOLED if DATABASE_POOLED == "auto" else DATABASE_POOLED in ("on", "1")
DATABASES = {"default": env_database()}
# The variable by which a host tells that its disk is emptied at each deploy, or None.
EPHEMERAL_HOST = next(
    (
        name
        for name in (
            "RENDER",
            "DYNO",
            "RAILWAY_ENVIRONMENT",
            "FLY_APP_NAME",
            "K_SERVICE",
            "VERCEL",
            "AWS_LAMBDA_FUNCTION_NAME",
            "WEBSITE_INSTANCE_ID",
        )
        if ENV.get(name)
    ),
    None,
)

CLERK_PUBLISHABLE_KEY = ENV.get("CLERK_PUBLISHABLE_KEY", "").strip()
CLERK_FRONTEND_API = env_publishable_key()
CLERK_ISSUER = env_url("CLERK_ISSUER", CLERK_FRONTEND_API)
CLERK_JWKS_URL = env_url(
    "CLERK_JWKS_URL", f"{CLERK_FRONTEND_API}/.well-known/jwks.json" if CLERK_FRONTEND_API else ""
)
CLERK_JWT_KEY = ENV.get("CLERK_JWT_KEY", "").replace("\\n", "\n").strip()
CLERK_AUTHORIZED_PARTIES = env_origins("CLERK_AUTHORIZED_PARTIES")
CLERK_WEBHOOK_SIGNING_SECRET = env_list("CLERK_WEBHOOK_SIGNING_SECRET")
CLERK_PLAN_METADATA_KEY = ENV.get("CLERK_PLAN_METADATA_KEY", "").strip()
CLERK_INSTANCE_ID = ENV.get("CLERK_INSTANCE_ID", "").strip()
CLERK_SECRET_KEY = ENV.get("CLERK_SECRET_KEY", "").strip()
CLERK_API_URL = env_url("CLERK_API_URL", "https://api.clerk.com/v1")
# What the demo page signs tokens with. No variable sets it: `manage.py demo` does, for its own process.
DEVELOPMENT_SIGNING_KEY = ""

if not DEBUG:  # then Django's own lines for people are the better ones
    LOGGING_CONFIG = "quotasite.observing.json_logs.configure"
    LOGGING = json_logs.configuration(env_choice("LOG_LEVEL", "info", "warning", "error"))
METRICS_TOKEN = ENV.get("METRICS_TOKEN", "").strip()
PROMETHEUS_MULTIPROC_DIR = ENV.get("PROMETHEUS_MULTIPROC_DIR", "").strip()  # read by prometheus-client too
if not PROMETHEUS_MULTIPROC_DIR:
    ENV.pop("PROMETHEUS_MULTIPROC_DIR", None)  # it takes an empty one for the folder that we are in

FAST_LANE = env_bool("FAST_LANE", default=True)  # quotasite/serving/fast_path.py
LANE_CONNECTIONS = env_int("LANE_CONNECTIONS", 8, 1, 256)  # of a worker, to the database
WEB_THREADS = env_int("WEB_THREADS", 4, 1, 256)  # each with one too
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024  # bytes of a body, the longest that the site takes
QUOTA_DEFAULT_ALLOWANCE = env_int("QUOTA_DEFAULT_ALLOWANCE", 20, 0, MAX_UNITS)
QUOTA_RATELIMIT_DRAFT = env_choice("QUOTA_RATELIMIT_DRAFT", "11", "off")

INSTALLED_APPS = [
    "quotasite",
    "webhooks",
    "quotas",
    "quotasite.apps.ConsoleConfig",  # django.contrib.admin
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "corsheaders",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
]
MIDDLEWARE = [
    "quotasite.observing.middleware.RequestLog",  # before all others: it tells of their refusals too
    "corsheaders.middleware.CorsMiddleware",  # before what refuses: an SPA must be able to read each refusal
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "quotas.api.middleware.RequestGuard",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "quotasite.observing.middleware.PagePolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "quotasite.urls"
WSGI_APPLICATION = "quotasite.wsgi.application"
APPEND_SLASH = False  # a redirect loses a POST: no path of the API ends with one
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",  # first: while somebody is locked out no password is tried
    "django.contrib.auth.backends.ModelBackend",
]
LOGIN_REDIRECT_URL = "/admin/"  # where a `next` that leads elsewhere is not followed
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]  # together: nobody locks staff out from elsewhere
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # so that guessing on writes nothing more
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True  # a table that would only grow; last_login tells who was in
AXES_ENABLE_ADMIN = False  # operators lift a lock by manage.py axes_reset_username
AXES_VERBOSE = False
AXES_CLIENT_IP_CALLABLE = "quotasite.staff.lockout.client_address"
AXES_CLIENT_STR_CALLABLE = "quotasite.staff.lockout.client_in_log"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en"
USE_I18N = False
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True  # the admin's few files need no collectstatic step

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["quotas.access.callers.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["quotas.api.strict_json.StrictJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "quotas.api.strict_json.AlwaysJSON",
    "EXCEPTION_HANDLER": "quotas.api.problems.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_SCHEMA_CLASS": "quotas.api.openapi.Schema",
}
SPECTACULAR_SETTINGS = {
    "OAS_VERSION": "3.1.1",
    "TITLE": "Quotasite",
    "VERSION": "1",
    "SORT_OPERATIONS": False,  # they stand as in urls.py
    "POSTPROCESSING_HOOKS": ["quotas.api.openapi.complete"],
    "SWAGGER_UI_DIST": "SIDECAR",  # local files: the page works offline, and under a strict CSP
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "defaultModelsExpandDepth": 0},
}

CORS_ALLOWED_ORIGINS = env_origins("CORS_ALLOWED_ORIGINS")
CORS_ALLOW_HEADERS = [*default_headers, "idempotency-key"]
CORS_EXPOSE_HEADERS = [
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Idempotent-Replayed",
    "X-Request-Id",
]
CORS_URLS_REGEX = r"^/api/"

# Then, and only then, the scheme and the client's address that a proxy forwards are believed.
TRUSTED_PROXIES = env_count("TRUSTED_PROXY")
if TRUSTED_PROXIES:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = not DEBUG
# A redirect in front of these would lose a POST, or a probe that comes by plain HTTP.
SECURE_REDIRECT_EXEMPT = [r"^api(/|$)", r"^webhooks(/|$)", r"^healthz$", r"^readyz$", r"^metrics$"]
SECURE_HSTS_SECONDS = 0 if DEBUG else 31_536_000
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],  # no inline script, no inline style
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "object-src": [NONE],
    }
}
SILENCED_SYSTEM_CHECKS = [
    "axes.W002",  # its middleware: quotasite/staff/site.py does that for the one login, not for each spend
    "security.W005",  # HSTS for subdomains: they are the owner's to decide, not this service's
    "security.W021",  # HSTS preload: the same
]
