"""Triangular mel filters, float64 [F, Q]: F bins over Q frequencies from 0 Hz to half the rate."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]


def mel_filters(
    num_mel_bins: int,
    sample_rate_hz: int,
    num_frequencies: int,
    min_hz: float = 0.0,
    max_hz: float | None = None,
    scale: str = "slaney",
    has_unit_area: bool = True,
) -> Tensor:
    """Filters from `min_hz` to `max_hz` (half the rate by default), evenly spaced on a mel scale.

    scale: slaney, with triangles in hertz as librosa draws them; kaldi, with triangles in mels.
    has_unit_area: each filter is divided by its width; else its peak is near 1.

    >>> mel_filters(80, 16000, 201).shape
    torch.Size([80, 201])
    """
    top_hz = sample_rate_hz / 2 if max_hz is None else max_hz
    frequencies_hz = np.linspace(0, sample_rate_hz / 2, num_frequencies)
    if scale == "kaldi":
        low, high = _kaldi_mels(np.array([min_hz, top_hz]))
        edges = np.linspace(low, high, num_mel_bins + 2)
        filters = _triangles(edges, _kaldi_mels(frequencies_hz))
    else:
        low, high = _slaney_mels(np.array([min_hz, top_hz]))
        edges = _slaney_hz(np.linspace(low, high, num_mel_bins + 2))
        filters = _triangles(edges, frequencies_hz)
    if has_unit_area:
        filters *= 2.0 / (edges[2:] - edges[:-2])[:, None]
    return torch.from_numpy(filters)


def _triangles(edges: Floats, places: Floats) -> Floats:
    """Filter i rises from edge i to 1 at edge i + 1 and falls to edge i + 2."""
    widths = np.diff(edges)
    slopes = edges[:, None] - places[None, :]
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


def _kaldi_mels(hz: Floats) -> Floats:
    return 1127.0 * np.log(1.0 + hz / 700.0)


# The slaney scale: linear below 1000 Hz (15 mels), logarithmic above, 27 steps a factor of 6.4.
_LOG_STEP = np.log(6.4) / 27.0


def _slaney_mels(hz: Floats) -> Floats:
    return np.where(hz < 1000, 3.0 * hz / 200.0, 15.0 + np.log(np.maximum(hz, 1000) / 1000.0) / _LOG_STEP)


def _slaney_hz(mels: Floats) -> Floats:
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp(_LOG_STEP * (mels - 15.0)))
