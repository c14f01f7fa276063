"""Training by Ray Train against the bare loop, two workers against one, and sequences against RecTools' SASRec.

Run: PYTHONPATH=. python benchmarks/train.py [--parts loop,workers,rectools] [--rounds 3] [--epochs 6]

loop      steps a second after the first epoch: 1 Ray Train worker against `fit` alone in a process, on the same batches
workers   the same with 2 Ray Train workers against 1, the same global batch; each computes on one core
rectools  seconds an epoch after the first, one core each: SASRecModel of RecTools (softmax loss) against `fit` with
          items embedded by their ids alone ("ids": what SASRec is) and with the item tower over the whole catalogue
          in every step ("bare"). RecTools needs another numpy, so it runs in an environment of its own, whose python
          AVREC_RECTOOLS_PYTHON (or --rectools) names

Data of the size of MovieLens 100k, drawn: 943 users, 1,682 items, 100,000 events; histories of 50, 64 dimensions, 2
blocks, 4 heads, batches of 128, softmax over all items. Our user tower reads events, watch ratios and time gaps
besides, which SASRec does not have. Each variant runs in a process of its own, variants take turns, and the least and
the median over the rounds are printed.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import measure

NUM_USERS, NUM_ITEMS, NUM_EVENTS, LENGTH, DIM, BATCH = 943, 1682, 100_000, 50, 64, 128
SEED = 0


def main(parts: list[str], rounds: int, epochs: int, rectools: str) -> None:
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the first run; {rounds} rounds, {epochs} epochs"
    )
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "events.json"
        data.write_text(json.dumps(draw_events()))
        if "loop" in parts:
            compare(["bare", "ray1"], data, rounds, epochs, "steps_per_second", sys.executable)
        if "workers" in parts:
            compare(["ray1", "ray2"], data, rounds, epochs, "steps_per_second", sys.executable)
        if "rectools" in parts and not rectools:
            print("rectools: skipped; give AVREC_RECTOOLS_PYTHON, a python with rectools[torch] in it")
        elif "rectools" in parts:
            compare(["rectools", "ids", "bare"], data, rounds, epochs, "seconds_per_epoch", rectools)


def compare(variants: list[str], data: Path, rounds: int, epochs: int, key: str, python: str) -> None:
    """Variants in turn, a line each run; then the ratios to the first."""
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            chosen = python if variant == "rectools" else sys.executable
            result = measure([chosen, "-m", "benchmarks.train", "--variant", variant, str(data), str(epochs)])
            found[variant].append(result[key])
            cpu, load = result["tree_cpu_seconds"], os.getloadavg()[0]
            print(f"{variant:<9} {key} {result[key]:8.3f}  {cpu:6.1f} CPU s with start-up  load {load:.1f}", flush=True)
    first = variants[0]
    best: Callable[[list[float]], float] = max if key == "steps_per_second" else min
    for other in variants[1:]:
        ratios = [pick(found[other]) / pick(found[first]) for pick in (best, median)]
        print(f"{other} / {first}: best {ratios[0]:.3f}x, median {ratios[1]:.3f}x of {key}\n", flush=True)


def draw_events() -> list[list[int]]:
    """Items of each user in order; popular ones are more likely, and nobody meets an item twice."""
    import random

    rng = random.Random(SEED)
    weights = [1 / (rank + 10) for rank in range(NUM_ITEMS)]
    lengths = [20 + int(rng.expovariate(1 / (NUM_EVENTS / NUM_USERS - 20))) for _ in range(NUM_USERS)]
    return [draw_distinct(rng, weights, min(length, 600)) for length in lengths]


def draw_distinct(rng: Any, weights: list[float], count: int) -> list[int]:
    """Without replacement (Efraimidis & Spirakis 2006)."""
    keys = [(rng.random() ** (1 / weight), item) for item, weight in enumerate(weights)]
    chosen = [item for _, item in sorted(keys, reverse=True)[:count]]
    rng.shuffle(chosen)
    return chosen


def settings_of(data: Path, epochs: int, ids_alone: bool = False) -> dict[str, Any]:
    return {"data": str(data), "epochs": epochs, "ids_alone": ids_alone}


def build_work(settings: dict[str, Any], rank: int, num_workers: int) -> Any:
    """A fine-tuning step on the drawn events; items have text tokens alone beside their ids, or ids alone."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from avrec_ray.pipelines.train import Work
    from avrec_ray.towers.config import TowersConfig
    from avrec_ray.towers.two_tower import TwoTower
    from avrec_ray.training.config import FinetuneConfig
    from avrec_ray.training.histories import POSITIVE_CODES, EventColumns
    from avrec_ray.training.sequence_batches import SequenceBatches
    from avrec_ray.training.steps import FinetuneStep
    from tests.tiny_models import random_tokens

    users = json.loads(Path(settings["data"]).read_text())
    lengths = [len(items) for items in users]
    total = sum(lengths)
    columns = EventColumns(
        item_idx=np.concatenate([np.array(items, np.int64) for items in users]),
        event=np.full(total, POSITIVE_CODES[0], np.int64),
        watch_ratio=np.full(total, np.nan, np.float32),
        at_seconds=np.arange(total, dtype=np.float64),
        user_ids=[f"u{row}" for row in range(len(users))],
        starts=np.concatenate([[0], np.cumsum(lengths)]),
    )
    cfg = FinetuneConfig(
        epochs=settings["epochs"], global_batch_size=BATCH, negatives="full", checkpoint_every_epochs=10_000
    ).for_workers(num_workers)
    towers = TowersConfig(embedding_dim=DIM, model_dim=DIM, num_heads=4, user_layers=2, history_length=LENGTH)

    class IdTowers(TwoTower):
        def embed_items(self, items: Any, item_idx: torch.Tensor, warm: torch.Tensor) -> torch.Tensor:
            return F.normalize(self.item.ids(item_idx), dim=-1)

    torch.manual_seed(SEED)
    two_tower = (IdTowers if settings["ids_alone"] else TwoTower)(towers, NUM_ITEMS)
    tokens = random_tokens(towers, NUM_ITEMS)
    for name in ("video", "audio"):
        tokens.masks[name][:] = False
    step = FinetuneStep(two_tower, tokens, torch.ones(NUM_ITEMS, dtype=torch.bool))
    step.towers.item.encoders.requires_grad_(False)
    step.towers.item.contrast_heads.requires_grad_(False)
    batches = SequenceBatches(columns, NUM_ITEMS, cfg, LENGTH, SEED, rank, num_workers)
    return Work(step, batches, batches.steps_per_epoch, cfg)


def result_of(rates: list[float], steps_per_epoch: int) -> dict[str, float]:
    """Of steps a second in each epoch; the first epoch holds the start."""
    rate = median(rates[1:])
    return {"steps_per_second": rate, "seconds_per_epoch": steps_per_epoch / rate, "steps_per_epoch": steps_per_epoch}


def run_bare(data: Path, epochs: int, ids_alone: bool = False) -> dict[str, float]:
    import torch

    from avrec_ray.training.fit import build_state, fit

    torch.set_num_threads(1)
    work = build_work(settings_of(data, epochs, ids_alone), 0, 1)
    rates: list[float] = []
    fit(
        work.step, work.batches, work.steps_per_epoch, work.optim,
        lambda epoch, metrics, due: rates.append(metrics["steps_per_second"]),
        state=build_state(work.step, work.optim), seed=SEED,
    )  # fmt: skip
    return result_of(rates, work.steps_per_epoch)


def run_ray(data: Path, epochs: int, num_workers: int) -> dict[str, float]:
    from avrec_ray.cluster_config import ClusterConfig, TrackingConfig
    from avrec_ray.pipelines.session import session
    from avrec_ray.pipelines.stage import Loop, StageRun
    from avrec_ray.pipelines.storage import Storage
    from avrec_ray.pipelines.train import run_trainer
    from benchmarks import train as importable

    cluster = ClusterConfig(num_workers=num_workers, max_failures=0)
    rates: list[float] = []
    steps = build_work(settings_of(data, epochs), 0, num_workers).steps_per_epoch
    with tempfile.TemporaryDirectory() as root, session(cluster):
        loop = Loop(Storage.at(root), TrackingConfig(system_metrics_seconds=0), "bench", echo=lambda line: None)

        def work(stage: StageRun) -> dict[str, float]:
            run_trainer(stage, cluster, importable.build_work, settings_of(data, epochs), epochs, SEED)
            history = loop.tracking.client.get_metric_history(stage.run.run_id, "train/steps_per_second")
            rates.extend(point.value for point in sorted(history, key=lambda point: point.step))
            return {}

        loop.stage("train", work, settings={}, inputs={}, outputs=[])
        loop.close()
    return result_of(rates, steps)


def run_rectools(data: Path, epochs: int) -> dict[str, float]:
    """In its own environment; nothing of avrec_ray is imported."""
    import time
    import warnings

    import pandas as pd
    import torch
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    users = json.loads(data.read_text())
    rows = [(user, item, 1.0, number) for user, items in enumerate(users) for number, item in enumerate(items)]
    table = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight, "number"])
    table[Columns.Datetime] = pd.to_datetime(table.pop("number"), unit="s")
    began: list[float] = []

    class Clock(Callback):
        def on_train_epoch_start(self, *_: object) -> None:
            began.append(time.perf_counter())

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=epochs + 1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Clock()],
        )  # fmt: skip

    model = SASRecModel(
        n_factors=DIM, n_blocks=2, n_heads=4, session_max_len=LENGTH, batch_size=BATCH, loss="softmax",
        epochs=epochs + 1, get_trainer_func=trainer, dataloader_num_workers=0, deterministic=False, verbose=0,
    )  # fmt: skip
    model.fit(Dataset.construct(table))
    seconds = [after - before for before, after in pairwise(began[1:])]
    return {"seconds_per_epoch": median(seconds)}


def child(variant: str, data: Path, epochs: int) -> None:
    """What `measure` starts."""
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "bare": lambda: run_bare(data, epochs),
        "ids": lambda: run_bare(data, epochs, ids_alone=True),
        "ray1": lambda: run_ray(data, epochs, 1),
        "ray2": lambda: run_ray(data, epochs, 2),
        "rectools": lambda: run_rectools(data, epochs),
    }
    print(json.dumps(runs[variant]()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--variant"]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--parts", default="loop,workers,rectools")
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--epochs", type=int, default=6)
        parser.add_argument("--rectools", default=os.environ.get("AVREC_RECTOOLS_PYTHON", ""))
        arguments = parser.parse_args()
        main(arguments.parts.split(","), arguments.rounds, arguments.epochs, arguments.rectools)
