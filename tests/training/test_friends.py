"""Which choices of friends a query reads: by a slow loop over its rule, and never one of its time or later."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.training.friends import MAX_POOL, Friendships, friendships, weighted_pairs
from avrec_ray.training.histories import EVENT_CODES, POSITIVE_CODES, EventColumns, pad_histories, with_profiles
from avrec_ray.training.profile_tables import profiles_from_tables
from avrec_ray.types import EDGES
from tests.tiny_models import tiny_towers

Log = dict[str, list[tuple[float, int, str]]]
CFG = tiny_towers(num_friends=2, friend_items=2)


def columns_of(log: Log) -> EventColumns:
    """Users with (time, item, event), oldest first."""
    flat = [event for user in sorted(log) for event in log[user]]
    return EventColumns(
        item_idx=np.array([item for _, item, _ in flat], np.int64),
        event=np.array([EVENT_CODES[event] for _, _, event in flat], np.int64),
        watch_ratio=np.full(len(flat), np.nan, np.float32),
        at_seconds=np.array([at for at, _, _ in flat], np.float64),
        user_ids=sorted(log),
        starts=np.cumsum([0, *(len(log[user]) for user in sorted(log))]),
    )


def edges_of(*rows: tuple[str, str, float | None]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(EDGES.names, row, strict=True)) for row in rows], EDGES)


def friends_of(log: Log, *edges: tuple[str, str, float | None], **overrides: Any) -> Friendships:
    cfg = tiny_towers(**{"num_friends": 2, "friend_items": 2, **overrides})
    friends = profiles_from_tables(None, edges_of(*edges), columns_of(log), cfg).friends
    assert friends is not None
    return friends


def choices(*times: float) -> list[tuple[float, int, str]]:
    return [(at, number, "view") for number, at in enumerate(times)]


@given(
    st.lists(st.integers(0, 12), max_size=10).map(sorted),
    st.lists(st.integers(0, 12), min_size=1, max_size=6).map(sorted),
    st.integers(1, 3),
)
def test_pool_reads_the_newest_choices_strictly_before_each_position(
    friend: list[int], asked: list[int], per_friend: int
) -> None:
    log = {"a": choices(0.0, 99.0), "b": choices(*map(float, friend))}  # "a" makes sure that the data has times
    friends = friends_of(log, ("a", "b", None), friend_items=per_friend)
    items, weights, reads = friends.pool(0, np.array(asked, np.float64))
    assert (weights == 0).all()
    newest_of_all = [n for n, at in enumerate(friend) if at < asked[-1]][-MAX_POOL * per_friend :]
    for position, time in enumerate(asked):
        expected = [n for n, at in enumerate(friend) if at < time][-per_friend:]
        assert items[reads[position]].tolist() == [n for n in expected if n in newest_of_all]
    assert reads[-1].sum() == min(per_friend, sum(at < asked[-1] for at in friend))


def test_a_choice_at_the_time_of_the_query_or_later_changes_nothing() -> None:
    log = {"a": choices(1.0, 5.0, 9.0), "b": choices(2.0, 4.0)}
    later = {**log, "b": log["b"] + [(9.0, 7, "like"), (10.0, 8, "like"), (1e9, 9, "like")]}
    batches = []
    for each in (log, later):
        columns = columns_of(each)
        profiles = profiles_from_tables(None, edges_of(("a", "b", 1.0)), columns, CFG)
        batches.append(pad_histories(with_profiles(columns, profiles), [(0, 3)], 4).friends)
    before, after = batches
    assert before is not None
    assert after is not None
    for name in ("item_idx", "log_weight", "reads"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert before.reads[0].tolist() == [[False, False], [False, False], [True, True], [True, True]]


def test_a_padded_position_asks_just_before_the_first_event_and_nobody_s_at_the_end() -> None:
    log = {"a": choices(3.0, 9.0), "b": choices(2.0, 3.0, 20.0)}
    columns = columns_of(log)
    profiles = profiles_from_tables(None, edges_of(("a", "b", None)), columns, CFG)
    friends = pad_histories(with_profiles(columns, profiles), [(0, 2), (0, 0)], 3, users=[0, 0]).friends
    assert friends is not None
    read = [[friends.item_idx[row][mask].tolist() for mask in friends.reads[row]] for row in range(2)]
    assert read == [[[0], [0], [0, 1]], [[1, 2], [1, 2], [1, 2]]]


def test_data_without_times_reads_the_last_choices_of_the_table() -> None:
    log = {"a": choices(7.0, 7.0), "b": choices(7.0, 7.0, 7.0)}
    items, _, reads = friends_of(log, ("a", "b", None)).pool(0, np.array([7.0, 7.0]))
    assert items.tolist() == [1, 2]
    assert reads.all()


def test_only_choices_count_and_rejections_do_not() -> None:
    log = {"a": choices(0.0, 9.0), "b": [(1.0, 4, "skip"), (2.0, 5, "like"), (3.0, 6, "dislike")]}
    assert friends_of(log, ("a", "b", None)).pool(0, np.array([9.0]))[0].tolist() == [5]


def test_friends_are_the_closest_and_the_weight_is_a_logarithm() -> None:
    log = {name: choices(1.0, 5.0) for name in "abcd"}
    friends = friends_of(log, ("a", "b", 0.5), ("a", "c", 2.0), ("a", "d", 3.0), ("b", "c", None), friend_items=1)
    items, weights, _ = friends.pool(0, np.array([9.0]))
    assert items.tolist() == [1, 1]
    assert np.exp(weights).tolist() == pytest.approx([3.0, 2.0])
    assert friends.telling.tolist() == [True, True, False, False]


def test_weighted_pairs_leave_out_oneself_and_weights_that_are_none() -> None:
    edges = edges_of(
        ("a", "a", 1.0), ("a", "b", 0.0), ("a", "c", -1.0), ("a", "d", float("nan")), ("a", "e", 1.0), ("a", "e", 3.0),
        ("b", "a", None),
    )  # fmt: skip
    assert weighted_pairs(edges) == {("a", "e"): 3.0, ("b", "a"): 1.0}


def test_users_of_whom_nothing_is_known_read_nobody() -> None:
    friends = Friendships.nobody(2)
    items, weights, reads = friends.pool(1, np.zeros(3))
    assert (items.shape, weights.shape, reads.shape) == ((0,), (0,), (3, 0))
    assert not friends.telling.any()


def test_choices_of_nobody_s_friend_are_not_kept() -> None:
    log = {name: choices(1.0, 5.0) for name in "abc"}
    columns = columns_of(log)
    kept = friendships(list("abc"), {("a", "b"): 1.0}, columns, np.isin(columns.event, POSITIVE_CODES), 5, 3)
    assert np.diff(kept.starts).tolist() == [0, 2, 0]
