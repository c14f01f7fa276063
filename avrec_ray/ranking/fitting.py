"""Fitting the reranker only as far as it helps lists of users it does not learn from."""

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from avrec_ray.ranking.training import RerankBatches, RerankStep
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.fit import build_optimizer, fit

_LISTS_AT_ONCE = 32


@dataclass(frozen=True)
class FittedReranker:
    """How the fit went; the weights are in the step."""

    epochs: list[dict[str, float]]
    """Mean losses of each epoch, with `held_out`: the listwise loss of the users set aside."""
    before: float
    """The same loss before training, when the order is the matcher's."""
    best_epoch: int
    """Epochs of training that the weights kept have seen; 0: none helped, and the matcher's order stands."""


def fit_reranker(
    step: RerankStep, batches: RerankBatches, optim: OptimConfig, held_out: npt.NDArray[np.int64], seed: int = 0
) -> FittedReranker:
    """Train on `batches` and leave in `step` the weights of the epoch with the least listwise loss on `held_out`.

    Few lists and many weights overfit within an epoch or two. An untrained reranker keeps the matcher's order, and it
    takes part in the choice as epoch 0: on data where nothing can be learned, reranking changes nothing.

    Args:
        held_out: rows of `batches` that training leaves out, as `RerankBatches.hold_out` gives them.
    """
    before = held_out_loss(step, batches, held_out)
    best_loss, best_epoch, best_weights = before, 0, copy.deepcopy(step.model.state_dict())
    epochs: list[dict[str, float]] = []

    def keep_best(epoch: int, losses: dict[str, float], due: bool) -> None:
        nonlocal best_loss, best_epoch, best_weights
        loss = held_out_loss(step, batches, held_out)
        epochs.append({**losses, "held_out": loss})
        if loss < best_loss:
            best_loss, best_epoch, best_weights = loss, epoch + 1, copy.deepcopy(step.model.state_dict())

    if batches.steps_per_epoch and len(held_out):
        optimizer = build_optimizer(step, optim)
        fit(step, batches, batches.steps_per_epoch, optim, keep_best, optimizer=optimizer, seed=seed)
    step.model.load_state_dict(best_weights)
    return FittedReranker(epochs, before, best_epoch)


@torch.inference_mode()
def held_out_loss(step: RerankStep, batches: RerankBatches, rows: npt.NDArray[np.int64]) -> float:
    """Mean listwise loss over whole lists, all candidates; 0 without lists."""
    total = 0.0
    for start in range(0, len(rows), _LISTS_AT_ONCE):
        chunk = rows[start : start + _LISTS_AT_ONCE]
        total += step(batches.batch(chunk))["listwise"].item() * len(chunk)
    return total / max(len(rows), 1)
