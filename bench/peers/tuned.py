"""FastAPI and asyncpg, tuned by hand. `/bare/consume` has neither ledger nor keys."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI, Request, Response
from uuid_utils.compat import uuid7

from bench.peers import answers, statements, tokens

CONNECTIONS = int(os.environ.get("CONNECTIONS", "8"))  # of a worker: as many as it has clients
PARAMETERS = ("user", "cost", "key", "id", "fingerprint")
Fetch = Callable[..., Awaitable[Any]]


class Connection:
    """A connection with three prepared statements.

    It returns to a stack without a reset, for which asyncpg's own pool would spend a round trip. A stack,
    because the connection that was used last has the warmest caches.
    """

    async def open(self) -> "Connection":
        raw = await asyncpg.connect(os.environ["DATABASE_URL"])
        self.get: Fetch = (await raw.prepare(statements.GET.format(user="$1"))).fetchrow
        self.bare: Fetch = (await raw.prepare(statements.BARE.format(user="$1", cost="$2"))).fetchrow
        placeholders = {name: f"${number}" for number, name in enumerate(PARAMETERS, start=1)}
        self.consume: Fetch = (await raw.prepare(statements.CONSUME.format(**placeholders))).fetchrow
        self.raw = raw
        return self


free: list[Connection] = []
has_free = asyncio.Semaphore(CONNECTIONS)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    free.extend([await Connection().open() for _ in range(CONNECTIONS)])
    yield
    for connection in free:
        await connection.raw.close()


app = FastAPI(lifespan=lifespan, openapi_url=None)


@app.get("/healthz")
async def healthz() -> Response:
    return Response(b"ok")


@app.get("/api/quota")
async def get(request: Request) -> Response:
    try:
        user_id = tokens.user_of(request.headers.get("authorization", ""))
    except tokens.Refused:
        return respond(answers.problem(401))
    async with has_free:
        connection = free.pop()
        try:
            row = await connection.get(user_id)
        finally:
            free.append(connection)
    return respond(answers.quota(user_id, row))


@app.post("/bare/consume")
async def consume_bare(request: Request) -> Response:
    try:
        user_id = tokens.user_of(request.headers.get("authorization", ""))
        cost = answers.cost_of(await request.body())
    except tokens.Refused:
        return respond(answers.problem(401))
    except answers.Invalid:
        return respond(answers.problem(400))
    async with has_free:
        connection = free.pop()
        try:
            row = await connection.bare(user_id, cost)
        finally:
            free.append(connection)
    return respond(answers.bare(user_id, row))


@app.post("/api/v1/quota/consume")
async def consume(request: Request) -> Response:
    headers = request.headers
    try:
        user_id = tokens.user_of(headers.get("authorization", ""))
        cost = answers.cost_of(await request.body())
        key = answers.stored_key(headers.get("idempotency-key"))
    except tokens.Refused:
        return respond(answers.problem(401))
    except answers.Invalid:
        return respond(answers.problem(400))
    fingerprint = answers.fingerprint(cost) if key else ""
    values = (user_id, cost, key, uuid7(), fingerprint)
    async with has_free:
        connection = free.pop()
        try:
            try:
                row = await connection.consume(*values)
            except asyncpg.UniqueViolationError:  # another request has just spent this key: replay it
                row = await connection.consume(*values)
        finally:
            free.append(connection)
    return respond(answers.consumption(user_id, row, fingerprint))


def respond(answer: answers.Answer) -> Response:
    return Response(answer.body, answer.status, answer.fields, "application/json")
