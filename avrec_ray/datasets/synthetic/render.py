"""One item's media file, encoded by PyAV or Pillow. A pure function of its task; knows no Ray."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from avrec_ray.datasets.synthetic.render_audio import SAMPLE_RATE_HZ, synthesize
from avrec_ray.datasets.synthetic.render_video import draw_frames

FORMS = {
    "video": ("mp4",),
    "webm": ("webm",),
    "silent": ("mp4",),
    "audio": ("m4a", "ogg", "wav", "mp3"),
    "image": ("png", "jpg"),
    "broken": ("truncated", "not_media", "empty", "missing"),
}
"""Kind of item -> forms of its file, dealt out in turn. Of a broken item the form is its defect; the file is .mp4."""

_MUXERS = {"mp4": "mp4", "webm": "webm", "m4a": "ipod", "ogg": "ogg", "wav": "wav", "mp3": "mp3"}
_AUDIO_CODECS = {
    "mp4": "aac", "webm": "libopus", "m4a": "aac", "ogg": "libopus", "wav": "pcm_s16le", "mp3": "libmp3lame",
}  # fmt: skip
_VIDEO_CODECS = {
    "mp4": ("libx264", {"preset": "ultrafast", "crf": "24", "threads": "1"}),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0", "threads": "1"}),
}
_OPUS_RATE_HZ = 48_000
_KEYFRAME_SECONDS = 2
_CHUNK = 1024


@dataclass(frozen=True)
class RenderTask:
    """Everything that decides one media file. `path` is absolute; `duration_seconds` is a whole number of frames."""

    item_id: str
    path: str
    kind: str
    form: str
    factors: dict[str, str]
    seed: int
    duration_seconds: float
    frame_size: int
    frames_per_second: int


@dataclass(frozen=True)
class RenderedItem:
    """A file that is there now; `skipped` says that it was there before. A missing item has num_bytes None."""

    item_id: str
    path: str
    num_bytes: int | None
    skipped: bool


def render_item(task: RenderTask) -> RenderedItem:
    """Write the task's file, whole or not at all; leave a file that exists as it is.

    A folder therefore belongs to one catalogue: another seed or config needs another folder.
    """
    path = Path(task.path)
    if path.exists() or task.form == "missing":
        size = path.stat().st_size if path.exists() else None
        return RenderedItem(task.item_id, task.path, size, skipped=path.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write(task, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return RenderedItem(task.item_id, task.path, path.stat().st_size, skipped=False)


def _write(task: RenderTask, path: Path) -> None:
    if task.kind == "broken":
        _write_broken(task, path)
    elif task.kind == "image":
        _write_image(task, path)
    else:
        _write_streams(task, path, task.form, has_video=task.kind != "audio", has_audio=task.kind != "silent")


def _write_broken(task: RenderTask, path: Path) -> None:
    if task.form == "truncated":
        _write_streams(task, path, "mp4", has_video=True, has_audio=True)
        os.truncate(path, path.stat().st_size * 3 // 5)  # the index is at the end of an mp4, so it is lost
    elif task.form == "not_media":
        path.write_text("This is a text that someone renamed to a video.\n" * 40)
    else:
        path.touch()


def _write_image(task: RenderTask, path: Path) -> None:
    rng = np.random.default_rng(task.seed)
    frame = next(draw_frames(task.factors, 1, task.frames_per_second, task.frame_size, rng))
    Image.fromarray(frame).save(path, format={"png": "PNG", "jpg": "JPEG"}[task.form])


def _write_streams(task: RenderTask, path: Path, form: str, *, has_video: bool, has_audio: bool) -> None:
    """Encode pictures and sound in turn, so that they lie interleaved in the file."""
    video_rng, audio_rng = (np.random.default_rng([task.seed, part]) for part in (0, 1))
    num_frames = round(task.duration_seconds * task.frames_per_second)
    frames = draw_frames(task.factors, num_frames, task.frames_per_second, task.frame_size, video_rng)
    sound = synthesize(task.factors, task.duration_seconds, audio_rng) if has_audio else None
    with av.open(str(path), "w", format=_MUXERS[form], options={"fflags": "bitexact"}) as container:
        video = _add_video(container, form, task) if has_video else None
        audio = _add_audio(container, form) if has_audio else None
        if video is not None:
            for frame_idx, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = frame_idx, Fraction(1, task.frames_per_second)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None and sound is not None:
            _encode_sound(container, audio, sound)


def _add_video(container: Any, form: str, task: RenderTask) -> Any:
    codec, options = _VIDEO_CODECS[form]
    stream = container.add_stream(codec, rate=task.frames_per_second, options=options)
    stream.width = stream.height = task.frame_size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size = _KEYFRAME_SECONDS * task.frames_per_second
    return stream


def _add_audio(container: Any, form: str) -> Any:
    codec = _AUDIO_CODECS[form]
    rate = _OPUS_RATE_HZ if codec == "libopus" else SAMPLE_RATE_HZ
    return container.add_stream(codec, rate=rate, layout="mono")


def _encode_sound(container: Any, stream: Any, sound: npt.NDArray[np.float32]) -> None:
    resampler = av.AudioResampler(
        format=stream.codec_context.format, layout="mono", rate=stream.codec_context.sample_rate
    )
    for start in range(0, len(sound), _CHUNK):
        frame = av.AudioFrame.from_ndarray(sound[None, start : start + _CHUNK], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, start, Fraction(1, SAMPLE_RATE_HZ)
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
    for converted in resampler.resample(None):
        container.mux(stream.encode(converted))
    container.mux(stream.encode(None))
