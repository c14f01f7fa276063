"""Popularity by the time that an item was out."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.pipelines.catalogue import PSEUDO_CHOICES, choices_per_day, popularities
from avrec_ray.types import INTERACTIONS, ITEMS

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
NUM_DAYS = 20


def items_table(published: list[float | None]) -> pa.Table:
    """Items i0, i1, ... by the day of their publication."""
    rows = [
        {"item_id": f"i{row}", "title": "", "published_at": None if day is None else BEGIN + timedelta(days=day)}
        for row, day in enumerate(published)
    ]
    return pa.Table.from_pylist(rows, ITEMS)


def log(choices: list[tuple[int, float]]) -> pa.Table:
    """Choices of an item on a day, after an event on the first day and before one on the last, of an item unknown."""
    events = [(99, 0.0), *choices, (99, float(NUM_DAYS))]
    rows = [
        {"event_id": f"e{n}", "user_id": "u", "item_id": f"i{item}", "event": "view", "at": BEGIN + timedelta(days=day)}
        for n, (item, day) in enumerate(events)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, INTERACTIONS)


def test_a_late_item_is_as_popular_as_an_old_one_chosen_as_often_a_day() -> None:
    items = items_table([-100.0, 10.0, 0.0])
    table = log([(0, day) for day in np.linspace(1, 19, 200)] + [(1, day) for day in np.linspace(11, 19, 100)])
    old, late, nobodys = choices_per_day(table, items)
    assert late == pytest.approx(old, rel=0.05)
    assert old == pytest.approx(200 / NUM_DAYS, rel=0.05)
    assert nobodys == pytest.approx(300 / (NUM_DAYS + 10 + NUM_DAYS))


def test_few_choices_are_near_the_mean_of_all() -> None:
    items = items_table([0.0, 0.0, 19.9])
    found = choices_per_day(log([(0, 1.0)] * 400 + [(1, 1.0)] * 40 + [(2, 19.95)] * 3), items)
    mean = 443 / (20 + 20 + 0.1)
    assert found[2] == pytest.approx((3 + PSEUDO_CHOICES) / (0.1 + PSEUDO_CHOICES / mean), rel=1e-5)
    assert mean < found[2] < 3 / 0.1


@given(
    st.lists(st.floats(-30, 30) | st.none(), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 8), st.floats(0, 20)), max_size=12),
)
def test_rates_are_finite_and_above_zero_where_anything_was_chosen(
    published: list[float | None], choices: list[tuple[int, float]]
) -> None:
    """Whatever the dates say: published after the end, after the first choice, or never."""
    items = items_table(published)
    found = popularities(log(choices), items, 7.0)
    assert (found.dtype, found.shape) == (np.float32, (len(published), 3))
    assert np.isfinite(found).all()
    known = any(item < len(published) for item, _ in choices)
    assert (found[:, 2] > 0).all() == known


def test_an_item_that_was_chosen_before_its_publication_was_out_then() -> None:
    told, untold = items_table([15.0]), items_table([None])
    table = log([(0, 5.0), (0, 16.0)])
    early = choices_per_day(table, told)
    assert early == pytest.approx([(2 + PSEUDO_CHOICES) / (15 + PSEUDO_CHOICES * 15 / 2)])
    assert choices_per_day(table, untold) == pytest.approx([2 / 20])


def test_no_events_at_all_say_nothing() -> None:
    assert choices_per_day(log([]).slice(0, 0), items_table([0.0, None])).tolist() == [0.0, 0.0]
