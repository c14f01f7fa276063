"""jobs.decode_media, its driver killed (SIGKILL) over and over at random points, against an uninterrupted run.

Run: PYTHONPATH=. python benchmarks/decode_kills.py [--kills 20] [--items 120] [--seed 0]

One kill in three falls anywhere in the length of an uninterrupted run, start-up and publishing included; the others
after a random share of the blocks that are left, 0 to 0.2 s later. The job is started again at once, while Ray's
processes of the killed one still end. A job that finishes is checked and begun anew until the kills are used up.
With --workers Ray's processes are killed together with the driver: what the actors were at is lost too.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.render_clips import render_clips, write_items
from tests.pipelines.killed_decoding import (
    NUM_ACTORS,
    Driver,
    Rows,
    Wait,
    Watch,
    for_seconds,
    kill_with_workers,
    rows_of,
    run_killed,
    start,
    until_share,
)


def main(num_kills: int, num_items: int, seed: int, workers: bool) -> None:
    """Print a line a job, and a summary; exit status 1 if any row differs or too much is redone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(folder, num_items)
        began = time.monotonic()
        if start_job(folder, "whole").wait():
            sys.exit((folder / "whole.log").read_text())
        length_seconds = time.monotonic() - began
        expected = rows_of(folder / "whole" / "clips", folder / "whole" / "quarantine")
        print(f"uninterrupted: {length_seconds:.1f} s, {len(expected[0])} clips, {len(expected[1])} set aside")
        rng = random.Random(seed)
        waits = [random_wait(number, length_seconds, folder / "killed" / "clips", rng) for number in range(num_kills)]
        redone: list[int] = []
        equal = True
        while waits:
            kills, again, found = killed_job(folder, waits, workers)
            doubles = sum(count - 1 for count in Counter(row[:2] for row in found[0]).values())
            equal &= found == expected
            redone += again
            waits = waits[kills:]
            if not kills:  # the job was done before its moment came: another moment, which surely comes
                waits[0] = random_wait(1, length_seconds, folder / "killed" / "clips", rng)
            print(
                f"job killed {kills} times: rows equal {found == expected}, duplicates {doubles}, "
                f"blocks begun again after each kill {again}, {len(waits)} kills left"
            )
        print(
            f"{num_kills} kills: rows equal {equal}, redone blocks a kill: mean {sum(redone) / num_kills:.2f}, "
            f"most {max(redone)}; bound {NUM_ACTORS}, a block an actor"
        )
        sys.exit(not equal or max(redone) > NUM_ACTORS)


def killed_job(folder: Path, waits: list[Wait], workers: bool) -> tuple[int, list[int], tuple[Rows, Rows]]:
    """One job from nothing to its tables: how often it was killed, blocks begun again after each, and its rows."""
    shutil.rmtree(folder / "killed", ignore_errors=True)
    clips = folder / "killed" / "clips"
    with Watch(clips) as watch:
        kill = kill_with_workers if workers else subprocess.Popen.kill
        kills, status = run_killed(lambda: start_job(folder, "killed"), waits, kill)
    if status:
        sys.exit((folder / "killed.log").read_text())
    return kills, watch.begun_again() or [0], rows_of(clips, folder / "killed" / "quarantine")


def random_wait(number: int, length_seconds: float, clips: Path, rng: random.Random) -> Wait:
    """Until the moment of a kill."""
    if number % 3 == 0:
        return for_seconds(rng.uniform(0.0, length_seconds))
    share, pause = rng.random(), rng.uniform(0.0, 0.2)

    def wait(process: Driver) -> None:
        until_share(clips, share)(process)
        for_seconds(pause)(process)

    return wait


def start_job(folder: Path, name: str) -> Driver:
    """As a user does."""
    settings = [f"storage_path={folder / name}", f"data.items={folder / 'items.parquet'}"]
    settings += [f"cluster.num_decode_actors={NUM_ACTORS}", "tracking.system_metrics_seconds=0"]
    return start([sys.executable, "-m", "jobs.decode_media", *settings], folder / f"{name}.log")


def write_job(folder: Path, num_items: int) -> None:
    """Clips of 10 s, one in ten cut, and text."""
    paths = render_clips(folder / "media", num_items, 10.0)
    for path in paths[::10]:
        path.write_bytes(path.read_bytes()[:3000])
    items = pq.read_table(write_items(folder / "items.parquet", paths))
    uris = [None if row % 10 == 9 else uri for row, uri in enumerate(items["media_uri"].to_pylist())]
    column = items.schema.get_field_index("media_uri")
    pq.write_table(items.set_column(column, "media_uri", pa.array(uris, pa.string())), folder / "items.parquet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--items", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", action="store_true")
    arguments = parser.parse_args()
    main(arguments.kills, arguments.items, arguments.seed, arguments.workers)
