"""A moving average of the weights: what is validated and kept when it is on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average of the trainable weights of a module, kept beside them. Frozen weights and buffers are not averaged."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the module's weights after its `num_updates`-th update, counted from 1."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        for name, live in self._live.items():
            self.weights[name].lerp_(live.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module holds the average while the context lasts, and its own weights again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self.weights[name])
            self.weights[name].copy_(kept)
