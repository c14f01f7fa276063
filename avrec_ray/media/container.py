"""A file of audio and video in PyAV: only the demuxers of its kind, no protocol beyond the file itself."""

import os
import re
import struct
from typing import Any, BinaryIO

import av

from avrec_ray.errors import MediaError
from avrec_ray.media import limits
from avrec_ray.media.config import MediaConfig

_SEEKS_TO_START = {"mp4"}
"""Kinds in which a seek leads exactly to the first packet of a stream; the others are opened anew, which costs more."""

_BEFORE_ALL_TICKS = -(2**40)
_DISCARD_NONE, _DISCARD_ALL = 0, 48


class OpenMedia:
    """An open file in PyAV whose streams can be read from their start again and again. Use it in a with statement.

    Raises:
        MediaError: truncated when an mp4 ends within a box or has no index, else corrupt.
    """

    def __init__(self, file: BinaryIO, kind: str, cfg: MediaConfig) -> None:
        self.file, self.kind = file, kind
        self._cfg = cfg
        self.container: Any = self._open()

    def __enter__(self) -> "OpenMedia":
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    def restart(self, index: int) -> tuple[Any, Any]:
        """The container and its stream `index`, before the first packet of that stream; the others are left unread."""
        if not (self.kind in _SEEKS_TO_START and self._seek_to_start(index)):
            self.container.close()
            self.container = self._open()
        for stream in self.container.streams:
            stream.discard = _DISCARD_NONE if stream.index == index else _DISCARD_ALL
        stream = self.container.streams[index]
        if not stream.codec_context.is_open:
            stream.codec_context.thread_count = 1
            if stream.type == "video":
                # The bitstream may hold larger pictures than the header that was checked.
                stream.codec_context.options = {"max_pixels": str(self._cfg.max_pixels)}
        return self.container, stream

    def _seek_to_start(self, index: int) -> bool:
        stream = self.container.streams[index]
        stream.discard = _DISCARD_NONE
        return seek(self.container, stream, _BEFORE_ALL_TICKS)

    def _open(self) -> Any:
        self.file.seek(0)
        try:
            # Titles in Latin-1 are common, and nothing here reads them.
            options = limits.open_options(self.kind, self._cfg)
            return av.open(self.file, options=options, metadata_errors="replace")
        except av.error.FFmpegError as error:
            reason = "truncated" if self.kind == "mp4" and _is_cut_mp4(self.file) else "corrupt"
            raise MediaError(reason, f"the {self.kind} container does not open: {one_line(error)}") from error


def seek(container: Any, stream: Any, ticks: int) -> bool:
    """Go to the last keyframe at or before a time of the stream; False where the container cannot."""
    try:
        container.seek(ticks, stream=stream, backward=True)
    except av.error.FFmpegError:
        return False
    return True


def one_line(error: BaseException) -> str:
    """First line of an error, at most 200 characters, for a detail; FFmpeg's code and our descriptor left out."""
    lines = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"^\[Errno \d+\] |: '\d+'(?=;|$)", "", lines[0])[:200]


def _is_cut_mp4(file: BinaryIO) -> bool:
    """Whether the file ends within one of its outer boxes, or before the index."""
    end = os.fstat(file.fileno()).st_size
    position, names = 0, set()
    while position + 8 <= end:
        size, name = struct.unpack(">I4s", os.pread(file.fileno(), 8, position))
        if size == 1:  # a 64-bit size follows
            size = int.from_bytes(os.pread(file.fileno(), 8, position + 8), "big")
        names.add(name)
        position += size if size >= 8 else end  # 0 means: to the end of the file
    return position != end or not names & {b"moov", b"moof"}
