"""How media become clips: shapes, limits, decoder."""

from dataclasses import dataclass, field

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError

HOP_SAMPLES = 160
"""Samples between two columns of a log-mel, as in Whisper: 100 columns a second at 16 kHz."""

DECODERS = ("auto", "decord", "pyav")
"""Choices of `media.decoder`."""


@dataclass(kw_only=True)
class MediaConfig:
    """Shapes of a clip, limits on a file, and who decodes it."""

    num_frames: int = 8
    """Frames a clip, taken at the middles of equal parts of its span."""
    frame_size: int = 64
    """Height and width of a frame; the whole picture is squeezed into the square, bilinear."""
    clip_seconds: float = 4.0
    """Seconds of sound a clip, and the length of media above which an item gets a further clip."""
    max_clips: int = 2
    """Most clips an item; longer media are cut into this many equal spans."""
    sample_rate_hz: int = 16000
    """Rate of the mono sound that the log-mel is taken from."""
    num_mel_bins: int = 80
    """Rows of a log-mel."""
    decoder: str = "auto"
    """auto: decord where it is exact, else PyAV. pyav: always PyAV. decord: sets aside what decord is not exact on."""
    media_roots: list[str] = field(default_factory=list)
    """Folders that media must lie under, links resolved. Empty: any absolute local path."""
    max_bytes: int = 4 * 2**30
    """Largest file."""
    max_duration_seconds: float = 4 * 3600.0
    """Longest media."""
    max_pixels: int = 4096 * 2304
    """Largest picture, width x height, checked before it is decoded."""
    timeout_seconds: float = 20.0
    """Wall clock a file."""
    max_memory_bytes: int = 2 * 2**30
    """Address space of the process that decodes."""

    def __post_init__(self) -> None:
        check_range("media.num_frames", self.num_frames, 1, 256)
        check_range("media.frame_size", self.frame_size, 8, 1024)
        check_range("media.clip_seconds", self.clip_seconds, 0.1, 600)
        check_range("media.max_clips", self.max_clips, 1, 256)
        check_range("media.sample_rate_hz", self.sample_rate_hz, 8000, 96000)
        check_range("media.num_mel_bins", self.num_mel_bins, 8, 256)
        check_choice("media.decoder", self.decoder, DECODERS)
        check_range("media.max_bytes", self.max_bytes, 1)
        check_range("media.max_duration_seconds", self.max_duration_seconds, self.clip_seconds)
        check_range("media.max_pixels", self.max_pixels, 1)
        check_range("media.timeout_seconds", self.timeout_seconds, 0.1)
        check_range("media.max_memory_bytes", self.max_memory_bytes, 256 * 2**20)
        if self.num_samples % HOP_SAMPLES:
            raise ConfigError(
                f"media.clip_seconds={self.clip_seconds} at {self.sample_rate_hz} Hz is {self.num_samples} samples, "
                f"expected a multiple of {HOP_SAMPLES}"
            )
        for root in self.media_roots:
            if not root.startswith("/"):
                raise ConfigError(f"media.media_roots holds {root!r}; expected absolute folders")

    @property
    def num_samples(self) -> int:
        """Samples of sound a clip."""
        return round(self.clip_seconds * self.sample_rate_hz)

    @property
    def frames_shape(self) -> tuple[int, int, int, int]:
        """Shape of `Clip.frames`: [T, 3, H, W]."""
        return (self.num_frames, 3, self.frame_size, self.frame_size)

    @property
    def log_mel_shape(self) -> tuple[int, int]:
        """Shape of `Clip.log_mel`: [F, M']."""
        return (self.num_mel_bins, self.num_samples // HOP_SAMPLES)

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip's arrays."""
        frames = self.num_frames * 3 * self.frame_size**2
        return frames + 4 * self.num_mel_bins * (self.num_samples // HOP_SAMPLES)
