import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder
from avrec_ray.media.unchanged import check_unchanged, sha256, snapshot

CONTENT = b"OggS" + bytes(range(256))
CFG = MediaConfig(frame_size=16, num_frames=2, clip_seconds=0.1)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    (tmp_path / "a.ogg").write_bytes(CONTENT)
    with (tmp_path / "a.ogg").open("rb", buffering=0) as file:
        yield file


def age(path: Path) -> None:
    """Wait until the file's last change lies behind what counts as recent."""
    while path.stat().st_ctime > time.time() - 2.1:
        time.sleep(0.1)


def test_check_unchanged_same_file_gives_its_digest(file: BinaryIO) -> None:
    before = snapshot(file)
    assert before.digest == sha256(file)
    assert check_unchanged(file, before) == before.digest


@pytest.mark.parametrize("change", ["append", "overwrite", "cut"])
def test_check_unchanged_written_file_is_told(file: BinaryIO, tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.ogg"
    before = snapshot(file)
    if change == "append":
        with path.open("ab") as more:
            more.write(b"x")
    elif change == "cut":
        os.truncate(path, 100)
    else:
        with path.open("r+b") as over:
            over.write(b"x")
        os.utime(path, ns=(before.modified_ns, before.modified_ns))
    with pytest.raises(MediaError, match="changed: "):
        check_unchanged(file, before)


def test_check_unchanged_old_file_is_hashed_once_and_told_by_its_times(file: BinaryIO, tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    age(path)
    before = snapshot(file)
    assert before.digest == ""
    assert check_unchanged(file, before) == sha256(file)
    with path.open("r+b") as over:
        over.write(b"x")
    os.utime(
        path, ns=(before.modified_ns, before.modified_ns)
    )  # the time of modification can be set back, the other not
    with pytest.raises(MediaError, match="changed: written to while"):
        check_unchanged(file, before)


def test_check_unchanged_new_content_within_one_tick_is_told(file: BinaryIO, tmp_path: Path) -> None:
    before = snapshot(file)
    with (tmp_path / "a.ogg").open("r+b") as over:
        over.write(b"x")
    status = os.fstat(file.fileno())
    before.modified_ns, before.changed_ns = status.st_mtime_ns, status.st_ctime_ns  # as on a clock that stood still
    with pytest.raises(MediaError, match="changed: its content"):
        check_unchanged(file, before)


@pytest.mark.parametrize("word", ["slow", "slowrefuse"])
def test_item_decoder_file_that_grows_while_it_is_decoded_is_set_aside(tmp_path: Path, word: str) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(b"OggS" + word.encode())
    with ItemDecoder(CFG, "tests.media.hostile_decoders:slow") as decoder:
        assert decoder.layers.active  # the child has started
        writer = threading.Timer(0.3, path.write_bytes, [b"OggSmore than before"])
        writer.start()
        with pytest.raises(MediaError, match=f"changed: {4 + len(word)} bytes before it was decoded, 20 after"):
            decoder.decode("a", str(path))
        writer.join()
        assert decoder.decode("a", str(path))[0].has_video
