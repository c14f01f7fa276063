"""One line a request, and nothing in it that a client said of users, items or what it looks for."""

import io
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve_apps.access_log import AccessLog, RequestNotes, note_list
from tests.serve_apps.conftest import VERSION, CategoryModels, feedback_event
from tests.serve_apps.test_auth import SECRETS, ring_of_scopes
from tests.serve_apps.test_impression_log import wait_until

MARK = "marked7f3a"
"""In everything that a client sends below, but for its request id."""
FIELDS = {
    "at", "request_id", "method", "route", "status", "total_ms", "stages_ms", "degraded", "model_version", "key"
}  # fmt: skip


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logged(make_client: Callable[..., httpx.Client], stream: io.StringIO) -> httpx.Client:
    return make_client(access_log=AccessLog(lambda: VERSION, stream))


def lines(stream: io.StringIO, count: int) -> list[dict[str, Any]]:
    """A line is written when its answer is out."""
    wait_until(lambda: stream.getvalue().count("\n") >= count)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_list_leaves_one_line_with_stages(logged: httpx.Client, stream: io.StringIO, models: CategoryModels) -> None:
    models.failing = {"rerank"}
    answer = logged.post("/v1/recommend", json={"user_id": "u1"}, headers={"X-Request-Id": "trace-1"}).json()
    (line,) = lines(stream, 1)
    assert set(line) == FIELDS
    assert (line["request_id"], line["method"], line["route"]) == ("trace-1", "POST", "/v1/recommend")
    assert (line["status"], line["model_version"], line["key"]) == (200, VERSION, "-")
    assert line["degraded"] == answer["degraded"] == ["unknown_user", "reranker_unavailable"]
    assert set(line["stages_ms"]) == {"profile", "match", "rerank", "total"}
    assert line["total_ms"] >= line["stages_ms"]["total"] > 0


def test_requests_side_by_side_do_not_share_lines(
    logged: httpx.Client, stream: io.StringIO, models: CategoryModels
) -> None:
    logged.post("/v1/recommend", json={"user_id": "u1"})
    logged.post("/v1/feedback", json={"events": [feedback_event("e1")]})
    lines(stream, 2)
    models.failing = {"match"}
    logged.post("/v1/recommend", json={"user_id": "u1"})
    first, feedback, second = lines(stream, 3)
    assert (first["degraded"], second["degraded"]) == (["unknown_user"], ["matcher_unavailable"])
    assert (feedback["stages_ms"], feedback["degraded"]) == ({}, [])


def test_nothing_of_users_items_and_texts_gets_in(
    make_client: Callable[..., httpx.Client], stream: io.StringIO
) -> None:
    client = make_client(keys=ring_of_scopes(), access_log=AccessLog(lambda: VERSION, stream))
    client.headers["X-API-Key"] = SECRETS["admin"]
    client.headers["User-Agent"] = MARK
    event = feedback_event(f"e-{MARK}", f"i-{MARK}", user_id=f"u-{MARK}")
    item = {"item_id": f"i-{MARK}", "title": MARK}
    sent = [
        client.post("/v1/recommend", json={"user_id": MARK, "filters": {"categories": [MARK]}}),
        client.post("/v1/recommend", json={"session": [{"item_id": MARK, "event": "like"}]}),
        client.post("/v1/recommend", json={"user_id": {MARK: MARK}, MARK: 1}),
        client.post("/v1/rank", json={"user_id": MARK, "items": ["i1", MARK]}),
        client.post("/v1/feedback", json={"events": [event]}),
        client.post("/v1/feedback", content=MARK.encode()),
        client.get("/v1/search", params={"q": MARK, "kind": "lexical"}),
        client.get(f"/v1/items/{MARK}"),
        client.get(f"/v1/items/{MARK}/similar"),
        client.get(f"/v1/items/{MARK}/status"),
        client.post("/v1/items", json=item),
        client.get(f"/v1/users/{MARK}/data"),
        client.get(f"/v1/users/{MARK}/profile"),
        client.post(f"/v1/users/{MARK}/claim", json={"anonymous_id": f"anonymous:{MARK}"}),
        client.delete(f"/v1/users/{MARK}"),
        client.get(f"/api/recommend/{MARK}", params={"category": MARK}),
        client.post(f"/rank/{MARK}", json={"id": MARK, "user": MARK, "items": [{"id": MARK}], "timestamp": 1}),
        client.get(f"/nowhere/{MARK}", params={MARK: MARK}),
        client.request("TRACE", "/v1/recommend"),
        client.get("/metrics", headers={"X-API-Key": f"{MARK}-0123456789"}),
        client.get("/health/live", headers={"X-Request-Id": f"{MARK} unclean"}),
    ]
    assert {answer.status_code for answer in sent} >= {200, 401, 404, 405, 422}
    found = lines(stream, len(sent))
    assert len(found) == len(sent)
    assert MARK not in stream.getvalue().lower()
    assert SECRETS["admin"] not in stream.getvalue()
    assert sorted({line["method"] for line in found}) == ["DELETE", "GET", "POST", "other"]


def test_a_stream_that_is_gone_harms_no_answer(
    make_client: Callable[..., httpx.Client], stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    client = make_client(access_log=AccessLog(lambda: VERSION, stream))
    stream.close()
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/live").status_code == 200


def test_notes_outside_of_a_request_go_nowhere() -> None:
    note_list({"total": 1.0}, ["deadline"], VERSION)
    assert RequestNotes() == RequestNotes({}, [])


def test_time_is_utc_and_an_unknown_method_is_not_repeated(stream: io.StringIO) -> None:
    AccessLog(lambda: VERSION, stream).write(MARK, "none", 0, 0.0, "-", RequestNotes())
    (line,) = lines(stream, 1)
    assert line["method"] == "other"
    assert line["at"].endswith("+00:00")
    assert line["at"].startswith(time.strftime("%Y-", time.gmtime()))
