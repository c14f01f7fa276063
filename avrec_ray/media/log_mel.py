"""Log-mel of sound, equal to transformers' WhisperFeatureExtractor, on torch.stft.

Dimension key: B batch, S samples, F mel bins, A columns.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avrec_ray.media.config import HOP_SAMPLES

WINDOW_SAMPLES = 400
"""Length of the Hann window and of the Fourier transform."""


def log_mel(samples_BS: Tensor, num_mel_bins: int = 80, sample_rate_hz: int = 16000) -> Tensor:
    """Log-mel [B, F, A] of mono sound [B, S] in [-1, 1], float32; A = S // 160.

    As Whisper: power spectrum, slaney mels, log10, at most 8 below the loudest of the clip, then (x + 4) / 4.

    >>> log_mel(torch.zeros(1, 16000)).shape
    torch.Size([1, 80, 100])
    """
    window = torch.hann_window(WINDOW_SAMPLES, device=samples_BS.device)
    spectrum = torch.stft(samples_BS, WINDOW_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    power = spectrum[..., :-1].abs() ** 2
    filters = mel_filters(num_mel_bins, sample_rate_hz).to(samples_BS.device)
    logarithm = (filters @ power).clamp(min=1e-10).log10()
    floor = logarithm.amax(dim=(1, 2), keepdim=True) - 8.0
    return (torch.maximum(logarithm, floor) + 4.0) / 4.0


@lru_cache(maxsize=8)
def mel_filters(num_mel_bins: int, sample_rate_hz: int) -> Tensor:
    """Triangular filters [F, 201] on the slaney scale, each of unit area, from 0 Hz to half the rate."""
    frequencies = np.linspace(0, sample_rate_hz // 2, 1 + WINDOW_SAMPLES // 2)
    edges = _mel_to_hz(np.linspace(0, _hz_to_mel(sample_rate_hz / 2), num_mel_bins + 2))
    widths = np.diff(edges)
    slopes = edges[:, None] - frequencies[None, :]
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    area = 2.0 / (edges[2:] - edges[:-2])
    return torch.from_numpy((triangles * area[:, None]).astype(np.float32))


# The slaney scale: linear below 1000 Hz (15 mels), logarithmic above, 27 steps a factor of 6.4.
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    return 3.0 * hz / 200.0 if hz < 1000 else 15.0 + float(np.log(hz / 1000.0)) / _LOG_STEP


def _mel_to_hz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp(_LOG_STEP * (mels - 15.0)))
