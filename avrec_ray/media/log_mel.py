"""Log-mel of sound, equal to transformers' WhisperFeatureExtractor, on torch.stft.

Dimension key: B batch, S samples, F mel bins, A columns.
"""

from functools import lru_cache

import torch
from torch import Tensor

from avrec_ray.media.front_end_presets import FRONT_ENDS
from avrec_ray.media.mel_filters import mel_filters

WINDOW_SAMPLES = FRONT_ENDS["whisper"].window_samples
"""Length of the Hann window and of the Fourier transform."""
HOP_SAMPLES = FRONT_ENDS["whisper"].hop_samples


def log_mel(samples_BS: Tensor, num_mel_bins: int = 80, sample_rate_hz: int = 16000) -> Tensor:
    """Log-mel [B, F, A] of mono sound [B, S] in [-1, 1], float32; A = S // 160.

    As Whisper: power spectrum, slaney mels, log10, at most 8 below the loudest of the clip, then (x + 4) / 4.

    >>> log_mel(torch.zeros(1, 16000)).shape
    torch.Size([1, 80, 100])
    """
    window = torch.hann_window(WINDOW_SAMPLES, device=samples_BS.device)
    spectrum = torch.stft(samples_BS, WINDOW_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    power = spectrum[..., :-1].abs() ** 2
    filters = whisper_filters(num_mel_bins, sample_rate_hz).to(samples_BS.device)
    logarithm = (filters @ power).clamp(min=1e-10).log10()
    floor = logarithm.amax(dim=(1, 2), keepdim=True) - 8.0
    return (torch.maximum(logarithm, floor) + 4.0) / 4.0


@lru_cache(maxsize=8)
def whisper_filters(num_mel_bins: int, sample_rate_hz: int) -> Tensor:
    """Filters float32 [F, 201] on the slaney scale, each of unit area, from 0 Hz to half the rate."""
    return mel_filters(num_mel_bins, sample_rate_hz, 1 + WINDOW_SAMPLES // 2).float()
