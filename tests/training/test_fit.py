"""The loop: resumed equals uninterrupted, and a loss that breaks is not trained on."""

import dataclasses
import math
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import ConfigError
from avrec_ray.towers.item_tower import ItemTower
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.checkpoint import load_checkpoint, save_checkpoint
from avrec_ray.training.config import FinetuneConfig, OptimConfig, PretrainConfig
from avrec_ray.training.fit import build_optimizer, fit, learning_rate, to_device
from avrec_ray.training.sequence_batches import SequenceBatches
from avrec_ray.training.steps import FinetuneStep, PretrainStep
from tests.tiny_models import random_columns, random_inputs, random_tokens, tiny_towers
from tests.training.test_clip_batches import batches_of as clip_batches_of
from tests.training.test_clip_batches import clip_arrays

NOISY = tiny_towers(dropout=0.2, modality_dropout=0.3, id_dropout=0.3)
"""Every source of randomness is on: resuming must restore each."""
NUM_ITEMS = 25


def finetune_parts() -> tuple[nn.Module, SequenceBatches, FinetuneConfig]:
    torch.manual_seed(0)
    cfg = FinetuneConfig(epochs=4, batch_size=5, negatives="mixed", num_uniform=8, checkpoint_every_epochs=2)
    batches = SequenceBatches(random_columns(13, NUM_ITEMS), NUM_ITEMS, cfg, NOISY.history_length, seed=1)
    towers = TwoTower(NOISY, NUM_ITEMS)
    return FinetuneStep(towers, random_tokens(NOISY, NUM_ITEMS), torch.ones(NUM_ITEMS, dtype=torch.bool)), batches, cfg


def pretrain_parts() -> tuple[nn.Module, Any, PretrainConfig]:
    torch.manual_seed(0)
    cfg = PretrainConfig(epochs=4, batch_size=4, checkpoint_every_epochs=2)
    batches = clip_batches_of(clip_arrays(list(range(9))), crop_share=0.8, token_dropout=0.2, spec_masks=2)
    return PretrainStep(ItemTower(NOISY)), batches, cfg


def run(parts: tuple[nn.Module, Any, OptimConfig], folder: Path, resume: bool = False, stop_at: int = 99) -> nn.Module:
    """Fit, with a checkpoint when one is due; `stop_at` epochs in, the run dies."""
    step, batches, cfg = parts
    optimizer = build_optimizer(step, cfg)
    start = load_checkpoint(folder, step, optimizer) if resume else 0

    def report(epoch: int, losses: dict[str, float], due: bool) -> None:
        if due:
            save_checkpoint(folder, step, optimizer, epoch + 1)
        if epoch + 1 == stop_at:
            raise KeyboardInterrupt

    fit(step, batches, batches.steps_per_epoch, cfg, report, optimizer=optimizer, start_epoch=start, seed=3)
    return step


@pytest.mark.parametrize("parts", [finetune_parts, pretrain_parts])
def test_fit_resumed_after_a_kill_equals_an_uninterrupted_run_bit_for_bit(parts: Any, tmp_path: Path) -> None:
    whole = run(parts(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(parts(), tmp_path / "cut", stop_at=3)  # a whole epoch behind its last checkpoint
    torch.manual_seed(12345)
    resumed = run(parts(), tmp_path / "cut", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_fit_reports_mean_losses_once_an_epoch_and_when_a_checkpoint_is_due() -> None:
    step, batches, cfg = finetune_parts()
    cfg = dataclasses.replace(cfg, epochs=5)
    reports: list[tuple[int, bool]] = []
    fit(
        step, batches, batches.steps_per_epoch, cfg,
        lambda epoch, losses, due: reports.append((epoch, due)), optimizer=build_optimizer(step, cfg),
    )  # fmt: skip
    assert reports == [(0, False), (1, True), (2, False), (3, True), (4, True)]


class Line(nn.Module):
    """loss = (weight - batch)^2: arithmetic that a reader can do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.weight - batch).pow(2).sum(), "seen": batch.sum()}


class NoisyLine(Line):
    """Its loss draws from torch's generator, as dropout does."""

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return super().forward(batch + torch.randn(()))


def test_fit_means_are_over_the_steps_of_the_epoch() -> None:
    step, cfg, means = Line(), OptimConfig(epochs=1, learning_rate=0.0), []
    batches = [torch.tensor(1.0), torch.tensor(3.0)]
    fit(step, lambda epoch: batches, 2, cfg, lambda e, m, due: means.append(m), optimizer=build_optimizer(step, cfg))
    assert [{"loss": m["loss"], "seen": m["seen"]} for m in means] == [{"loss": 5.0, "seen": 2.0}]


def test_fit_tells_the_share_of_the_time_that_it_waited_for_batches() -> None:
    def slow_batches(epoch: int) -> Iterator[Tensor]:
        for _ in range(3):
            if epoch == 0:
                time.sleep(0.1)
            yield torch.tensor(1.0)

    step, cfg, shares = Slow(), OptimConfig(epochs=2), []
    report = lambda epoch, metrics, due: shares.append(metrics["data_wait_share"])  # noqa: E731
    fit(step, slow_batches, 3, cfg, report, optimizer=build_optimizer(step, cfg))
    assert 0.5 < shares[0] < 1
    assert 0 <= shares[1] < 0.2


class Slow(Line):
    """A step that takes 30 ms."""

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        time.sleep(0.03)
        return super().forward(batch)


def test_fit_with_a_loss_that_is_not_finite_stops_before_it_trains_on_it() -> None:
    step, cfg = Line(), OptimConfig(epochs=2)
    batches = [torch.tensor(1.0), torch.tensor(float("nan"))]
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 0, step 1: lower learning_rate"):
        fit(step, lambda epoch: batches, 2, cfg, lambda e, m, due: None, optimizer=build_optimizer(step, cfg))
    assert step.weight.isfinite().all()


def test_fit_clips_the_gradient() -> None:
    step, cfg = Line(), OptimConfig(epochs=1, clip_norm=0.5, warmup_share=0.0, learning_rate=1.0)
    optimizer = torch.optim.SGD(step.parameters(), lr=1.0)
    fit(step, lambda epoch: [torch.tensor(100.0)], 1, cfg, lambda e, m, due: None, optimizer=optimizer)
    assert step.weight.item() == pytest.approx(0.5)


class Noise(Line):
    """Keeps what it drew from torch's generator, as dropout does."""

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.weight - batch).pow(2).sum(), "drawn": torch.rand(())}


def drawn(seed: int, rank: int) -> list[float]:
    """What three epochs of one step draw."""
    step, cfg, found = Noise(), OptimConfig(epochs=3), []
    fit(
        step, lambda epoch: [torch.ones(())], 1, cfg, lambda e, m, due: found.append(m["drawn"]),
        optimizer=build_optimizer(step, cfg), seed=seed, rank=rank,
    )  # fmt: skip
    return found


def test_fit_draws_other_noise_in_every_epoch_worker_and_seed() -> None:
    noise = [drawn(seed, rank) for seed in (0, 1) for rank in (0, 1)]
    assert len({value for values in noise for value in values}) == 12
    assert drawn(1, 0) == noise[2]


def test_fit_of_no_epochs_does_nothing() -> None:
    step, cfg = Line(), OptimConfig(epochs=0)
    fit(step, lambda epoch: [], 1, cfg, lambda e, m, due: pytest.fail("reported"), optimizer=build_optimizer(step, cfg))


def test_learning_rate_climbs_then_falls_to_zero() -> None:
    cfg = OptimConfig(learning_rate=2.0, warmup_share=0.1)
    rates = [learning_rate(cfg, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert all(before > after for before, after in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.002
    assert learning_rate(cfg, 0, 1) == 2.0


def test_build_optimizer_decays_matrices_alone_and_skips_frozen_weights() -> None:
    step = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    step[2].requires_grad_(False)
    decayed, plain = build_optimizer(step, OptimConfig(weight_decay=0.3)).param_groups
    assert [p.shape for p in decayed["params"]] == [(2, 2)]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)


def test_to_device_moves_nested_tensors_and_keeps_the_rest() -> None:
    batch = next(iter(finetune_parts()[1](0)))
    moved = to_device(batch, torch.device("meta"))
    assert {moved.weight.device.type, moved.history.mask.device.type, moved.log_q.device.type} == {"meta"}
    assert moved.total_weight == batch.total_weight
    assert to_device(random_inputs(NOISY, 1), torch.device("meta")).frames.device.type == "meta"


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (OptimConfig, {"batch_size": 0}, "batch_size=0 is outside"),
        (OptimConfig, {"warmup_share": 1.5}, "warmup_share=1.5 is outside"),
        (PretrainConfig, {"crop_share": 0.0}, r"pretrain.crop_share=0.0 is outside \[0.1, 1.0\]"),
        (FinetuneConfig, {"negatives": "none"}, "finetune.negatives='none' is not one of"),
        (FinetuneConfig, {"event_weights": {"skip": 1.0}}, "finetune.event_weights='skip' is not one of"),
    ],
)
def test_configs_with_an_impossible_value_are_refused(cls: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(cls, values)
    assert from_dict(cls, to_dict(cls())) == cls()
    assert math.isfinite(cls().learning_rate)
