"""What decides how a training goes on: all that a checkpoint holds."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from avrec_ray.errors import ConfigError
from avrec_ray.training.ema import MovingAverage


@dataclass(eq=False)
class Patience:
    """The best validation so far, and how many came after it."""

    value: float = float("-inf")
    epoch: int = -1
    """Epoch of the best validation, counted from 0; -1: none yet."""
    waited: int = 0
    stopped: bool = False
    """Training is over; no epoch is begun any more."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Trainable weights at the best validation."""

    def judge(self, value: float, epoch: int, patience: int) -> bool:
        """Take in a validation; true if it is the best so far. NaN is never best."""
        if value > self.value:
            self.value, self.epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        self.stopped = self.waited >= patience
        return False


@dataclass(eq=False)
class TrainState:
    """A module in training. `epoch` and `step` say what comes next, so the same numbers mean the same data."""

    module: nn.Module
    """The step module itself, without what wraps it."""
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None = None
    scaler: torch.amp.GradScaler | None = None
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Batches of the running epoch that are done."""
    num_updates: int = 0
    """Changes of the weights so far."""
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Sum over the batches done of each loss of the running epoch, on this worker."""
    patience: Patience = field(default_factory=Patience)
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each finished epoch, so that curves are whole whoever died when."""
    twin: nn.Module | None = None
    """On rank 0 of a sharded training that validates: a module of the same shape that holds whole weights."""
    random: dict[str, Tensor] = field(default_factory=dict)
    """Of a checkpoint that was read: generator states of all workers, uint8 [W, bytes] a kind of device."""

    @contextmanager
    def kept_weights(self) -> Iterator[nn.Module]:
        """The module with the weights that are validated and kept: the average where there is one."""
        if self.average is None:
            yield self.module
            return
        with self.average.in_place():
            yield self.module

    @torch.no_grad()
    def remember_best(self) -> None:
        """Keep a copy of the weights as they are now."""
        trainable = ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)
        self.patience.weights = {name: p.detach().clone() for name, p in trainable}

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the weights of the best validation into the module, and into the average."""
        for name, p in self.module.named_parameters():
            if name in self.patience.weights:
                p.copy_(self.patience.weights[name])
                if self.average is not None:
                    self.average.weights[name].copy_(p)


def monitored(metrics: dict[str, float], name: str) -> float:
    """The metric that decides when training ends.

    Raises:
        ConfigError: the validation does not measure it.
    """
    if name not in metrics:
        raise ConfigError(f"patience_metric={name!r} is not one of {sorted(metrics)}, which the validation measures")
    return metrics[name]
