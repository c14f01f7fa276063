"""The gate: a manifest's path becomes an open file whose first bytes are those of known media, or a MediaError.

FFmpeg takes any path for a URL and any text file for a playlist, so no decoder ever sees a path from outside: the
file is opened here, and its descriptor is what travels on.
"""

import os
import re
import stat
from typing import BinaryIO

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig

HEAD_BYTES = 4096
"""First bytes that `media_kind` is given."""

FORMATS = {
    "mp4": "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska": "matroska,webm",
    "avi": "avi",
    "wav": "wav",
    "flv": "flv",
    "ogg": "ogg",
    "mpegts": "mpegts",
    "mpeg": "mpeg",
    "id3": "mp3,aac",
    "mp3": "mp3",
    "aac": "aac",
    "flac": "flac",
    "ac3": "ac3,eac3",
    "amr": "amr",
    "aiff": "aiff",
    "gif": "gif",
    "png": "",
    "jpeg": "",
    "webp": "",
}
"""Kind of media to the FFmpeg demuxers that may open it. None for pictures: Pillow reads those."""

_PREFIXES = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"ID3", "id3"),
    (b"fLaC", "flac"),
    (b"\x0b\x77", "ac3"),
    (b"#!AMR", "amr"),
    (b"GIF8", "gif"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
)
_RIFF = {b"AVI ": "avi", b"WAVE": "wav", b"WEBP": "webp"}
_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"free", b"skip", b"wide", b"pnot"}
_TS_PACKET_BYTES = (188, 192, 204)


def media_kind(head: bytes) -> str | None:
    """Key of FORMATS that the first bytes of a file belong to; None when they are not those of known media.

    >>> media_kind(b"OggS" + bytes(60)), media_kind(b"#EXTM3U")
    ('ogg', None)
    """
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head[:4] == b"FORM":
        return "aiff" if head[8:12] in (b"AIFF", b"AIFC") else None
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if _is_transport_stream(head):
        return "mpegts"
    return _mpeg_audio(head.lstrip(b"\0"))


def _is_transport_stream(head: bytes) -> bool:
    """Sync bytes at the pace of a packet, with or without the four-byte time stamp of M2TS."""
    for size in _TS_PACKET_BYTES:
        for offset in (0, 4):
            marks = head[offset : offset + 5 * size : size]
            if len(marks) >= 2 and set(marks) == {0x47}:
                return True
    return False


def _mpeg_audio(head: bytes) -> str | None:
    """The 11-bit sync word; layer 0 is ADTS. Encoders pad some mp3 files with zeros, which the caller strips."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return "aac"
    return "mp3" if head[1] & 0x06 else None


def open_media(uri: str, cfg: MediaConfig) -> BinaryIO:
    """Open a manifest's `media_uri`: a regular local file under the roots, of a size within the limit.

    The path is walked from its root by descriptors, so that nobody can slip in a link between check and use, and no
    FIFO or device is opened even for a moment.

    Raises:
        MediaError: forbidden, missing, not_media (empty) or too_large.
    """
    root, parts = _split(uri, cfg)
    found = _walk(root, parts, uri)
    try:
        _check_file(os.fstat(found), uri, cfg)
        # Opens the very file that was checked: the link leads to it, whatever its name leads to by now.
        descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise MediaError("missing", f"{uri!r} cannot be opened: {error.strerror}") from error
    finally:
        os.close(found)
    return os.fdopen(descriptor, "rb", buffering=0)


def _split(uri: str, cfg: MediaConfig) -> tuple[str, list[str]]:
    """The folder that is trusted, and the parts of the path below it that are not."""
    if match := re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", uri):
        raise MediaError("forbidden", f"{uri!r} has the scheme {match[0]!r}; expected an absolute local path")
    if not uri.startswith("/") or "\0" in uri or not _is_encodable(uri):
        raise MediaError("forbidden", f"{uri!r} is not an absolute local path")
    if cfg.follow_symlinks:
        try:
            path = os.path.realpath(uri, strict=True)
        except OSError as error:
            raise MediaError("missing", f"{uri!r}: {error.strerror}") from error
    else:
        path = uri
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise MediaError("forbidden", f"{uri!r} climbs with '..', media.media_roots={cfg.media_roots}")
    if not cfg.media_roots:
        return "/" + "/".join(parts[:-1]), parts[-1:]
    for root in cfg.media_roots:
        for spelling in (os.path.normpath(root), os.path.realpath(root)):
            above = [part for part in spelling.split("/") if part]
            if parts[: len(above)] == above and len(parts) > len(above):
                return os.path.realpath(root), parts[len(above) :]
    raise MediaError("forbidden", f"{uri!r} leads to {path!r}, outside media.media_roots={cfg.media_roots}")


def _is_encodable(uri: str) -> bool:
    try:
        os.fsencode(uri)
    except UnicodeError:
        return False
    return True


def _walk(root: str, parts: list[str], uri: str) -> int:
    """Descriptor that names, but has not opened, the file at the end of `parts` below `root`; no link is followed."""
    flags = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        folder = os.open(root, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise MediaError("missing", f"{uri!r}: {error.strerror}") from error
    for part in parts:
        try:
            entry = os.open(part, flags, dir_fd=folder)
        except OSError as error:
            raise MediaError("missing", f"{uri!r}: {error.strerror}") from error
        finally:
            os.close(folder)
        if stat.S_ISLNK(os.fstat(entry).st_mode):
            os.close(entry)
            raise MediaError("forbidden", f"{uri!r} passes the symbolic link {part!r}, media.follow_symlinks=false")
        folder = entry
    return folder


def _check_file(status: os.stat_result, uri: str, cfg: MediaConfig) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise MediaError("forbidden", f"{uri!r} is not a regular file")
    if status.st_size > cfg.max_bytes:
        raise MediaError("too_large", f"{status.st_size} bytes, media.max_bytes={cfg.max_bytes}")
    if status.st_size == 0:
        raise MediaError("not_media", "the file is empty")


def kind_of(file: BinaryIO) -> str:
    """Kind of an open file, left at its start. Raises MediaError(not_media)."""
    head = os.pread(file.fileno(), HEAD_BYTES, 0)
    kind = media_kind(head)
    if kind is None:
        raise MediaError("not_media", f"the first bytes are {head[:16]!r}")
    return kind
