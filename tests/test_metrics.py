"""GET /metrics: for who has the token, and never with anybody's id, key or token in it."""

import pytest

from tests.test_webhook import CREATED

pytestmark = pytest.mark.django_db
TOKEN = "a token for the tests alone"


@pytest.fixture
def scrape(client, settings):
    settings.METRICS_TOKEN = TOKEN
    return lambda token=TOKEN: client.get("/metrics", headers={"Authorization": f"Bearer {token}"})


def test_what_was_counted_is_told_in_prometheus_text(scrape, deliver):
    deliver(*CREATED)
    answer = scrape()
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain")
    assert "no-store" in answer["Cache-Control"]
    text = answer.content.decode()
    assert 'quotasite_webhook_deliveries_total{outcome="success",type="user.created"}' in text
    assert "quotasite_jwks_fetches_total" in text
    assert "quotasite_jwks_fetched_timestamp_seconds" in text
    assert CREATED[1]["id"] not in text


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + " ", "é"])
def test_without_the_token_nothing_is_told(scrape, token):
    answer = scrape(token)
    assert (answer.status_code, answer["Content-Type"]) == (401, "application/problem+json")
    assert answer["WWW-Authenticate"].startswith("Bearer")


def test_where_no_token_is_configured_there_is_no_such_page(client, settings):
    settings.METRICS_TOKEN = ""
    for headers in ({}, {"Authorization": "Bearer "}):
        answer = client.get("/metrics", headers=headers)
        assert (answer.status_code, answer["Content-Type"]) == (404, "application/problem+json")


def test_what_several_processes_counted_is_told_together(scrape, settings, tmp_path):
    settings.PROMETHEUS_MULTIPROC_DIR = str(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        answer = scrape()
    assert (answer.status_code, answer.content) == (200, b"")  # nobody has counted there yet
