"""Clients of Metarank against our routes: the requests of its documentation, its shapes, our promises."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from avrec_ray.feedback.store import EventStore

MS = 1_767_225_600_000
RANK: dict[str, Any] = {
    "id": "81f46c34",
    "timestamp": "1599391467000",
    "user": "user1",
    "session": "session1",
    "fields": [{"name": "query", "value": "jeans"}],
    "items": [
        {"id": "i30", "fields": [{"name": "relevancy", "value": 2.0}]},
        {"id": "i1", "fields": [{"name": "relevancy", "value": 1.0}]},
        {"id": "nowhere", "label": 1.0},
        {"id": "i2"},
    ],
}


def event(kind: str, **values: Any) -> dict[str, Any]:
    return {"event": kind, "id": "e1", "timestamp": MS, "user": "u1", **values}


def keep(client: httpx.Client, body: Any) -> dict[str, Any]:
    response = client.post("/feedback", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert answer.pop("tookMillis") >= 0
    return answer


def test_rank_orders_the_items_and_drops_none(client: httpx.Client) -> None:
    answer = client.post("/rank/xgboost", json=RANK).json()
    assert set(answer) == {"took", "items"}
    assert [row["item"] for row in answer["items"]] == ["i1", "i2", "i30", "nowhere"]
    scores = [row["score"] for row in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == scores[-2]
    assert all(set(row) == {"item", "score"} for row in answer["items"])


def test_rank_is_the_order_of_our_own_route(client: httpx.Client) -> None:
    keep(client, [event("interaction", type="like", item=f"i{row}", id=f"e{row}", user="user1") for row in (6, 10)])
    ids = [item["id"] for item in RANK["items"]]
    native = client.post("/v1/rank", json={"user_id": "user1", "items": ids}).json()
    ranked = client.post("/rank/m", json=RANK).json()["items"]
    assert [(r["item"], r["score"]) for r in ranked[:3]] == [(i["item_id"], i["score"]) for i in native["items"]]
    assert [row["item"] for row in ranked[:2]] == ["i2", "i30"]  # of the category that the user likes


def test_rank_explains_with_features_when_asked(client: httpx.Client) -> None:
    keep(client, event("interaction", type="click", item="i6", user="user1"))
    rows = client.post("/rank/m?explain=true", json=RANK).json()["items"]
    assert rows[0]["features"] == [{"name": "because/i6", "value": 0.5}]
    assert rows[-1]["features"] == []


def test_rank_of_an_anonymous_visitor_goes_by_the_session(client: httpx.Client) -> None:
    anonymous = {name: value for name, value in RANK.items() if name != "user"}
    keep(
        client,
        {"event": "interaction", "id": "e", "timestamp": MS, "session": "session1", "type": "like", "item": "i6"},
    )
    assert client.post("/rank/m", json=anonymous).json()["items"][0]["item"] == "i2"
    nobody = {name: value for name, value in anonymous.items() if name != "session"}
    assert client.post("/rank/m", json=nobody).json()["items"][0]["item"] == "i1"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"items": []}, "items"),
        ({"items": [{"item": "i1"}]}, "items.0.id"),
        ({"items": [{"id": "i"}] * 501}, "items"),
        ({"id": None}, "id"),
        ({"timestamp": -1}, "timestamp"),
        ({"user": "a\n"}, "user"),
    ],
)
def test_rank_bad_value_is_422_naming_it(client: httpx.Client, change: dict[str, Any], field: str) -> None:
    answer = client.post("/rank/m", json={**RANK, **change})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith(field)


def test_requests_as_curl_sends_them_are_read(client: httpx.Client) -> None:
    """Metarank's documentation uses `curl -d` without a content type, which then says it is a form."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/rank/m", content=json.dumps(RANK), headers=form).status_code == 200
    body = json.dumps(event("interaction", type="like", item="i1"))
    assert client.post("/feedback", content=body, headers=form).json()["accepted"] == 1
    assert client.post("/feedback", content=b"a=b", headers=form).status_code == 422
    assert client.post("/rank/m", content=b"[" * 100_00, headers=form).status_code == 422


def test_feedback_interaction_is_one_event_that_counts_once(client: httpx.Client, store: EventStore) -> None:
    click = event("interaction", type="click", item="i1", ranking="r1", fields=[{"name": "count", "value": 1}])
    for stored in (1, 0):
        assert keep(client, click) == {
            "accepted": 1, "status": "ok", "updated": stored, "unsupported": {}, "rejected": [],
        }  # fmt: skip
    (kept,) = store.history("u1", 9)
    assert (kept.item_id, kept.event, kept.at_seconds, kept.request_id) == ("i1", "view", MS / 1000, "r1")


@pytest.mark.parametrize("timestamp", [MS, str(MS), float(MS), "2026-01-01T00:00:00Z"])
def test_feedback_reads_every_form_of_a_time(client: httpx.Client, store: EventStore, timestamp: Any) -> None:
    keep(client, event("interaction", type="like", item="i1", timestamp=timestamp))
    assert store.history("u1", 1)[0].at_seconds == MS / 1000


def test_feedback_ranking_is_an_impression_of_each_item(client: httpx.Client, store: EventStore) -> None:
    ranking = event("ranking", id="r1", items=[{"id": "i3", "relevancy": 2.0}, {"id": "i1"}])
    for stored in (2, 0):
        assert keep(client, ranking)["updated"] == stored
    rows = store.export_interactions()[0].to_pylist()
    assert [(r["item_id"], r["event"], r["request_id"], r["position"]) for r in rows] == [
        ("i3", "impression", "r1", 1), ("i1", "impression", "r1", 2),
    ]  # fmt: skip
    assert store.history("u1", 9) == ()


def test_feedback_of_items_and_users_is_counted_and_told(client: httpx.Client, store: EventStore) -> None:
    batch = [
        event("item", item="i1", fields=[{"name": "title", "value": "x"}]),
        event("interaction", type="like", item="i2"),
        event("user", fields=[{"name": "age", "value": 33}]),
        event("item", item="i3", id="e3"),
    ]
    answer = keep(client, batch)
    assert (answer["accepted"], answer["updated"], answer["status"]) == (1, 1, "errors")
    assert answer["unsupported"] == {"item": 2, "user": 1}
    assert [row["index"] for row in answer["rejected"]] == [0, 2, 3]
    assert "catalogue comes with the bundle" in answer["rejected"][0]["reason"]
    assert keep(client, batch[0])["accepted"] == 0  # told, and no error that would make a client send it for ever
    assert store.count() == 1


def test_feedback_malformed_is_422_and_beside_good_ones_told(client: httpx.Client, store: EventStore) -> None:
    like: dict[str, Any] = {"type": "like", "item": "i1"}
    bad = [
        event("click", item="i1"), event("interaction", type="applaud", item="i1"), event("interaction", type="like"),
        event("ranking", items=[]), event("ranking", items=["i1"]), event("interaction", **like, timestamp="noon"),
        event("interaction", **like, timestamp=True), event("interaction", **like, id=""),
        event("item"), event("item", item="i1", timestamp=None), event("interaction", **like, user=None), 7,
    ]  # fmt: skip
    for one in bad:
        answer = client.post("/feedback", json=one)
        assert (answer.status_code, answer.json()["rejected"][0]["index"]) == (422, 0), one
    good = event("interaction", type="like", item="i1", id="good")
    answer = keep(client, [*bad, good])
    assert (answer["accepted"], [row["index"] for row in answer["rejected"]]) == (1, list(range(len(bad))))
    assert store.count() == 1


def test_feedback_of_a_type_that_the_configuration_maps(
    make_client: Callable[..., httpx.Client], store: EventStore
) -> None:
    client = make_client(event_names={"add-to-cart": "favorite"})
    keep(client, event("interaction", type="add-to-cart", item="i1"))
    assert store.history("u1", 1)[0].event == "favorite"


def test_feedback_too_much_is_422_and_stores_nothing(client: httpx.Client, store: EventStore) -> None:
    rankings = [event("ranking", id=f"r{n}", items=[{"id": f"i{m}"} for m in range(60)]) for n in range(9)]
    assert client.post("/feedback", json=rankings).json()["detail"].startswith("the request holds 540 events")
    many = [event("interaction", type="like", item="i1", id=f"e{n}") for n in range(501)]
    assert client.post("/feedback", json=many).status_code == 422
    assert store.count() == 0


def test_feedback_of_nothing_is_nothing(client: httpx.Client) -> None:
    assert keep(client, [])["accepted"] == 0
