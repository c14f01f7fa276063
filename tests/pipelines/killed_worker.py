"""What the workers of `test_train` train: a fine-tuning step in which one worker can be killed once, or fail always.

As a program it is a driver to be killed: python -m tests.pipelines.killed_worker FOLDER trains in a
cluster of its own.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from avrec_ray.cluster_config import ClusterConfig, TrackingConfig
from avrec_ray.pipelines.session import session
from avrec_ray.pipelines.stage import Loop, StageRun
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.train import Work, run_trainer
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.sequence_batches import SequenceBatch, SequenceBatches
from avrec_ray.training.steps import FinetuneStep
from avrec_ray.training.weights import load_weights
from tests.tiny_models import random_columns, random_tokens, tiny_towers

CFG = tiny_towers(dropout=0.1)
NUM_ITEMS, EPOCHS, KILLED_IN_EPOCH = 20, 4, 2
CLUSTER = ClusterConfig(num_workers=2, max_failures=1)
PAUSE = "AVREC_TEST_SECONDS_A_BATCH"
"""Variable of the environment, so that it is no part of the stage's fingerprint."""


def build_step() -> FinetuneStep:
    """The same step on every worker."""
    torch.manual_seed(0)
    warm = torch.ones(NUM_ITEMS, dtype=torch.bool)
    return FinetuneStep(TwoTower(CFG, NUM_ITEMS), random_tokens(CFG, NUM_ITEMS), warm)


def build_work(settings: dict[str, Any], rank: int, num_workers: int) -> Work:
    """`settings["killed"]`: a file that a killed worker leaves, so that it dies once. `settings["error"]`: raised.

    Half of an epoch is in the last checkpoint when it dies.
    """
    if settings.get("error"):
        raise ValueError(settings["error"])
    cfg = FinetuneConfig(
        epochs=EPOCHS, batch_size=4, learning_rate=1e-2, checkpoint_every_epochs=1, checkpoint_every_steps=1
    )
    batches = SequenceBatches(random_columns(16, NUM_ITEMS), NUM_ITEMS, cfg, CFG.history_length, 0, rank, num_workers)

    def batches_until_killed(epoch: int) -> Iterator[SequenceBatch]:
        marker = Path(settings["killed"]) if settings.get("killed") else None
        for number, batch in enumerate(batches(epoch)):
            if marker and rank == 1 and epoch == KILLED_IN_EPOCH and number == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(float(os.environ.get(PAUSE, "0")))
            yield batch

    return Work(build_step(), batches_until_killed, batches.steps_per_epoch, cfg)


def train(root: Path, **settings: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """A stage that trains; its weights and what it said. The same root and settings are the same training."""
    said: list[str] = []
    cfg = TrackingConfig(system_metrics_seconds=0)
    loop = Loop(Storage.at(str(root)), cfg, "test", echo=said.append)
    weights: dict[str, torch.Tensor] = {}

    def work(stage: StageRun) -> dict[str, float]:
        checkpoint = run_trainer(stage, CLUSTER, build_work, settings, EPOCHS, seed=0)
        step = build_step()
        load_weights(checkpoint / "checkpoint" / "model.safetensors", step)
        weights.update(step.state_dict())
        return {}

    loop.stage("train", work, settings=settings, inputs={}, outputs=[root / "never"])  # so that it is never skipped
    loop.close()
    return weights, [line for line in said if "epoch" in line]


def main(folder: Path) -> None:
    """The driver."""
    with session(ClusterConfig(num_cpus=4, object_store_bytes=200_000_000)):
        weights, said = train(folder)
    save_file(weights, str(folder / "weights.safetensors"))
    print("\n".join(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
