"""Each log record as one line of JSON in ASCII on stderr, so that no input can end or forge a line.

Import only the standard library here: the server's own process loads this module too (server_log.json).
"""

import json
import logging
import logging.config
import re
import threading
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

MAX_MESSAGE = 500  # characters of a message
MAX_FRAMES = 20  # of a traceback, the innermost

# The lines of this project contain no secret; this hides those that a library quotes from its input.
SECRET = re.compile(
    r"eyJ[\w.-]{8,}"  # a token
    r"|\b(?:qs_[0-9a-f]{8}_|whsec_|[sp]k_(?:test|live)_)[\w+/=-]+"
    r"|(?<=://)(?!USER:PASSWORD@)[^\s/]+@"  # credentials in a URL, but not the settings' placeholder
    r"|(?i:(?<=bearer )\S+|(?<=cookie: ).+)"
    r"|[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{1,190}"  # an e-mail address
)
# `json.dumps` with separators would create an encoder for each call.
to_json = json.JSONEncoder(separators=(",", ":"), default=str).encode

request_id: ContextVar[str] = ContextVar("request_id", default="")


class EncodedFields(str):
    """Members of a JSON object, already encoded: JSONLines would need longer, and requests wait for it."""


class JSONLines(logging.Formatter):
    """Format a record as one line: time, level and logger, then EncodedFields, or message and exception."""

    def format(self, record: logging.LogRecord) -> str:
        at = f"{_second(int(record.created))}.{int(record.msecs):03}Z"
        head = f'{{"time":"{at}","level":"{record.levelname.lower()}"'
        if isinstance(record.msg, EncodedFields):
            return f'{head},"logger":"{record.name}",{record.msg}}}'
        line: dict[str, Any] = {"logger": record.name}
        if current_id := request_id.get():
            line["request_id"] = current_id
        line["message"] = redact(record.getMessage())
        if record.exc_info and record.exc_info[1]:
            line.update(exception_fields(record.exc_info[1]))
        return f"{head},{to_json(line)[1:]}"


@lru_cache(maxsize=2)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class OncePerRequest(logging.Filter):
    """Drop Django's line about a refused request, because RequestLog logs one; hide the path in other lines.

    A path is text that the client chose.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        status = getattr(record, "status_code", None)
        if status is None or not hasattr(record, "request"):
            return True
        if record.name == "django.security.csrf":
            reason = str(record.args[0] if isinstance(record.args, tuple) and record.args else "")
            record.msg, record.args = "CSRF: %s", (reason.partition(" - ")[0],)  # the URL follows
            return True
        if record.name == "django.security.DisallowedHost":
            record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
            return True
        record.msg, record.args = "A request failed.", ()
        return bool(record.exc_info)


def redact(text: str) -> str:
    # To cut at MAX_MESSAGE first could leave half a secret, which SECRET does not match.
    return SECRET.sub("[hidden]", text[: 10 * MAX_MESSAGE])[:MAX_MESSAGE]


def exception_fields(error: BaseException) -> dict[str, Any]:
    """Return the causes and the frames of an error; only first lines: PostgreSQL's DETAIL contains rows."""
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 5:
        first = str(cause).strip().partition("\n")[0]
        causes.append(f"{type(cause).__module__}.{type(cause).__qualname__}: {redact(first)}")
        cause = cause.__cause__
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return {"error": causes, "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]}


def configuration(level: str) -> dict[str, Any]:
    """Return LOGGING: the loggers of this project from `level` on, all others from WARNING on."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"once": {"()": OncePerRequest}},
        "formatters": {"json": {"()": JSONLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["once"]}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "django": {"handlers": [], "level": "WARNING"},  # without the mail handler
            **{name: {"level": level.upper()} for name in ("quotasite", "quotas", "webhooks")},
        },
    }


def configure(config: dict[str, Any]) -> None:
    """Run `dictConfig`; also log Python's warnings and exceptions that end a thread."""
    # No line shows these fields, and they are half the cost of a record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.config.dictConfig(config)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # else a record that fails to format is printed with all arguments
    threading.excepthook = _log_thread_end


def _log_thread_end(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None:
        logging.getLogger("quotasite.threads").error("A thread ended.", exc_info=ended.exc_value)
