"""Feedback over HTTP: durable before the answer, once, and never held up by a bad neighbour."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from avrec_ray.feedback.store import EventStore
from tests.serve_apps.conftest import feedback_event


def post(client: httpx.Client, *events: object) -> httpx.Response:
    return client.post("/v1/feedback", json={"events": list(events)})


def test_feedback_is_readable_by_another_process_when_answered(client: httpx.Client, tmp_path: Path) -> None:
    answer = post(client, feedback_event("e1"), feedback_event("e2", "i2"))
    assert answer.json() == {"accepted": 2, "duplicates": 0, "rejected": []}
    connection = sqlite3.connect(tmp_path / "events.db")
    assert connection.execute("SELECT event_id FROM events ORDER BY seq").fetchall() == [("e1",), ("e2",)]
    connection.close()


def test_feedback_same_event_id_twice_counts_once(client: httpx.Client, store: EventStore) -> None:
    post(client, feedback_event("e1"))
    assert post(client, feedback_event("e1")).json() == {"accepted": 0, "duplicates": 1, "rejected": []}
    assert store.count() == 1


def test_feedback_same_event_id_with_other_body_is_a_conflict(client: httpx.Client, store: EventStore) -> None:
    post(client, feedback_event("e1"))
    answer = post(client, feedback_event("e1", "i9"))
    assert answer.status_code == 200
    assert answer.json()["rejected"] == [{"index": 0, "reason": "conflict: event_id 'e1' is kept with another body"}]
    assert [e.item_id for e in store.history("u1", 5)] == ["i1"]


def test_feedback_bad_events_do_not_hold_up_the_good_ones(client: httpx.Client, store: EventStore) -> None:
    events = [
        feedback_event("e1", event="applaud"),
        feedback_event("e2"),
        {**feedback_event("e3"), "watch_seconds": -1},
        {**feedback_event("e4"), "at": 99_999_999_999},
        feedback_event("e2", "i7"),
        "like",
    ]
    answer = post(client, *events)
    assert answer.status_code == 200
    got = answer.json()
    assert (got["accepted"], got["duplicates"], [r["index"] for r in got["rejected"]]) == (1, 0, [0, 2, 3, 4, 5])
    assert "expected one of ['impression', 'view', 'like'" in got["rejected"][0]["reason"]
    assert "watch_seconds: got -1" in got["rejected"][1]["reason"]
    assert "ahead of the server's clock" in got["rejected"][2]["reason"]
    assert "conflict" in got["rejected"][3]["reason"]
    assert store.count() == 1


def test_feedback_of_which_nothing_is_well_formed_is_422_and_says_why(client: httpx.Client, store: EventStore) -> None:
    answer = post(client, feedback_event("e1", event="applaud"), {**feedback_event("e2"), "user_id": 5})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    got = answer.json()
    assert got["detail"].startswith("events.0: event: got 'applaud', expected one of ['impression'")
    assert (got["accepted"], [r["index"] for r in got["rejected"]]) == (0, [0, 1])
    assert store.count() == 0


def test_feedback_empty_list_is_fine(client: httpx.Client) -> None:
    assert post(client).json() == {"accepted": 0, "duplicates": 0, "rejected": []}


def test_feedback_500_events_are_taken_501_are_not(client: httpx.Client, store: EventStore) -> None:
    assert post(client, *[feedback_event(f"e{n}") for n in range(500)]).json()["accepted"] == 500
    answer = post(client, *[feedback_event(f"f{n}") for n in range(501)])
    assert answer.status_code == 422
    assert "at most 500" in answer.json()["detail"]
    assert store.count() == 500


def test_feedback_configured_limit_below_500_is_kept(make_client: Callable[..., httpx.Client]) -> None:
    answer = post(make_client(max_events=2), *[feedback_event(f"e{n}") for n in range(3)])
    assert answer.status_code == 422
    assert answer.json()["detail"] == "events: got 3 events, expected at most 2"


def test_feedback_store_locked_is_503_and_the_same_request_succeeds_later(client: httpx.Client, tmp_path: Path) -> None:
    blocker = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    answer = post(client, feedback_event("e1"))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "nothing was kept" in answer.json()["detail"]
    blocker.execute("ROLLBACK")
    blocker.close()
    assert post(client, feedback_event("e1")).json()["accepted"] == 1


@pytest.mark.parametrize("at", [1.5e9, "2017-07-14T02:40:00Z"])
def test_feedback_time_is_kept(client: httpx.Client, store: EventStore, at: object) -> None:
    post(client, {**feedback_event("e1"), "at": at})
    assert store.history("u1", 1)[0].at_seconds == 1.5e9


def test_feedback_without_time_repeated_is_a_duplicate(client: httpx.Client) -> None:
    body = {**feedback_event("e1"), "watch_seconds": 2.5, "request_id": "r", "position": 1}
    assert post(client, body).json()["accepted"] == 1
    assert post(client, body).json()["duplicates"] == 1
