"""The app against a running Quotasite, which QUOTASITE_URL names. Each test has a user of its own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

os.environ.setdefault("CLERK_AUTHORIZED_PARTIES", "http://localhost:5173")
os.environ.setdefault("CLERK_JWT_KEY", "unused: the tests say who is signed in")

import challenges
from app import app
from auth import current_user


@pytest.fixture(scope="module")
def running() -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(running: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    user_id = f"user_{uuid4().hex}"
    monkeypatch.setenv("CHALLENGES", str(tmp_path / "challenges.sqlite3"))
    monkeypatch.setitem(app.dependency_overrides, current_user, lambda: user_id)
    return running


def create(client: TestClient, topic: str = "lists", attempt: str = "") -> Any:
    headers = {"Idempotency-Key": attempt or str(uuid4())}
    return client.post("/api/challenges", json={"topic": topic}, headers=headers)


def left(client: TestClient) -> int:
    return int(client.get("/api/quota").json()["quota_remaining"])


def test_a_challenge_costs_one_unit(client: TestClient) -> None:
    before = left(client)
    assert create(client).status_code == 201
    assert left(client) == before - 1


def test_a_failure_costs_nothing(client: TestClient) -> None:
    before = left(client)
    assert create(client, "nothing").status_code == 502
    assert left(client) == before


def test_the_same_attempt_gets_the_same_challenge_and_costs_nothing_more(client: TestClient) -> None:
    attempt = str(uuid4())
    first = create(client, attempt=attempt).json()
    before = left(client)
    assert [create(client, attempt=attempt).json() for _ in range(5)] == [first] * 5
    assert left(client) == before


def test_the_same_attempt_at_another_topic_is_paid_for(client: TestClient) -> None:
    attempt, before = str(uuid4()), left(client)
    tasks = [create(client, topic, attempt).json()["topic"] for topic in ("lists", "strings")]
    assert (tasks, left(client)) == (["lists", "strings"], before - 2)


def test_a_failed_attempt_needs_a_new_key(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = str(uuid4())
    create(client, "news", attempt)
    monkeypatch.setitem(challenges.TASKS, "news", ["Count the headlines."])
    again = create(client, "news", attempt)
    assert (again.status_code, again.json()["code"]) == (409, "already_refunded")
    assert create(client, "news").status_code == 201


def test_without_units_the_answer_says_when_there_are_more(client: TestClient) -> None:
    statuses = [create(client).status_code for _ in range(left(client) + 1)]
    assert statuses[-2:] == [201, 429]
    problem = create(client)
    assert int(problem.headers["Retry-After"]) == problem.json()["retry_after"]


def test_nobody_else_is_served(running: TestClient) -> None:
    assert running.get("/api/quota").status_code == 401
    assert running.get("/api/quota", headers={"Authorization": "Bearer a.b.c"}).status_code == 401
