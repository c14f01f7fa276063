"""Small media with known content: every picture carries its number, every sound its time."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, BITS = 128, 96, 8
SAMPLE_RATE_HZ = 48000
_TICKS = 12800


def barcode(number: int) -> npt.NDArray[np.uint8]:
    """Picture [H, W, 3] of 8 bars, the lowest bit left; the lower half is grey."""
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for bit in range(BITS):
        width = WIDTH // BITS
        picture[: HEIGHT // 2, bit * width : (bit + 1) * width] = 255 if number >> bit & 1 else 0
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
) -> Path:
    """Encode frames 0, 1, ... at `times` (or at `fps`), with `sound` if given; no video when `num_frames` is 0."""
    with av.open(str(path), "w", format=format_name, container_options=container_options or {}) as container:
        video = None
        if num_frames:
            video = container.add_stream(codec, rate=round(fps), options=options or {})
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            if times is not None:
                video.codec_context.time_base = Fraction(1, _TICKS)
            if rotation:
                video.set_display_rotation(rotation)
        audio = None
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=SAMPLE_RATE_HZ, layout="mono")
        for packet in _video_packets(video, num_frames, times):
            container.mux(packet)
        for packet in _audio_packets(audio, sound, audio_start_seconds):
            container.mux(packet)
    return path


def _video_packets(stream: Any, num_frames: int, times: Sequence[float] | None) -> Iterable[Any]:
    if stream is None:
        return
    for number in range(num_frames):
        frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
        if times is None:
            frame.pts = number
            frame.time_base = 1 / stream.codec_context.rate if stream.codec_context.rate else None
        else:
            frame.pts, frame.time_base = round(times[number] * _TICKS), Fraction(1, _TICKS)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _audio_packets(stream: Any, sound: npt.NDArray[np.float32] | None, start_seconds: float) -> Iterable[Any]:
    if stream is None or sound is None:
        return
    step = {"libopus": 960, "libmp3lame": 1152}.get(stream.codec_context.name, 1024)
    for position in range(0, len(sound), step):
        frame = av.AudioFrame.from_ndarray(sound[None, position : position + step], format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts = position + round(start_seconds * SAMPLE_RATE_HZ)
        frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
        yield from stream.encode(frame)
    yield from stream.encode(None)


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
