import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract, extract
from tests.media.render import barcode, read_barcode

CFG = MediaConfig()


def decoded(path: Path, cfg: MediaConfig = CFG) -> Extract:
    with path.open("rb", buffering=0) as file:
        return extract(file, cfg)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_extract_picture_is_a_one_frame_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(barcode(77)).save(path)
    found = decoded(path)
    assert found.spans == [(0.0, 0.0)]
    assert found.has_audio == [False]
    assert found.frames is not None
    assert found.frames.shape == (1, 8, 3, 64, 64)
    assert [read_barcode(frame) for frame in found.frames[0]] == [77] * 8


def test_extract_animated_gif_is_a_video(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    pictures = [Image.fromarray(barcode(n)) for n in range(8)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    found = decoded(path)
    assert found.frames is not None
    assert [read_barcode(frame) for frame in found.frames[0]] == list(range(8))
    assert found.spans[0] == pytest.approx((0.0, 0.8), abs=0.01)


def test_extract_picture_under_a_video_name_and_turned_by_exif(tmp_path: Path) -> None:
    path = tmp_path / "picture.mp4"
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(barcode(77)[::-1, ::-1].copy()).save(path, format="JPEG", exif=exif)
    found = decoded(path)
    assert found.frames is not None
    assert read_barcode(found.frames[0, 0]) == 77


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_extract_picture_of_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.png"
    Image.new(mode, (40, 30)).save(path)
    found = decoded(path)
    assert found.frames is not None
    assert found.frames.shape[2:] == (3, 64, 64)


def test_extract_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(60000 * 100))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    began = time.monotonic()
    with pytest.raises(MediaError, match="60000 x 60000 pixels") as caught:
        decoded(path)
    assert caught.value.reason == "too_large"
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(("suffix", "reasons"), [("png", {"truncated"}), ("jpg", {"truncated"}), ("webp", {"corrupt"})])
def test_extract_cut_picture_has_a_reason(tmp_path: Path, suffix: str, reasons: set[str]) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MediaError) as caught:
        decoded(path)
    assert caught.value.reason in reasons
