"""What was served is in the store soon after, whatever the store did meanwhile, and joins what users answer."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.impressions import Impression
from avrec_ray.feedback.store import EventStore
from serve_apps.impression_log import ImpressionLog
from serve_apps.metrics import GatewayMetrics
from tests.serve_apps.conftest import feedback_event


def shown(request_id: str, num_items: int = 3, model_version: str = "v1") -> list[Impression]:
    return [
        Impression(request_id, "u1", f"i{n}", n, 0.5, model_version, "champion", "user_tower", 100.0)
        for n in range(1, num_items + 1)
    ]


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.01)


def kept(store: EventStore) -> list[dict[str, object]]:
    return store.export_impressions()[0].to_pylist()


@contextmanager
def locked(store: EventStore) -> Iterator[None]:
    """Somebody else writes to the database, for longer than anybody waits."""
    with sqlite3.connect(str(store._engine.url.database), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def log(store: EventStore) -> Iterator[ImpressionLog]:
    opened = ImpressionLog(store, FeedbackConfig(max_waiting_impressions=10), GatewayMetrics())
    yield opened
    opened.close()


def outcome(log: ImpressionLog, name: str) -> float:
    return log._metrics.impressions.labels(name)._value.get()


def test_a_served_list_joins_the_event_that_answers_it(client: httpx.Client, store: EventStore) -> None:
    answer = client.post("/v1/recommend", json={"user_id": "u1", "k": 5}).json()
    wait_until(lambda: len(kept(store)) == 5)
    rows = {row["item_id"]: row for row in kept(store)}
    for item in answer["items"]:
        row = rows[item["item_id"]]
        assert (row["request_id"], row["user_id"], row["position"]) == (answer["request_id"], "u1", item["rank"])
        assert (row["propensity"], row["model_version"], row["variant"]) == (1.0, answer["model_version"], "champion")
        assert row["source"] == item["source"]
    chosen = answer["items"][2]
    event = feedback_event("e1", chosen["item_id"]) | {"request_id": answer["request_id"]}
    assert client.post("/v1/feedback", json={"events": [event]}).json()["accepted"] == 1
    joined = store.export_joined()[0].to_pylist()
    assert [(row["event_id"], row["position"]) for row in joined] == [("e1", chosen["rank"])]


def test_lists_of_nobody_and_of_similar_items_are_not_kept(client: httpx.Client, store: EventStore) -> None:
    client.post("/v1/recommend", json={"session": [{"item_id": "i1", "event": "like"}]})
    client.get("/v1/items/i1/similar")
    client.post("/v1/rank", json={"user_id": "u2", "items": ["i3", "i4"]})
    wait_until(lambda: len(kept(store)) > 0)
    assert {(row["user_id"], row["item_id"]) for row in kept(store)} == {("u2", "i3"), ("u2", "i4")}


def test_lists_wait_while_the_store_fails_and_come_once(
    log: ImpressionLog, store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(store):
        log.add(shown("r1"))
        log.add(shown("r2"))
        wait_until(lambda: "the event store failed" in caplog.text)
        assert not kept(store)
    wait_until(lambda: len(kept(store)) == 6)
    assert outcome(log, "kept") == 6


def test_beyond_the_bound_lists_are_dropped_and_counted(log: ImpressionLog, store: EventStore) -> None:
    with locked(store):
        for number in range(5):
            log.add(shown(f"r{number}"))
        assert outcome(log, "dropped") == 6  # three lists of three items fit ten
    wait_until(lambda: len(kept(store)) == 9)
    wait_until(lambda: log._num_waiting == 0)  # a moment after the store has them
    log.add(shown("r9"))
    wait_until(lambda: len(kept(store)) == 12)


def test_a_refused_list_does_not_take_others_with_it(log: ImpressionLog, store: EventStore) -> None:
    store.record_impressions(shown("r1"))
    with locked(store):  # so that all three wait together
        log.add(shown("r0"))
        log.add(shown("r1", model_version="v2"))
        log.add(shown("r2"))
        time.sleep(0.3)
    wait_until(lambda: outcome(log, "kept") == 6)
    assert outcome(log, "refused") == 3
    assert {row["model_version"] for row in kept(store)} == {"v1"}


def test_close_keeps_what_waits(tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path / 'events.db'}")
    log = ImpressionLog(store, FeedbackConfig(impressions_flush_seconds=60.0), GatewayMetrics())
    log.add(shown("r1"))
    log.close()
    assert len(kept(store)) == 3
    log.add(shown("r2"))
    assert outcome(log, "dropped") == 3


def test_impressions_can_be_left_out(store: EventStore) -> None:
    log = ImpressionLog(store, FeedbackConfig(record_impressions=False), GatewayMetrics())
    log.add(shown("r1"))
    log.close()
    assert not kept(store)
