"""One worker of `test_sharding`: the same training with DDP or FSDP, on one worker or two, written to a file.

Run as: python -m tests.training.sharded_worker RANK NUM_WORKERS STRATEGY FOLDER [STOP_AT]. The training goes on from
the newest checkpoint in FOLDER/training, whoever wrote it; with STOP_AT the process ends after so many checkpoints.
"""

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.checkpoint import load_state
from avrec_ray.training.checkpoints import agreed_checkpoint, keep_state
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.fit import build_state, fit
from avrec_ray.training.sequence_batches import SequenceBatches
from avrec_ray.training.sharding import shard
from avrec_ray.training.state import TrainState
from avrec_ray.training.steps import FinetuneStep
from tests.tiny_models import random_columns, random_tokens, tiny_towers
from tests.training.gradient_worker import DDP_SETTINGS

TOWERS = tiny_towers()
NUM_ITEMS = 25
CFG = FinetuneConfig(
    epochs=3, global_batch_size=4, learning_rate=1e-2, accumulate_steps=2, ema_decay=0.5, checkpoint_every_epochs=1,
    checkpoint_every_steps=1, validate_every_epochs=1, patience=3, patience_metric="norm",
)  # fmt: skip


def build_step() -> FinetuneStep:
    torch.manual_seed(0)
    warm = torch.arange(NUM_ITEMS) % 3 != 0
    return FinetuneStep(TwoTower(TOWERS, NUM_ITEMS), random_tokens(TOWERS, NUM_ITEMS), warm)


def norm_of(module: nn.Module) -> dict[str, float]:
    """Something that depends on every weight, and falls."""
    return {"norm": -float(torch.stack([p.norm() for p in module.parameters()]).norm())}


def train(rank: int, num_workers: int, strategy: str, folder: Path, stop_at: int) -> None:
    cfg = CFG.for_workers(num_workers)
    step = build_step()
    twin = copy.deepcopy(step) if rank == 0 else None
    wrapped: nn.Module = step
    if strategy == "fsdp":
        wrapped = shard(step, torch.device("cpu"), smallest=100)
    elif num_workers > 1:
        wrapped = DistributedDataParallel(step, **DDP_SETTINGS)
    state = build_state(step, cfg)
    state.twin = twin if strategy == "fsdp" else None
    if found := agreed_checkpoint(folder / "training"):
        load_state(found, state)
    batches = SequenceBatches(
        random_columns(16, NUM_ITEMS), NUM_ITEMS, cfg, TOWERS.history_length, 0, rank, num_workers
    )
    saved = 0

    def save(state: TrainState) -> None:
        nonlocal saved
        keep_state(folder / "training", state)
        saved += 1
        if saved == stop_at:
            dist.barrier()
            os._exit(0)

    losses: list[float] = [metrics["loss"] for metrics in state.history]
    norms: list[float] = [metrics.get("val/norm", 0.0) for metrics in state.history]

    def report(epoch: int, metrics: dict[str, float], due: bool) -> None:
        state.history.append(metrics)
        losses.append(metrics["loss"])
        norms.append(metrics.get("val/norm", 0.0))

    fit(
        wrapped, batches, batches.steps_per_epoch, cfg, report,
        state=state, save=save, validate=norm_of, seed=0, rank=rank,
    )  # fmt: skip
    found_values = {"losses": torch.tensor(losses), "norms": torch.tensor(norms)}
    found_values["grad_norms"] = torch.tensor([metrics["grad_norm"] for metrics in state.history])
    save_file(found_values, str(folder / f"{rank}.safetensors"))


def main() -> None:
    rank, num_workers, strategy, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    stop_at = int(sys.argv[5]) if len(sys.argv) > 5 else -1
    torch.set_num_threads(1)
    if num_workers > 1 or strategy == "fsdp":
        meeting = f"file://{folder}/rendezvous{stop_at}{strategy}{num_workers}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_workers)
    train(rank, num_workers, strategy, folder, stop_at)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
