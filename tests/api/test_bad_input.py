"""Bad input: each gets a clear 4xx, and nothing is stored."""

import json

import pytest
from django.db import connection
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from quotas.api import idempotency
from quotas.api.messages import MAX_METADATA_BYTES, ConsumeRequest
from quotas.models import ChallengeQuota, LedgerEntry
from quotas.problems import Problem
from tests.tools import keys

pytestmark = pytest.mark.django_db
KIB = 1024
CONSUME, CHECK = "/api/v1/quota/consume", "/api/v1/quota/check"


def assert_problem(answer, status, code):
    """Assert a problem of RFC 9457 with one sentence, and no trace of the request in the database."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "code"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["detail"].endswith(".")
    assert len(problem["detail"]) < 250
    assert (LedgerEntry.objects.count(), ChallengeQuota.objects.count()) == (0, 0)


def nested(depth, opening="[", closing="]"):
    return f'{{"metadata": {{"a": {opening * depth}{closing * depth}}}}}'


BODIES = {
    "an unknown member": ('{"ammount": 1}', 400, "invalid_request"),
    "an unknown member next to a known one": ('{"cost": 1, "user_id": "user_2"}', 400, "invalid_request"),
    "an unknown member that is long": (f'{{"{"x" * 5000}": 1}}', 400, "invalid_request"),
    "a float": ('{"cost": 1.0}', 400, "invalid_request"),
    "an exponent": ('{"cost": 1e0}', 400, "invalid_request"),
    "a string": ('{"cost": "1"}', 400, "invalid_request"),
    "true": ('{"cost": true}', 400, "invalid_request"),
    "null": ('{"cost": null}', 400, "invalid_request"),
    "an array for a cost": ('{"cost": [1]}', 400, "invalid_request"),
    "an object for a cost": ('{"cost": {}}', 400, "invalid_request"),
    "minus one": ('{"cost": -1}', 400, "invalid_request"),
    "zero": ('{"cost": 0}', 400, "invalid_request"),
    "minus zero": ('{"cost": -0}', 400, "invalid_request"),
    "2**31": ('{"cost": 2147483648}', 400, "invalid_request"),
    "2**63": ('{"cost": 9223372036854775808}', 400, "invalid_request"),
    "10**400": (f'{{"cost": 1{"0" * 400}}}', 400, "invalid_request"),
    "10**5000": (f'{{"cost": 1{"0" * 5000}}}', 400, "malformed_json"),
    "an empty action": ('{"action": ""}', 400, "invalid_request"),
    "a long action": (f'{{"action": "{"a" * 65}"}}', 400, "invalid_request"),
    "a number for an action": ('{"action": 1}', 400, "invalid_request"),
    "null for an action": ('{"action": null}', 400, "invalid_request"),
    "an array for metadata": ('{"metadata": []}', 400, "invalid_request"),
    "a string for metadata": ('{"metadata": "{}"}', 400, "invalid_request"),
    "null for metadata": ('{"metadata": null}', 400, "invalid_request"),
    "2 KiB and a byte of metadata": (f'{{"metadata":{{"a":"{"x" * 2041}"}}}}', 400, "invalid_request"),
    "2 KiB of numbers once they are written out": (
        f'{{"metadata":{{"a":[{",".join(["1e308"] * 7)}]}}}}',
        400,
        "invalid_request",
    ),
    "2 KiB of small numbers once they are written out": (
        f'{{"metadata":{{"a":{{"b":[{",".join(["-1e-300"] * 7)}]}}}}}}',
        400,
        "invalid_request",
    ),
    "2 KiB of two-byte letters": (f'{{"metadata":{{"a":"{"é" * 1021}"}}}}', 400, "invalid_request"),
    "no body": ("", 400, "body_missing"),
    "a blank": (" ", 400, "malformed_json"),
    "half an object": ('{"cost": 1', 400, "malformed_json"),
    "two objects": ('{"cost": 1}{"cost": 1}', 400, "malformed_json"),
    "single quotes": ("{'cost': 1}", 400, "malformed_json"),
    "a form as JSON": ("cost=1", 400, "malformed_json"),
    "an array": ("[]", 400, "malformed_json"),
    "a string alone": ('"cost"', 400, "malformed_json"),
    "a number alone": ("1", 400, "malformed_json"),
    "null alone": ("null", 400, "malformed_json"),
    "not UTF-8": (b'{"metadata": {"a": "\xff"}}', 400, "malformed_json"),
    "UTF-16": ('{"cost": 1}'.encode("utf-16"), 400, "malformed_json"),
    "a byte order mark": (b'\xef\xbb\xbf{"cost": 1}', 400, "malformed_json"),
    "a lone surrogate": ('{"metadata": {"a": "\\ud83d"}}', 400, "malformed_json"),
    "a lone surrogate in a name": ('{"metadata": {"a": {"\\udc00": 1}}}', 400, "malformed_json"),
    "U+0000": ('{"metadata": {"a": "\\u0000"}}', 400, "malformed_json"),
    "U+0000 in a nested name": ('{"metadata": {"a": [{"b\\u0000": 1}]}}', 400, "malformed_json"),
    "U+0000 in an action": ('{"action": "\\u0000"}', 400, "malformed_json"),
    "U+0000 as it is": (b'{"metadata": {"a": "\x00"}}', 400, "malformed_json"),
    "NaN": ('{"metadata": {"a": NaN}}', 400, "malformed_json"),
    "Infinity": ('{"metadata": {"a": [Infinity]}}', 400, "malformed_json"),
    "-Infinity": ('{"cost": -Infinity}', 400, "malformed_json"),
    "1e999": ('{"metadata": {"a": 1e999}}', 400, "malformed_json"),
    "a member twice": ('{"cost": 1, "cost": 2}', 400, "malformed_json"),
    "a member twice further in": ('{"metadata": {"a": [{"b": 1, "b": 1}]}}', 400, "malformed_json"),
    "a member twice by escape": ('{"cost": 1, "\\u0063ost": 1}', 400, "malformed_json"),
    "60 KB of brackets": ("[" * 60_000, 400, "malformed_json"),
    "30 KB of objects": ('{"a":' * 6_000, 400, "malformed_json"),
    "30 KB of brackets and their ends": ("[" * 15_000 + "]" * 15_000, 400, "malformed_json"),
    "64 KiB and a byte": (f'{{"action": "{"a" * (64 * KIB - 13)}"}}', 413, "body_too_large"),
    "2 MB": ("x" * 2_000_000, 413, "body_too_large"),
}


@pytest.mark.parametrize("path", [CONSUME, CHECK])
@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused(api, name, path):
    raw, status, code = BODIES[name]
    assert_problem(api.send("POST", path, raw), status, code)


@pytest.mark.parametrize("name", ["a float", "NaN", "a lone surrogate", "2 KiB and a byte of metadata"])
def test_a_bad_body_is_refused_with_a_key_too(api, name):
    raw, status, code = BODIES[name]
    assert_problem(api.consume(raw=raw, key="k-1"), status, code)


def test_no_depth_of_nesting_is_read_at_first_and_then_too_much(api):
    """Only the parser limits the depth: every later step can handle the metadata that it accepts."""
    statuses = {api.consume(raw=nested(depth)).status_code for depth in range(800, 1_000)}
    assert statuses <= {201, 400, 429}


def test_the_largest_bodies_that_are_allowed_are_taken(api):
    assert api.consume(raw=f'{{"metadata":{{"a":"{"x" * 2040}"}}}}').status_code == 201
    assert api.consume(raw='{"cost": 1}'.ljust(64 * KIB)).status_code == 201
    assert api.consume(raw=nested(8)).status_code == 201


@pytest.mark.postgres
@given(number=st.floats(allow_nan=False, allow_infinity=False), count=st.integers(1, 700))
@hypothesis_settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_metadata_that_are_taken_are_not_much_longer_as_postgresql_writes_them(number, count):
    data = {"a": [number] * count}
    try:
        ConsumeRequest(metadata=data)
    except Problem:
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT length(%s::jsonb::text)", [json.dumps(data)])
        assert cursor.fetchone()[0] <= MAX_METADATA_BYTES + count + len('{"a": }')  # blanks after the commas


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/json",
        "application/json+x",
        "application/problem+json",
        "application/xml",
        "*/*",
        "",
    ],
)
def test_what_is_not_sent_as_json_is_refused(api, content_type):
    assert_problem(api.consume(Content_Type=content_type), 415, "unsupported_media_type")


def test_a_form_spends_nothing(api):
    answer = api.consume(raw="cost=5", Content_Type="application/x-www-form-urlencoded")
    assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_by_its_other_spellings_is_taken(api, content_type):
    assert api.consume(Content_Type=content_type).status_code == 201


@pytest.mark.parametrize(
    ("length", "status", "code"),
    [
        ("65537", 413, "body_too_large"),
        ("999999999999999999", 413, "body_too_large"),
        ("9" * 19, 400, "malformed_length"),
        ("-1", 400, "malformed_length"),
        ("+2", 400, "malformed_length"),
        ("1_0", 400, "malformed_length"),
        ("²", 400, "malformed_length"),
        ("ten", 400, "malformed_length"),
        ("0", 400, "body_missing"),
        ("1", 400, "malformed_json"),
    ],
)
def test_a_content_length_that_lies_is_refused(api, length, status, code):
    assert_problem(api.consume({"cost": 1}, Content_Length=length), status, code)


@pytest.mark.parametrize("coding", ["chunked", "gzip, chunked", "identity"])
@pytest.mark.parametrize("length", [{}, {"Content_Length": "0"}])
def test_a_body_in_chunks_is_refused(api, coding, length):
    answer = api.consume({"cost": 2}, Transfer_Encoding=coding, **length)
    assert_problem(answer, 411, "length_required")


@pytest.mark.parametrize(
    "sub",
    [
        "",
        "user_\x00",
        "user_1\n",
        "user_1 ",
        "user_é",
        "user_" + "a" * 124,
        "user_'; DROP TABLE plans; --",
        "user_<script>",
        "user_/../admin",
        1,
        None,
        True,
        ["user_1"],
        {"user_1": 1},
    ],
)
def test_an_absurd_user_id_in_a_genuine_token_is_refused(api, sub):
    for answer in (api.signed_in_as(sub).quota(), api.signed_in_as(sub).consume()):
        assert_problem(answer, 401, "token_malformed")


def test_the_longest_user_id_is_taken(api):
    longest = "user_" + "a" * 123
    assert api.signed_in_as(longest).quota().json()["user_id"] == longest


GARBLED = {
    "a scheme alone": lambda: "Bearer",
    "a scheme and a blank": lambda: "Bearer ",
    "a password": lambda: "Basic dXNlcjpwYXNz",
    "a token by another scheme": lambda: f"Token {keys.mint()}",
    "a token alone": lambda: keys.mint(),
    "two tokens": lambda: f"Bearer {keys.mint()} {keys.mint()}",
    "two headers": lambda: f"Bearer {keys.mint()},Bearer {keys.mint()}",
    "a token in quotes": lambda: f'Bearer "{keys.mint()}"',
    "a word": lambda: "Bearer abc",
    "three letters": lambda: "Bearer a.b.c",
    "two dots": lambda: "Bearer ..",
    "U+0000": lambda: "Bearer \x00.\x00.\x00",
    "not ASCII": lambda: "Bearer é.é.é",
    "10 KB": lambda: "Bearer " + "a" * 10_000,
    "three times 9 KB": lambda: "Bearer " + ".".join(["a" * 9_000] * 3),
    "3,000 brackets": lambda: f"Bearer {keys.b64(b'[' * 3_000)}.e30.AAAA",
    "no algorithm": lambda: "Bearer eyJhbGciOiJub25lIn0.e30.AAAA",
}


@pytest.mark.parametrize("name", GARBLED)
def test_a_garbled_authorization_is_refused(api, name):
    header = GARBLED[name]()
    for answer in (api.get("/api/quota", Authorization=header), api.consume(Authorization=header)):
        assert_problem(answer, 401, "token_malformed")


def test_who_is_not_signed_in_is_told_so_before_the_body_is_read(api):
    assert_problem(api.consume(raw=b"{", Authorization=""), 401, "token_missing")


@pytest.mark.parametrize("host", ["evil.example", "testserver.evil.example", "a b", "testserver:x", "[::1"])
@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota", "/api/nothing"])
def test_another_host_is_refused(api, host, path):
    assert_problem(api.get(path, Host=host), 400, "bad_request")


@pytest.mark.parametrize("host", ["quota.example.com", "quota.example.com:8000", "10.42.8.201"])
@pytest.mark.parametrize("path", ["/api/quota", "/admin/login/"])
def test_the_fix_for_an_unknown_host_is_named_but_no_host_that_is_allowed(api, host, path):
    text = api.get(path, Host=host).content.decode()
    name = host.partition(":")[0]
    assert f"does not answer to the host {name}: its operator must add it to ALLOWED_HOSTS." in text
    assert "testserver" not in text


@pytest.mark.parametrize("host", ["<b>x</b>", "a b", "x" * 300, "a\u202eb", "{host}"])
def test_a_host_that_is_none_is_not_repeated(api, host):
    for path in ("/api/quota", "/admin/login/"):
        answer = api.get(path, Host=host)
        assert answer.status_code == 400
        assert host not in answer.content.decode()


@pytest.mark.parametrize(
    "path",
    [
        "/api/",
        "/api/nothing",
        "/api/quota/",
        "/api/v1",
        "/api/v1/",
        "/api/v1/quota/",
        "/api/v1/quota/consume/",
        "/api/v1/quota/check/",
        "/api/v1/users/",
        "/api/v1/users/user_1",
        "/api/v1/users/user_1/",
        "/api//quota",
        "/api/v1/quota%00",
        "/api/v1/quota%0a",
        "/api/%ff",
        "/api/../quota",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_address_is_a_404_and_never_a_redirect(api, method, path):
    assert_problem(api.send(method, path, b"{}"), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/api/quota", "POST", "GET"),
        ("/api/quota", "PUT", "GET"),
        ("/api/quota", "DELETE", "GET"),
        ("/api/v1/quota", "PATCH", "GET"),
        ("/api/v1/quota", "TRACE", "GET"),
        ("/api/v1/quota", "SPEND", "GET"),
        (CONSUME, "GET", "POST"),
        (CONSUME, "PUT", "POST"),
        (CONSUME, "DELETE", "POST"),
        (CHECK, "GET", "POST"),
        ("/api/v1/users/user_1/check", "PUT", "POST"),
        ("/api/v1/users", "POST", "GET"),
        ("/api/v1/users", "DELETE", "GET"),
    ],
)
def test_another_method_is_told_which_ones_there_are(api, path, method, allowed):
    answer = api.send(method, path, b"{}")
    assert_problem(answer, 405, "method_not_allowed")
    assert allowed in answer["Allow"].split(", ")
    assert method not in answer["Allow"].split(", ")


texts = st.text(st.characters())  # U+0000 and halves of surrogate pairs among them
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
orders = st.fixed_dictionaries(
    {}, optional={"cost": values, "action": values, "metadata": st.dictionaries(texts, values) | values}
)
given_any_order = given(
    raw=st.binary()
    | (values | orders | st.dictionaries(texts, values)).map(lambda body: json.dumps(body).encode()),
    key=st.none() | st.text(st.characters(max_codepoint=255)),
)


@pytest.mark.parametrize("path", [CONSUME, CHECK])
@given_any_order
@example(raw=b'{"metadata":{"a":1e-400}}', key='"k')
@hypothesis_settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_nothing_that_can_be_sent_is_a_fault_of_the_server(api, path, raw, key):
    answer = api.send("POST", path, raw, **({} if key is None else {"Idempotency_Key": key}))
    assert answer.status_code < 500
    assert answer["Content-Type"] in ("application/json", "application/problem+json")
    assert answer.json()


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "garbage;q=x", ";;;", ""])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/quota", 200),
        ("HEAD", "/api/quota", 200),
        ("DELETE", "/api/quota", 405),
        ("GET", "/api/quota?format=xml", 200),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/schema", 200),
        ("GET", "/api/docs", 200),
    ],
)
def test_an_accept_header_is_no_reason_to_refuse(api, method, path, status, accept):
    assert api.send(method, path, Accept=accept).status_code == status


@pytest.mark.parametrize("path", ["/api/v1/quota/history", "/api/v1/quota/history?limit=1"])
def test_a_query_that_is_too_long_is_refused(api, path):
    glue = "&" if "?" in path else "?"
    answer = api.get(path + glue + "a&" * 2_000)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_an_idempotency_key_that_is_too_long_is_not_parsed(api, make_quota):
    make_quota()
    answer = api.consume(key='"a";' + "a;" * 2_000)
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_malformed")


def test_a_quoted_key_is_parsed_only_up_to_the_length_of_a_valid_one(monkeypatch):
    parsed = []
    monkeypatch.setattr(idempotency.http_sf, "parse", lambda header, **_: parsed.append(len(header)))
    for length in (idempotency.MAX_QUOTED, idempotency.MAX_QUOTED + 1):
        with pytest.raises(Problem):
            idempotency.idempotency_key('"' + "a" * (length - 1))
    assert parsed == [idempotency.MAX_QUOTED]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_body_that_no_endpoint_reads_is_not_measured(api, method):
    assert api.send(method, "/api/quota", Content_Length="2000000").status_code == 200
