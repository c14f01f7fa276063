"""Behaviour as arrays: the table of training and the events of a request give the same encoding."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.training.histories import (
    EVENT_CODES,
    LABEL_WEIGHT,
    POSITIVE_CODES,
    EventColumns,
    columns_from_events,
    columns_from_table,
    pad_histories,
)
from avrec_ray.types import EVENTS, INTERACTIONS, POSITIVE_EVENTS, Event
from tests.tiny_models import random_columns

INDEX = {"a": 0, "b": 1, "c": 2, "d": 3}
DURATIONS = np.array([10.0, 0.0, np.nan, 4.0], np.float32)
"""Of a video, an image, an unknown and a short clip."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def table_of(events: list[Event]) -> pa.Table:
    rows = [
        {
            **{name: getattr(event, name) for name in ("user_id", "item_id", "event", "watch_seconds")},
            "at": EPOCH + timedelta(microseconds=round(event.at_seconds * 1e6)),
        }
        for event in events
    ]
    return pa.Table.from_pylist(rows, schema=INTERACTIONS)


events = st.builds(
    Event,
    user_id=st.sampled_from(["u", "v", "w", "ü"]),
    item_id=st.sampled_from([*INDEX, "unknown"]),
    event=st.sampled_from(EVENTS),
    at_seconds=st.integers(0, 5_000_000).map(lambda tick: tick * 250 / 1e6),  # coarse, so that times collide
    watch_seconds=st.none() | st.floats(0, 100, width=32),
)


@given(st.lists(events, max_size=30))
def test_columns_from_table_and_from_events_are_equal(log: list[Event]) -> None:
    from_table = columns_from_table(table_of(log), INDEX, DURATIONS)
    histories = {
        user: sorted((e for e in log if e.user_id == user), key=lambda e: e.at_seconds)  # stable, as the table is
        for user in from_table.user_ids
    }
    from_events = columns_from_events(list(histories.values()), INDEX, DURATIONS)
    for name in ("item_idx", "event", "watch_ratio", "at_seconds", "starts"):
        first, second = getattr(from_table, name), getattr(from_events, name)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second, err_msg=name)


def test_columns_from_table_goes_by_a_column_before_time() -> None:
    log = [Event("u", "a", "view", 3.0), Event("u", "b", "view", 1.0), Event("u", "c", "view", 2.0)]
    table = table_of([*log, Event("u", "d", "impression", 0.0)]).append_column("part", pa.array([0, 1, 0, 0]))
    assert columns_from_table(table, INDEX, DURATIONS).item_idx.tolist() == [1, 2, 0]
    assert columns_from_table(table, INDEX, DURATIONS, first_by="part").item_idx.tolist() == [2, 0, 1]


def test_label_weights_follow_their_events() -> None:
    log = [Event("v", "a", "view", 3.0), Event("u", "b", "view", 2.0), Event("u", "c", "view", 1.0)]
    assert columns_from_table(table_of(log), INDEX, DURATIONS).label_weight is None
    table = table_of([*log, Event("u", "unknown", "view", 0.0)])
    columns = columns_from_table(table.append_column(LABEL_WEIGHT, pa.array([1.0, 2.0, 3.0, 4.0])), INDEX, DURATIONS)
    assert columns.label_weight is not None
    assert columns.label_weight.tolist() == [3.0, 2.0, 1.0]


@given(st.lists(events, max_size=30))
def test_columns_from_table_keeps_every_acted_event_of_the_catalogue(log: list[Event]) -> None:
    columns = columns_from_table(table_of(log), INDEX, DURATIONS)
    kept = [e for e in log if e.item_id in INDEX and e.event != "impression"]
    assert len(columns.item_idx) == len(kept)
    assert columns.user_ids == sorted({e.user_id for e in kept})
    for user, user_id in enumerate(columns.user_ids):
        rows = columns.rows(user)
        assert sorted(columns.item_idx[rows]) == sorted(INDEX[e.item_id] for e in kept if e.user_id == user_id)
        assert (np.diff(columns.at_seconds[rows]) >= 0).all()


def test_event_codes_leave_zero_to_padding() -> None:
    assert sorted(EVENT_CODES.values()) == list(range(1, len(EVENTS) + 1))
    assert [EVENTS[code - 1] for code in POSITIVE_CODES] == list(POSITIVE_EVENTS)


def test_columns_from_events_encodes_code_ratio_and_time() -> None:
    history = [Event("u", "a", "view", 5.5, watch_seconds=2.5), Event("u", "d", "skip", 7.0)]
    columns = columns_from_events([history], INDEX, DURATIONS)
    assert columns.item_idx.tolist() == [0, 3]
    assert columns.event.tolist() == [EVENT_CODES["view"], EVENT_CODES["skip"]]
    assert columns.watch_ratio[0] == 0.25
    assert np.isnan(columns.watch_ratio[1])
    assert columns.at_seconds.tolist() == [5.5, 7.0]


@pytest.mark.parametrize("item_id", ["b", "c"])
def test_watch_ratio_without_a_usable_duration_is_unknown(item_id: str) -> None:
    columns = columns_from_events([[Event("u", item_id, "view", 0.0, watch_seconds=3.0)]], INDEX, DURATIONS)
    assert np.isnan(columns.watch_ratio).all()


def test_columns_from_events_keeps_an_empty_history_as_a_row() -> None:
    columns = columns_from_events([[], [Event("u", "a", "view", 0.0)], []], INDEX, DURATIONS)
    assert columns.starts.tolist() == [0, 0, 1, 1]


def test_columns_from_an_empty_table_have_no_users() -> None:
    columns = columns_from_table(table_of([]), INDEX, DURATIONS)
    assert columns.user_ids == []
    assert columns.starts.tolist() == [0]


def spans_of(columns: EventColumns) -> list[tuple[int, int]]:
    return [(columns.rows(user).start, columns.rows(user).stop) for user in range(len(columns.user_ids))]


@given(st.integers(0, 100), st.integers(1, 8))
def test_pad_histories_holds_the_newest_events_on_the_right(seed: int, length: int) -> None:
    columns = random_columns(4, 10, seed)
    history = pad_histories(columns, spans_of(columns), length)
    for user, (start, stop) in enumerate(spans_of(columns)):
        count = min(length, stop - start)
        newest = slice(stop - count, stop)
        assert history.mask[user].tolist() == [False] * (length - count) + [True] * count
        assert history.item_idx[user, -count:].tolist() == columns.item_idx[newest].tolist()
        assert history.event[user, -count:].tolist() == columns.event[newest].tolist()
        np.testing.assert_array_equal(history.watch_ratio[user, -count:].numpy(), columns.watch_ratio[newest])
        assert history.at_seconds[user, -count:].tolist() == columns.at_seconds[newest].tolist()
        assert not history.at_seconds[user, :-count].any()
        gaps = np.diff(columns.at_seconds[newest], prepend=columns.at_seconds[newest][0])
        np.testing.assert_allclose(history.gap_seconds[user, -count:].numpy(), gaps, rtol=1e-6)


def test_pad_histories_fills_padding_with_nothing() -> None:
    history = pad_histories(random_columns(1, 5), [(0, 2)], 5)
    assert history.item_idx[0, :3].tolist() == [0, 0, 0]
    assert history.event[0, :3].tolist() == [0, 0, 0]
    assert history.watch_ratio[0, :3].isnan().all()
    assert history.gap_seconds[0, :4].tolist() == [0.0] * 4  # the first event has no gap either


def test_pad_histories_has_the_dtypes_that_the_tower_reads() -> None:
    history = pad_histories(random_columns(2, 5), [(0, 2), (0, 0)], 3)
    values = {f.name: getattr(history, f.name) for f in dataclasses.fields(history)}
    dtypes: dict[str, Any] = {name: value.dtype for name, value in values.items() if value is not None}
    assert dtypes == {
        "item_idx": torch.int64, "event": torch.int64, "watch_ratio": torch.float32,
        "gap_seconds": torch.float32, "mask": torch.bool, "at_seconds": torch.float64,
    }  # fmt: skip
    assert not history.mask[1].any()


def test_pad_histories_of_nobody_is_empty() -> None:
    assert pad_histories(random_columns(1, 5), [], 3).mask.shape == (0, 3)
