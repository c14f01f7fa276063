"""Frames of a video, exact by display time: decord where it is exact, PyAV for everything else.

Dimension key: N frames asked for, H = W = the frame size.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.container import OpenMedia, one_line, seek
from avrec_ray.media.probe import MediaInfo, VideoTrack

DECORD_KINDS = {"mp4", "matroska"}
DECORD_CODECS = {"h264", "hevc", "vp8", "vp9"}
"""Where decord 0.6 was measured exact. It is silently wrong on mpegts, MPEG-4 ASP in avi, edit lists, the last frames
of flv, and open groups of pictures: asked for frame 3 of an HEVC file with leading pictures, it gives frame 4."""

SEEKABLE_KINDS = {"mp4", "matroska", "flv"}
"""Kinds whose keyframes PyAV finds by time; the others are decoded from the start."""

Matrix = tuple[int, int, int, int]
"""Signs of the 2 x 2 part (a, b, c, d) of a display matrix: x' = ax + cy, y' = bx + dy."""

_IDENTITY: Matrix = (1, 0, 0, 1)


def read_frames(
    media: OpenMedia, info: MediaInfo, rows: npt.NDArray[np.int64], cfg: MediaConfig
) -> tuple[npt.NDArray[np.uint8], str]:
    """The frames `rows` (ascending indices into `info.video.pts`) as RGB uint8 [N, H, W, 3], and who decoded them.

    Raises:
        MediaError: corrupt; unsupported when `cfg.decoder` is decord and decord would not be exact.
    """
    assert info.video is not None
    wanted, back = np.unique(rows, return_inverse=True)
    if cfg.decoder != "pyav":
        frames = _read_decord(media, info.video, wanted, cfg)
        if frames is not None:
            return frames[back], f"decord {_decord_version()}"
        if cfg.decoder == "decord":
            raise MediaError("unsupported", f"decord is not exact on {info.video.codec} in this {info.kind} file")
    pictures = _Pictures(cfg.frame_size)
    _read_pyav(media, info.video, info.video.pts[wanted], pictures)
    return pictures.upright()[back], f"pyav {av.__version__}"


def read_keyframes(
    media: OpenMedia, track: VideoTrack, key_pts: npt.NDArray[np.int64], cfg: MediaConfig
) -> tuple[npt.NDArray[np.uint8], str] | None:
    """The keyframes at the ascending times `key_pts` as RGB uint8 [N, H, W, 3], and who decoded them.

    Nothing but keyframes is decoded. None where a keyframe does not decode by itself: read those files exactly.
    """
    wanted, back = np.unique(key_pts, return_inverse=True)
    pictures = _Pictures(cfg.frame_size)
    container, stream = media.restart(track.index)
    packets = container.demux(stream)
    for pts in map(int, wanted):
        if media.kind in SEEKABLE_KINDS:
            if not seek(container, stream, pts):
                return None
            packets = container.demux(stream)
        packet = next((packet for packet in packets if packet.pts == pts and packet.is_keyframe), None)
        frame = packet and _decoded_alone(stream, packet)
        if not frame or frame.pts != pts:
            return None
        pictures.add(frame)
    return pictures.upright()[back], f"pyav {av.__version__} keyframes"


def _decoded_alone(stream: Any, packet: Any) -> Any:
    """The frame of a keyframe packet without those around it; None when the decoder needs more."""
    context = stream.codec_context
    try:
        frames = [*packet.decode(), *context.decode(None)]
    except av.error.FFmpegError:
        frames = []
    if context.is_open:
        context.flush_buffers()
    return frames[0] if frames else None


class _Pictures:
    """Decoded frames squeezed into squares, and the way that the video says they stand."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._reformatter = VideoReformatter()
        self._squares: list[npt.NDArray[np.uint8]] = []
        self._matrix = _IDENTITY

    def add(self, frame: Any) -> None:
        """Append a frame."""
        if not self._squares:
            self._matrix = display_matrix(frame)
        picture = self._reformatter.reformat(frame, self._size, self._size, "rgb24", interpolation="BILINEAR")
        self._squares.append(np.asarray(picture.to_ndarray(), np.uint8))

    def clear(self) -> None:
        """Drop the frames added so far."""
        self._squares.clear()

    def upright(self) -> npt.NDArray[np.uint8]:
        """[N, H, W, 3], turned and mirrored as the display matrix says."""
        return _orient(np.stack(self._squares), self._matrix)


def _read_decord(
    media: OpenMedia, track: VideoTrack, rows: npt.NDArray[np.int64], cfg: MediaConfig
) -> npt.NDArray[np.uint8] | None:
    """Frames [N, H, W, 3], or None where decord is not exact."""
    is_exact = track.is_only and not track.is_open_gop and track.codec in DECORD_CODECS and media.kind in DECORD_KINDS
    if not is_exact or not _stands_upright(media, track):
        return None
    return _decord_frames(media.file, track, rows, cfg.frame_size)


def _stands_upright(media: OpenMedia, track: VideoTrack) -> bool:
    """Whether the first keyframe decodes and is not turned: decord does not report a rotation."""
    container, stream = media.restart(track.index)
    key = next((packet for packet in container.demux(stream) if packet.is_keyframe and packet.size), None)
    frame = key and _decoded_alone(stream, key)
    return frame is not None and display_matrix(frame) == _IDENTITY


def _decord_version() -> str:
    import decord

    return str(decord.__version__)


def _decord_frames(
    file: BinaryIO, track: VideoTrack, rows: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.uint8] | None:
    """Frames [N, H, W, 3], or None where decord fails or counts other frames than the packets do.

    A count that differs means hidden frames (an edit list, alternate references): its indices would be shifted.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        # The descriptor's own path: decord given bytes prints them to stderr when it fails.
        path = f"/proc/self/fd/{file.fileno()}"
        reader = decord.VideoReader(path, ctx=decord.cpu(0), width=size, height=size, num_threads=1)
        if len(reader) != len(track.pts):
            return None
        return np.ascontiguousarray(reader.get_batch(rows).asnumpy())
    except (decord.DECORDError, RuntimeError, IndexError, ValueError):  # DECORDError is a plain Exception
        return None


def _read_pyav(media: OpenMedia, track: VideoTrack, wanted: npt.NDArray[np.int64], pictures: _Pictures) -> None:
    """Add the frames on display at the ascending times `wanted`."""
    if media.kind in SEEKABLE_KINDS and _add_by_seeking(media, track, wanted, pictures):
        return
    pictures.clear()
    frames = _decoded(*media.restart(track.index))
    cursor = _Cursor(_timed(frames) if track.has_display_times else _counted(frames, track))
    for pts in map(int, wanted):
        pictures.add(_or_first(cursor, pts))


def _add_by_seeking(media: OpenMedia, track: VideoTrack, wanted: npt.NDArray[np.int64], pictures: _Pictures) -> bool:
    """One decode from the keyframe before each frame; False when a seek does not lead to the very frame asked for."""
    container, stream = media.restart(track.index)
    cursor: _Cursor | None = None
    for pts in map(int, wanted):
        earlier = track.key_pts[track.key_pts <= pts]
        key = int(earlier[-1]) if len(earlier) else int(track.pts[0])
        if cursor is None or cursor.position < key:
            if not seek(container, stream, key):
                return False
            cursor = _Cursor(_timed(_decoded(container, stream)))
        frame = cursor.show_at(pts)
        if frame is None or frame.pts != pts:
            return False
        pictures.add(frame)
    return True


class _Cursor:
    """Walks decoded frames forward and holds the one on display."""

    def __init__(self, frames: Iterator[Any]) -> None:
        self._frames = frames
        self._shown: Any = None
        self.ahead: Any = None

    @property
    def position(self) -> int:
        """Time reached so far."""
        frame = self.ahead or self._shown
        return int(frame.pts) if frame is not None else -(2**62)

    def show_at(self, pts: int) -> Any:
        """The last frame at or before `pts`; None when decoding starts after it."""
        while self._shown is None or self._shown.pts < pts:
            self.ahead = self.ahead or next(self._frames, None)
            if self.ahead is None or self.ahead.pts > pts:
                break
            self._shown, self.ahead = self.ahead, None
        return self._shown


def _or_first(cursor: _Cursor, pts: int) -> Any:
    """The frame at `pts`; a stream cut open in the middle of a group shows its first decodable frame instead."""
    frame = cursor.show_at(pts) or cursor.ahead
    if frame is None:
        raise MediaError("corrupt", "no frame of the video stream can be decoded, or none within media.max_pixels")
    return frame


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames in display order. Packets before the first decodable frame may fail (a cut stream), later ones not."""
    is_started = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if is_started:
                raise MediaError("corrupt", f"the video cannot be decoded: {one_line(error)}") from error
            continue
        for frame in frames:
            is_started = True
            yield frame


def _timed(frames: Iterator[Any]) -> Iterator[Any]:
    return (frame for frame in frames if frame.pts is not None)


def _counted(frames: Iterator[Any], track: VideoTrack) -> Iterator[Any]:
    """Frames that are decoded in the order of display, with the times of the track in place of their own."""
    for frame, pts in zip(frames, map(int, track.pts), strict=False):
        frame.pts = pts
        yield frame


def display_matrix(frame: Any) -> Matrix:
    """How a decoded frame is to be turned and mirrored, to the nearest quarter turn."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _IDENTITY
    values = np.frombuffer(bytes(matrix), np.int32)
    a, b, c, d = (int(values[i]) for i in (0, 1, 3, 4))
    if abs(b) > abs(a):
        return (0, int(np.sign(b)), int(np.sign(c)), 0)
    return (int(np.sign(a)) or 1, 0, 0, int(np.sign(d)) or 1)


def _orient(frames: npt.NDArray[np.uint8], matrix: Matrix) -> npt.NDArray[np.uint8]:
    """Turn and mirror [N, H, W, 3] as the display matrix says; the eight cases of quarter turns and mirrors."""
    a, b, c, d = matrix
    if b:
        frames, a, d = frames.transpose(0, 2, 1, 3), c, b
    frames = frames[:, :, ::-1] if a < 0 else frames
    return frames[:, ::-1] if d < 0 else frames
