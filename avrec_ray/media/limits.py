"""Limits on what a file holds and claims, checked before anything is decoded; by its packets, too, for headers lie."""

import math
from typing import Any

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.gate import FORMATS

_PROBE_BYTES = 5 * 2**20
_ANALYSE_MICROSECONDS = 5_000_000
_MAX_TICK_SECONDS = 3600.0
_MAX_CLOCK_SECONDS = 1e10
"""Beyond any clock: live recordings count from 1970, transport streams go round after 26 hours."""


def open_options(kind: str, cfg: MediaConfig) -> dict[str, str]:
    """Options of `av.open`: the demuxers of this kind, no protocol beyond the file, bounds on what opening reads.

    Opening decodes the first pictures to learn their format, so the limit on pixels belongs here and on the codec.
    """
    return {
        "format_whitelist": FORMATS[kind],
        "protocol_whitelist": "file",
        "probesize": str(_PROBE_BYTES),
        "analyzeduration": str(_ANALYSE_MICROSECONDS),
        "max_pixels": str(cfg.max_pixels),
        "max_streams": str(max(cfg.max_streams + 1, 16)),
    }


def check_container(container: Any, cfg: MediaConfig) -> None:
    """Number of streams, clocks and sample rates of an opened container. Raises MediaError(too_large, corrupt)."""
    if len(container.streams) > cfg.max_streams:
        raise MediaError("too_large", f"{len(container.streams)} streams or more, media.max_streams={cfg.max_streams}")
    for stream in container.streams:
        check_tick(float(stream.time_base or 0))
        rate = getattr(stream.codec_context, "sample_rate", 0) if stream.type == "audio" else 0
        if rate and rate > cfg.max_sample_rate_hz:
            raise MediaError("too_large", f"sound at {rate} Hz, media.max_sample_rate_hz={cfg.max_sample_rate_hz}")


def check_tick(seconds: float) -> None:
    """The unit of a stream's clock. Raises MediaError(corrupt)."""
    if not 0 < seconds <= _MAX_TICK_SECONDS:
        raise MediaError("corrupt", f"a stream counts time in units of {seconds:g} s")


def check_clock(*seconds: float) -> None:
    """Times on the container's clock. Raises MediaError(corrupt) for what is not finite or beyond any clock."""
    for time in seconds:
        if not math.isfinite(time) or abs(time) > _MAX_CLOCK_SECONDS:
            raise MediaError("corrupt", f"a time stamp at {time:g} s")


def check_rate(num_frames: int, seconds: float, cfg: MediaConfig) -> None:
    """Frames over the time from the first to the last one. Raises MediaError(too_large).

    A second or less may hold a few frames more, as time stamps are rounded.
    """
    most = cfg.max_fps * max(seconds, 1.0) + 1
    if num_frames > most:
        raise MediaError("too_large", f"{num_frames} frames in {seconds:.3f} s, media.max_fps={cfg.max_fps:g}")
