"""Exports that end at a watermark: the same rows in steps as at once, whatever is kept meanwhile."""

from avrec_ray.feedback.impressions import Impression, Watermark
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Event

NOW = 1_700_000_000.0


def keep(store: EventStore, *numbers: int) -> None:
    store.append([Event("u", "i", "view", NOW, event_id=f"e{n}") for n in numbers], NOW)
    store.record_impressions([Impression(f"r{n}", "u", "i", 1, None, "m", "", "", NOW) for n in numbers])


def test_watermark_of_an_empty_store_is_the_start(store: EventStore) -> None:
    assert store.watermark() == Watermark()


def test_export_up_to_a_watermark_leaves_what_came_later(store: EventStore) -> None:
    keep(store, 0, 1)
    upto = store.watermark()
    keep(store, 2)
    events, end = store.export_interactions(0, upto.events)
    assert (events["event_id"].to_pylist(), end) == (["e0", "e1"], upto.events)
    shown, end = store.export_impressions(0, upto.impressions)
    assert (shown["request_id"].to_pylist(), end) == (["r0", "r1"], upto.impressions)
    assert store.export_interactions(upto.events)[0]["event_id"].to_pylist() == ["e2"]
    assert store.export_impressions(upto.impressions)[0]["request_id"].to_pylist() == ["r2"]
    assert store.export_interactions(upto.events, upto.events)[0].num_rows == 0
