"""The settings, read from the environment and `.env`. `.env.example` explains each variable."""

from datetime import timedelta
from pathlib import Path

from corsheaders.defaults import default_headers
from csp.constants import NONE, SELF
from django.core.management.utils import get_random_secret_key

from quotas.rules.values import MAX_UNITS
from quotasite.environment import (
    ENV,
    env_bool,
    env_choice,
    env_count,
    env_database,
    env_hosts,
    env_int,
    env_list,
    env_origins,
    env_publishable_key,
    env_text,
    env_url,
    load_env_file,
    looks_pooled,
    refuse_empty,
)
from quotasite.observing import json_logs

BASE_DIR = Path(__file__).resolve().parent.parent
refuse_empty("DATABASE_URL")  # with another database than is meant, all commands succeed
ENV_FILE = load_env_file(BASE_DIR)  # first: all that follows reads the environment

DEBUG = env_bool("DEBUG")
SECRET_KEY_IS_SET = bool(env_text("SECRET_KEY"))
DATABASE_URL_IS_SET = bool(env_text("DATABASE_URL"))
# A random key signs staff out at each restart, and workers do not share it: quotas.E002 reports it.
SECRET_KEY = env_text("SECRET_KEY") or get_random_secret_key()
SECRET_KEY_FALLBACKS = env_list("SECRET_KEY_FALLBACKS")
ALLOWED_HOSTS = env_hosts("ALLOWED_HOSTS")
CSRF_TRUSTED_ORIGINS = env_origins("CSRF_TRUSTED_ORIGINS", may_have_wildcard=True)
# With a pooler in transaction mode no cursor and no prepared statement may outlive a transaction.
DATABASE_LOOKS_POOLED = looks_pooled(env_text("DATABASE_URL"))
DATABASE_POOLED = env_choice("DATABASE_POOLED", "auto", "on", "off", "1", "0")
DATABASE_IS_POOLED = DATABASE_LOOKS_POOLED if DATABASE_POOLED == "auto" else DATABASE_POOLED in ("on", "1")
DATABASES = {
    "default": env_database(f"sqlite:///{BASE_DIR / 'quotasite.sqlite3'}", is_pooled=DATABASE_IS_POOLED)
}
# The variable by which we recognize a platform, or None. Each of these empties its disk at each deploy, and
# sends requests through a proxy of its own.
PLATFORM = next(
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

CLERK_PUBLISHABLE_KEY = env_text("CLERK_PUBLISHABLE_KEY")
CLERK_FRONTEND_API = env_publishable_key()
CLERK_ISSUER = env_url("CLERK_ISSUER", CLERK_FRONTEND_API)
CLERK_JWKS_URL = env_url(
    "CLERK_JWKS_URL", f"{CLERK_FRONTEND_API}/.well-known/jwks.json" if CLERK_FRONTEND_API else ""
)
CLERK_JWT_KEY = env_text("CLERK_JWT_KEY").replace("\\n", "\n").strip()
CLERK_AUTHORIZED_PARTIES = env_origins("CLERK_AUTHORIZED_PARTIES")
CLERK_ALLOW_MISSING_AZP = env_bool("CLERK_ALLOW_MISSING_AZP")
CLERK_WEBHOOK_SIGNING_SECRET = env_list("CLERK_WEBHOOK_SIGNING_SECRET")
CLERK_PLAN_METADATA_KEY = env_text("CLERK_PLAN_METADATA_KEY")
CLERK_INSTANCE_ID = env_text("CLERK_INSTANCE_ID")
CLERK_SECRET_KEY = env_text("CLERK_SECRET_KEY")
CLERK_API_URL = env_url("CLERK_API_URL", "https://api.clerk.com/v1")
# The demo page signs tokens with it. No variable sets it, only `manage.py demo`, for its own process.
DEVELOPMENT_SIGNING_KEY = ""

LOG_LEVEL = env_choice("LOG_LEVEL", "info", "warning", "error")
if not DEBUG:  # in development, Django's own log lines are easier to read
    LOGGING_CONFIG = "quotasite.observing.json_logs.configure"
    LOGGING = json_logs.configuration(LOG_LEVEL)
METRICS_TOKEN = env_text("METRICS_TOKEN")
PROMETHEUS_MULTIPROC_DIR = env_text("PROMETHEUS_MULTIPROC_DIR")  # read by prometheus-client too
if not PROMETHEUS_MULTIPROC_DIR:
    ENV.pop("PROMETHEUS_MULTIPROC_DIR", None)  # prometheus-client would write into the working directory

DATABASE_IS_DISTRIBUTED = env_bool("DATABASE_DISTRIBUTED")  # by Citus: other statements (store/sql.py)
FAST_LANE = env_bool("FAST_LANE", default=True)  # quotasite/serving/fast_path.py
LANE_CONNECTIONS = env_int("LANE_CONNECTIONS", 8, 2, 256)  # database connections of a worker's event loop
WEB_THREADS = env_int("WEB_THREADS", 4, 1, 256)  # threads of a worker, each with a database connection
# For the shell that runs the Procfile's line `web:`; read here to refuse a release with a bad value.
# HOST is refused by quotasite/checks.py only: some shells export it as the machine's name.
HOST = env_text("HOST")
SERVER_NUMBERS = {
    name: (env_int(name, default, low, high), default)
    for name, default, low, high in (
        ("PORT", 8000, 1, 65_535),
        ("WEB_CONCURRENCY", 2, 1, 256),
        ("WORKER_CONNECTIONS", 2048, 1, 1_000_000),
        ("KEEP_ALIVE_SECONDS", 60, 1, 60),
    )
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024  # bytes: the longest body that is read
QUOTA_DEFAULT_ALLOWANCE_IS_SET = bool(env_text("QUOTA_DEFAULT_ALLOWANCE"))
QUOTA_DEFAULT_ALLOWANCE = env_int("QUOTA_DEFAULT_ALLOWANCE", 20, 0, MAX_UNITS)
QUOTA_USER_IDS = env_choice("QUOTA_USER_IDS", "any", "clerk", "known")
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
    "quotasite.observing.middleware.RequestLog",  # first: it logs the refusals of all others
    "quotas.api.middleware.CrossOrigin",  # before any refusal: an SPA must be able to read it
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "quotas.api.middleware.RequestGuard",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "quotasite.observing.middleware.PagePolicy",
    "quotasite.observing.middleware.PageSession",
    "quotasite.observing.middleware.HostCheck",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "quotasite.urls"
WSGI_APPLICATION = "quotasite.wsgi.application"
APPEND_SLASH = False  # a redirect would lose a POST; no path of the API ends with a slash
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
    "axes.backends.AxesStandaloneBackend",  # first: no password is checked during a lockout
    "django.contrib.auth.backends.ModelBackend",
]
LOGIN_REDIRECT_URL = "/admin/"  # also if `next` leads to another site
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]  # as a pair: no other address can lock staff out
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # further guesses write nothing
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True  # the table would only grow; last_login records log-ins
AXES_ENABLE_ADMIN = False  # operators end a lockout with manage.py axes_reset_username
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
    "DEFAULT_AUTHENTICATION_CLASSES": [],  # quotas/api/respond.py authenticates
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": [],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "quotas.api.strict_json.AlwaysJSON",
    "EXCEPTION_HANDLER": "quotas.api.views.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_SCHEMA_CLASS": "quotas.api.openapi.EndpointSchema",
}
SPECTACULAR_SETTINGS = {
    "OAS_VERSION": "3.1.1",
    "TITLE": "Quotasite",
    "VERSION": "1",
    "SORT_OPERATIONS": False,  # keep the order of endpoints.py
    "POSTPROCESSING_HOOKS": ["quotas.api.openapi.complete"],
    "SWAGGER_UI_DIST": "SIDECAR",  # local files: the page works offline, and under a strict CSP
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "defaultModelsExpandDepth": 0},
}

CORS_ALLOWED_ORIGINS = env_origins("CORS_ALLOWED_ORIGINS")
CORS_ALLOW_HEADERS = [*default_headers, "idempotency-key"]  # and what a preflight asks for: CrossOrigin
CORS_EXPOSE_HEADERS = [
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Idempotent-Replayed",
    "X-Request-Id",
]
CORS_URLS_REGEX = r"^/api/"

# Without a trusted proxy, X-Forwarded-Proto and X-Forwarded-For are ignored: any client can send them.
TRUSTED_PROXIES = env_count("TRUSTED_PROXY")
if TRUSTED_PROXIES:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = not DEBUG
# A redirect of these paths would lose a POST, or fail a probe over plain HTTP.
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
    "axes.W002",  # no AxesMiddleware: quotasite/staff/site.py does its work for the login form only
    "security.W005",  # HSTS for subdomains: for the domain's owner to decide, not this service
    "security.W021",  # HSTS preload: the same
    "security.W009",  # a weak SECRET_KEY: quotasite.E003 is an error
    "security.W018",  # DEBUG: quotasite.E004 is an error
    "security.W020",  # no ALLOWED_HOSTS: quotas.E003 is an error
]
if DEBUG:  # it switches these off, so that they are nothing to mend by themselves
    SILENCED_SYSTEM_CHECKS += ["security.W004", "security.W008", "security.W010", "security.W016"]
