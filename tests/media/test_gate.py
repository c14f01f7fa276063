import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.gate import FORMATS, kind_of, media_kind, open_media

CFG = MediaConfig()
MP4 = b"\x00\x00\x00\x20ftypisom" + bytes(64)


def refused(uri: str, cfg: MediaConfig = CFG) -> MediaError:
    with pytest.raises(MediaError) as caught:
        open_media(uri, cfg)
    return caught.value


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9/a.mp4",
        "https://example.org/a.mp4",
        "file:///etc/passwd",
        "concat:/etc/passwd|/etc/hosts",
        "pipe:0",
        "data:video/mp4;base64,AAAA",
        "s3://bucket/a.mp4",
        "relative/a.mp4",
        "../a.mp4",
        "/tmp/a\0b.mp4",
        " /tmp/a.mp4",
    ],
)
def test_open_media_url_or_relative_path_is_forbidden(uri: str) -> None:
    assert refused(uri).reason == "forbidden"


def test_open_media_absent_file_is_missing(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "none.mp4")).reason == "missing"


def test_open_media_file_as_folder_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(MP4)
    assert refused(str(tmp_path / "a" / "b.mp4")).reason == "missing"


def test_open_media_fifo_is_forbidden_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    error = refused(str(tmp_path / "fifo.mp4"))
    assert error.reason == "forbidden"
    assert "not a regular file" in error.detail


@pytest.mark.parametrize("path", ["/dev/zero", "/tmp"])
def test_open_media_device_or_folder_is_forbidden(path: str) -> None:
    assert refused(path).reason == "forbidden"


def test_open_media_link_out_of_the_roots_is_forbidden(tmp_path: Path) -> None:
    inside, outside = tmp_path / "media", tmp_path / "media-secret"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.mp4").write_bytes(MP4)
    (inside / "link.mp4").symlink_to(outside / "a.mp4")
    (inside / "fine.mp4").symlink_to(inside / "a.mp4")
    cfg = MediaConfig(media_roots=[str(inside)])
    for uri in (inside / "link.mp4", outside / "a.mp4", inside / ".." / "media-secret" / "a.mp4"):
        error = refused(str(uri), cfg)
        assert error.reason == "forbidden"
        assert "media_roots" in error.detail
    with open_media(str(inside / "fine.mp4"), cfg) as file:
        assert kind_of(file) == "mp4"


def test_open_media_size_limits_name_the_setting(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "large.mp4").write_bytes(MP4)
    assert refused(str(tmp_path / "empty.mp4")).reason == "not_media"
    error = refused(str(tmp_path / "large.mp4"), MediaConfig(max_bytes=8))
    assert error.reason == "too_large"
    assert "media.max_bytes=8" in error.detail


@pytest.mark.parametrize(
    "text",
    [
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"just some words",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
        b"\0" * 512,
        b"RIFF\0\0\0\0junk",
        b"G" + b"x" * 187 + b"H",
    ],
)
def test_kind_of_text_under_a_media_name_is_not_media(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(text)
    with open_media(str(path), CFG) as file, pytest.raises(MediaError, match="not_media"):
        kind_of(file)


@given(st.binary(max_size=600))
def test_media_kind_any_bytes_gives_a_known_kind_or_none(head: bytes) -> None:
    assert media_kind(head) in {None, *FORMATS}


def test_media_kind_of_each_real_file(shared_data: Path) -> None:
    for folder in ("video", "audio", "audio_formats", "speech_digits"):
        for path in sorted((shared_data / "media" / folder).iterdir()):
            assert media_kind(path.read_bytes()[:4096]), path.name
