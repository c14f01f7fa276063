"""How media become clips: shapes, limits, decoder."""

import math
from dataclasses import dataclass, field

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError
from avrec_ray.media.front_end_presets import FRONT_ENDS, FrontEnd

DECODERS = ("auto", "decord", "pyav")
"""Choices of `media.decoder`."""

REMOTE_SCHEMES = ("https", "s3", "gs")
"""Choices of `media.remote_schemes`; http is none of them."""

LAYERS = (
    "rlimits",
    "no_new_privs",
    "no_network",
    "no_files",
    "no_capabilities",
    "landlock",
    "not_dumpable",
    "parent_death",
    "seccomp",
)
"""Choices of `media.required_layers`, in the order that media/confine.py puts them on."""

MODES = ("exact", "fast")
"""Choices of `media.mode`."""

CLIP_SHAPE = ("num_frames", "frame_size", "clip_seconds", "max_clips", "front_end", "sample_rate_hz", "num_mel_bins")
"""Settings that say what a clip is, which towers are made for; the others are limits, and how to decode."""


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
    front_end: str = "whisper"
    """How sound becomes a log-mel: whisper, ast or clap, each equal to the feature extractor of those checkpoints."""
    sample_rate_hz: int = 16000
    """Rate of the mono sound that the log-mel is taken from; ast needs 16000, clap 48000."""
    num_mel_bins: int = 80
    """Rows of a log-mel; ast needs 128, clap 64. Whisper checkpoints take 80 or 128, encoders from scratch any."""
    decoder: str = "auto"
    """auto: decord where it is exact, else PyAV. pyav: always PyAV. decord: sets aside what decord is not exact on."""
    mode: str = "exact"
    """exact: the frames on display at the wanted times. fast: the keyframes nearest to them, always by PyAV, only where
    the spans hold at least as many keyframes as frames are wanted, else exact."""
    media_roots: list[str] = field(default_factory=list)
    """Folders that media must lie under, links resolved. Empty: any absolute local path."""
    max_bytes: int = 4 * 2**30
    """Largest file."""
    max_duration_seconds: float = 4 * 3600.0
    """Longest media."""
    max_pixels: int = 4096 * 2304
    """Largest picture, width x height, checked before it is decoded."""
    timeout_seconds: float = 18.0
    """Wall clock a file; ending the process that was at it comes on top."""
    max_memory_bytes: int = 2 * 2**30
    """Address space of the process that decodes."""
    cpu_seconds: float = 18.0
    """CPU time a file, over all threads."""
    max_streams: int = 8
    """Most streams of a file, of any type."""
    max_fps: float = 240.0
    """Highest rate of frames, by the packets' times."""
    max_sample_rate_hz: int = 192_000
    """Highest declared rate of sound."""
    follow_symlinks: bool = False
    """Whether media_uri may be or, below media_roots, pass a symbolic link; its end must lie under the roots anyway."""
    remote_schemes: list[str] = field(default_factory=list)
    """Schemes of remote media that are fetched: https, s3, gs. Empty: local files only."""
    fetch_timeout_seconds: float = 60.0
    """Wall clock to fetch a remote file, before its decoding."""
    files_per_child: int = 200
    """Files after which a decoding process is replaced, which bounds what it leaks; any error replaces it, too."""
    required_layers: list[str] = field(default_factory=list)
    """Layers of the sandbox without which nothing is decoded: a selection of LAYERS."""

    def __post_init__(self) -> None:
        check_range("media.num_frames", self.num_frames, 1, 256)
        check_range("media.frame_size", self.frame_size, 8, 1024)
        check_range("media.clip_seconds", self.clip_seconds, 0.1, 600)
        check_range("media.max_clips", self.max_clips, 1, 256)
        self._check_front_end()
        check_choice("media.decoder", self.decoder, DECODERS)
        check_choice("media.mode", self.mode, MODES)
        if self.mode == "fast" and self.decoder == "decord":
            raise ConfigError(
                "media.mode=fast takes keyframes by PyAV, got media.decoder=decord; expected auto or pyav"
            )
        check_range("media.max_bytes", self.max_bytes, 1)
        check_range("media.max_duration_seconds", self.max_duration_seconds, self.clip_seconds)
        check_range("media.max_pixels", self.max_pixels, 1)
        check_range("media.timeout_seconds", self.timeout_seconds, 0.1)
        check_range("media.max_memory_bytes", self.max_memory_bytes, 256 * 2**20)
        check_range("media.cpu_seconds", self.cpu_seconds, 0.1)
        check_range("media.max_streams", self.max_streams, 1, 1000)
        check_range("media.max_fps", self.max_fps, 1)
        check_range("media.max_sample_rate_hz", self.max_sample_rate_hz, 8000)
        check_range("media.fetch_timeout_seconds", self.fetch_timeout_seconds, 0.1)
        check_range("media.files_per_child", self.files_per_child, 1)
        for scheme in self.remote_schemes:
            check_choice("media.remote_schemes", scheme, REMOTE_SCHEMES)
        for layer in self.required_layers:
            check_choice("media.required_layers", layer, LAYERS)
        for root in self.media_roots:
            if not root.startswith("/"):
                raise ConfigError(f"media.media_roots holds {root!r}; expected absolute folders")

    def _check_front_end(self) -> None:
        check_choice("media.front_end", self.front_end, FRONT_ENDS)
        preset = self.audio
        check_range("media.sample_rate_hz", self.sample_rate_hz, 8000, 96000)
        check_range("media.num_mel_bins", self.num_mel_bins, 8, 256)
        for name in ("sample_rate_hz", "num_mel_bins"):
            if preset.is_fixed and getattr(self, name) != getattr(preset, name):
                raise ConfigError(
                    f"media.{name}={getattr(self, name)}, but front_end={self.front_end} is made for "
                    f"{getattr(preset, name)}; choose media={self.front_end}, which sets all three"
                )
        if self.num_samples % preset.hop_samples:
            raise ConfigError(
                f"media.clip_seconds={self.clip_seconds} at {self.sample_rate_hz} Hz is {self.num_samples} samples, "
                f"expected a multiple of {preset.hop_samples}"
            )
        if self.num_samples < preset.window_samples:
            raise ConfigError(
                f"media.clip_seconds={self.clip_seconds} at {self.sample_rate_hz} Hz is {self.num_samples} samples, "
                f"expected at least one window of {preset.window_samples}"
            )

    @property
    def audio(self) -> FrontEnd:
        """The preset named by `front_end`."""
        return FRONT_ENDS[self.front_end]

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
        return (self.num_mel_bins, self.audio.num_columns(self.num_samples))

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip's arrays."""
        return math.prod(self.frames_shape) + 4 * math.prod(self.log_mel_shape)
