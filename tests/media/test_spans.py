from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.media.config import MediaConfig
from avrec_ray.media.spans import clip_spans, frame_times, shown_at


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
