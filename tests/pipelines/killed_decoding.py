"""A decoding job that is killed over and over: which blocks it begins twice, and what comes out in the end.

As a program it is that job: python -m tests.pipelines.killed_decoding FOLDER decodes FOLDER/items.parquet.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.media.clips import iter_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.pipelines.decode_blocks import DecodeBlocks
from avrec_ray.pipelines.decode_media import decode_manifest
from avrec_ray.pipelines.decode_parts import DecodeParts, open_parts, parts_folder, read_manifest
from avrec_ray.pipelines.decode_publish import check, publish
from avrec_ray.pipelines.session import session
from avrec_ray.types import check_items

ROOT = Path(__file__).parents[2]
NUM_ACTORS = 2
CFG = MediaConfig(num_frames=2, frame_size=16, clip_seconds=1.0)
Rows = list[tuple[Any, ...]]


def write_job(folder: Path, num_items: int) -> None:
    """Files of `slow_decoder`, one in seven refused, and an items table with some text-only rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_items):
        word = "refuse" if number % 7 == 3 else "abcdefg"[number % 7] * 3
        (folder / f"{number:03d}.ogg").write_bytes(b"OggS" + word.encode())
    uris = [None if number % 11 == 5 else str(folder / f"{number:03d}.ogg") for number in range(num_items)]
    ids = [f"i{number:03d}" for number in range(num_items)]
    pq.write_table(check_items(pa.table({"item_id": ids, "media_uri": uris, "title": ids})), folder / "items.parquet")


def start_job(folder: Path) -> subprocess.Popen[bytes]:
    """The driver in a session of its own, which Ray's processes share."""
    return start([sys.executable, "-m", "tests.pipelines.killed_decoding", str(folder)], folder / "job.log")


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Any driver, in a session of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


class Watch:
    """Which blocks each run begins, seen from outside; runs in the order in which they began. Use as a context."""

    def __init__(self, clips: Path) -> None:
        self._folder = parts_folder(clips)
        self.runs: dict[str, set[int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            for path in self._folder.glob("*/begun/*"):
                with contextlib.suppress(OSError):  # removed by the next run this very moment
                    self.runs.setdefault(path.name, set()).update(int(block.name) for block in path.iterdir())

    def begun_again(self) -> list[int]:
        """For each run but the last: how many of its blocks a later run began once more."""
        runs = list(self.runs.values())
        return [len(run & set().union(*runs[number + 1 :])) for number, run in enumerate(runs[:-1])]


Driver = subprocess.Popen[bytes]
Wait = Callable[[Driver], None]


def run_killed(
    start_run: Callable[[], Driver], waits: Iterable[Wait], kill: Callable[[Driver], None] = subprocess.Popen.kill
) -> tuple[int, int]:
    """Start a job, `kill` its driver (SIGKILL) after each wait, start it again at once, and let the last one end.

    Returns (kills, the exit status of the last run); fewer kills than waits where a run was done before.
    """
    started = [start_run()]
    for wait in waits:
        wait(started[-1])
        if started[-1].poll() is not None:
            break
        kill(started[-1])
        started[-1].wait()
        started.append(start_run())
    status = started[-1].wait()
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what Ray has not ended by itself
    return len(started) - 1, status


def kill_with_workers(process: Driver) -> None:
    """SIGKILL the driver and all that it started at once, as when a machine goes away."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def blocks_done(clips: Path) -> int:
    """Blocks on disk."""
    return len(list(parts_folder(clips).glob("*/blocks/?????")))


def until_blocks(clips: Path, number: int) -> Wait:
    """Wait until so many blocks are done."""

    def wait(process: Driver) -> None:
        while process.poll() is None and blocks_done(clips) < number:
            time.sleep(0.01)

    return wait


def until_share(clips: Path, share: float) -> Wait:
    """Wait until that share of the blocks that are missing now is done, one at least."""

    def wait(process: Driver) -> None:
        while process.poll() is None and not (manifests := list(parts_folder(clips).glob("*/manifest.json"))):
            time.sleep(0.01)
        if process.poll() is None:
            total = DecodeParts(manifests[0].parent).num_blocks
            done = blocks_done(clips)
            until_blocks(clips, done + max(1, round(share * (total - done))))(process)

    return wait


def for_seconds(seconds: float) -> Wait:
    """Wait that long, or for the end."""

    def wait(process: Driver) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    return wait


def rows_of(clips: Path, quarantine: Path) -> tuple[Rows, Rows]:
    """Both tables, sorted, arrays as digests; without the time of day."""
    plain = ["item_id", "clip_idx", "start_seconds", "end_seconds", "has_video", "has_audio", "media_sha256"]
    rows: Rows = []
    for batch in iter_clips(clips):
        digests = [
            [hashlib.sha256(array.tobytes()).hexdigest() for array in batch[name]] for name in ("frames", "log_mel")
        ]
        rows += zip(*(batch[name].tolist() for name in plain), *digests, strict=True)
    aside = pq.read_table(quarantine, columns=["item_id", "media_uri", "reason"]).to_pylist()
    return sorted(rows), sorted(tuple(row.values()) for row in aside)


def decode_without_ray(folder: Path) -> tuple[Rows, Rows]:
    """What an uninterrupted job gives, in this process and without the waiting."""
    cfg, items = CFG, folder / "items.parquet"
    parts = open_parts(folder / "plain.parts", read_manifest(items), "", cfg, "", print)
    worker = DecodeBlocks(str(parts.folder), parts.run, to_dict(cfg), "tests.media.hostile_decoders:by_content")
    worker({"block": np.arange(parts.num_blocks)})
    worker.decode.decoder.close()
    check(parts)
    publish(parts, folder / "plain" / "clips", folder / "plain" / "quarantine")
    return rows_of(folder / "plain" / "clips", folder / "plain" / "quarantine")


def main(folder: Path) -> None:
    """The job."""
    with session(ClusterConfig(num_cpus=NUM_ACTORS, object_store_bytes=200_000_000)):
        decode_manifest(
            str(folder / "items.parquet"), str(folder / "clips"), str(folder / "quarantine"), CFG, NUM_ACTORS, print,
            decoder="tests.pipelines.slow_decoder:slowly",
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
