"""What is inside a media file: its streams, and the time of every frame, read from packets without decoding.

Headers lie; packets do not. One pass over the packets gives the display time of each frame (hidden frames of edit
lists and of VP8 left out), the keyframes, and the true end, from which a cut file is told.
"""

from dataclasses import dataclass, field
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from avrec_ray.errors import MediaError
from avrec_ray.media import limits
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import OpenMedia, one_line

_ATTACHED_PICTURE = 0x400
_STORED_ORDER_KIND, _STORED_ORDER_CODECS = "avi", {"h264", "hevc"}
"""An avi has no display times. FFmpeg works them out for all codecs but these."""

_DECLARES_END = {"mp4", "matroska", "avi", "flv", "wav"}
"""Kinds whose header states a length that holds; the others' lengths are guesses from the bit rate."""


@dataclass(eq=False)
class VideoTrack:
    """The video stream of a file."""

    index: int
    """Number of the stream in the container."""
    codec: str
    """FFmpeg's name: h264, vp9, ..."""
    width: int
    height: int
    tick_seconds: float
    """Length of one unit of `pts`."""
    is_only: bool
    """No other video stream in the file, cover art apart."""
    pts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Display times of the frames shown, ascending."""
    key_pts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Display times of the frames that decoding can start from, ascending; hidden ones among them."""
    end_seconds: float = 0.0
    """End of the last frame on the container's clock."""
    is_open_gop: bool = False
    """Some frame is shown before the keyframe that it is stored behind."""
    has_display_times: bool = True
    """False when the container only tells the order that frames are stored in: `pts` then counts decoded frames."""

    @property
    def start_seconds(self) -> float:
        """First frame shown, on the container's clock."""
        return float(self.pts[0] * self.tick_seconds)

    @property
    def shown_seconds(self) -> npt.NDArray[np.float64]:
        """Display times on the item's time line: the first frame at zero."""
        return np.asarray((self.pts - self.pts[0]) * self.tick_seconds)

    @property
    def shown_key_pts(self) -> npt.NDArray[np.int64]:
        """Display times of the keyframes that are shown, ascending."""
        return np.intersect1d(self.key_pts, self.pts)


@dataclass(eq=False)
class AudioTrack:
    """The audio stream of a file."""

    index: int
    codec: str
    tick_seconds: float
    """Length of one unit of the container's clock."""
    sample_rate_hz: int = 0
    """As declared."""
    start_seconds: float = 0.0
    """First packet, on the container's clock."""
    end_seconds: float = 0.0
    num_packets: int = 0


@dataclass(eq=False)
class MediaInfo:
    """Streams that will be decoded, and the time line of the item."""

    kind: str
    """Key of gate.FORMATS."""
    video: VideoTrack | None
    audio: AudioTrack | None
    num_streams: int = 0
    """Streams in the container, of any type."""

    @property
    def origin_seconds(self) -> float:
        """Time zero of the item on the container's clock: the first frame, or the first sound without video."""
        track = self.video or self.audio
        return track.start_seconds if track else 0.0

    @property
    def duration_seconds(self) -> float:
        """From the first frame to the end of video or audio, whichever is later; 0 for a still picture."""
        ends = [track.end_seconds for track in (self.video, self.audio) if track]
        if self.video is not None and self.audio is None and len(self.video.pts) == 1:
            return 0.0
        return max(0.0, max(ends) - self.origin_seconds)


def probe(file: BinaryIO, kind: str, cfg: MediaConfig) -> MediaInfo:
    """Choose the streams, check the limits, scan the packets. `file` is open and passed the gate.

    Raises:
        MediaError: corrupt, truncated, no_streams, unsupported or too_large.
    """
    with OpenMedia(file, kind, cfg) as media:
        return probe_open(media, cfg)


def probe_open(media: OpenMedia, cfg: MediaConfig) -> MediaInfo:
    """The same for a file that was just opened. Its packets are read to the end: restart it before decoding."""
    container = media.container
    limits.check_container(container, cfg)
    video, audio = _video_track(container, media.kind, cfg), _audio_track(container)
    info = MediaInfo(media.kind, video, audio, len(container.streams))
    if info.video is None and info.audio is None:
        raise _nothing_to_decode(container)
    declared = (container.duration or 0) / av.time_base
    if declared > cfg.max_duration_seconds:
        raise MediaError("too_large", f"{declared:.0f} s, media.max_duration_seconds={cfg.max_duration_seconds:g}")
    _scan(container, info)
    _check_times(info, declared, cfg)
    if info.duration_seconds > cfg.max_duration_seconds:
        raise MediaError("too_large", f"{info.duration_seconds:.0f} s of packets, over media.max_duration_seconds")
    if media.kind in _DECLARES_END:
        _check_whole(info, declared)
    return info


def _usable(streams: Any) -> list[Any]:
    """Streams with a decoder; cover art is not video."""
    return [s for s in streams if s.codec_context is not None and not int(s.disposition) & _ATTACHED_PICTURE]


def _video_track(container: Any, kind: str, cfg: MediaConfig) -> VideoTrack | None:
    streams = _usable(container.streams.video)
    if not streams:
        return None
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > cfg.max_pixels:
        raise MediaError("too_large", f"{width} x {height} pixels, media.max_pixels={cfg.max_pixels}")
    codec = stream.codec_context.codec.canonical_name
    return VideoTrack(
        index=stream.index,
        codec=codec,
        width=width,
        height=height,
        tick_seconds=float(stream.time_base),
        is_only=len(streams) == 1,
        has_display_times=kind != _STORED_ORDER_KIND or codec not in _STORED_ORDER_CODECS,
    )


def _audio_track(container: Any) -> AudioTrack | None:
    streams = _usable(container.streams.audio)
    if not streams:
        return None
    best = container.streams.best("audio")
    stream = best if best in streams else streams[0]
    return AudioTrack(
        index=stream.index,
        codec=stream.codec_context.codec.canonical_name,
        tick_seconds=float(stream.time_base),
        sample_rate_hz=int(stream.codec_context.sample_rate or 0),
    )


def _nothing_to_decode(container: Any) -> MediaError:
    undecodable = [s for s in container.streams if s.type in ("video", "audio") and s.codec_context is None]
    if undecodable:
        return MediaError("unsupported", f"no decoder for the {undecodable[0].type} stream")
    return MediaError("no_streams", f"{len(container.streams)} streams, none of video or audio")


def _scan(container: Any, info: MediaInfo) -> None:
    """Fill in the times of both tracks from one pass over the packets."""
    shown: list[int] = []
    keys: list[int] = []
    video, audio = info.video, info.audio
    streams = [container.streams[track.index] for track in (video, audio) if track]
    try:
        for packet in container.demux(*streams):
            pts = packet.pts if packet.pts is not None else packet.dts
            if packet.size == 0 or pts is None:
                continue
            if packet.is_corrupt and info.kind != "mpegts":
                raise MediaError("truncated", f"a packet at {float(pts * packet.time_base):.2f} s is cut short")
            if audio is not None and packet.stream_index == audio.index:
                _note_audio(audio, packet)
            elif video is not None:
                _note_video(video, packet, shown, keys)
    except av.error.FFmpegError as error:
        raise MediaError("corrupt", f"the container cannot be read to its end: {one_line(error)}") from error
    _close_scan(info, shown, keys)


def _note_video(track: VideoTrack, packet: Any, shown: list[int], keys: list[int]) -> None:
    pts = packet.pts if track.has_display_times else packet.dts
    if pts is None:
        return
    if packet.is_keyframe:
        keys.append(pts)
    elif keys and pts < keys[-1]:
        track.is_open_gop = True
    if not packet.is_discard and not _is_hidden(packet, track.codec):
        shown.append(pts)
        end = (pts + (packet.duration or 0)) * track.tick_seconds
        track.end_seconds = max(track.end_seconds, end) if len(shown) > 1 else end


def _note_audio(track: AudioTrack, packet: Any) -> None:
    pts = packet.pts
    if pts is None or packet.is_discard:  # what an encoder put before the sound
        return
    start = pts * track.tick_seconds
    end = (pts + (packet.duration or 0)) * track.tick_seconds
    track.start_seconds = min(track.start_seconds, start) if track.num_packets else start
    track.end_seconds = max(track.end_seconds, end) if track.num_packets else end
    track.num_packets += 1


def _is_hidden(packet: Any, codec: str) -> bool:
    """A VP8 alternate reference frame: decoded, never shown. Bit 4 of its first byte says so."""
    return codec == "vp8" and not memoryview(packet)[0] >> 4 & 1


def _close_scan(info: MediaInfo, shown: list[int], keys: list[int]) -> None:
    if info.video is not None:
        info.video.pts = np.unique(np.array(shown, np.int64))
        info.video.key_pts = np.unique(np.array(keys, np.int64))
        if not shown:
            info.video = None
    if info.audio is not None and not info.audio.num_packets:
        info.audio = None
    if info.video is None and info.audio is None:
        raise MediaError("truncated", "the container holds no packet of its streams")


def _check_times(info: MediaInfo, declared_seconds: float, cfg: MediaConfig) -> None:
    limits.check_clock(declared_seconds)
    for track in (info.video, info.audio):
        if track is not None:
            limits.check_clock(track.start_seconds, track.end_seconds)
    if info.video is not None:
        seconds = float(info.video.pts[-1] - info.video.pts[0]) * info.video.tick_seconds
        limits.check_rate(len(info.video.pts), seconds, cfg)


def _check_whole(info: MediaInfo, declared_seconds: float) -> None:
    """Headers of these kinds state the length: packets that end well before it mean that the rest is gone."""
    end = max(track.end_seconds for track in (info.video, info.audio) if track)
    if declared_seconds - end > max(0.25, 0.03 * declared_seconds):
        raise MediaError("truncated", f"declared {declared_seconds:.2f} s, packets end at {end:.2f} s")


if __name__ == "__main__":
    import sys

    from avrec_ray.media import probe_files

    sys.exit(probe_files.main(sys.argv[1:]))
