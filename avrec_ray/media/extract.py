"""What runs in the decoding process: an open file in, frames and sound out. Imports neither torch nor Ray."""

import math
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt

from avrec_ray.errors import MediaError
from avrec_ray.media import audio, image, video
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import OpenMedia, one_line
from avrec_ray.media.gate import kind_of
from avrec_ray.media.probe import MediaInfo, probe_open
from avrec_ray.media.spans import clip_spans, drawn_clip, frame_times, nearest_keyframes, shown_at


@dataclass(eq=False)
class Extract:
    """The decoded clips of one file."""

    spans: list[tuple[float, float]]
    """Half-open spans in seconds of the item."""
    frames: npt.NDArray[np.uint8] | None
    """[clips, T, 3, H, W]; None without video."""
    waveforms: npt.NDArray[np.float32] | None
    """[clips, samples]; None when no clip has sound."""
    has_audio: list[bool]
    """Whether each clip holds sound."""
    decoder: str
    """Name and version of each library that decoded something."""


def extract(file: BinaryIO, cfg: MediaConfig, draw: int | None = None) -> Extract:
    """Decode the clips of an open file that passed `gate.open_media`.

    Without a `draw` these are the equal spans that cover the item. A draw is the seed of one random clip for training:
    another stretch of the item and other frames of it for each number.

    Raises:
        MediaError: with the reason to set the file aside for.
    """
    try:
        kind = kind_of(file)
        if kind in image.IMAGE_FORMATS:
            return _extract_image(file, kind, cfg)
        with OpenMedia(file, kind, cfg) as media:
            return _extract_streams(media, probe_open(media, cfg), cfg, draw)
    except MemoryError as error:
        raise MediaError(
            "too_large", f"decoding needs more than media.max_memory_bytes={cfg.max_memory_bytes}"
        ) from error
    except (av.error.FFmpegError, OSError, LookupError) as error:
        # Headers that contradict each other: a seek before the file, a stream gone at the second opening, no rate.
        raise MediaError("corrupt", f"the file contradicts itself: {one_line(error)}") from error


def _extract_image(file: BinaryIO, kind: str, cfg: MediaConfig) -> Extract:
    picture, decoder = image.read_image(file, kind, cfg)
    return Extract([(0.0, 0.0)], _repeated(picture, cfg), None, [False], decoder)


def _repeated(picture: npt.NDArray[np.uint8], cfg: MediaConfig) -> npt.NDArray[np.uint8]:
    """[H, W, 3] as the frames of one clip, [1, T, 3, H, W]."""
    return np.broadcast_to(picture.transpose(2, 0, 1), (1, *cfg.frames_shape))


def _extract_streams(media: OpenMedia, info: MediaInfo, cfg: MediaConfig, draw: int | None) -> Extract:
    spans, times = _wanted(info.duration_seconds, cfg, draw)
    decoders = []
    frames, waveforms, has_audio = None, None, [False] * len(spans)
    if info.video is not None:
        frames, decoder = _extract_frames(media, info, spans, times, cfg)
        decoders.append(decoder)
    if info.audio is not None:
        waveforms, has_audio = audio.read_waveforms(media, info, spans, cfg)
        decoders.append(f"pyav {av.__version__}")
    kept = waveforms if any(has_audio) else None
    if frames is None and kept is None and draw is None:  # a drawn clip may lie in a hole of the sound
        raise MediaError("corrupt", f"{info.duration_seconds:.2f} s of sound hold no sample")
    return Extract(spans, frames, kept, has_audio, ", ".join(dict.fromkeys(decoders)))


def _wanted(
    duration_seconds: float, cfg: MediaConfig, draw: int | None
) -> tuple[list[tuple[float, float]], npt.NDArray[np.float64]]:
    """Spans of the clips, and the times of all their frames, ascending."""
    if draw is not None:
        span, times = drawn_clip(duration_seconds, cfg, np.random.default_rng(draw))
        return [span], times
    spans = clip_spans(duration_seconds, cfg)
    return spans, np.concatenate([frame_times(span, cfg.num_frames) for span in spans])


def _extract_frames(
    media: OpenMedia,
    info: MediaInfo,
    spans: list[tuple[float, float]],
    times: npt.NDArray[np.float64],
    cfg: MediaConfig,
) -> tuple[npt.NDArray[np.uint8], str]:
    assert info.video is not None
    found = None
    if cfg.mode == "fast":
        found = _extract_keyframes(media, info, (spans[0][0], spans[-1][1]), times, cfg)
    if found is None:
        found = video.read_frames(media, info, shown_at(times, info.video.shown_seconds), cfg)
    pictures, decoder = found
    clips = pictures.transpose(0, 3, 1, 2).reshape(len(spans), *cfg.frames_shape)
    return np.ascontiguousarray(clips), decoder


def _extract_keyframes(
    media: OpenMedia, info: MediaInfo, span: tuple[float, float], times: npt.NDArray[np.float64], cfg: MediaConfig
) -> tuple[npt.NDArray[np.uint8], str] | None:
    """The keyframes nearest to the times; None where there are too few, or where they do not stand alone."""
    assert info.video is not None
    if not info.video.has_display_times:
        return None
    keys = info.video.shown_key_pts
    rows = nearest_keyframes(times, span, (keys - info.video.pts[0]) * info.video.tick_seconds)
    return None if rows is None else video.read_keyframes(media, info.video, keys[rows], cfg)


def payload_bytes(num_clips: int, has_frames: bool, has_waveforms: bool, cfg: MediaConfig) -> int:
    """Bytes of frames and waveforms that an Extract of this shape carries."""
    frames = math.prod(cfg.frames_shape) if has_frames else 0
    return num_clips * (frames + (4 * cfg.num_samples if has_waveforms else 0))
