"""Frames of a video, exact by display time: decord where it is exact, PyAV for everything else.

Dimension key: N frames asked for, H = W = the frame size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.probe import MediaInfo, VideoTrack, one_line, open_container

DECORD_KINDS = {"mp4", "matroska"}
DECORD_CODECS = {"h264", "hevc", "vp8", "vp9"}
"""Where decord 0.6 was measured exact. It is silently wrong on mpegts, MPEG-4 ASP in avi, edit lists, the last frames
of flv, and open groups of pictures: asked for frame 3 of an HEVC file with leading pictures, it gives frame 4."""

SEEKABLE_KINDS = {"mp4", "matroska", "flv"}
"""Kinds whose keyframes PyAV finds by time; the others are decoded from the start."""

_IDENTITY = (1, 0, 0, 1)


def read_frames(
    file: BinaryIO, info: MediaInfo, rows: npt.NDArray[np.int64], cfg: MediaConfig
) -> tuple[npt.NDArray[np.uint8], str]:
    """The frames `rows` (ascending indices into `info.video.pts`) as RGB uint8 [N, H, W, 3], and who decoded them.

    Raises:
        MediaError: corrupt; unsupported when `cfg.decoder` is decord and decord would not be exact.
    """
    assert info.video is not None
    wanted, back = np.unique(rows, return_inverse=True)
    # A look at the first frame tells a rotation, and that the codec decodes at all.
    matrix = _display_matrix(file, info, cfg)
    if cfg.decoder != "pyav":
        is_exact = _is_exact_in_decord(info, matrix)
        frames = _read_decord(file, info.video, wanted, cfg.frame_size) if is_exact else None
        if frames is not None:
            return frames[back], f"decord {_decord_version()}"
        if cfg.decoder == "decord":
            raise MediaError("unsupported", f"decord is not exact on {info.video.codec} in this {info.kind} file")
    frames = _read_pyav(file, info, info.video.pts[wanted], cfg)
    return _orient(frames, matrix)[back], f"pyav {av.__version__}"


def _is_exact_in_decord(info: MediaInfo, matrix: tuple[int, int, int, int]) -> bool:
    video = info.video
    return (
        video is not None
        and video.is_only
        and not video.is_open_gop
        and info.kind in DECORD_KINDS
        and video.codec in DECORD_CODECS
        and matrix == _IDENTITY
    )


def _decord_version() -> str:
    import decord

    return str(decord.__version__)


def _read_decord(
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
    except (RuntimeError, IndexError, ValueError):  # DECORDError is a RuntimeError or a ValueError
        return None


def _read_pyav(
    file: BinaryIO, info: MediaInfo, wanted: npt.NDArray[np.int64], cfg: MediaConfig
) -> npt.NDArray[np.uint8]:
    """Frames on display at the ascending times `wanted`, [N, H, W, 3], not yet oriented."""
    assert info.video is not None
    if info.kind in SEEKABLE_KINDS:
        with _open_video(file, info, cfg) as (container, stream):
            frames = _seek_frames(container, stream, info.video, wanted, cfg.frame_size)
        if frames is not None:
            return np.stack(frames)
    with _open_video(file, info, cfg) as (container, stream):
        cursor = _Cursor(_decoded(container, stream))
        return np.stack([_resized(_or_first(cursor, int(pts)), cfg.frame_size) for pts in wanted])


def _seek_frames(
    container: Any, stream: Any, track: VideoTrack, wanted: npt.NDArray[np.int64], size: int
) -> list[npt.NDArray[np.uint8]] | None:
    """One decode from the keyframe before each frame; None when a seek does not lead to the very frame asked for."""
    cursor: _Cursor | None = None
    frames = []
    for pts in map(int, wanted):
        earlier = track.key_pts[track.key_pts <= pts]
        key = int(earlier[-1]) if len(earlier) else int(track.pts[0])
        if cursor is None or cursor.position < key:
            container.seek(key, stream=stream, backward=True)
            cursor = _Cursor(_decoded(container, stream))
        frame = cursor.show_at(pts)
        if frame is None or frame.pts != pts:
            return None
        frames.append(_resized(frame, size))
    return frames


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
        raise MediaError("corrupt", "no frame of the video stream can be decoded")
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
            if frame.pts is not None:
                is_started = True
                yield frame


@contextmanager
def _open_video(file: BinaryIO, info: MediaInfo, cfg: MediaConfig) -> Iterator[tuple[Any, Any]]:
    """Container and video stream with the limits set."""
    assert info.video is not None
    with open_container(file, info.kind) as container:
        stream = container.streams[info.video.index]
        # The bitstream may hold larger pictures than the header that was checked.
        stream.codec_context.options = {"max_pixels": str(cfg.max_pixels)}
        stream.codec_context.thread_count = 1
        yield container, stream


def _resized(frame: Any, size: int) -> npt.NDArray[np.uint8]:
    picture = frame.reformat(width=size, height=size, format="rgb24", interpolation="BILINEAR")
    return np.asarray(picture.to_ndarray(), np.uint8)


def _display_matrix(file: BinaryIO, info: MediaInfo, cfg: MediaConfig) -> tuple[int, int, int, int]:
    """Signs of the 2 x 2 part (a, b, c, d) of the first frame's display matrix: x' = ax + cy, y' = bx + dy."""
    with _open_video(file, info, cfg) as (container, stream):
        frame = next(_decoded(container, stream), None)
        if frame is None:
            raise MediaError("corrupt", f"no frame of the {stream.codec_context.name} stream can be decoded")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return _IDENTITY
        values = np.frombuffer(bytes(matrix), np.int32)
    a, b, c, d = (int(values[i]) for i in (0, 1, 3, 4))
    if abs(b) > abs(a):
        return (0, int(np.sign(b)), int(np.sign(c)), 0)
    return (int(np.sign(a)) or 1, 0, 0, int(np.sign(d)) or 1)


def _orient(frames: npt.NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """Turn and mirror [N, H, W, 3] as the display matrix says; the eight cases of quarter turns and mirrors."""
    a, b, c, d = matrix
    if b:
        frames, a, d = frames.transpose(0, 2, 1, 3), c, b
    frames = frames[:, :, ::-1] if a < 0 else frames
    return frames[:, ::-1] if d < 0 else frames
