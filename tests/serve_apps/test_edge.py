"""Attacks on head, path and body, sent as raw bytes where a client library would not send them."""

import json
import re
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from avrec_ray.config import LimitsConfig
from avrec_ray.feedback.store import EventStore
from serve_apps.flow import RequestFlow
from tests.serve_apps.conftest import CategoryModels, feedback_event
from tests.serve_apps.test_auth import SECRETS, ring_of_scopes

BOUNDS = LimitsConfig(header_bytes=2048, max_headers=20, url_bytes=1024, body_seconds=0.5, request_seconds=0.5)


def wait_until(is_true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def bounded(make_client: Callable[..., httpx.Client]) -> httpx.Client:
    return make_client(limits=BOUNDS)


def send_raw(client: httpx.Client, *parts: bytes, seconds: float = 5.0) -> tuple[int, bytes]:
    """Status and answer of raw bytes; 0 if the server just closes."""
    url = client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=seconds) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
                if b"\r\n\r\n" in answer and b"}" in answer:
                    break
        except (TimeoutError, ConnectionError):
            pass
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return int(found[1]) if found else 0, answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-fill": "a" * 1500}, 200),
        ({"x-fill": "a" * 2100}, 431),
        ({f"x-{n}": "a" for n in range(8)}, 200),
        ({f"x-{n}": "a" for n in range(20)}, 431),
        ({f"x-{n}": "a" * 200 for n in range(11)}, 431),
    ],
)
def test_headers_too_large_or_too_many_are_431(bounded: httpx.Client, headers: dict[str, str], status: int) -> None:
    answer = bounded.get("/v1/items/i1", headers=headers)
    assert answer.status_code == status
    if status == 431:
        assert answer.headers["content-type"] == "application/problem+json"
        assert bounded.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/items/" + "a" * 1100, "/v1/search?q=" + "a" * 1100, "/" + "%61" * 400, "/?" + "&" * 1100]
)
def test_path_and_query_too_long_are_414(bounded: httpx.Client, path: str) -> None:
    answer = bounded.get(path)
    assert (answer.status_code, answer.json()["type"]) == (414, "urn:avrec:problem:414")


def test_the_longest_ids_and_questions_fit_the_default_bounds(client: httpx.Client) -> None:
    """256 characters of four bytes each, percent-encoded: 3 kB."""
    assert client.get(f"/v1/items/{'%F0%9F%8E%B8' * 256}").status_code == 404
    assert client.get("/v1/search", params={"q": "\U0001f3b8" * 256}).status_code == 200


def test_a_body_that_trickles_is_408_and_holds_nobody_up(bounded: httpx.Client) -> None:
    head = b"POST /v1/feedback HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    started = time.monotonic()
    status, answer = send_raw(bounded, head + b"Content-Length: 1000\r\n\r\n", b'{"events"')
    assert (status, b"urn:avrec:problem:408" in answer) == (408, True)
    assert time.monotonic() - started < 4
    status, _ = send_raw(bounded, head + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nabcde\r\n")
    assert status == 408
    assert bounded.get("/health/live").status_code == 200


@pytest.mark.parametrize("name", ["X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled"])
@pytest.mark.parametrize("value", ["0", "-1", "1e9", "?1", "nan"])
def test_no_header_makes_a_request_last_longer(
    make_client: Callable[..., httpx.Client], flow: RequestFlow, models: CategoryModels, name: str, value: str
) -> None:
    models.slow_seconds["match"] = 20
    flow._deadline_ms = 300
    client = make_client()
    started = time.monotonic()
    answer = client.post("/v1/recommend", json={"user_id": "u1", "deadline_ms": 60_000}, headers={name: value})
    assert (answer.status_code, "deadline" in answer.json()["degraded"]) == (200, True)
    assert time.monotonic() - started < 3


def test_work_that_does_not_end_is_503_with_retry_after(
    make_client: Callable[..., httpx.Client], flow: RequestFlow, models: CategoryModels
) -> None:
    flow._deadline_ms = 60_000
    models.slow_seconds["match"] = 20
    answer = make_client(limits=BOUNDS).post("/v1/recommend", json={"user_id": "u1"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["detail"] == "no answer within 0.5 s; send the request again"


def test_a_mistake_of_ours_is_a_counted_500_that_tells_nothing(
    make_client: Callable[..., httpx.Client],
    flow: RequestFlow,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(flow, "recommend", broken)
    client = make_client()
    answer = client.post("/v1/recommend", json={"user_id": "somebody"}, headers={"X-Request-Id": "trace-7"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert (answer.headers["x-request-id"], "secret" in answer.text) == ("trace-7", False)
    assert "request trace-7: /v1/recommend failed" in caplog.text
    wait_until(lambda: 'route="/v1/recommend",status="500"' in client.get("/metrics").text)


@pytest.mark.parametrize("offered", ["abc", "A.b_c:d/e+f=g@h-1", "3f6c1d2e-4b5a", "x" * 128])
def test_a_clean_request_id_is_kept(client: httpx.Client, offered: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "serve_apps"):
        answer = client.post("/v1/recommend", json={"user_id": "u1"}, headers={"X-Request-Id": offered})
        # The line of a request is written when its answer is out.
        wait_until(lambda: f"request {offered}: POST /v1/recommend 200" in caplog.text)
    assert answer.headers["x-request-id"] == offered
    list_id = answer.json()["request_id"]
    assert f"request {offered}: list {list_id}" in caplog.text
    assert "u1" not in caplog.text


@pytest.mark.parametrize(
    "offered", [b"", b"a b", b"x" * 129, b"a;b", b"\xff\xfe", b"<script>", b"a\tb", b"%0d%0aSet-Cookie:x"]
)
def test_an_unclean_request_id_is_replaced(client: httpx.Client, offered: bytes) -> None:
    answers = [client.get("/health/live", headers={b"X-Request-Id": offered}) for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in ids)
    assert ids[0] != ids[1]


def test_a_repeated_request_id_does_not_repeat_the_id_of_the_list(client: httpx.Client) -> None:
    """The list's id is what feedback answers to: two lists must not share one, whatever a client sends."""
    headers = {"X-Request-Id": "same"}
    lists = {client.post("/v1/recommend", json={}, headers=headers).json()["request_id"] for _ in range(5)}
    assert len(lists) == 5
    assert "same" not in lists


def test_every_answer_is_kept_by_no_cache_and_sniffed_by_no_browser(client: httpx.Client) -> None:
    for path in ("/health/live", "/v1/items/i1", "/nothing", "/metrics", "/openapi.json"):
        headers = client.get(path).headers
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store"), path


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/items/i1", b"//v1/items/i1", b"/v1//items/i1", b"/./v1/items/i1", b"/health/../v1/items/i1",
        b"/health/live/../../v1/items/i1", b"/health%2f..%2fv1/items/i1", b"/%76%31/items/i1", b"/v1/items/%69%31",
        b"/health/live%00/v1/items/i1", b"/v1/items/i1;a=b", b"/V1/ITEMS/i1", b"/v1/items/i1/", b"/v1/items/i1#/health",
        b"http://127.0.0.1/v1/items/i1", b"http://evil.example/health/live", b"/v1/items/i1?/health/live",
        b"/health/live?/v1/items/i1", b"/openapi.json/../v1/items/i1", b"/docs/../metrics", b"/metrics", b"/metrics%20",
        b"/metrics/", b"/api/health/live/../../item/i1", b"/api/item/i1",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_past_the_keys(make_client: Callable[..., httpx.Client], target: bytes) -> None:
    client = make_client(keys=ring_of_scopes())
    for host in (b"127.0.0.1", b"evil.example", b"evil.example/health/live?", b"127.0.0.1:8080/health/live#", b""):
        status, answer = send_raw(client, b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert status in (400, 401, 404) or b'"live"' in answer, (host, answer[:200])
        assert b"Title" not in answer
        assert b"avrec_requests" not in answer
        assert b"location:" not in answer.lower()


@pytest.mark.parametrize("coded", ["%0A", "i1%0A", "%0Di1", "i%00", "i%7F"])
def test_control_characters_in_a_path_are_told_and_not_dropped(client: httpx.Client, coded: str) -> None:
    answer = client.get(f"/v1/items/{coded}")
    assert answer.status_code == 400
    assert "control character" in answer.json()["detail"]


@pytest.mark.parametrize(
    "head",
    [
        b"Host: 127.0.0.1\r\nHost: evil.example\r\n",
        b"Host: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: 127.0.0.1\r\n",
        b"Host: 127.0.0.1\r\nX-Original-URL: /health/live\r\nX-Rewrite-URL: /health/live\r\n",
        b"Host: 127.0.0.1\r\nX-HTTP-Method-Override: GET\r\nForwarded: for=127.0.0.1\r\n",
    ],
)
def test_no_header_gets_past_the_keys(make_client: Callable[..., httpx.Client], head: bytes) -> None:
    status, _ = send_raw(make_client(keys=ring_of_scopes()), b"GET /v1/items/i1 HTTP/1.1\r\n" + head + b"\r\n")
    assert status in (400, 401)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 50\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 1e3\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: gzip, chunked, x\r\n",
    ],
)
def test_a_body_of_unclear_length_is_never_an_event(bounded: httpx.Client, store: EventStore, head: bytes) -> None:
    body = json.dumps({"events": [feedback_event("smuggled")]}).encode()
    request = b"POST /v1/feedback HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" + head + b"\r\n"
    status, _ = send_raw(bounded, request, body)
    assert status in (0, 400, 408, 413, 422), status
    assert store.count() == 0
    assert bounded.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b'{"events": [' + b"[" * 20_000 + b"]" * 20_000 + b"]}",
        b'{"events": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
        b'{"events": [{"event_id": "e", "user_id": "u", "item_id": "i", "event": "like", "value": NaN}]}',
        b'{"events": [{"event_id": "e", "user_id": "u", "item_id": "i", "event": "like", "value": Infinity}]}',
        b'{"events": [{"event_id": "e", "user_id": "u", "item_id": "i", "event": "like", "watch_seconds": -Infinity}]}',
        b'{"events": [{"event_id": "e", "user_id": "u", "item_id": "i", "event": "like", "at": 1e999}]}',
        b'{"events": [{"event_id": "e", "user_id": "u", "item_id": "i", "event": "like", "position": ' + b"9" * 5000
        + b"}]}",
        b'{"events": [{"event_id": "e\\u0000", "user_id": "u", "item_id": "i", "event": "like"}]}',
        b'{"events": [{"event_id": "\\ud800", "user_id": "u", "item_id": "i", "event": "like"}]}',
        b"\xef\xbb\xbf{}",
        b"\x00",
        b'{"events": []} {"events": []}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/feedback", "/feedback"])
def test_a_hostile_body_is_4xx_and_stores_nothing(
    client: httpx.Client, store: EventStore, content: bytes, path: str
) -> None:
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert store.count() == 0


def test_of_a_repeated_member_the_last_counts_everywhere(client: httpx.Client, store: EventStore) -> None:
    """As in every JSON parser in use; what is checked is what is stored."""
    event = b'{"event_id": "e", "user_id": "first", "user_id": "last", "item_id": "i", "event": "like"}'
    answer = client.post("/v1/feedback", content=b'{"events": [], "events": [' + event + b"]}",
                         headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.json()["accepted"] == 1
    assert (len(store.history("first", 9)), len(store.history("last", 9))) == (0, 1)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"]
)
def test_native_routes_take_json_alone(client: httpx.Client, kind: str) -> None:
    body = json.dumps({"events": [feedback_event("e")]})
    assert client.post("/v1/feedback", content=body, headers={"Content-Type": kind}).status_code == 422


def test_a_path_with_a_slash_too_many_is_no_redirect(client: httpx.Client) -> None:
    answer = client.get("/health/live/", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.has_redirect_location) == (404, False)


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "DELETE", "HEAD"])
def test_other_methods_are_405_and_name_all_that_there_are(client: httpx.Client, method: str) -> None:
    answer = client.request(method, "/api/feedback")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, PUT")


def test_secrets_are_in_no_log_and_no_answer(
    make_client: Callable[..., httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(keys=ring_of_scopes())
    with caplog.at_level("DEBUG", "serve_apps"):
        for key in (*SECRETS.values(), "not-a-key-0123456789"):
            answer = client.post("/v1/feedback", json={"events": [{}]}, headers={"X-API-Key": key})
            assert key not in answer.text
        wait_until(lambda: "POST /v1/feedback 422" in caplog.text)
    assert not any(key in caplog.text for key in (*SECRETS.values(), "not-a-key-0123456789"))
