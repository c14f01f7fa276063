"""What the workers of `test_train` train: a fine-tuning step in which one worker can be killed once, or fail always."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from avrec_ray.pipelines.train import Work
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.sequence_batches import SequenceBatch, SequenceBatches
from avrec_ray.training.steps import FinetuneStep
from tests.tiny_models import random_columns, random_tokens, tiny_towers

CFG = tiny_towers(dropout=0.1)
NUM_ITEMS, EPOCHS, KILLED_IN_EPOCH = 20, 4, 2


def build_step() -> FinetuneStep:
    """The same step on every worker."""
    torch.manual_seed(0)
    warm = torch.ones(NUM_ITEMS, dtype=torch.bool)
    return FinetuneStep(TwoTower(CFG, NUM_ITEMS), random_tokens(CFG, NUM_ITEMS), warm)


def build_work(settings: dict[str, Any], rank: int, num_workers: int) -> Work:
    """`settings["killed"]`: a file that a killed worker leaves, so that it dies once. `settings["error"]`: raised."""
    if settings.get("error"):
        raise ValueError(settings["error"])
    cfg = FinetuneConfig(epochs=EPOCHS, batch_size=4, learning_rate=1e-2, checkpoint_every_epochs=1)
    batches = SequenceBatches(random_columns(16, NUM_ITEMS), NUM_ITEMS, cfg, CFG.history_length, 0, rank, num_workers)

    def batches_until_killed(epoch: int) -> Iterator[SequenceBatch]:
        marker = Path(settings["killed"]) if settings.get("killed") else None
        for number, batch in enumerate(batches(epoch)):
            if marker and rank == 1 and epoch == KILLED_IN_EPOCH and number == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    return Work(build_step(), batches_until_killed, batches.steps_per_epoch, cfg)
