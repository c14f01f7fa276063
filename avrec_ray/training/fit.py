"""The training loop, whole and visible. It knows no Ray: the caller passes `report`."""

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from avrec_ray.training.config import OptimConfig

T = TypeVar("T")

Report = Callable[[int, dict[str, float], bool], None]
"""report(epoch, metrics of the epoch, whether a checkpoint is due); called once an epoch. The metrics are the mean
losses, and `data_wait_share`: the share of the epoch's seconds in which the loop waited for its next batch."""


def build_optimizer(step: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors and scalars are not decayed."""
    trainable = [p for p in step.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.learning_rate)


def learning_rate(cfg: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then cosine to zero; a function of the step alone, so that resuming needs no state."""
    warmup = max(1, round(cfg.warmup_share * num_steps))
    if step < warmup:
        return cfg.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    step: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    steps_per_epoch: int,
    cfg: OptimConfig,
    report: Report,
    *,
    optimizer: torch.optim.Optimizer,
    start_epoch: int = 0,
    seed: int = 0,
    rank: int = 0,
) -> None:
    """Train `step`, a module from a batch to a dict with `loss`, for `cfg.epochs` epochs.

    Each epoch draws from (seed, epoch, rank) alone, so a run resumed at `start_epoch` equals an uninterrupted one.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is the state to go back to.
    """
    num_steps = cfg.epochs * steps_per_epoch
    device = next(step.parameters()).device
    step.train()
    for epoch in range(start_epoch, cfg.epochs):
        torch.manual_seed(hash((seed, epoch, rank)) & 0x7FFFFFFF)
        sums: dict[str, float] = defaultdict(float)
        began, waits = time.perf_counter(), Waits()
        for index, batch in enumerate(waits.timed(batches(epoch))):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(cfg, epoch * steps_per_epoch + index, num_steps)
            losses = step(to_device(batch, device))
            if not torch.isfinite(losses["loss"]):
                raise FloatingPointError(
                    f"loss is {losses['loss'].item()} in epoch {epoch}, step {index}: lower learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(step.parameters(), cfg.clip_norm)
            optimizer.step()
            for name, value in losses.items():
                sums[name] += value.item()
        means = {name: total / steps_per_epoch for name, total in sums.items()}
        means["data_wait_share"] = waits.seconds / (time.perf_counter() - began)
        due = (epoch + 1) % cfg.checkpoint_every_epochs == 0 or epoch + 1 == cfg.epochs
        report(epoch, means, due)


class Waits:
    """Adds up the seconds that a consumer waits for an iterable's next value."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, values: Iterable[T]) -> Iterator[T]:
        """The values, each one's wait added to `seconds`; the wait for the end counts too."""
        began = time.perf_counter()
        for value in values:
            self.seconds += time.perf_counter() - began
            yield value
            began = time.perf_counter()
        self.seconds += time.perf_counter() - began


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch dataclass with every tensor in it, nested ones too, on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **moved)
    return batch
