"""Which parts of an item become clips, and which moments of a clip become frames."""

import itertools
import math

import numpy as np
import numpy.typing as npt

from avrec_ray.media.config import MediaConfig


def clip_spans(duration_seconds: float, cfg: MediaConfig) -> list[tuple[float, float]]:
    """Equal half-open spans that cover the item: min(max_clips, ceil(duration / clip_seconds)), at least one.

    >>> clip_spans(10.0, MediaConfig(clip_seconds=4.0, max_clips=2))
    [(0.0, 5.0), (5.0, 10.0)]
    """
    # A few milliseconds over are the rounding of a container's clock, not a further clip.
    wanted = math.ceil(duration_seconds / cfg.clip_seconds - 0.01)
    count = max(1, min(cfg.max_clips, wanted))
    edges = [duration_seconds * i / count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def frame_times(span: tuple[float, float], num_frames: int) -> npt.NDArray[np.float64]:
    """Middles of `num_frames` equal parts of the span, in seconds, [T].

    >>> frame_times((0.0, 4.0), 4).tolist()
    [0.5, 1.5, 2.5, 3.5]
    """
    start, end = span
    return start + (np.arange(num_frames) + 0.5) * (end - start) / num_frames


def drawn_clip(
    duration_seconds: float, cfg: MediaConfig, rng: np.random.Generator
) -> tuple[tuple[float, float], npt.NDArray[np.float64]]:
    """A random clip for training: a span of `clip_seconds` (or the whole item) anywhere, and its frame times [T].

    Each time is drawn uniformly inside its equal part of the span, so the times ascend.

    >>> span, times = drawn_clip(10.0, MediaConfig(clip_seconds=4.0, num_frames=2), np.random.default_rng(0))
    >>> [round(float(second), 2) for second in (*span, *times)]
    [3.82, 7.82, 4.36, 5.9]
    """
    length = min(cfg.clip_seconds, duration_seconds)
    start = float(rng.uniform(0.0, max(0.0, duration_seconds - length)))
    places = (np.arange(cfg.num_frames) + rng.random(cfg.num_frames)) / cfg.num_frames
    return (start, start + length), start + places * length


def shown_at(times: npt.NDArray[np.float64], pts_seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Row of the frame on display at each time: the last that starts at or before it, else the first.

    `pts_seconds` is ascending and on the clock of `times`. A microsecond of slack absorbs float rounding.
    """
    rows = np.searchsorted(pts_seconds, times + 1e-6, side="right") - 1
    return np.maximum(rows, 0)


def nearest_keyframes(
    times: npt.NDArray[np.float64], span: tuple[float, float], key_seconds: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64] | None:
    """Row of the span's keyframe nearest to each time; None when it holds fewer keyframes than there are times.

    `key_seconds` is ascending and on the clock of `times`; of two at the same distance the earlier is taken.

    >>> nearest_keyframes(np.array([1.0, 3.0]), (0.0, 4.0), np.array([0.0, 2.5, 4.0])).tolist()
    [0, 1]
    """
    low, high = np.searchsorted(key_seconds, span)
    if high - low < len(times):
        return None
    middles = (key_seconds[low : high - 1] + key_seconds[low + 1 : high]) / 2
    return low + np.searchsorted(middles, times)
