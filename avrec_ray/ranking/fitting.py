"""Fitting the reranker: first how far to trust each given score, then attention, as far as it helps other users.

Dimension key: B queries, K candidates, C context features.
"""

import copy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from avrec_ray.ranking.calibration import calibration_error, fit_platt
from avrec_ray.ranking.conditional_logit import fit_weights
from avrec_ray.ranking.config import SCORES, TARGETS
from avrec_ray.ranking.training import RerankBatches, RerankStep
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.fit import build_optimizer, fit

CHOOSE = TARGETS.index("choose")
_SURE = 2.0
"""Standard errors by which attention has to help: several epochs are looked at, and one is always the best."""
_LISTS_AT_ONCE = 32


@dataclass(frozen=True)
class FittedReranker:
    """How the fit went; the weights are in the step."""

    epochs: list[dict[str, float]]
    """Mean losses of each epoch, with `held_out`: the listwise loss of the users set aside."""
    before: float
    """The same loss before training, when the order is the matcher's."""
    blended: float
    """The same loss with the context features weighed, before attention has learned anything."""
    best_epoch: int
    """Epochs of training that the weights kept have seen; 0: attention did not help."""
    kept: float
    """The same loss by the weights that are kept."""
    calibration_errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each target, before and after calibration, on lists that it was not fitted on; see `calibrate`."""


def fit_reranker(
    step: RerankStep, batches: RerankBatches, optim: OptimConfig, held_out: npt.NDArray[np.int64], seed: int = 0
) -> FittedReranker:
    """Train on `batches` and leave in `step` the weights of the epoch with the least listwise loss on `held_out`, or
    those without attention where the difference could be chance.

    The weights of the context (matcher, popularity, what chosen items say) are a convex problem of nine numbers and
    are solved first; by gradient steps of the size that attention bears they would not arrive. Few lists and many
    weights overfit within a few epochs. The matcher's own order takes part in the choice: where nothing can be learned,
    reranking changes nothing.

    Args:
        held_out: rows of `batches` that training leaves out, as `RerankBatches.hold_out` gives them.
    """
    first = HeldOut.of(step, batches, held_out)
    plain, plain_weights = first, copy.deepcopy(step.model.state_dict())
    weigh_context(step, batches)
    if (weighed := HeldOut.of(step, batches, held_out)).mean < first.mean:
        plain, plain_weights = weighed, copy.deepcopy(step.model.state_dict())
    else:
        step.model.load_state_dict(plain_weights)
    epochs: list[dict[str, float]] = []
    best, best_epoch, best_weights = plain, 0, plain_weights

    def keep_best(epoch: int, losses: dict[str, float], due: bool) -> None:
        nonlocal best, best_epoch, best_weights
        found = HeldOut.of(step, batches, held_out)
        epochs.append({**losses, "held_out": found.mean})
        if found.mean < best.mean:
            best, best_epoch, best_weights = found, epoch + 1, copy.deepcopy(step.model.state_dict())

    if batches.steps_per_epoch and len(held_out):
        optimizer = build_optimizer(step, optim)
        fit(step, batches, batches.steps_per_epoch, optim, keep_best, optimizer=optimizer, seed=seed)
    if best_epoch and not best.surely_below(plain):
        best_epoch, best_weights = 0, plain_weights
    step.model.load_state_dict(best_weights)
    kept = best if best_epoch else plain
    errors = calibrate(step, batches, held_out)
    return FittedReranker(epochs, first.mean, weighed.mean, best_epoch, kept.mean, errors)


def weigh_context(step: RerankStep, batches: RerankBatches) -> None:
    """Set the weights of the context features for `choose` to those of the least listwise loss on the training lists.

    A score never counts against what it speaks for: where two scores say nearly the same, one would be taken from the
    other, which fits the training lists and no others.
    """
    rows = batches.useful[batches.labels[batches.useful, :, CHOOSE].any(1)]
    if not len(rows):
        return
    lists = batches.batch(rows)
    target_BK, weight_B = lists.choices
    used_C, may_oppose_C = np.ones(lists.context.shape[-1]), np.ones(lists.context.shape[-1], np.bool_)
    used_C[[feature for name, feature in SCORES.items() if name not in batches.cfg.scores]] = 0.0
    may_oppose_C[list(SCORES.values())] = False
    weight_C = fit_weights(lists.context.numpy() * used_C, target_BK.numpy(), may_oppose_C, weight_B.numpy())
    with torch.no_grad():
        step.model.context.weight[CHOOSE] = torch.from_numpy(weight_C)


def calibrate(step: RerankStep, batches: RerankBatches, rows: npt.NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Set the slope and intercept of each target's logit by lists that its weights were not fitted on.

    Returns:
        For each target with outcomes the calibration error before and after: of the second half of the lists, by
        numbers of the first half. What is kept is fitted on all.
    """
    outcomes = [_outcomes(step, batches, part) for part in (rows[::2], rows[1::2])]
    errors = {}
    for place, target in enumerate(TARGETS):
        (logits, happened), (later_logits, later_happened) = (part[place] for part in outcomes)
        if len(logits) and len(later_logits):
            slope, intercept = fit_platt(logits, happened)
            raw, calibrated = expit(later_logits), expit(slope * later_logits + intercept)
            errors[target] = calibration_error(raw, later_happened), calibration_error(calibrated, later_happened)
        kept = fit_platt(np.concatenate([logits, later_logits]), np.concatenate([happened, later_happened]))
        step.model.calibration[place] = torch.tensor(kept)
    return errors


@torch.inference_mode()
def _outcomes(
    step: RerankStep, batches: RerankBatches, rows: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """Of each target the logits and outcomes of all candidates whose outcome is known."""
    found: list[tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.bool_]]]] = [([], []) for _ in TARGETS]
    for start in range(0, len(rows), _LISTS_AT_ONCE):
        batch = batches.batch(rows[start : start + _LISTS_AT_ONCE])
        logits_BKT = step.score(batch)
        for place, (logits, happened) in enumerate(found):
            known = ~batch.labels[..., place].isnan()
            logits.append(logits_BKT[..., place][known].numpy())
            happened.append(batch.labels[..., place][known].numpy() > 0)
    nothing = (np.zeros(0, np.float32), np.zeros(0, np.bool_))
    return [
        (np.concatenate([nothing[0], *logits]), np.concatenate([nothing[1], *happened])) for logits, happened in found
    ]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Listwise losses over whole lists, all candidates, of users set aside."""

    losses: npt.NDArray[np.float64]
    """[L]."""
    shares: npt.NDArray[np.float64]
    """[L]: how much each list counts; they sum to 1, or there are none."""

    @classmethod
    @torch.inference_mode()
    def of(cls, step: RerankStep, batches: RerankBatches, rows: npt.NDArray[np.int64]) -> "HeldOut":
        """Of the lists at `rows`, by the present weights."""
        found = []
        for start in range(0, len(rows), _LISTS_AT_ONCE):
            batch = batches.batch(rows[start : start + _LISTS_AT_ONCE])
            found.append(torch.stack(step.listwise(step.score(batch), batch)).numpy().astype(np.float64))
        losses, weights = np.concatenate([np.zeros((2, 0)), *found], 1)
        return cls(losses, weights / max(weights.sum(), 1e-9))

    @property
    def mean(self) -> float:
        """0 without lists."""
        return float(self.losses @ self.shares)

    def surely_below(self, other: "HeldOut") -> bool:
        """Whether the mean is below that of the same lists under other weights by more than chance would make it."""
        gains = other.losses - self.losses
        error = np.sqrt((self.shares**2 * (gains - gains @ self.shares) ** 2).sum())
        return bool(gains @ self.shares > _SURE * error)
