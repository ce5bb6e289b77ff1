"""The floor: a WSGI callable and psycopg, no framework. `/bare/consume` has neither ledger nor keys."""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
from uuid_utils.compat import uuid7

from bench.peers import answers, statements, tokens

PLACEHOLDERS = {name: f"%({name})s" for name in ("user", "cost", "key", "id", "fingerprint")}
GET, BARE, CONSUME = (
    text.format(**PLACEHOLDERS) for text in (statements.GET, statements.BARE, statements.CONSUME)
)
REASONS = {
    200: "200 OK",
    201: "201 Created",
    400: "400 Bad Request",
    401: "401 Unauthorized",
    404: "404 Not Found",
    422: "422 Unprocessable Content",
    429: "429 Too Many Requests",
}
Environ = dict[str, Any]
_thread = threading.local()


def application(environ: Environ, start_response: Callable[..., object]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/healthz":
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]
    try:
        user_id = tokens.user_of(environ.get("HTTP_AUTHORIZATION", ""))
        answer = VERBS[path](user_id, environ)
    except tokens.Refused:
        answer = answers.problem(401)
    except answers.Invalid:
        answer = answers.problem(400)
    except KeyError:
        answer = answers.problem(404)
    body = answer.body
    fields = [
        *answer.fields.items(),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
    ]
    start_response(REASONS[answer.status], fields)
    return [body]


def get(user_id: str, _: Environ) -> answers.Answer:
    return answers.quota(user_id, run(GET, {"user": user_id}))


def consume_bare(user_id: str, environ: Environ) -> answers.Answer:
    cost = answers.cost_of(body_of(environ))
    return answers.bare(user_id, run(BARE, {"user": user_id, "cost": cost}))


def consume(user_id: str, environ: Environ) -> answers.Answer:
    cost = answers.cost_of(body_of(environ))
    key = answers.stored_key(environ.get("HTTP_IDEMPOTENCY_KEY"))
    fingerprint = answers.fingerprint(cost) if key else ""
    values = {"user": user_id, "cost": cost, "key": key, "id": uuid7(), "fingerprint": fingerprint}
    try:
        row = run(CONSUME, values)
    except psycopg.errors.UniqueViolation:  # another request has just spent this key: replay it
        row = run(CONSUME, values)
    return answers.consumption(user_id, row, fingerprint)


VERBS = {"/api/quota": get, "/bare/consume": consume_bare, "/api/v1/quota/consume": consume}


def body_of(environ: Environ) -> bytes:
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return body


def run(statement: str, values: dict[str, Any]) -> Any:
    """Return the first row, over this thread's own connection, which prepares each statement once."""
    try:
        cursor = _thread.cursor
    except AttributeError:
        connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
        cursor = _thread.cursor = connection.cursor(binary=True)
    return cursor.execute(statement, values, prepare=True).fetchone()
