"""Training straight from media against training from decoded clips: how long the trainers wait for batches.

Run: PYTHONPATH=. python benchmarks/stream.py [items] [epochs]. Renders `items` films of 6 s, decodes them once into the
clips table, and trains in one session, by Ray Train with 2 workers and 2 decode actors, from both. Each is run with a
step that is slower than decoding and with one that is faster: a pause is added to the step, so that what is slower is
known beforehand whatever the machine. Printed: seconds an epoch, the share of them that the trainers waited for data
(the first three epochs are left out), and their ratio to cached mode's.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from avrec_ray.cluster_config import ClusterConfig, TrackingConfig
from avrec_ray.config import JobConfig, TrainingConfig, towers_for
from avrec_ray.dataclass_io import to_dict
from avrec_ray.datasets.config import DataConfig, SyntheticConfig
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode_draws import DecodeDraws
from avrec_ray.pipelines import decode_media, prepare, pretrain
from avrec_ray.pipelines.session import session
from avrec_ray.pipelines.stage import Loop, StageRun
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.train import Work, run_trainer
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.config import PretrainConfig

SEED, BATCH, NUM_WORKERS, NUM_ACTORS, SKIPPED = 0, 16, 2, 2, 3


def main(num_items: int, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder, session(ClusterConfig(num_cpus=6)):
        loop = Loop(Storage.at(folder), TrackingConfig(system_metrics_seconds=0), "bench", echo=lambda line: None)
        job = job_at(folder, num_items, epochs, "cached")
        prepare.run(loop, job)
        decode_media.run(loop, job)
        decode_seconds = seconds_to_decode_a_batch(loop.storage, job)
        print(f"{num_items} items, {epochs} epochs; an actor decodes {BATCH} items in {decode_seconds:.2f} s")
        for name, pause_seconds in (("decode is faster", 3 * decode_seconds), ("decode is slower", 0.0)):
            found = {}
            for mode in ("cached", "stream"):
                found[mode] = measured(loop, job_at(folder, num_items, epochs, mode), pause_seconds)
            for mode, (seconds, wait) in found.items():
                ratio = seconds / found["cached"][0]
                print(f"{name}: {mode:6}  {seconds:7.2f} s an epoch ({ratio:.2f} x cached)  data wait {wait:.1%}")
        loop.close()


def job_at(root: str, num_items: int, epochs: int, mode: str) -> JobConfig:
    media = MediaConfig()
    catalogue = SyntheticConfig(
        num_items=num_items, num_users=100, num_interactions=800, broken_items=0, min_seconds=6.0, max_seconds=6.0
    )
    return JobConfig(
        storage_path=root,
        seed=SEED,
        data=DataConfig(dataset="synthetic", synthetic=catalogue, mode=mode),
        media=media,
        towers=towers_for(TowersConfig(), media),
        training=TrainingConfig(pretrain=PretrainConfig(epochs=epochs, batch_size=BATCH)),
        cluster=ClusterConfig(num_workers=NUM_WORKERS, num_decode_actors=NUM_ACTORS, max_failures=0),
    )


def seconds_to_decode_a_batch(storage: Storage, job: JobConfig) -> float:
    """Of one random clip of each of `BATCH` items, in this process, with nothing beside it."""
    rows = pq.read_table(storage.items, columns=["item_id", "media_uri"]).slice(0, BATCH).to_pydict()
    decode = DecodeDraws(to_dict(job.media))
    asked = {**rows, "order": np.arange(BATCH), "draw": np.arange(BATCH), "clip_idx": np.zeros(BATCH, int)}
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        decode(asked)
        seconds.append(time.perf_counter() - began)
    decode.decoder.close()
    return min(seconds)


def measured(loop: Loop, job: JobConfig, pause_seconds: float) -> tuple[float, float]:
    """Seconds an epoch and the share of waiting, medians over the epochs behind the first ones."""
    name = f"{job.data.mode}_{pause_seconds:.3f}"
    noted = loop.storage.root / f"{name}.txt"
    waits: list[float] = []

    def work(stage: StageRun) -> dict[str, float]:
        settings = {
            **pretrain.stage_settings(loop.storage, job),
            **pretrain.decode_actors(job, print),
            "pause_seconds": pause_seconds,
            "noted": str(noted),
        }
        run_trainer(stage, job.cluster, build_work, settings, job.training.pretrain.epochs, seed=job.seed)
        history = loop.tracking.client.get_metric_history(stage.run.run_id, "train/data_wait_share")
        waits.extend(point.value for point in history)
        return {}

    loop.stage(name, work, settings={}, inputs={}, outputs=[])
    seconds = np.diff([float(line) for line in noted.read_text().splitlines()])
    # The first wait is for the actors to start, and while it lasts the next batches are decoded too.
    return float(np.median(seconds[SKIPPED:])), float(np.median(waits[SKIPPED:]))


def build_work(settings: dict[str, Any], rank: int, num_workers: int) -> Work:
    """The stage's own work with a pause a step, as a bigger tower would take it; rank 0 notes when epochs begin."""
    work = pretrain.build_work(settings, rank, num_workers)

    def paused(epoch: int) -> Iterator[ItemInputs]:
        if rank == 0:
            with Path(settings["noted"]).open("a") as file:
                file.write(f"{time.perf_counter()}\n")
        yield from work.batches(epoch)

    step = work.step
    step.register_forward_hook(lambda *_: time.sleep(settings["pause_seconds"]))
    return Work(step, paused, work.steps_per_epoch, work.optim, work.left_out, work.notes)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 128, int(sys.argv[2]) if len(sys.argv) > 2 else 10)
