"""Small media with known content: every picture carries its number, every sound its time."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, BITS = 128, 96, 8
SAMPLE_RATE_HZ = 48000
_TICKS = 12800
_FRAME_SAMPLES = {"libopus": 960, "libmp3lame": 1152, "mp2": 1152, "ac3": 1536}


def barcode(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> npt.NDArray[np.uint8]:
    """Picture [H, W, 3] of 8 bars, the lowest bit left; the lower half is grey. `size` is (W, H)."""
    width, height = size
    picture = np.full((height, width, 3), 128, np.uint8)
    edges = np.arange(BITS + 1) * width // BITS
    for bit in range(BITS):
        picture[: height // 2, edges[bit] : edges[bit + 1]] = 255 if number >> bit & 1 else 0
    return picture


def read_barcode(frame: npt.NDArray[np.uint8]) -> int:
    """Number on a frame [3, H, W] of any size."""
    _, height, width = frame.shape
    bars = frame[:, height // 8 : height * 3 // 8].mean((0, 1)).reshape(BITS, width // BITS).mean(1)
    return sum(int(bar > 128) << bit for bit, bar in enumerate(bars))


def tone(seconds: float, hz: float = 440.0) -> npt.NDArray[np.float32]:
    """Half-scale sine at SAMPLE_RATE_HZ."""
    times = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (0.5 * np.sin(2 * np.pi * hz * times)).astype(np.float32)


CLICK_SECONDS = (0.25, 0.6, 0.83, 1.15, 1.42, 1.8, 2.31, 2.6, 3.05, 3.7)
_CLICK_LENGTH_SECONDS = 0.02


def clicks(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Click track at `times` in seconds, a function of time alone: a chirp of 20 ms at each of CLICK_SECONDS.

    The distances are all different, and a chirp correlates with itself at one lag only: also a coded sound is placed
    to a fraction of a sample.
    """
    wave = np.zeros(len(times))
    for start in CLICK_SECONDS:
        phase = (times - start) / _CLICK_LENGTH_SECONDS
        inside = (phase >= 0) & (phase < 1)
        sweep = np.sin(2 * np.pi * (500 * phase + 1250 * phase**2) * _CLICK_LENGTH_SECONDS)
        wave += np.where(inside, 0.5 * np.sin(np.pi * phase) ** 2 * sweep, 0)
    return wave.astype(np.float32)


def click_track(start_seconds: float, end_seconds: float) -> npt.NDArray[np.float32]:
    """The clicks between two times, at SAMPLE_RATE_HZ."""
    return clicks(
        np.arange(round(start_seconds * SAMPLE_RATE_HZ), round(end_seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    )


def write_media(
    path: Path,
    num_frames: int = 50,
    fps: float = 25.0,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    sound: npt.NDArray[np.float32] | None = None,
    audio_codec: str = "aac",
    audio_start_seconds: float = 0.0,
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
    format_name: str | None = None,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    pix_fmt: str = "yuv420p",
    is_mirrored: bool = False,
    sample_aspect_ratio: Fraction | None = None,
    layout: str = "mono",
    has_cover: bool = False,
    sound_again_seconds: float | None = None,
) -> Path:
    """Encode frames 0, 1, ... at `times` (or at `fps`), with `sound` if given; no video when `num_frames` is 0.

    `sound` is that of every channel of `layout`. A cover is one more stream, of a single picture that is no video.
    `sound_again_seconds` is when the sound comes a second time, after a hole.
    """
    options_of_container = container_options or {}
    with (
        _same_priority(),
        av.open(str(path), "w", format=format_name, container_options=options_of_container) as container,
    ):
        video = None
        if num_frames:
            video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
            (video.width, video.height), video.pix_fmt = size, pix_fmt
            if times is not None:
                video.codec_context.time_base = Fraction(1, _TICKS)
            if rotation or is_mirrored:
                video.set_display_rotation(rotation, hflip=is_mirrored)
            if sample_aspect_ratio is not None:
                video.codec_context.sample_aspect_ratio = sample_aspect_ratio
        audio = None
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=SAMPLE_RATE_HZ, layout=layout)
        cover = _add_cover(container) if has_cover else None
        container.start_encoding()
        if cover is not None:
            container.mux(_cover_packet(cover))
        for packet in _video_packets(video, num_frames, times):
            container.mux(packet)
        starts = [audio_start_seconds] + ([] if sound_again_seconds is None else [sound_again_seconds])
        for packet in _audio_packets(audio, sound, starts):
            container.mux(packet)
    return path


@contextmanager
def _same_priority() -> Iterator[None]:
    """libsvtav1, run by root, puts the thread that starts it at real-time priority and leaves it there."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def _add_cover(container: Any) -> Any:
    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt, stream.disposition = WIDTH, HEIGHT, "yuvj420p", 0x400
    return stream


def _cover_packet(stream: Any) -> Any:
    """A picture with all bars white, which is no number of a frame."""
    (packet, *_) = [*stream.encode(av.VideoFrame.from_ndarray(barcode(255), format="rgb24")), *stream.encode(None)]
    packet.pts = packet.dts = 0
    return packet


def _video_packets(stream: Any, num_frames: int, times: Sequence[float] | None) -> Iterable[Any]:
    if stream is None:
        return
    for number in range(num_frames):
        size = (stream.width, stream.height)
        frame = av.VideoFrame.from_ndarray(barcode(number, size), format="rgb24")
        if times is None:
            frame.pts = number
            frame.time_base = 1 / stream.codec_context.rate if stream.codec_context.rate else None
        else:
            frame.pts, frame.time_base = round(times[number] * _TICKS), Fraction(1, _TICKS)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _audio_packets(stream: Any, sound: npt.NDArray[np.float32] | None, starts: Iterable[float]) -> Iterable[Any]:
    """The sound at each of the starts, with holes between."""
    if stream is None or sound is None:
        return
    for start_seconds in starts:
        for frame in _audio_frames(stream, sound, start_seconds):
            yield from stream.encode(frame)
    yield from stream.encode(None)


def _audio_frames(stream: Any, sound: npt.NDArray[np.float32], start_seconds: float) -> Iterable[Any]:
    step = _FRAME_SAMPLES.get(stream.codec_context.name, 1024)
    layout = stream.codec_context.layout
    for position in range(0, len(sound), step):
        planes = np.tile(sound[position : position + step], (layout.nb_channels, 1))
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout.name)
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts = position + round(start_seconds * SAMPLE_RATE_HZ)
        frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
        yield frame


def write_edit_list(source: Path, target: Path, cut_seconds: float) -> Path:
    """The mp4 `source` without its first `cut_seconds`, uncoded: what lies before is kept, hidden by an edit list."""
    with (
        av.open(str(source)) as old,
        av.open(str(target), "w", container_options={"avoid_negative_ts": "disabled"}) as new,
    ):
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is None:
                continue
            shift = round(cut_seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copy
            new.mux(packet)
    return target


def break_time_table(source: Path, target: Path) -> Path:
    """The mp4 `source` with a declared 2 billion entries in its stts box: decord 0.6 aborts on it."""
    data = bytearray(source.read_bytes())
    count = data.index(b"stts") + 8
    data[count : count + 4] = (0x7FFFFFF0).to_bytes(4, "big")
    target.write_bytes(data)
    return target
