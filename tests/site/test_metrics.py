"""GET /metrics: only with the token, and never with an id, key or token of a caller in it."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml
from django.db import OperationalError
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from quotas import metrics
from quotas.api.errors import problem_for
from quotas.models import ChallengeQuota
from tests.conftest import USER
from tests.tools.site import ROOT, ask, running, url_of_the_test_database
from tests.webhooks.test_webhook import CREATED

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


def counted(name, **labels):
    return REGISTRY.get_sample_value(f"quotasite_{name}", labels) or 0


@pytest.fixture
def news(settings):
    """A function that returns how much a figure rose since the last call for it."""
    settings.METRICS_TOKEN = TOKEN
    known = {}

    def rise(name, **labels):
        key = (name, *labels.items())
        before, known[key] = known.get(key, 0), counted(name, **labels)
        return known[key] - before

    return rise


def test_a_request_is_counted_by_verb_outcome_and_status(api, make_quota, news):
    make_quota(remaining=1)
    kinds = [("granted", "201"), ("replayed", "201"), ("quota_exhausted", "429"), ("token_malformed", "401")]

    def counts():
        return [
            news("requests_total", verb="consume", outcome=outcome, status=status)
            for outcome, status in kinds
        ]

    counts(), news("request_seconds_count", verb="consume")
    for key in ("a", "a", "b"):
        api.consume(key=key)
    api.consume(Authorization="Bearer x")
    assert counts() == [1, 1, 1, 1]
    assert news("request_seconds_count", verb="consume") == 4


def test_nothing_of_a_strangers_becomes_a_label(api, scrape):
    hostile = "stranger_5e7f"
    api.signed_in_as(hostile).quota()
    api.get(f"/api/v1/users/{hostile}/{hostile}")
    api.get(f"/{hostile}?{hostile}", X_Request_Id=hostile, User_Agent=hostile)
    api.send(hostile, "/api/quota")
    api.get("/api/quota", Host=hostile)
    api.get("/api/quota", Authorization=f"Bearer {hostile}")
    api.consume({"cost": 1, "action": hostile}, key=hostile)
    assert hostile not in scrape().content.decode()


def test_without_a_token_nobody_could_read_it_so_nothing_is_counted(api, make_quota, news, settings):
    make_quota()
    settings.METRICS_TOKEN = ""
    news("requests_total", verb="read", outcome="ok", status="200")
    assert api.quota().status_code == 200
    assert news("requests_total", verb="read", outcome="ok", status="200") == 0


@pytest.mark.postgres
def test_a_lost_race_is_counted(api, make_quota, news, step_in):
    make_quota(remaining=5)
    news("lost_races_total")
    api.consume()
    assert news("lost_races_total") == 0
    step_in(lambda: ChallengeQuota.objects.consume(USER, 1))
    assert api.consume().status_code == 201
    assert news("lost_races_total") == 1


def test_a_database_that_cannot_be_used_is_counted(news):
    news("database_errors_total")
    assert problem_for(OperationalError("away")).type.status == 503
    assert news("database_errors_total") == 1


def test_what_several_processes_counted_is_told_together(scrape, settings, tmp_path):
    settings.PROMETHEUS_MULTIPROC_DIR = str(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        answer = scrape()
    assert (answer.status_code, answer.content) == (200, b"")  # no process has counted there yet


def test_a_worker_that_has_ended_is_forgotten_and_what_it_counted_is_not(scrape, settings, tmp_path):
    settings.PROMETHEUS_MULTIPROC_DIR = str(tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        for kind in ("counter", "gauge_livemostrecent", "histogram"):
            (tmp_path / f"{kind}_{pid}.db").write_bytes(bytes(1 << 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        assert scrape().status_code == 200
    gone = f"gauge_livemostrecent_{ended.pid}.db"
    assert not (tmp_path / gone).exists()
    assert len([*tmp_path.iterdir()]) == 5


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_procfiles_workers_count_together_and_a_killed_ones_count_stays():
    with running(url_of_the_test_database(), workers=2, METRICS_TOKEN=TOKEN) as (port, master):

        def total():
            with closing(HTTPConnection("127.0.0.1", port)) as client:
                client.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
                families = text_string_to_metric_families(client.getresponse().read().decode())
            read = {"verb": "read", "outcome": "ok", "status": "200"}
            return sum(
                sample.value
                for family in families
                for sample in family.samples
                if sample.name == "quotasite_requests_total" and sample.labels == read
            )

        def ask_many():
            for _ in range(20):
                # A new connection each time, so that both workers get requests.
                with closing(HTTPConnection("127.0.0.1", port)) as client:
                    assert ask(client, "GET", "/api/quota", "user_1") == 200

        ask_many()
        assert [total() for _ in range(4)] == [20] * 4
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children")
        killed = children.read_text().split()[0]
        os.kill(int(killed), signal.SIGKILL)
        while killed in children.read_text().split():  # connections that it has not accepted are reset
            time.sleep(0.05)
        ask_many()
        assert total() == 40
        time.sleep(3)  # a worker that is still starting ignores the signal to end


NAMES = {
    sample.name
    for family in REGISTRY.collect()
    for sample in family.samples
    if family.name.startswith("quotasite_")
} | {
    f"quotasite_{name}"
    for name in (
        *("requests_total", "webhook_deliveries_total", "jwks_fetches_total"),  # absent before an event
        *("request_seconds_bucket", "request_seconds_count", "request_seconds_sum"),
    )
}


def test_the_names_that_have_labels_are_those_of_the_module():
    with_labels = (metrics.REQUESTS, metrics.DELIVERIES, metrics.KEY_FETCHES, metrics.SECONDS)
    described = {family.name for metric in with_labels for family in metric.describe()}
    assert described == {
        *("quotasite_requests", "quotasite_webhook_deliveries", "quotasite_jwks_fetches"),
        "quotasite_request_seconds",
    }


@pytest.mark.parametrize("page", ["monitoring.md", "grafana.json", "alerts.yml"])
def test_the_pages_name_only_what_is_counted(page):
    named = set(re.findall(r"\bquotasite_\w+", (ROOT / "docs" / page).read_text()))
    assert named
    assert named <= NAMES


def test_each_alert_says_what_to_do():
    groups = yaml.safe_load((ROOT / "docs/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 8
    for rule in rules:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_the_dashboard_asks_the_data_source_that_is_chosen_at_import():
    board = json.loads((ROOT / "docs/grafana.json").read_text())
    assert [variable["type"] for variable in board["templating"]["list"]] == ["datasource"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all("quotasite_" in target["expr"] for target in panel["targets"])
