"""Auxiliary heads: what they are asked to tell, their loss by slow loops, and that they can learn it."""

import math

import numpy as np
import pytest
import torch

from avrec_ray.errors import ConfigError
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.auxiliary import AuxiliaryHeads, auxiliary_losses, auxiliary_targets
from avrec_ray.training.config import FinetuneConfig, OptimConfig
from avrec_ray.training.fit import build_optimizer, fit
from avrec_ray.training.histories import EVENT_CODES, EventColumns
from avrec_ray.training.sequence_batches import SequenceBatch, SequenceBatches
from avrec_ray.training.steps import FinetuneStep
from tests.tiny_models import random_columns, random_tokens, tiny_towers

CFG = tiny_towers()
NUM_ITEMS = 20
WARM = torch.arange(NUM_ITEMS) % 4 != 0
WEIGHTS = {"like": 0.5, "watch": 1.0, "skip": 0.25}
DURATIONS = np.full(NUM_ITEMS, 30, np.float32)


def columns_of(events: list[tuple[int, str, float]]) -> EventColumns:
    """One user's events: item, event, watched share."""
    num = len(events)
    return EventColumns(
        user_ids=["u"],
        starts=np.array([0, num]),
        item_idx=np.array([item for item, _, _ in events]),
        event=np.array([EVENT_CODES[event] for _, event, _ in events]),
        watch_ratio=np.array([ratio for _, _, ratio in events], np.float32),
        at_seconds=np.arange(num, dtype=np.float64),
    )


def batches_of(cfg: FinetuneConfig) -> SequenceBatches:
    columns = random_columns(6, NUM_ITEMS)
    return SequenceBatches(columns, NUM_ITEMS, cfg, CFG.history_length, seed=0, durations=DURATIONS)


def step_and_batch() -> tuple[FinetuneStep, SequenceBatch]:
    cfg = FinetuneConfig(batch_size=6, negatives="full", auxiliary_weights=WEIGHTS)
    torch.manual_seed(0)
    step = FinetuneStep(TwoTower(CFG, NUM_ITEMS), random_tokens(CFG, NUM_ITEMS), WARM, cfg)
    return step, next(iter(batches_of(cfg)(0)))


def test_the_first_meeting_is_told_all_that_came_of_it() -> None:
    nan = float("nan")
    log = [(3, "view", 0.2), (4, "skip", 0.1), (3, "like", nan), (3, "view", 0.9), (5, "view", nan)]
    found = auxiliary_targets(columns_of(log), DURATIONS)
    watched = {0.1: 1 / 6, 0.2: 3 / 6, 0.9: 5 / 6}  # quantiles of three known watch times
    assert found[0] == pytest.approx([1, watched[0.9], 0])
    assert found[1] == pytest.approx([0, watched[0.1], 1])
    assert np.isnan(found[2:4]).all()
    assert found[4] == pytest.approx([0, nan, 0], nan_ok=True)


def test_losses_equal_plain_loops_and_leave_out_what_is_unknown() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, -2.0]])
    targets = torch.tensor([[1.0, float("nan"), 0.0], [0.0, 0.7, float("nan")]])
    totals = torch.tensor([4.0, 1.0, 1.0])  # of like, two more on another worker

    def entropy(logit: float, target: float) -> float:
        chance = 1 / (1 + math.exp(-logit))
        return -target * math.log(chance) - (1 - target) * math.log(1 - chance)

    found = auxiliary_losses(logits, targets, totals, WEIGHTS)
    assert found["like"].item() == pytest.approx((entropy(0.5, 1) + entropy(1.5, 0)) / 4, rel=1e-5)
    assert found["watch"].item() == pytest.approx(entropy(0.0, 0.7), rel=1e-5)
    assert found["skip"].item() == pytest.approx(entropy(2.0, 0), rel=1e-5)
    assert list(auxiliary_losses(logits, targets, totals, {"skip": 1.0})) == ["skip"]


def test_the_loss_of_a_step_is_the_softmax_and_the_weighed_heads() -> None:
    step, batch = step_and_batch()
    step.eval()
    with torch.no_grad():
        whole = step(batch)
        batch.auxiliary = None
        alone = step(batch)
    extra = sum(weight * whole[name].item() for name, weight in WEIGHTS.items())
    assert whole["loss"].item() == pytest.approx(alone["loss"].item() + extra, rel=1e-5)
    assert extra > 0.1


def test_heads_learn_which_items_are_liked_and_which_skipped() -> None:
    columns = random_columns(6, NUM_ITEMS)
    columns.event[:] = np.where(columns.item_idx % 2, EVENT_CODES["like"], EVENT_CODES["skip"])
    cfg = FinetuneConfig(batch_size=6, negatives="full", auxiliary_weights=WEIGHTS)
    batches = SequenceBatches(columns, NUM_ITEMS, cfg, CFG.history_length, seed=0, durations=DURATIONS)
    step, _ = step_and_batch()
    optim = OptimConfig(epochs=150, learning_rate=1e-2, weight_decay=0.0)
    losses: list[dict[str, float]] = []
    fit(step, batches, 1, optim, lambda e, m, due: losses.append(m), optimizer=build_optimizer(step, optim))
    assert losses[-1]["like"] < 0.5 * losses[0]["like"]
    assert losses[-1]["skip"] < 0.7 * losses[0]["skip"]


def test_without_weights_there_are_no_heads() -> None:
    torch.manual_seed(0)
    step = FinetuneStep(TwoTower(CFG, NUM_ITEMS), random_tokens(CFG, NUM_ITEMS), WARM)
    assert not any(isinstance(module, AuxiliaryHeads) for module in step.modules())
    assert next(iter(batches_of(FinetuneConfig(batch_size=6))(0))).auxiliary is None


def test_unknown_heads_negative_weights_and_missing_durations_are_refused() -> None:
    with pytest.raises(ConfigError, match="auxiliary_weights"):
        FinetuneConfig(auxiliary_weights={"buy": 1.0})
    with pytest.raises(ConfigError, match="auxiliary_weights"):
        FinetuneConfig(auxiliary_weights={"like": -1.0})
    with pytest.raises(ValueError, match="auxiliary_weights"):
        SequenceBatches(random_columns(6, NUM_ITEMS), NUM_ITEMS, FinetuneConfig(auxiliary_weights=WEIGHTS), 8, seed=0)
