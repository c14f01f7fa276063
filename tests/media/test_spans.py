from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.media.config import MediaConfig
from avrec_ray.media.spans import clip_spans, drawn_clip, frame_times, nearest_keyframes, shown_at


@given(st.floats(0, 1e5), st.integers(1, 8))
def test_clip_spans_cover_the_item_without_gap(duration: float, max_clips: int) -> None:
    spans = clip_spans(duration, MediaConfig(max_clips=max_clips))
    assert 1 <= len(spans) <= max_clips
    assert spans[0][0] == 0
    assert spans[-1][1] == pytest.approx(duration)
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    lengths = [end - start for start, end in spans]
    assert max(lengths) == pytest.approx(min(lengths), abs=1e-6)


@pytest.mark.parametrize(("duration", "count"), [(0.0, 1), (4.0, 1), (4.01, 1), (4.1, 2), (8.5, 3), (99.0, 3)])
def test_clip_spans_count_grows_with_the_duration(duration: float, count: int) -> None:
    assert len(clip_spans(duration, MediaConfig(max_clips=3))) == count


@given(st.floats(0, 1e4), st.floats(0.01, 1e4), st.integers(1, 32))
def test_frame_times_lie_inside_the_span(start: float, length: float, num_frames: int) -> None:
    times = frame_times((start, start + length), num_frames)
    assert len(times) == num_frames
    assert (times >= start).all()
    assert (times <= start + length).all()
    assert (np.diff(times) > 0).all()


def test_shown_at_is_the_last_frame_that_started() -> None:
    starts = np.array([0.0, 0.04, 0.08, 1.0])
    assert shown_at(np.array([0.0, 0.039, 0.04, 0.5, 5.0]), starts).tolist() == [0, 0, 1, 2, 3]
    assert shown_at(np.array([0.0]), np.array([0.3])).tolist() == [0]


@given(st.floats(0, 1e4), st.floats(0.1, 600), st.integers(1, 32), st.integers(0, 2**32))
def test_drawn_clip_lies_in_the_item_with_a_time_in_each_part(
    duration: float, clip_seconds: float, num_frames: int, draw: int
) -> None:
    cfg = MediaConfig(clip_seconds=round(clip_seconds, 2), num_frames=num_frames)
    (start, end), times = drawn_clip(duration, cfg, np.random.default_rng(draw))
    assert start >= 0
    assert end <= duration * (1 + 1e-12) + 1e-9
    assert end - start == pytest.approx(min(cfg.clip_seconds, duration), abs=1e-6)
    edges = start + (end - start) * np.arange(num_frames + 1) / num_frames
    assert (times >= edges[:-1] - 1e-9).all()
    assert (times <= edges[1:] + 1e-9).all()


def test_drawn_clip_reaches_every_place_and_repeats_for_the_same_draw() -> None:
    cfg = MediaConfig(clip_seconds=4.0, num_frames=2)
    draws = [drawn_clip(10.0, cfg, np.random.default_rng(draw)) for draw in range(400)]
    starts = np.array([span[0] for span, _ in draws])
    places = np.array([(times - span[0]) / 2 - [0, 1] for span, times in draws])
    assert np.histogram(starts, bins=6, range=(0, 6))[0].min() > 35  # 67 expected
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() > 140  # 200 expected
    again, times = drawn_clip(10.0, cfg, np.random.default_rng(7))
    assert again == draws[7][0]
    assert (times == draws[7][1]).all()


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=8),
    st.lists(st.integers(-20, 120), min_size=1, max_size=40, unique=True),
)
def test_nearest_keyframes_none_is_nearer(times: list[float], keys: list[int]) -> None:
    wanted, seconds = np.array(sorted(times)), np.array(sorted(keys), float)
    rows = nearest_keyframes(wanted, (0.0, 100.0), seconds)
    inside = seconds[(seconds >= 0) & (seconds < 100)]
    if len(inside) < len(wanted):
        assert rows is None
    else:
        assert rows is not None
        nearest = np.abs(inside[None, :] - wanted[:, None]).min(1)
        np.testing.assert_allclose(np.abs(seconds[rows] - wanted), nearest)
        assert np.isin(seconds[rows], inside).all()
