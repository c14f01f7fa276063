"""Sound to log-mel as Whisper, AST and CLAP take it, each equal to its feature extractor in transformers.

Whisper is computed in float32: its floor hides what that costs. The other two look 100 dB below full scale, where
float32 transforms have noise of their own: they are computed in float64 and rounded at the end.

Dimension key: B batch, S samples, F mel bins, A columns, K samples of a window, Q frequencies.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from avrec_ray.media.config import MediaConfig
from avrec_ray.media.front_end_presets import AST_MEAN, AST_MEL_FLOOR, AST_STD, FRONT_ENDS
from avrec_ray.media.log_mel import log_mel
from avrec_ray.media.mel_filters import mel_filters

_KALDI_FFT_SAMPLES = 512
_PREEMPHASIS = 0.97


def features(samples_BS: Tensor, cfg: MediaConfig) -> Tensor:
    """Log-mel float32 [B, *cfg.log_mel_shape] of mono sound [B, cfg.num_samples] in [-1, 1], by `cfg.front_end`."""
    return _COMPUTE[cfg.front_end](samples_BS, cfg)


def ast_fbank(samples_BS: Tensor) -> Tensor:
    """AST's input, transposed to [B, 128, A]: Kaldi's filter bank of 16 kHz sound, normalised by AudioSet's constants.

    As ASTFeatureExtractor without torchaudio: windows of 25 ms every 10 ms, none across the edges, each freed of its
    mean and pre-emphasised, 128 Kaldi mels from 20 Hz to 8 kHz, natural logarithm. Columns are not padded to 1024.

    >>> ast_fbank(torch.zeros(1, 16000)).shape
    torch.Size([1, 128, 98])
    """
    preset = FRONT_ENDS["ast"]
    frames_BAK = samples_BS.double().unfold(1, preset.window_samples, preset.hop_samples)
    frames_BAK = frames_BAK - frames_BAK.mean(2, keepdim=True)
    # Kaldi takes the sample before the first to equal it. Within a window, so torch.stft cannot do it.
    before_BAK = torch.cat([frames_BAK[..., :1], frames_BAK[..., :-1]], 2)
    window = torch.hann_window(preset.window_samples, periodic=False, dtype=torch.float64, device=samples_BS.device)
    spectrum_BAQ = torch.fft.rfft((frames_BAK - _PREEMPHASIS * before_BAK) * window, _KALDI_FFT_SAMPLES)
    mels_BFA = _kaldi_filters().to(samples_BS.device) @ spectrum_BAQ.abs().square().transpose(1, 2)
    return ((mels_BFA.clamp(min=AST_MEL_FLOOR).log() - AST_MEAN) / (2 * AST_STD)).float()


def clap_log_mel(samples_BS: Tensor) -> Tensor:
    """CLAP's input, transposed to [B, 64, A]: decibels of 48 kHz sound in 64 slaney mels from 50 Hz to 14 kHz.

    As ClapFeatureExtractor of the checkpoints without fusion (truncation="rand_trunc", frequency_min=50).

    >>> clap_log_mel(torch.zeros(1, 48000)).shape
    torch.Size([1, 64, 101])
    """
    preset = FRONT_ENDS["clap"]
    size = preset.window_samples
    window = torch.hann_window(size, dtype=torch.float64, device=samples_BS.device)
    spectrum = torch.stft(samples_BS.double(), size, preset.hop_samples, window=window, return_complex=True)
    mels_BFA = _clap_filters().to(samples_BS.device) @ spectrum.abs().square()
    return (10.0 * mels_BFA.clamp(min=1e-10).log10()).float()


@lru_cache(maxsize=1)
def _kaldi_filters() -> Tensor:
    num_frequencies = _KALDI_FFT_SAMPLES // 2 + 1
    return mel_filters(128, 16000, num_frequencies, 20.0, 8000.0, scale="kaldi", has_unit_area=False)


@lru_cache(maxsize=1)
def _clap_filters() -> Tensor:
    return mel_filters(64, 48000, FRONT_ENDS["clap"].window_samples // 2 + 1, 50.0, 14000.0)


_COMPUTE: dict[str, Callable[[Tensor, MediaConfig], Tensor]] = {
    "whisper": lambda samples, cfg: log_mel(samples, cfg.num_mel_bins, cfg.sample_rate_hz),
    "ast": lambda samples, _: ast_fbank(samples),
    "clap": lambda samples, _: clap_log_mel(samples),
}
