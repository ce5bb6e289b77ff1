"""The round trips of a request to the database, counted on the wire."""

from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus

import pytest
from django.db import connection

from quotas.models import ChallengeQuota
from quotasite.demo.tour import shift
from tests.conftest import USER, Api
from tests.tools.wire import Wire

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A wire to the database that counts round trips, with an open connection, as between two requests."""
    database = connection.settings_dict
    direct = {"HOST": database["HOST"], "PORT": database["PORT"]}
    with Wire(database["HOST"] or "127.0.0.1", int(database["PORT"] or 5432)) as between:
        connection.close()
        database.update(HOST="127.0.0.1", PORT=between.port)
        connection.ensure_connection()
        between.reset()
        yield between
        connection.close()
        database.update(direct)


def counted(wire: Wire, answer: int, expected: int) -> int:
    assert answer == expected
    trips = wire.round_trips
    wire.reset()
    return trips


@pytest.fixture
def opened(wire: Wire) -> None:
    ChallengeQuota.objects.current(USER)
    wire.reset()


def test_a_read_takes_one(api: Api, wire: Wire, opened: None) -> None:
    assert counted(wire, api.quota().status_code, HTTPStatus.OK) == 1


def test_a_spend_takes_two(api: Api, wire: Wire, opened: None) -> None:
    assert counted(wire, api.consume(key="k").status_code, HTTPStatus.CREATED) == 2


def test_a_replay_takes_one(api: Api, wire: Wire, opened: None) -> None:
    api.consume(key="k")
    wire.reset()
    assert counted(wire, api.consume(key="k").status_code, HTTPStatus.CREATED) == 1


def test_a_check_takes_one_even_if_the_quota_is_missing_exhausted_or_due(api: Api, wire: Wire) -> None:
    assert counted(wire, api.check({}).status_code, HTTPStatus.OK) == 1
    api.consume({"cost": 20})
    wire.reset()
    assert counted(wire, api.check({"cost": 2}).status_code, HTTPStatus.OK) == 1
    shift(USER, timedelta(hours=24))
    wire.reset()
    assert counted(wire, api.check({"cost": 2}).status_code, HTTPStatus.OK) == 1


def test_a_refusal_takes_one_but_for_the_first_of_a_period(api: Api, wire: Wire, opened: None) -> None:
    api.consume({"cost": 20})
    wire.reset()
    assert counted(wire, api.consume().status_code, HTTPStatus.TOO_MANY_REQUESTS) == 2
    assert counted(wire, api.consume().status_code, HTTPStatus.TOO_MANY_REQUESTS) == 1


def test_a_read_that_opens_or_resets_takes_two(api: Api, wire: Wire) -> None:
    assert counted(wire, api.quota().status_code, HTTPStatus.OK) == 2
    shift(USER, timedelta(hours=24))
    wire.reset()
    assert counted(wire, api.quota().status_code, HTTPStatus.OK) == 2


def test_a_spend_that_opens_or_resets_takes_two(api: Api, wire: Wire) -> None:
    assert counted(wire, api.consume().status_code, HTTPStatus.CREATED) == 2
    shift(USER, timedelta(hours=24))
    wire.reset()
    assert counted(wire, api.consume().status_code, HTTPStatus.CREATED) == 2
