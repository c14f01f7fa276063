import dataclasses
import math
import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.database import write
from avrec_ray.feedback.impressions import IMPRESSIONS, JOINED, Impression, Watermark
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.tables import events, impressions
from avrec_ray.types import Event
from tests.feedback.test_store import plan

NOW = 1_700_000_000.0


def shown(request_id: str, item_id: str, position: int = 0, **changes: Any) -> Impression:
    whole = Impression(request_id, "u1", item_id, position, 0.25, "m1", "a", "user_tower", NOW)
    return dataclasses.replace(whole, **changes)


def answer(event_id: str, request_id: str | None, item_id: str, user_id: str = "u1") -> Event:
    return Event(user_id, item_id, "like", NOW + 5, 1.5, None, event_id, request_id, 7)


def test_record_list_is_kept_as_served_and_once(store: EventStore) -> None:
    served = [shown("r1", "i1", 0), shown("r1", "i2", 1, propensity=None, source="explore", variant="")]
    assert store.record_impressions(served) == 2
    assert store.record_impressions(served) == 0
    table, watermark = store.export_impressions()
    assert table.schema.equals(IMPRESSIONS)
    assert table.drop(["at"]).to_pylist()[1] == {
        "request_id": "r1", "user_id": "u1", "item_id": "i2", "position": 1, "propensity": None, "model_version": "m1",
        "variant": "", "source": "explore",
    }  # fmt: skip
    assert table["at"].cast(pa.int64()).to_pylist() == [round(NOW * 1e6)] * 2
    assert store.export_impressions(watermark) == (IMPRESSIONS.empty_table(), watermark)


def test_record_again_a_little_later_is_the_same_list(store: EventStore) -> None:
    store.record_impressions([shown("r1", "i1")])
    assert store.record_impressions([shown("r1", "i1", at_seconds=NOW + 1)]) == 0


def test_record_nothing_is_nothing(store: EventStore) -> None:
    assert store.record_impressions([]) == 0


def test_record_other_list_under_the_same_request_is_refused_whole(store: EventStore) -> None:
    store.record_impressions([shown("r1", "i1", 0)])
    with pytest.raises(FeedbackError, match=r"'r1' is kept with another propensity of 'i1'; a request_id belongs to"):
        store.record_impressions([shown("r1", "i2", 1), shown("r1", "i1", 0, propensity=0.5)])
    assert store.export_impressions()[0].num_rows == 1


def test_record_item_twice_in_one_list_is_refused(store: EventStore) -> None:
    with pytest.raises(FeedbackError, match="an item comes twice in one request"):
        store.record_impressions([shown("r1", "i1", 0), shown("r1", "i1", 1)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensity": 0.0}, "got propensity 0.0, expected above 0 and up to 1, or None"),
        ({"propensity": 1.5}, "got propensity 1.5"),
        ({"propensity": math.nan}, "got propensity nan"),
        ({"position": -1}, "got position -1"),
        ({"item_id": ""}, "item_id must be 1 to 256 characters"),
        ({"user_id": "a\x00b"}, "user_id must be"),
    ],
)
def test_impression_out_of_range_names_got_and_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FeedbackError, match=message):
        shown("r1", changes.pop("item_id", "i1"), **changes)


def test_joined_is_the_event_with_what_was_served(store: EventStore, tmp_path: Any) -> None:
    store.record_impressions([shown("r1", "i1", 3), shown("r1", "i2", 4)])
    store.append([answer("e1", "r1", "i1", "u9"), answer("e2", "r1", "i9"), answer("e3", None, "i1")], NOW)
    table, watermark = store.export_joined()
    assert table.schema.equals(JOINED)
    assert table.drop(["shown_at", "at"]).to_pylist() == [
        {"request_id": "r1", "item_id": "i1", "position": 3, "propensity": 0.25, "model_version": "m1", "variant": "a"}
        | {"source": "user_tower", "shown_to": "u1", "event_id": "e1", "user_id": "u9", "event": "like"}
        | {"watch_seconds": 1.5, "value": None}
    ]
    pq.write_table(table, tmp_path / "joined.parquet")
    assert pq.read_table(tmp_path / "joined.parquet").equals(table)
    assert store.export_joined(watermark) == (JOINED.empty_table(), watermark)


def test_joined_impression_that_comes_after_its_event_is_not_lost(store: EventStore) -> None:
    store.append([answer("e1", "r1", "i1")], NOW)
    table, watermark = store.export_joined()
    assert table.num_rows == 0
    store.record_impressions([shown("r1", "i1")])
    table, watermark = store.export_joined(watermark)
    assert table["event_id"].to_pylist() == ["e1"]
    assert store.export_joined(watermark)[0].num_rows == 0


def test_joined_reads_by_index(store: EventStore) -> None:
    join = "FROM events e JOIN impressions i ON e.request_id = i.request_id AND e.item_id = i.item_id"
    late = plan(
        store, f"SELECT e.seq {join} AND e.request_id IS NOT NULL WHERE i.seq > 5 AND e.seq <= 9 ORDER BY i.seq"
    )
    assert "events_request" in late
    new = plan(store, f"SELECT e.seq {join} AND e.request_id IS NOT NULL WHERE e.seq > 5 ORDER BY e.seq")
    assert "impressions_once" in new or "sqlite_autoindex_impressions_1" in new


steps = st.lists(st.tuples(st.sampled_from("eix"), st.sampled_from(["r1", "r2"]), st.sampled_from("abc")), max_size=20)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_joined_in_any_order_gives_every_pair_once(steps: list[tuple[str, str, str]], store: EventStore) -> None:
    """e: an event comes, i: an impression, x: an export."""
    with write(store._engine) as connection:
        connection.execute(events.delete())
        connection.execute(impressions.delete())
    pairs: list[tuple[str, str]] = []
    watermark, answered, served = Watermark(), [], set()
    for number, (what, request_id, item_id) in enumerate([*steps, ("x", "", "")]):
        if what == "e":
            store.append([answer(f"e{number}", request_id, item_id)], NOW)
            answered.append((f"e{number}", request_id + item_id))
        elif what == "i":
            store.record_impressions([shown(request_id, item_id)])
            served.add(request_id + item_id)
        else:
            table, watermark = store.export_joined(watermark)
            pairs += [(row["event_id"], row["request_id"] + row["item_id"]) for row in table.to_pylist()]
    assert sorted(pairs) == sorted(pair for pair in answered if pair[1] in served)


def test_record_many_threads_the_same_list_counts_once(store: EventStore) -> None:
    added: list[int] = []
    served = [shown("r1", f"i{n}", n) for n in range(20)]
    threads = [threading.Thread(target=lambda: added.append(store.record_impressions(served))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == 20
