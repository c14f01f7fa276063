"""Malformed media: some hundred small files, each broken in its own way, the same for the same seed.

`cases(folder, seed, port)` yields (name, content). A name begins with its family; files of the families in NEVER_MEDIA
must be set aside, the others may also be decoded, as far as they can be.
"""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from avrec_ray.media.gate import FORMATS
from tests.media.render import barcode, break_time_table, tone, write_media

Case = tuple[str, bytes]

NEVER_MEDIA = {"playlist", "bomb", "streams", "magic"}
"""Families of which no file may give clips."""

_CONTAINER_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"dinf"}
_FLIP_SHARES = (1e-4, 1e-3, 1e-2, 1e-1)
_WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_CLUSTER = b"\x1f\x43\xb6\x75"


def cases(folder: Path, seed: int, port: int = 9) -> Iterator[Case]:
    """All cases. `folder` is empty, for files to start from; `port` is where playlists point on loopback."""
    rng = random.Random(seed)
    good = sources(folder)
    yield from _truncated(good, rng)
    yield from _flipped(good, rng)
    yield from _lying_mp4(good["film.mp4"], rng)
    yield from _lying_matroska(good)
    yield from _lying_others(good)
    yield from _bombs()
    yield from _playlists(folder / "film.mp4", port)
    yield from _odd_streams(folder)
    yield from _random_behind_magic(rng)


def sources(folder: Path) -> dict[str, bytes]:
    """Small good files of each kind, by name; written to `folder`, too."""
    sound, same = tone(0.6), {"fflags": "+bitexact"}
    x264 = {"g": "6", "preset": "ultrafast"}
    vp9 = {"cpu-used": "8", "deadline": "realtime"}
    parts, clusters = {"movflags": "frag_keyframe+empty_moov"}, {"cluster_time_limit": "200"}
    write_media(folder / "film.mp4", 15, options=x264, sound=sound, container_options=same)
    write_media(folder / "parts.mp4", 15, options=x264, container_options={**same, **parts})
    write_media(folder / "film.mkv", 15, options=x264, sound=sound, container_options={**same, **clusters})
    write_media(
        folder / "film.webm", 10, codec="libvpx-vp9", options=vp9, sound=sound, audio_codec="libopus",
        container_options=same,
    )  # fmt: skip
    write_media(folder / "film.avi", 15, codec="mpeg4", sound=sound, audio_codec="mp3", container_options=same)
    write_media(folder / "film.flv", 15, options=x264, container_options=same)
    write_media(folder / "film.ts", 15, options=x264, container_options=same)
    for name, codec in {"ogg": "libopus", "mp3": "mp3", "wav": "pcm_s16le", "flac": "flac", "aac": "aac"}.items():
        write_media(folder / f"sound.{name}", 0, sound=sound, audio_codec=codec, container_options=same)
    for kind in ("png", "gif", "jpeg", "webp"):
        Image.fromarray(barcode(77)).save(folder / f"picture.{kind}")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Offset and name of each box of an mp4, outer ones before those within."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        if size < 8:
            return
        yield start, name
        if name in _CONTAINER_BOXES:
            yield from boxes(data, start + 8, min(end, start + size))
        start += size


def _truncated(good: dict[str, bytes], rng: random.Random) -> Iterator[Case]:
    for name in ("film.mp4", "parts.mp4"):
        for offset, box in boxes(good[name]):
            yield f"cut-box-{box.decode()}-{offset}-{name}", good[name][: offset + 8]
    for name in ("film.mkv", "film.webm"):
        data, offset = good[name], good[name].find(_CLUSTER)
        while offset >= 0:
            yield f"cut-cluster-{offset}-{name}", data[: offset + 4]
            offset = data.find(_CLUSTER, offset + 1)
    for name, data in good.items():
        for share in (0.02, 0.5, 0.98):
            yield f"cut-{share}-{name}", data[: max(1, round(share * len(data)) - rng.randrange(3))]


def _flipped(good: dict[str, bytes], rng: random.Random) -> Iterator[Case]:
    for name, data in good.items():
        for share in _FLIP_SHARES:
            yield f"flip-{share}-{name}", _with_flips(data, max(1, round(share * len(data))), len(data), rng)
        yield f"flip-head-{name}", _with_flips(data, 4, min(len(data), 400), rng)


def _with_flips(data: bytes, count: int, within: int, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(within)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _put(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def _lying_mp4(data: bytes, rng: random.Random) -> Iterator[Case]:
    """Sizes, counts, lengths, clocks and pictures that the file does not hold."""
    for offset, box in boxes(data):
        for size in (0, 1, 7, 0xFFFFFFFF):
            if box in {b"moov", b"trak", b"stbl", b"stsd", b"mdat", b"stco", b"avcC", b"ftyp"}:
                yield f"size-{box.decode()}-{offset}-{size:x}.mp4", _put(data, offset, struct.pack(">I", size))
    fields = {b"mvhd": (20, 24), b"mdhd": (20, 24), b"tkhd": (28, 84, 88), b"stts": (12, 16, 20), b"stsz": (12, 16),
              b"stsc": (12, 20), b"stco": (12, 16), b"elst": (12, 16, 20), b"stss": (12,), b"ctts": (12,)}  # fmt: skip
    for offset, box in boxes(data):
        for place in fields.get(box, ()):
            word = _WORDS[rng.randrange(len(_WORDS))]
            yield (
                f"lie-{box.decode()}-{offset}-{place}-{word:x}.mp4",
                _put(data, offset + place, struct.pack(">I", word)),
            )
    entry = data.index(b"avc1", data.index(b"stsd"))
    for width, height in ((0, 0), (65535, 65535), (16384, 16384), (1, 65535)):
        yield f"lie-picture-{width}x{height}.mp4", _put(data, entry + 28, struct.pack(">HH", width, height))
    entry = data.index(b"mp4a", data.index(b"stsd", entry))
    for channels, rate in ((0, 0), (65535, 65535), (8, 1)):
        changed = _put(data, entry + 20, struct.pack(">H", channels))
        yield f"lie-sound-{channels}-{rate}.mp4", _put(changed, entry + 28, struct.pack(">HH", rate, 0))


def _lying_matroska(good: dict[str, bytes]) -> Iterator[Case]:
    for name in ("film.mkv", "film.webm"):
        data = good[name]
        for element, values in {
            b"\x44\x89\x88": [struct.pack(">d", value) for value in (float("nan"), float("inf"), 1e300, -1.0, 0.0)],
            b"\x2a\xd7\xb1\x83": [b"\0\0\0", b"\0\0\1", b"\xff\xff\xff"],
            b"\xb0\x81": [b"\0", b"\xff"],
            b"\xb5\x88": [struct.pack(">d", value) for value in (float("nan"), float("inf"), 1e12, -48000.0, 0.0)],
            b"\xd7\x81": [b"\0", b"\x7f"],
        }.items():
            offset = data.find(element)
            for number, value in enumerate(values if offset >= 0 else []):
                yield f"lie-{element.hex()}-{number}-{name}", _put(data, offset + len(element), value)
        for number, size in enumerate((b"\x08\x00\x00\x00", b"\x01\xff\xff\xff\xff\xff\xff\xfe", b"\xff")):
            yield f"size-cluster-{number}-{name}", _put(data, data.find(_CLUSTER) + 4, size)


def _lying_others(good: dict[str, bytes]) -> Iterator[Case]:
    wav = good["sound.wav"]
    for place, layout, values in ((22, "<H", (0, 255, 65535)), (24, "<I", (0, 1, 384_000, 2**32 - 1)),
                                  (32, "<H", (0, 65535)), (34, "<H", (0, 3, 65535)), (16, "<I", (0, 2**32 - 1)),
                                  (4, "<I", (0, 2**32 - 1))):  # fmt: skip
        for value in values:
            yield f"lie-{place}-{value}-sound.wav", _put(wav, place, struct.pack(layout, value))
    for number, sample in enumerate((np.nan, np.inf, 1e30)):
        samples = np.full(4800, sample, "<f4").tobytes()
        head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 3, 1, 48000, 192000,
                           4, 32, b"data", len(samples))  # fmt: skip
        yield f"lie-samples-{number}-sound.wav", head + samples
    avi = good["film.avi"]
    place = avi.index(b"avih") + 8
    for offset in (0, 16, 24, 32, 36):
        for value in (0, 2**32 - 1):
            yield f"lie-{offset}-{value:x}-film.avi", _put(avi, place + offset, struct.pack("<I", value))
    place = avi.index(b"strh") + 8
    for offset in (20, 24, 32):
        for value in (0, 2**32 - 1):
            yield f"lie-strh-{offset}-{value:x}-film.avi", _put(avi, place + offset, struct.pack("<I", value))


def _bombs() -> Iterator[Case]:
    """Small files that declare, and some of which do hold, pictures of hundreds of millions of pixels."""
    for side in (16000, 65000):
        yield f"bomb-png-{side}.png", _png(side, side, zlib.compress(bytes((side // 8 + 1) * 2000), 9))
    yield "bomb-png-whole.png", _png(16000, 16000, zlib.compress(bytes(2001 * 16000), 9))
    yield "bomb-png-2g.png", _png(2**31 - 1, 2**31 - 1, b"")
    gif = io.BytesIO()
    Image.new("P", (16, 16)).save(gif, "GIF")
    frame = bytearray(gif.getvalue())
    frame[6:10] = b"\xff\xff\xff\xff"
    place = frame.index(b",\0\0\0\0")
    frame[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    yield "bomb-gif.gif", bytes(frame)
    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16)).save(jpeg, "JPEG")
    place = jpeg.getvalue().index(b"\xff\xc0")
    yield "bomb-jpeg.jpg", _put(jpeg.getvalue(), place + 5, b"\xff\xdc\xff\xdc")
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\xff\xff" * 2
    yield "bomb-webp.webp", b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _playlists(film: Path, port: int) -> Iterator[Case]:
    """Texts that lead FFmpeg to other files and to the network, under media names and behind media's first bytes."""
    remote = f"http://127.0.0.1:{port}/film.mp4"
    texts = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n",
        "hls-remote": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{remote}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {film.name}\nfile {film}\nfile {remote}\n",
        "protocol": f"concat:{film}|{remote}",
        "sdp": f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video {port} RTP/AVP 96\r\n",
        "dash": f"<?xml version='1.0'?><MPD><Period><BaseURL>{remote}</BaseURL></Period></MPD>",
        "asx": f"[Reference]\nRef1={remote}\n",
        "imf": f"<?xml version='1.0'?><AssetMap><Path>{remote}</Path></AssetMap>",
    }
    for kind, text in texts.items():
        data = text.encode()
        yield f"playlist-{kind}.mp4", data
        yield f"playlist-{kind}-{'id3'}.mp3", b"ID3\x04\0\0\0\0\0\0" + data * 40
        yield f"playlist-{kind}-box.mp4", b"\0\0\0\x10ftypisom\0\0\0\0" + data
        packets = [bytes([0x47]) + data[place : place + 187].ljust(187, b"\n") for place in range(0, len(data), 187)]
        yield f"playlist-{kind}-packets.ts", b"".join(packets * 8)


def _odd_streams(folder: Path) -> Iterator[Case]:
    """Containers whose streams or times are out of the ordinary, though well formed."""
    for name in ("streams-64.mkv", "streams-64.mp4"):
        yield name, _many_streams(folder / name)
    film, plain = folder / "film.mp4", {"bf": "0", "preset": "ultrafast"}
    yield "lie-stts-bomb.mp4", break_time_table(film, folder / "bomb.mp4").read_bytes()
    for name, times in {
        "times-negative": [-3.0 + number / 25 for number in range(12)],
        "times-gap": [0.0, 0.04, 0.08, 40000.0],
        "times-same": [0.0, 0.0001, 0.0002, 0.0003],
        "times-far": [1e6 + number for number in range(4)],
        "times-one": [0.0],
    }.items():
        for kind in ("mkv", "mp4", "ts"):
            path = folder / f"{name}.{kind}"
            try:
                write_media(path, len(times), options=plain, times=times, container_options={"fflags": "+bitexact"})
            except av.error.FFmpegError:
                continue  # a muxer that refuses such times
            yield path.name, path.read_bytes()
    fast = folder / "rate-1000.mkv"
    write_media(fast, 1500, fps=1000, options=plain, container_options={"fflags": "+bitexact"})
    yield fast.name, fast.read_bytes()


def _many_streams(path: Path) -> bytes:
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        streams = [container.add_stream("aac", rate=48000, layout="mono") for _ in range(64)]
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(tone(0.05)[None, :1024], format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux([*stream.encode(frame), *stream.encode(None)])
    return path.read_bytes()


_MAGIC = {
    "mp4": b"\0\0\0\x20ftypisom", "mdat": b"\0\0\0\x08mdat", "matroska": b"\x1a\x45\xdf\xa3",
    "avi": b"RIFF\xff\xff\xff\xffAVI ",
    "wav": b"RIFF\xff\xff\xff\xffWAVEfmt ", "webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ", "flv": b"FLV\x01\x05\0\0\0\x09",
    "ogg": b"OggS", "mpegts": (b"G" + bytes(187)) * 4, "mpeg": b"\0\0\1\xba", "flac": b"fLaC", "amr": b"#!AMR\n",
    "aiff": b"FORM\0\0\1\0AIFF", "gif": b"GIF89a", "png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff\xe0",
}  # fmt: skip
"""First bytes by kind; of mp3, aac and ac3 random bytes hold valid frames now and then."""


def _random_behind_magic(rng: random.Random) -> Iterator[Case]:
    assert set(_MAGIC) - {"mdat"} <= set(FORMATS)
    for kind, magic in _MAGIC.items():
        for size in (0, 600, 30_000):
            yield f"magic-{kind}-{size}", magic + rng.randbytes(size)
