"""What runs in the decoding process: an open file in, frames and sound out. Imports neither torch nor Ray."""

import math
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from avrec_ray.errors import MediaError
from avrec_ray.media import audio, image, video
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.gate import kind_of
from avrec_ray.media.probe import MediaInfo, probe
from avrec_ray.media.spans import clip_spans, frame_times, shown_at


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


def extract(file: BinaryIO, cfg: MediaConfig) -> Extract:
    """Decode the clips of an open file that passed `gate.open_media`.

    Raises:
        MediaError: with the reason to set the file aside for.
    """
    try:
        kind = kind_of(file)
        if kind in image.IMAGE_FORMATS:
            return _extract_image(file, kind, cfg)
        return _extract_streams(file, probe(file, kind, cfg), cfg)
    except MemoryError as error:
        raise MediaError(
            "too_large", f"decoding needs more than media.max_memory_bytes={cfg.max_memory_bytes}"
        ) from error


def _extract_image(file: BinaryIO, kind: str, cfg: MediaConfig) -> Extract:
    picture, decoder = image.read_image(file, kind, cfg)
    return Extract([(0.0, 0.0)], _repeated(picture, cfg), None, [False], decoder)


def _repeated(picture: npt.NDArray[np.uint8], cfg: MediaConfig) -> npt.NDArray[np.uint8]:
    """[H, W, 3] as the frames of one clip, [1, T, 3, H, W]."""
    return np.broadcast_to(picture.transpose(2, 0, 1), (1, *cfg.frames_shape))


def _extract_streams(file: BinaryIO, info: MediaInfo, cfg: MediaConfig) -> Extract:
    spans = clip_spans(info.duration_seconds, cfg)
    decoders = []
    frames, waveforms, has_audio = None, None, [False] * len(spans)
    if info.video is not None:
        frames, decoder = _extract_frames(file, info, spans, cfg)
        decoders.append(decoder)
    if info.audio is not None:
        import av

        waveforms, has_audio = audio.read_waveforms(file, info, spans, cfg)
        decoders.append(f"pyav {av.__version__}")
    kept = waveforms if any(has_audio) else None
    if frames is None and kept is None:
        raise MediaError("corrupt", f"{info.duration_seconds:.2f} s of sound hold no sample")
    return Extract(spans, frames, kept, has_audio, ", ".join(dict.fromkeys(decoders)))


def _extract_frames(
    file: BinaryIO, info: MediaInfo, spans: list[tuple[float, float]], cfg: MediaConfig
) -> tuple[npt.NDArray[np.uint8], str]:
    assert info.video is not None
    times = np.concatenate([frame_times(span, cfg.num_frames) for span in spans])
    shown = (info.video.pts - info.video.pts[0]) * info.video.tick_seconds
    pictures, decoder = video.read_frames(file, info, shown_at(times, shown), cfg)
    clips = pictures.transpose(0, 3, 1, 2).reshape(len(spans), *cfg.frames_shape)
    return np.ascontiguousarray(clips), decoder


def payload_bytes(num_clips: int, has_frames: bool, has_waveforms: bool, cfg: MediaConfig) -> int:
    """Bytes of frames and waveforms that an Extract of this shape carries."""
    frames = math.prod(cfg.frames_shape) if has_frames else 0
    return num_clips * (frames + (4 * cfg.num_samples if has_waveforms else 0))
