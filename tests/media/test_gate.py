import os
import threading
import time
from collections import Counter
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
        "/tmp/../tmp/a.mp4",
        "/tmp/\ud800.mp4",
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


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(inside, outside) of the roots; links lead from one to the other, to a folder and within."""
    inside, outside = tmp_path / "media", tmp_path / "media-secret"
    for folder in (inside, outside, inside / "sub"):
        folder.mkdir()
        (folder / "a.mp4").write_bytes(MP4)
    (inside / "out.mp4").symlink_to(outside / "a.mp4")
    (inside / "out").symlink_to(outside)
    (inside / "fine.mp4").symlink_to(inside / "a.mp4")
    (inside / "fine").symlink_to(inside / "sub")
    (inside / "loop.mp4").symlink_to(inside / "loop.mp4")
    return inside, outside


@pytest.mark.parametrize("name", ["out.mp4", "out/a.mp4", "fine.mp4", "fine/a.mp4", "loop.mp4"])
def test_open_media_symbolic_link_is_forbidden(folders: tuple[Path, Path], name: str) -> None:
    inside, _ = folders
    error = refused(f"{inside}/{name}", MediaConfig(media_roots=[str(inside)]))
    assert error.reason == "forbidden"
    assert "symbolic link" in error.detail
    if "/" not in name:  # without roots the last part alone must be no link
        assert refused(f"{inside}/{name}").reason == "forbidden"


def test_open_media_outside_the_roots_is_forbidden(folders: tuple[Path, Path]) -> None:
    inside, outside = folders
    cfg = MediaConfig(media_roots=[str(inside)])
    for uri in (f"{outside}/a.mp4", f"{inside}/../media-secret/a.mp4", f"{inside}", f"{inside}-secret/a.mp4"):
        error = refused(uri, cfg)
        assert error.reason == "forbidden"
        assert "media_roots" in error.detail


def test_open_media_under_the_roots_opens_that_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    inside, _ = folders
    (tmp_path / "alias").symlink_to(inside)
    (inside / "sub" / "a.mp4").write_bytes(MP4 + b"sub")
    for root in (inside, tmp_path / "alias"):  # a root may be a link: it is trusted
        cfg = MediaConfig(media_roots=["/nowhere", str(root)])
        for uri in (f"{inside}/sub/a.mp4", f"{root}//sub/./a.mp4"):
            with open_media(uri, cfg) as file:
                assert file.read() == MP4 + b"sub"


def test_open_media_follow_symlinks_still_ends_under_the_roots(folders: tuple[Path, Path]) -> None:
    inside, _ = folders
    cfg = MediaConfig(media_roots=[str(inside)], follow_symlinks=True)
    for name in ("fine.mp4", "fine/a.mp4"):
        with open_media(f"{inside}/{name}", cfg) as file:
            assert kind_of(file) == "mp4"
    for name in ("out.mp4", "out/a.mp4"):
        error = refused(f"{inside}/{name}", cfg)
        assert error.reason == "forbidden"
        assert "media_roots" in error.detail
    assert refused(f"{inside}/loop.mp4", cfg).reason == "missing"


def test_open_media_swapped_for_a_link_never_opens_the_other_file(folders: tuple[Path, Path]) -> None:
    inside, outside = folders
    (outside / "a.mp4").write_bytes(MP4 + b"secret")
    (inside / "sub" / "link.mp4").symlink_to(outside / "a.mp4")
    stop = threading.Event()

    def swap() -> None:  # the file and a link to the secret change places all the time
        while not stop.is_set():
            os.rename(inside / "sub" / "a.mp4", inside / "sub" / "kept.mp4")
            os.rename(inside / "sub" / "link.mp4", inside / "sub" / "a.mp4")
            os.rename(inside / "sub" / "a.mp4", inside / "sub" / "link.mp4")
            os.rename(inside / "sub" / "kept.mp4", inside / "sub" / "a.mp4")

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = Counter[str]()
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not {"opened", "forbidden"} <= set(outcomes):
            for _ in range(200):
                try:
                    with open_media(f"{inside}/sub/a.mp4", MediaConfig(media_roots=[str(inside)])) as file:
                        assert b"secret" not in file.read()
                        outcomes["opened"] += 1
                except MediaError as error:
                    outcomes[error.reason] += 1
    finally:
        stop.set()
        thread.join()
    assert {"opened", "forbidden"} <= set(outcomes), outcomes


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
