"""Clients of Gorse against our routes: its requests, its shapes, our promises."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from avrec_ray.feedback.store import EventStore
from serve_apps.flow import RequestFlow
from tests.serve_apps.conftest import CategoryModels
from tests.serve_apps.test_auth import SECRETS, ring_of_scopes


def gorse_event(item_id: str = "i1", kind: str = "like", user_id: str = "u1", **more: Any) -> dict[str, Any]:
    return {"FeedbackType": kind, "UserId": user_id, "ItemId": item_id, "Timestamp": "2026-01-31T18:00:00Z", **more}


def ours(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.post("/v1/recommend", json=body).json()["items"]
    return items


def test_recommend_answers_ids_and_with_version_2_scores(client: httpx.Client) -> None:
    client.post("/api/feedback", json=[gorse_event("i1"), gorse_event("i5")])
    expected = ours(client, user_id="u1", k=5)
    assert client.get("/api/recommend/u1", params={"n": 5}).json() == [item["item_id"] for item in expected]
    scored = client.get("/api/recommend/u1", params={"n": 5}, headers={"X-API-Version": "2"}).json()
    assert scored == [{"Id": item["item_id"], "Score": item["score"]} for item in expected]


def test_recommend_defaults_to_ten_and_pages_by_offset(client: httpx.Client) -> None:
    whole = client.get("/api/recommend/u1", params={"n": 30}).json()
    assert len(whole) == 30
    assert client.get("/api/recommend/u1").json() == whole[:10]
    assert client.get("/api/recommend/u1", params={"n": 10, "offset": 15}).json() == whole[15:25]
    assert client.get("/api/recommend/u1", params={"n": 10, "offset": 99}).json() == []


def test_recommend_filters_by_repeated_category(client: httpx.Client, flow: RequestFlow) -> None:
    found = client.get("/api/recommend/u1?category=music&category=sport&n=40").json()
    items = flow.catalogue
    assert {items.categories[items.index_of[item_id]] for item_id in found} == {"music", "sport"}


def test_recommend_to_a_user_whose_id_has_a_slash(client: httpx.Client, store: EventStore) -> None:
    assert client.post("/api/feedback", json=[gorse_event(user_id="a/b c")]).json()["RowAffected"] == 1
    assert "i1" not in client.get("/api/recommend/a%2Fb%20c?n=40").json()
    assert len(store.history("a/b c", 10)) == 1


def test_recommend_writes_back_once_and_shows_no_item_twice(client: httpx.Client, store: EventStore) -> None:
    first = client.get("/api/recommend/u1", params={"n": 4, "write-back-type": "read"}).json()
    assert {(e.item_id, e.event) for e in store.history("u1", 99)} == {(item_id, "view") for item_id in first}
    second = client.get("/api/recommend/u1", params={"n": 4, "write-back-type": "read"}).json()
    assert not set(first) & set(second)
    assert store.count() == 8


def test_recommend_write_back_needs_the_scope_write(
    make_client: Callable[..., httpx.Client], store: EventStore
) -> None:
    client = make_client(keys=ring_of_scopes())
    headers = {"X-API-Key": SECRETS["read"]}
    assert client.get("/api/recommend/u1", headers=headers).status_code == 200
    refused = client.get("/api/recommend/u1", params={"write-back-type": "read"}, headers=headers)
    assert (refused.status_code, store.count()) == (403, 0)
    headers = {"X-API-Key": SECRETS["admin"]}
    assert client.get("/api/recommend/u1", params={"write-back-type": "read"}, headers=headers).status_code == 200
    assert store.count() == 10


@pytest.mark.parametrize(
    "params",
    [{"write-back-type": "applaud"}, {"write-back-delay": "10m"}, {"n": 0}, {"n": 101}, {"offset": -1}, {"n": "ten"}],
)
def test_recommend_what_cannot_be_done_is_422(client: httpx.Client, params: dict[str, Any], store: EventStore) -> None:
    assert client.get("/api/recommend/u1", params=params).status_code == 422
    assert store.count() == 0


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_feedback_counts_once_however_often_it_is_sent(client: httpx.Client, store: EventStore, method: str) -> None:
    body = [gorse_event("i1"), gorse_event("i2", "read", Value=0.5, Labels=["x"], Comment="nice"), gorse_event("i1")]
    for expected in (2, 0):
        answer = client.request(method, "/api/feedback", json=body)
        assert answer.json() == {"RowAffected": expected, "Rejected": []}
    events = store.history("u1", 10)
    assert [(e.item_id, e.event, e.value) for e in events] == [("i1", "like", None), ("i2", "view", 0.5)]
    assert events[0].at_seconds == 1769882400.0


def test_feedback_at_another_time_or_of_another_type_is_another_event(client: httpx.Client, store: EventStore) -> None:
    later = {**gorse_event(), "Timestamp": "2026-01-31T19:00:00+01:00"}  # another text, though the same moment
    client.post("/api/feedback", json=[gorse_event(), later, gorse_event(kind="star"), gorse_event(user_id="u2")])
    assert store.count() == 4


@pytest.mark.parametrize("timestamp", ["", None, "0001-01-01T00:00:00Z"])
def test_feedback_without_a_time_is_now_and_counts_once(
    client: httpx.Client, store: EventStore, timestamp: Any
) -> None:
    for expected in (1, 0):
        body = [{**gorse_event(), "Timestamp": timestamp}]
        assert client.post("/api/feedback", json=body).json()["RowAffected"] == expected
    assert store.history("u1", 1)[0].at_seconds > 1.7e9


def test_feedback_put_with_another_value_is_told_and_overwrites_nothing(
    client: httpx.Client, store: EventStore
) -> None:
    client.post("/api/feedback", json=[gorse_event(Value=1)])
    answer = client.put("/api/feedback", json=[gorse_event(Value=2), gorse_event("i9")])
    assert answer.json()["RowAffected"] == 1
    assert [row["index"] for row in answer.json()["Rejected"]] == [0]
    assert store.history("u1", 9)[0].value == 1


def test_feedback_bad_ones_are_told_and_hold_up_no_other(client: httpx.Client, store: EventStore) -> None:
    bad = [
        gorse_event(kind="applaud"),
        {"ItemId": "i1"},
        7,
        gorse_event(Valu=1),
        gorse_event(Timestamp="noon"),
        gorse_event(5),
    ]
    answer = client.post("/api/feedback", json=[bad[0], gorse_event(), *bad[1:]])
    assert (answer.status_code, answer.json()["RowAffected"]) == (200, 1)
    assert [row["index"] for row in answer.json()["Rejected"]] == [0, 2, 3, 4, 5, 6]
    assert "got event 'applaud'" in answer.json()["Rejected"][0]["reason"]
    only_bad = client.post("/api/feedback", json=bad)
    assert (only_bad.status_code, len(only_bad.json()["Rejected"])) == (422, 6)
    assert store.count() == 1


def test_feedback_of_a_type_that_the_configuration_maps(
    make_client: Callable[..., httpx.Client], store: EventStore
) -> None:
    client = make_client(event_names={"applaud": "like", "read": "impression"})
    client.post(
        "/api/feedback", json=[gorse_event(kind="applaud"), gorse_event("i2", "read"), gorse_event("i3", "star")]
    )
    assert [(e.item_id, e.event) for e in store.history("u1", 9)] == [("i1", "like"), ("i3", "favorite")]
    enum = client.get("/openapi.json").json()["paths"]["/api/feedback"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]["items"]["properties"]["FeedbackType"]["enum"]
    assert "applaud" in enum


def test_feedback_store_down_is_503_and_the_client_may_send_again(
    client: httpx.Client, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "append", down)
        assert client.post("/api/feedback", json=[gorse_event()]).status_code == 503
    assert client.post("/api/feedback", json=[gorse_event()]).json()["RowAffected"] == 1


def test_session_recommend_answers_to_the_session_and_stores_nothing(client: httpx.Client, store: EventStore) -> None:
    session = [{"FeedbackType": "read", "ItemId": "i1"}, {"FeedbackType": "star", "ItemId": "i5", "UserId": ""}]
    found = client.post("/api/session/recommend?n=5&offset=1", json=session).json()
    body = {"session": [{"item_id": "i1", "event": "view"}, {"item_id": "i5", "event": "favorite"}], "k": 6}
    assert found == [{"Id": item["item_id"], "Score": item["score"]} for item in ours(client, **body)[1:]]
    assert store.count() == 0


@pytest.mark.parametrize(
    "event",
    [{"ItemId": "i1"}, {"FeedbackType": "read"}, {"FeedbackType": "read", "ItemId": 5}, "i1", {"FeedbackType": "?"}],
)
def test_session_recommend_bad_event_is_422_naming_its_place(client: httpx.Client, event: Any) -> None:
    answer = client.post("/api/session/recommend", json=[{"FeedbackType": "read", "ItemId": "i1"}, event])
    assert (answer.status_code, answer.json()["detail"][:1]) == (422, "1")


def test_item_has_the_members_of_gorse(client: httpx.Client) -> None:
    assert client.get("/api/item/i2").json() == {
        "ItemId": "i2", "IsHidden": False, "Categories": ["sport"], "Timestamp": "0001-01-01T00:00:00Z",
        "Labels": ["t2"], "Comment": "Title 2",
    }  # fmt: skip
    assert client.get("/api/item/i3").json()["Categories"] == []
    assert client.get("/api/item/a/b").json()["ItemId"] == "a/b"
    assert client.get("/api/item/nothing").status_code == 404


def test_health_tells_of_the_event_store(
    make_client: Callable[..., httpx.Client], store: EventStore, models: CategoryModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(keys=ring_of_scopes())  # a probe has no key
    well = {"Ready": True, "DataStoreError": None, "CacheStoreError": None, "DataStoreConnected": True,
            "CacheStoreConnected": True}  # fmt: skip
    models.failing.add("versions")  # lists are degraded then, and still served
    assert client.get("/api/health/ready").json() == client.get("/api/health/live").json() == well

    def down() -> None:
        raise OSError("gone")

    monkeypatch.setattr(store, "ping", lambda: time.sleep(3))
    started = time.monotonic()
    assert (client.get("/api/health/live").status_code, client.get("/api/health/ready").status_code) == (200, 503)
    assert time.monotonic() - started < 2.5
    monkeypatch.setattr(store, "ping", down)
    ill = client.get("/api/health/ready")
    assert (ill.status_code, ill.json()["Ready"]) == (503, False)
    assert ill.json()["DataStoreError"] == "the event store does not answer"
    assert client.get("/api/health/live").status_code == 200
