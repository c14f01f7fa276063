"""Sound of a file as mono samples on the item's time line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.probe import MediaInfo, one_line, open_container

_GAP_SECONDS = 0.1
"""A jump of the time stamps above this is a hole in the sound; below it is the rounding of a container's clock."""

_BAD_SHARE = 0.1
"""Share of undecodable packets above which the sound is corrupt; the cut last packet of a recording is not."""


@dataclass(eq=False)
class Piece:
    """Mono samples float32 that start `start_seconds` after the item's time zero."""

    start_seconds: float
    samples: npt.NDArray[np.float32]


def read_waveforms(
    file: BinaryIO, info: MediaInfo, spans: list[tuple[float, float]], cfg: MediaConfig
) -> tuple[npt.NDArray[np.float32], list[bool]]:
    """The first `clip_seconds` of each span: float32 [clips, samples], and whether a clip holds any sound.

    Sound that starts after the picture keeps its delay, sound before the first frame is cut off, holes are silent.
    The track is decoded from its start: codecs carry state, so a seek would shift or colour the first samples.

    Raises:
        MediaError: corrupt when more than a tenth of the packets, or all of them, cannot be decoded.
    """
    rate = cfg.sample_rate_hz
    windows = [
        (round(start * rate), min(round(start * rate) + cfg.num_samples, round(end * rate))) for start, end in spans
    ]
    waveforms = np.zeros((len(spans), cfg.num_samples), np.float32)
    filled = [False] * len(spans)
    for piece in _pieces(file, info, windows[-1][1] / rate, rate):
        position = round(piece.start_seconds * rate)
        for row, (start, end) in enumerate(windows):
            low, high = max(position, start), min(position + len(piece.samples), end)
            if low < high:
                waveforms[row, low - start : high - start] = piece.samples[low - position : high - position]
                filled[row] = True
    return waveforms, filled


def _pieces(file: BinaryIO, info: MediaInfo, until_seconds: float, rate: int) -> Iterator[Piece]:
    """Unbroken pieces of resampled sound, up to `until_seconds` of the item."""
    run: _Run | None = None
    origin: float | None = info.origin_seconds if info.video is not None else None
    for frame in _decoded(file, info):
        time = float(frame.pts * frame.time_base) if frame.pts is not None else None
        if origin is None:
            origin = time or 0.0  # without video, the first decoded sound is time zero
        if run is None or not run.continues(frame, time):
            if run is not None:
                yield run.finish()
            run = _Run(frame, (time or origin) - origin, time or origin, rate)
        run.add(frame)
        if run.end_time - origin > until_seconds + 0.1:
            break
    if run is not None:
        yield run.finish()


class _Run:
    """Consecutive decoded frames of one format, resampled together."""

    def __init__(self, first: Any, start_seconds: float, time: float, rate: int) -> None:
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        self._format = (first.format.name, first.layout.name, first.sample_rate)
        self._start_seconds = start_seconds
        self._chunks: list[npt.NDArray[np.float32]] = []
        self.end_time = time
        """End of the last frame added, on the container's clock."""

    def continues(self, frame: Any, time: float | None) -> bool:
        """Whether `frame` follows on without a hole or a change of format."""
        is_same = self._format == (frame.format.name, frame.layout.name, frame.sample_rate)
        return is_same and (time is None or abs(time - self.end_time) <= _GAP_SECONDS)

    def add(self, frame: Any) -> None:
        """Append a frame."""
        self.end_time += frame.samples / frame.sample_rate
        frame.pts = None  # only the order counts within a run: jitter of the time stamps must not bend the sound
        self._chunks += [out.to_ndarray()[0] for out in self._resampler.resample(frame)]

    def finish(self) -> Piece:
        """Everything added, with what the resampler still holds."""
        self._chunks += [out.to_ndarray()[0] for out in self._resampler.resample(None)]
        return Piece(self._start_seconds, np.concatenate([np.zeros(0, np.float32), *self._chunks]))


def _decoded(file: BinaryIO, info: MediaInfo) -> Iterator[Any]:
    """Decoded frames; packets that fail are skipped while they are few."""
    assert info.audio is not None
    num_bad, num_frames, last_error = 0, 0, ""
    with open_container(file, info.kind) as container:
        stream = container.streams[info.audio.index]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                num_bad, last_error = num_bad + 1, one_line(error)
                continue
            num_frames += len(frames)
            yield from frames
    if num_bad > max(1, _BAD_SHARE * info.audio.num_packets) or not num_frames:
        packets = info.audio.num_packets
        raise MediaError(
            "corrupt", f"{num_bad} of {packets} audio packets cannot be decoded, {num_frames} frames: {last_error}"
        )
