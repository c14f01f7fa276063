import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from avrec_ray.errors import MediaError, StageError
from avrec_ray.media.child import DecodeProcess
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder
from tests.media.render import break_time_table, write_media

HOSTILE = "tests.media.hostile_decoders:by_content"
CFG = MediaConfig(timeout_seconds=1.5, frame_size=16, num_frames=2, clip_seconds=0.1)


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    with DecodeProcess(CFG, HOSTILE) as process:
        yield process


def media(tmp_path: Path, word: str) -> BinaryIO:
    path = tmp_path / f"{word}.ogg"
    path.write_bytes(b"OggS" + word.encode())
    return path.open("rb", buffering=0)


def check_good(process: DecodeProcess, tmp_path: Path) -> None:
    with media(tmp_path, "good") as file:
        extract = process.extract(file)
    assert extract.frames is not None
    assert (extract.frames == ord("g")).all()
    assert extract.waveforms is not None
    assert (extract.waveforms == 1).all()
    assert extract.decoder == "hostile 1"


@pytest.mark.parametrize(
    ("word", "reason", "detail"),
    [
        ("abort", "crashed", "SIGABRT"),
        ("segfault", "crashed", "SIGSEGV"),
        ("exit", "crashed", "status 3"),
        ("raise", "crashed", r"RuntimeError: a defect of the decoder \?\[2J"),
        ("spin", "timeout", "media.timeout_seconds=1.5"),
        ("lock", "timeout", "media.timeout_seconds=1.5"),
        ("fork", "crashed", "PermissionError"),
        ("write", "crashed", "No such file|Permission|Read-only"),
        ("exec", "crashed", "PermissionError"),
        ("connect:9", "crashed", "PermissionError"),
        ("eat", "crashed", "MemoryError"),
        ("refuse", "unsupported", "on purpose"),
        ("garbage", "crashed", "wrong header"),
        ("flood", "crashed", "wrong header"),
        ("reason", "crashed", "has the reason"),
        ("clips", "crashed", "3 clips"),
        ("escape", "crashed", "has the decoder '\\?"),
    ],
)
def test_extract_hostile_decoder_costs_its_own_file_only(
    process: DecodeProcess, tmp_path: Path, word: str, reason: str, detail: str
) -> None:
    began = time.monotonic()
    with media(tmp_path, word) as file, pytest.raises(MediaError, match=detail) as caught:
        process.extract(file)
    assert caught.value.reason == reason
    assert caught.value.detail.isprintable()
    assert time.monotonic() - began < 20
    assert process.pid is None, "a child that met an error is not used again"
    check_good(process, tmp_path)


def test_extract_cpu_time_is_limited_over_all_threads(tmp_path: Path) -> None:
    cfg = MediaConfig(timeout_seconds=30, cpu_seconds=0.1, frame_size=16, num_frames=2, clip_seconds=0.1)
    with DecodeProcess(cfg, HOSTILE) as process:
        for _ in range(3):  # each file has its own share
            check_good(process, tmp_path)
        with media(tmp_path, "threads") as file, pytest.raises(MediaError, match="media.cpu_seconds=0.1") as caught:
            process.extract(file)
        assert caught.value.reason == "timeout"


def test_extract_draw_reaches_the_decoder(process: DecodeProcess, tmp_path: Path) -> None:
    with media(tmp_path, "good") as file:
        frames = process.extract(file, draw=7).frames
        assert frames is not None
        assert (frames == 7).all()
        with pytest.raises(MediaError, match="crashed"):  # chr() of it fails: the number arrived whole
            process.extract(file, draw=2**64 - 1)


def test_extract_sound_that_is_no_number_is_corrupt(tmp_path: Path) -> None:
    with (
        DecodeProcess(CFG, "tests.media.hostile_decoders:unsound") as process,
        media(tmp_path, "x") as file,
        pytest.raises(MediaError, match="corrupt: .* not finite"),
    ):
        process.extract(file)


def test_extract_child_is_replaced_after_some_files(tmp_path: Path) -> None:
    cfg = MediaConfig(files_per_child=2, frame_size=16, num_frames=2, clip_seconds=0.1)
    pids = []
    with DecodeProcess(cfg, HOSTILE) as process:
        for _ in range(5):
            check_good(process, tmp_path)
            pids.append(process.pid)
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_extract_child_that_died_between_two_files_costs_none(process: DecodeProcess, tmp_path: Path) -> None:
    check_good(process, tmp_path)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    check_good(process, tmp_path)


def test_close_leaves_no_process_that_the_decoder_started(tmp_path: Path) -> None:
    with DecodeProcess(CFG, "tests.media.forking_decoder:by_content") as process:
        check_good(process, tmp_path)
        group = process.pid
    assert group is not None
    deadline = time.monotonic() + 10
    while any(process_group(pid) == group for pid in os.listdir("/proc") if pid.isdigit()):
        assert time.monotonic() < deadline, "a forked child outlived the kill"
        time.sleep(0.05)


def process_group(pid: str) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[2]) if fields[0] != "Z" else None


def test_child_gets_no_secrets_and_no_heavy_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVREC_TEST_SECRET", "x")
    decoder = "tests.media.hostile_decoders:environment"
    with DecodeProcess(CFG, decoder) as process, media(tmp_path, "good") as file:
        told = process.extract(file).decoder
    assert told.startswith("modules  names ")
    assert "AVREC_TEST_SECRET" not in told


def test_extract_decoder_that_does_not_exist_is_loud(tmp_path: Path) -> None:
    with (
        DecodeProcess(CFG, "avrec_ray.media.nowhere:extract") as process,
        media(tmp_path, "good") as file,
        pytest.raises(StageError, match="does not start"),
    ):
        process.extract(file)


def test_close_ends_the_child_and_extract_starts_another(process: DecodeProcess, tmp_path: Path) -> None:
    check_good(process, tmp_path)
    first = process.pid
    process.close()
    assert process.pid is None
    assert not Path(f"/proc/{first}").exists()
    check_good(process, tmp_path)
    assert process.pid != first


def test_decode_broken_time_table_is_set_aside_or_right(tmp_path: Path) -> None:
    good = write_media(tmp_path / "good.mp4", num_frames=10)
    bomb = break_time_table(good, tmp_path / "bomb.mp4")
    with ItemDecoder(MediaConfig(frame_size=16, num_frames=2)) as decoder:
        with pytest.raises(MediaError) as caught:
            decoder.decode("bomb", str(bomb))
        assert caught.value.reason in {"corrupt", "crashed"}
        assert decoder.decode("good", str(good))[0].has_video


def test_item_decoder_crash_of_auto_is_tried_once_more_with_pyav(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(b"OggSgood")
    with ItemDecoder(CFG, "tests.media.hostile_decoders:abort_unless_pyav") as decoder:
        (clip,) = decoder.decode("a", str(path))
    assert clip.decoder == "hostile 1"
    assert np.isfinite(clip.log_mel).all()
