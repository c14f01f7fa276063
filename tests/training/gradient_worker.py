"""One worker of `test_distributed`: the gradients of both steps on its share of a batch, written to a file.

Run as: python -m tests.training.gradient_worker RANK NUM_WORKERS FOLDER. One worker runs without a process group.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avrec_ray.towers.item_tower import ItemInputs, ItemTower
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.distributed import gather_rows, world
from avrec_ray.training.sequence_batches import SequenceBatch, SequenceBatches
from avrec_ray.training.steps import FinetuneStep, PretrainStep
from tests.tiny_models import random_columns, random_inputs, random_tokens, tiny_towers

CFG = tiny_towers()
NUM_ITEMS, GLOBAL_BATCH = 25, 8
DDP_SETTINGS = {"find_unused_parameters": True, "broadcast_buffers": False}
"""As the training pipeline sets it, which this test does not import: it would start Ray in each worker."""


def clips_of(rank: int, num_workers: int) -> ItemInputs:
    """This worker's rows of one batch in which modalities are missing, more of them on one worker than on the other."""
    inputs = random_inputs(CFG, GLOBAL_BATCH)
    inputs.has_video[[0, 2]] = False
    inputs.has_audio[[1, 4]] = False
    inputs.word_ids[6] = 0
    return ItemInputs(**{name: value[rank::num_workers] for name, value in vars(inputs).items()})


FINETUNINGS: dict[str, dict[str, Any]] = {
    "full": {"negatives": "full"},
    "mixed": {"negatives": "mixed"},
    "in_batch": {"negatives": "in_batch", "mask_own": "none"},
    "uniform": {"negatives": "uniform", "mask_own": "history"},
    "corrected": {"negatives": "mixed", "loss": "corrected", "mask_own": "history"},
    "gbce": {"negatives": "uniform", "loss": "gbce"},
    "auxiliary": {"negatives": "mixed", "auxiliary_weights": {"like": 0.5, "watch": 1.0, "skip": 0.2}},
}
"""Name of a fine-tuning -> what of its config is not the default."""
STEPS = ("infonce", "siglip", "chunked", *FINETUNINGS)


def finetuning(name: str, num_workers: int) -> FinetuneConfig:
    """The config of one of FINETUNINGS as a worker sees it; targets weigh 1 or 3."""
    return FinetuneConfig(
        batch_size=GLOBAL_BATCH // num_workers,
        num_uniform=6,
        event_weights={"view": 1.0, "like": 3.0, "share": 1.0},
        **FINETUNINGS[name],
    )


def sequences_of(rank: int, num_workers: int, cfg: FinetuneConfig) -> SequenceBatch:
    """This worker's share of one step."""
    columns = random_columns(GLOBAL_BATCH, NUM_ITEMS, seed=4)
    durations = np.linspace(5, 60, NUM_ITEMS, dtype=np.float32)
    batches = SequenceBatches(columns, NUM_ITEMS, cfg, CFG.history_length, 0, rank, num_workers, durations=durations)
    return next(iter(batches(0)))


def steps(rank: int, num_workers: int) -> Iterator[tuple[str, nn.Module, Any]]:
    """Name, freshly seeded step module and this worker's batch."""
    for name, loss, chunk_size in (("infonce", "infonce", 0), ("siglip", "siglip", 0), ("chunked", "infonce", 3)):
        torch.manual_seed(0)
        yield name, PretrainStep(ItemTower(CFG), loss, chunk_size), clips_of(rank, num_workers)
    for name in FINETUNINGS:
        torch.manual_seed(0)
        items, warm, cfg = (
            random_tokens(CFG, NUM_ITEMS),
            torch.arange(NUM_ITEMS) % 3 != 0,
            finetuning(name, num_workers),
        )
        batch = sequences_of(rank, num_workers, cfg)
        yield name, FinetuneStep(TwoTower(CFG, NUM_ITEMS), items, warm, cfg), batch


def gradients(rank: int, num_workers: int) -> dict[str, Tensor]:
    """Gradient of every weight of every step, after DDP averaged them, and each step's loss."""
    found: dict[str, Tensor] = {}
    for name, step, batch in steps(rank, num_workers):
        wrapped = DistributedDataParallel(step, **DDP_SETTINGS) if num_workers > 1 else step
        loss = wrapped(batch)["loss"]
        loss.backward()
        found[f"{name}/loss"] = loss.detach().reshape(1)
        for key, weight in step.named_parameters():
            found[f"{name}/{key}"] = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return found


def gathered(rank: int, num_workers: int) -> dict[str, Tensor]:
    """What `gather_rows` returns for rows that say their rank, and the gradient of a loss that differs by worker."""
    local = torch.full((2, 3), float(rank), requires_grad=True)
    rows = gather_rows(local)
    weights = torch.arange(rows.numel(), dtype=torch.float32).view_as(rows)
    (rows * weights * (1 + rank)).sum().backward()
    assert local.grad is not None
    assert world() == (rank, num_workers)
    return {"gather/rows": rows.detach(), "gather/grad": local.grad}


def main() -> None:
    rank, num_workers, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    if num_workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_workers)
    found = {**gathered(rank, num_workers), **gradients(rank, num_workers)}
    save_file({name: value.contiguous() for name, value in found.items()}, str(folder / f"{num_workers}_{rank}"))
    if num_workers > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
