"""Edits the boxes of an mp4 in place: what no muxer of ours writes."""

import struct
from pathlib import Path


def _children(data: bytes, start: int, end: int) -> list[tuple[bytes, int, int]]:
    """(name, start, end) of the content of each box in data[start:end]."""
    found = []
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        found.append((name, start + 8, start + size))
        start += size
    return found


def _track_box(data: bytes, handler: bytes, path: tuple[bytes, ...]) -> int:
    """Where the content of the box at `path` begins in the track of this handler: b"vide" or b"soun"."""

    def inside(start: int, end: int, name: bytes) -> list[tuple[int, int]]:
        return [(low, high) for found, low, high in _children(data, start, end) if found == name]

    ((start, end),) = inside(0, len(data), b"moov")
    for low, high in inside(start, end, b"trak"):
        (media,) = inside(low, high, b"mdia")
        (kind,) = inside(*media, b"hdlr")
        if data[kind[0] + 8 : kind[0] + 12] == handler:
            for name in path:
                ((low, high),) = inside(low, high, name)
            return low
    raise ValueError(f"no track {handler!r}")


def set_edit(path: Path, handler: bytes, media_start_ticks: int, length_ticks: int) -> Path:
    """Let the only edit of a track show `length_ticks` (of the film's clock, 1/1000 s) from `media_start_ticks` on."""
    data = bytearray(path.read_bytes())
    start = _track_box(data, handler, (b"edts", b"elst"))
    version, count = data[start], struct.unpack_from(">I", data, start + 4)[0]
    assert (version, count) == (0, 1), f"an edit list of version {version} with {count} edits; expected one edit"
    struct.pack_into(">Ii", data, start + 8, length_ticks, media_start_ticks)
    path.write_bytes(data)
    return path
