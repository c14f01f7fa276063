"""Watch time as a quantile among items as long."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.training.watch_quantiles import watch_quantiles


def test_long_items_have_no_advantage() -> None:
    rng = np.random.default_rng(0)
    short, long = np.full(500, 10, np.float32), np.full(500, 600, np.float32)
    ratio = rng.uniform(0, 1, 1000).astype(np.float32)
    found = watch_quantiles(ratio, np.concatenate([short, long]), 2)
    assert abs(found[:500].mean() - found[500:].mean()) < 0.01
    order = np.argsort(ratio[:500])
    assert (np.diff(found[:500][order]) > 0).all()


def test_unknown_watch_time_or_duration_stays_unknown() -> None:
    found = watch_quantiles(np.array([np.nan, 0.5, 0.5], np.float32), np.array([9, np.nan, 9], np.float32))
    assert np.isnan(found).tolist() == [True, True, False]
    assert np.isnan(watch_quantiles(np.array([np.nan], np.float32), np.array([9], np.float32))).all()


@given(
    st.lists(st.tuples(st.floats(0, 2, width=32), st.floats(1, 600, width=32)), min_size=1, max_size=60),
    st.integers(1, 10),
)
def test_quantiles_lie_inside_and_average_to_a_half(events: list[tuple[float, float]], num_groups: int) -> None:
    ratio, duration = (np.array(column, np.float32) for column in zip(*events, strict=True))
    found = watch_quantiles(ratio, duration, num_groups)
    assert ((found > 0) & (found < 1)).all()
    assert abs(found.mean() - 0.5) < 1e-5
