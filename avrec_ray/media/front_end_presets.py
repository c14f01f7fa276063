"""What each audio front end fixes: rate, hop, bins, and the scale of its numbers. Without torch: the child reads it."""

import math
from dataclasses import dataclass

AST_MEAN, AST_STD = -4.2677393, 4.5689974
"""Of AudioSet's log-mels: what AST checkpoints normalise by."""
AST_MEL_FLOOR = 1.192092955078125e-07


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """One way from sound to log-mel, and what one decibel is on its scale."""

    sample_rate_hz: int
    """Rate its checkpoints were trained at."""
    num_mel_bins: int
    window_samples: int
    hop_samples: int
    """Samples between two columns."""
    extra_columns: int
    """Columns besides one a hop: Whisper drops the last, CLAP keeps it, AST pads nothing at the edges."""
    is_fixed: bool
    """Whether rate and bins cannot be others: its constants were fitted to them."""
    units_per_decibel: float
    """By how much a gain of one decibel moves a value."""
    silence: float
    """Value of digital silence, the lowest there is."""
    range_units: float
    """Furthest below the loudest value of a clip; infinite where only `silence` is a limit."""

    def num_columns(self, num_samples: int) -> int:
        """Columns of the log-mel of `num_samples` samples."""
        return num_samples // self.hop_samples + self.extra_columns


FRONT_ENDS = {
    # Numbers are (log10 of power + 4) / 4, at most 8 powers of ten below the loudest.
    "whisper": FrontEnd(
        sample_rate_hz=16000,
        num_mel_bins=80,
        window_samples=400,
        hop_samples=160,
        extra_columns=0,
        is_fixed=False,
        units_per_decibel=1 / 40,
        silence=-1.5,
        range_units=2.0,
    ),
    # Natural logarithm of power, normalised by the mean and twice the deviation.
    "ast": FrontEnd(
        sample_rate_hz=16000,
        num_mel_bins=128,
        window_samples=400,
        hop_samples=160,
        extra_columns=-2,
        is_fixed=True,
        units_per_decibel=math.log(10) / 10 / (2 * AST_STD),
        silence=(math.log(AST_MEL_FLOOR) - AST_MEAN) / (2 * AST_STD),
        range_units=math.inf,
    ),
    # Decibels of power.
    "clap": FrontEnd(
        sample_rate_hz=48000,
        num_mel_bins=64,
        window_samples=1024,
        hop_samples=480,
        extra_columns=1,
        is_fixed=True,
        units_per_decibel=1.0,
        silence=-100.0,
        range_units=math.inf,
    ),
}
"""Choices of `media.front_end`."""
