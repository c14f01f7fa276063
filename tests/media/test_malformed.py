import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avrec_ray.dataclass_io import to_dict
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode_clips import DecodeClips
from avrec_ray.types import QUARANTINE_REASONS
from tests.media.canary import canary
from tests.media.hostile_decoders import MARK
from tests.media.malformed import NEVER_MEDIA, boxes, cases, sources
from tests.media.render import write_media

NUM_CHOSEN = 20
HOSTILE = ("abort", "segfault", "exit", "eat", "fork", "write", "exec", "garbage", "flood", "reason")


def family(name: str) -> str:
    return name.split("-")[0]


def test_cases_are_many_small_and_the_same_for_a_seed(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = list(cases(tmp_path / "a", 1)), list(cases(tmp_path / "b", 1))
    assert len(first) >= 300
    assert len({name for name, _ in first}) == len(first)
    assert sum(len(data) for _, data in first) < 10e6
    assert [name for name, _ in first] == [name for name, _ in second]
    playlists = {name for name, _ in first if family(name) == "playlist"}  # these hold the folder's name
    assert {name: data for name, data in first if name not in playlists} == {
        name: data for name, data in second if name not in playlists
    }


def test_boxes_find_the_inner_ones_of_an_mp4(tmp_path: Path) -> None:
    data = write_media(tmp_path / "a.mp4", 5).read_bytes()
    found = [name for _, name in boxes(data)]
    assert found[0] == b"ftyp"
    assert {b"moov", b"mvhd", b"trak", b"stbl", b"stts", b"stsd", b"mdat"} <= set(found)


@pytest.mark.slow
def test_malformed_files_and_hostile_decoders_cost_their_own_rows_only(tmp_path: Path) -> None:
    """A choice by seed of the malformed files, every misdeed of a decoder, and good files in between."""
    seed = random.randrange(2**16)
    print(f"seed {seed}")
    made, written = tmp_path / "made", Path("/tmp/avrec-written")
    made.mkdir()
    with canary() as listener:
        found = dict(cases(made, seed, listener.port))
        chosen = random.Random(seed).sample(sorted(found), NUM_CHOSEN)
        files = {name: found[name] for name in chosen}
        for word in (*HOSTILE, f"connect:{listener.port}"):
            files[f"hostile-{word}"] = MARK + word.encode()
        good = sources(made)["film.mp4"]
        uris = {}
        for number, (name, data) in enumerate(files.items()):
            for label, content in ((name, data), *([(f"good-{number}", good)] if number % 4 == 0 else [])):
                uris[label] = tmp_path / label
                uris[label].write_bytes(content)
        cfg = MediaConfig(num_frames=2, frame_size=16, clip_seconds=0.2, timeout_seconds=10.0)
        decode = DecodeClips(to_dict(cfg), "tests.media.hostile_decoders:extract_or_misbehave")
        began = time.monotonic()
        rows = decode(
            {"item_id": np.array(list(uris), object), "media_uri": np.array([*map(str, uris.values())], object)}
        )
        decode.decoder.close()
        assert listener.num_connections() == 0
    reasons = dict(zip(rows["item_id"], rows["reason"], strict=True))
    assert set(reasons) == set(uris)
    assert set(reasons.values()) <= {"", *QUARANTINE_REASONS}
    assert all(reason == "" for name, reason in reasons.items() if family(name) == "good")
    assert all(reason != "" for name, reason in reasons.items() if family(name) in NEVER_MEDIA)
    assert all(reason in {"crashed", "timeout"} for name, reason in reasons.items() if family(name) == "hostile")
    assert not written.exists()
    assert time.monotonic() - began < 20 * len(uris)


STRACED = """
import sys
from avrec_ray.errors import MediaError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.child import DecodeProcess
from avrec_ray.media.gate import open_media

cfg = MediaConfig(num_frames=2, frame_size=32, clip_seconds=0.2)
with DecodeProcess(cfg) as process:
    for path in sys.argv[1:]:
        try:
            with open_media(path, cfg) as file:
                print(len(process.extract(file).spans))
        except MediaError as error:
            print(error.reason)
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_child_opens_nothing_but_its_descriptors(tmp_path: Path) -> None:
    """Every call of the child that names a file, from its first answer on, as the kernel saw it."""
    made = tmp_path / "made"
    made.mkdir()
    (tmp_path / "good").mkdir()
    good = sources(tmp_path / "good")
    with canary() as listener:
        found = dict(cases(made, 0, listener.port))
        playlists = [name for name in found if family(name) == "playlist"]
        names = [*playlists[::8], "lie-stts-bomb.mp4"]
        for name in names:
            (tmp_path / name).write_bytes(found[name])
        paths = [*(tmp_path / "good" / name for name in good), *(tmp_path / name for name in names)]
        calls = "trace=%file,%network,%process"
        command = [
            "strace",
            "-ff",
            "-qq",
            "--seccomp-bpf",
            "-o",
            str(tmp_path / "log"),
            "-e",
            calls,
            sys.executable,
            "-c",
            STRACED,
        ]
        done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True)
        assert listener.num_connections() == 0
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    assert set(outcomes[: len(good)]) == {"1", "2"}
    assert not {"1", "2"} & set(outcomes[len(good) : -1])
    opened, num_children = set(), 0
    for log in tmp_path.glob("log.*"):
        lines = log.read_text().splitlines()
        answers = [number for number, line in enumerate(lines) if "sendto(" in line and '"AVR1' in line]
        if not answers:
            continue
        num_children += 1
        for line in lines[answers[0] + 1 :]:
            call, _, rest = line.partition("(")
            is_on_descriptor = (
                call in {"sendto", "recvmsg", "recvfrom", "exit", "exit_group"} or "AT_EMPTY_PATH" in line
            )
            if is_on_descriptor or line.startswith(("+++", "---")):
                continue
            if call in {"clone", "clone3", "vfork", "fork"}:
                assert "CLONE_THREAD" in rest or "ENOSYS" in rest or "EPERM" in rest, line
                continue
            if " = -1 E" not in line:  # FFmpeg's transport streams ask libc for a character set; it finds no file
                opened.add(line)
    assert num_children >= 2
    assert opened, "decord opens its descriptor by name"
    assert all('"/proc/self/fd/' in line for line in opened), sorted(opened)[:20]
