"""Sound of a file as mono samples on the item's time line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import OpenMedia, one_line
from avrec_ray.media.probe import AudioTrack, MediaInfo

_GAP_SECONDS = 0.1
"""A jump of the time stamps above this is a hole in the sound; below it is the rounding of a container's clock."""

_BAD_SHARE = 0.1
"""Share of undecodable packets above which the sound is corrupt; the cut last packet of a recording is not."""

_LEAD_SECONDS = 1.0
"""Sound decoded before a clip and thrown away: codecs carry state, mp3 over ten packets, others over one or two."""

_TAIL_SECONDS = 0.5
"""Sound decoded behind a clip: a decoder may be a packet behind, the resampler some samples."""

_SKIP_SECONDS = 2.0
"""Stretches between clips that are longer than this are not decoded."""

Interval = tuple[float, float]


@dataclass(eq=False)
class Piece:
    """Mono samples float32 that start `start_seconds` after the item's time zero."""

    start_seconds: float
    samples: npt.NDArray[np.float32]


def read_waveforms(
    media: OpenMedia, info: MediaInfo, spans: list[tuple[float, float]], cfg: MediaConfig
) -> tuple[npt.NDArray[np.float32], list[bool]]:
    """The first `clip_seconds` of each span: float32 [clips, samples], and whether a clip holds any sound.

    Sound that starts after the picture keeps its delay, sound before the first frame is cut off, holes are silent.

    Raises:
        MediaError: corrupt when more than a tenth of the packets, or all of them, cannot be decoded.
    """
    rate = cfg.sample_rate_hz
    windows = [
        (round(start * rate), min(round(start * rate) + cfg.num_samples, round(end * rate))) for start, end in spans
    ]
    waveforms = np.zeros((len(spans), cfg.num_samples), np.float32)
    filled = [False] * len(spans)
    for piece in _pieces(media, info, [(start / rate, end / rate) for start, end in windows], rate):
        position = round(piece.start_seconds * rate)
        for row, (start, end) in enumerate(windows):
            low, high = max(position, start), min(position + len(piece.samples), end)
            if low < high:
                waveforms[row, low - start : high - start] = piece.samples[low - position : high - position]
                filled[row] = True
    return waveforms, filled


def _pieces(media: OpenMedia, info: MediaInfo, windows: list[Interval], rate: int) -> Iterator[Piece]:
    """Unbroken pieces of resampled sound that hold the windows, which are in seconds of the item."""
    assert info.audio is not None
    origin, is_first = info.origin_seconds, True
    for run in _runs(_decoded(media, info.audio, _stretches(windows, info)), rate, info):
        start = run.start_seconds
        # Without video the first sound is time zero. With it, a clock cannot tell apart what lies within half a tick:
        # such sound begins with the film.
        if is_first and start is not None and (not info.video or abs(start - origin) < 0.6 * info.audio.tick_seconds):
            origin = start
        is_first = False
        yield Piece(0.0 if start is None else start - origin, run.finish())


def _stretches(windows: list[Interval], info: MediaInfo) -> list[Interval]:
    """Which stretches to decode, on the container's clock, ascending. The first tells where the sound begins."""
    assert info.audio is not None
    origin = info.origin_seconds
    if _is_unsteady(info):
        return [(-np.inf, origin + windows[-1][1] + _TAIL_SECONDS)]
    found = [(-np.inf, info.audio.start_seconds + _LEAD_SECONDS)]
    for start, end in windows:
        low, high = origin + start - _LEAD_SECONDS, origin + end + _TAIL_SECONDS
        if low - found[-1][1] < _SKIP_SECONDS:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def _is_unsteady(info: MediaInfo) -> bool:
    """Vorbis in WebM: its stamps are late by a block, long or short. All is placed by the first, as FFmpeg has it."""
    return info.kind == "matroska" and info.audio is not None and info.audio.codec == "vorbis"


def _runs(frames: Iterator[Any], rate: int, info: MediaInfo) -> Iterator["_Run"]:
    assert info.audio is not None
    run: _Run | None = None
    for frame in frames:
        time = None if frame.pts is None else frame.pts * info.audio.tick_seconds
        layout = (frame.format.name, frame.layout.name, frame.sample_rate)
        if run is None or not run.continues(layout, time):
            if run is not None:
                yield run
            run = _Run(layout, rate, _is_unsteady(info))
        run.add(frame, time)
    if run is not None:
        yield run


class _Run:
    """Consecutive decoded frames of one format, resampled together."""

    def __init__(self, layout: tuple[str, str, int], rate: int, is_unsteady: bool) -> None:
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        self._layout, self._is_unsteady = layout, is_unsteady
        self._chunks: list[npt.NDArray[np.float32]] = []
        self._num_samples = 0
        self._starts: list[float] = []

    @property
    def start_seconds(self) -> float | None:
        """Time of the first sample on the container's clock, None where no frame has a time.

        Every frame tells it: its time less the sound before it. The middle one counts: so the rounding of a clock in
        milliseconds averages out, and a first packet that a muxer moved does not move the rest.
        """
        if not self._starts:
            return None
        return self._starts[0] if self._is_unsteady else float(np.median(self._starts))

    def continues(self, layout: tuple[str, str, int], time: float | None) -> bool:
        """Whether a frame at `time` follows on without a hole or a change of format."""
        is_near = time is None or not self._starts or abs(self._start_told_by(time) - self._starts[0]) <= _GAP_SECONDS
        return is_near and layout == self._layout

    def add(self, frame: Any, time: float | None) -> None:
        """Append a frame."""
        if time is not None:
            self._starts.append(self._start_told_by(time))
        self._num_samples += frame.samples
        frame.pts = None  # only the order counts within a run: jitter of the time stamps must not bend the sound
        # Never to_ndarray on a decoded frame: PyAV reads past the end of some malformed ones.
        self._chunks += [out.to_ndarray()[0] for out in self._resampler.resample(frame)]

    def _start_told_by(self, time: float) -> float:
        return time - self._num_samples / self._layout[2]

    def finish(self) -> npt.NDArray[np.float32]:
        """Samples of everything added, with what the resampler still holds."""
        self._chunks += [out.to_ndarray()[0] for out in self._resampler.resample(None)]
        return np.concatenate([np.zeros(0, np.float32), *self._chunks])


def _decoded(media: OpenMedia, track: AudioTrack, stretches: list[Interval]) -> Iterator[Any]:
    """Decoded frames of the stretches; packets that fail are skipped while they are few."""
    num_packets, num_bad, num_frames, last_error = 0, 0, 0, ""
    for packet in _wanted_packets(media, track, stretches):
        num_packets += 1
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            num_bad, last_error = num_bad + 1, one_line(error)
            continue
        num_frames += len(frames)
        yield from frames
    if num_bad > max(1, _BAD_SHARE * num_packets) or not num_frames:
        raise MediaError(
            "corrupt", f"{num_bad} of {num_packets} audio packets cannot be decoded, {num_frames} frames: {last_error}"
        )


def _wanted_packets(media: OpenMedia, track: AudioTrack, stretches: list[Interval]) -> Iterator[Any]:
    """Packets of the stretches, the decoder made to forget what it held before each."""
    container, stream = media.restart(track.index)
    row, is_passing = 0, False
    for packet in container.demux(stream):
        time = None if packet.pts is None else packet.pts * track.tick_seconds
        while time is not None and row < len(stretches) and time > stretches[row][1]:
            row += 1
        if row == len(stretches):
            return
        is_wanted = time is None or time >= stretches[row][0]
        if is_wanted and is_passing and stream.codec_context.is_open:
            stream.codec_context.flush_buffers()
        is_passing = not is_wanted
        if is_wanted:
            yield packet
