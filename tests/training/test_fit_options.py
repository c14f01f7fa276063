"""What can be switched on in the loop: accumulation, averaging, precision, stopping early, resuming within an epoch."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avrec_ray.errors import ConfigError
from avrec_ray.training.checkpoint import load_state, save_state
from avrec_ray.training.config import FinetuneConfig, OptimConfig
from avrec_ray.training.ema import MovingAverage
from avrec_ray.training.fit import build_state, fit, grouped, shares
from avrec_ray.training.precision import autocast, grad_scaler, resolve_precision
from avrec_ray.training.state import Patience, TrainState
from tests.training.test_fit import Line, finetune_parts, pretrain_parts

ALL_ON: dict[str, Any] = {"accumulate_steps": 2, "ema_decay": 0.8, "checkpoint_every_steps": 1}


def trained(
    step: nn.Module,
    batches: Any,
    steps_per_epoch: int,
    cfg: OptimConfig,
    state: TrainState | None = None,
    **options: Any,
) -> tuple[TrainState, list[dict[str, float]]]:
    """A whole training and its reports."""
    state = state or build_state(step, cfg)
    reports: list[dict[str, float]] = []
    fit(step, batches, steps_per_epoch, cfg, lambda e, m, due: reports.append(m), state=state, seed=3, **options)
    return state, reports


class Weighted:
    """A batch that says how much its mean counts."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.total_weight = torch.tensor(values), float(len(values))


class MeanOfTargets(nn.Module):
    """loss = mean over the batch of (weight - target)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, batch: Weighted) -> dict[str, Tensor]:
        return {"loss": (self.weight - batch.values).pow(2).mean()}


def test_accumulated_batches_of_different_weight_give_the_update_of_the_batch_of_all_of_them() -> None:
    parts = [[1.0, 2.0, 6.0], [4.0]]
    cfg = OptimConfig(epochs=3, learning_rate=0.1, clip_norm=100.0)
    apart, joined = MeanOfTargets(), MeanOfTargets()
    accumulating = dataclasses.replace(cfg, accumulate_steps=2)
    _, reports = trained(apart, lambda e: [Weighted(v) for v in parts], 2, accumulating)
    trained(joined, lambda e: [Weighted([v for part in parts for v in part])], 1, cfg)
    torch.testing.assert_close(apart.weight, joined.weight)
    assert reports[0]["grad_norm"] == pytest.approx(2 * (1 + 2 + 6 + 4) / 4)


def test_accumulation_of_the_real_steps_changes_weights_once_a_group_and_keeps_the_last_short_one() -> None:
    step, batches, cfg = finetune_parts()
    steps = batches.steps_per_epoch
    assert steps % 2 == 0
    three = dataclasses.replace(cfg, accumulate_steps=steps - 1)
    state, _ = trained(step, batches, steps, three)
    assert state.num_updates == 2 * cfg.epochs
    assert [len(group) for group in grouped(range(7), 3)] == [3, 3, 1]
    assert shares([1, 2]) == [0.5, 0.5]
    assert shares([Weighted([]), Weighted([])]) == [0.5, 0.5]


@pytest.mark.parametrize("parts", [finetune_parts, pretrain_parts])
@pytest.mark.parametrize("kill", [1, 2, 3])
def test_resumed_within_an_epoch_equals_an_uninterrupted_run_bit_for_bit(parts: Any, kill: int, tmp_path: Path) -> None:
    def run(stop_at: int) -> tuple[TrainState, list[dict[str, float]]]:
        step, batches, cfg = parts()
        cfg = dataclasses.replace(cfg, **{**ALL_ON, "accumulate_steps": 1}, epochs=2)
        state, saved = build_state(step, cfg), 0
        if (tmp_path / "c").exists():
            load_state(tmp_path / "c", state)

        def save(state: TrainState) -> None:
            nonlocal saved
            saved += 1
            if stop_at:
                save_state(tmp_path / "c", state)
            if saved == stop_at:
                raise KeyboardInterrupt

        return trained(step, batches, batches.steps_per_epoch, cfg, state, save=save)

    whole, reports = run(0)
    with pytest.raises(KeyboardInterrupt):
        run(kill)
    torch.manual_seed(999)
    resumed, again = run(0)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value), name
    assert whole.average is not None
    assert resumed.average is not None
    assert all(torch.equal(value, resumed.average.weights[name]) for name, value in whole.average.weights.items())
    assert [r["loss"] for r in again] == [r["loss"] for r in reports[len(reports) - len(again) :]]


def test_moving_average_is_the_textbook_recurrence_and_swaps_in_and_out() -> None:
    module = Line()
    average = MovingAverage(module, 0.9)
    values = []
    for number in range(1, 200):
        with torch.no_grad():
            module.weight.fill_(float(number))
        average.update(number)
        values.append(float(average.weights["weight"]))
    expected = 0.0
    for number in range(1, 200):
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * number
    assert values[-1] == pytest.approx(expected, rel=1e-5)
    with average.in_place():
        assert module.weight.item() == values[-1]
    assert module.weight.item() == 199.0


def test_the_average_is_what_is_validated_reported_and_kept(tmp_path: Path) -> None:
    step, cfg = Line(), OptimConfig(epochs=2, learning_rate=0.5, ema_decay=0.9, validate_every_epochs=1)
    seen: list[float] = []
    state = build_state(step, cfg)
    trained(step, lambda e: [torch.tensor(1.0)] * 3, 3, cfg, state, validate=lambda m: {"x": note(m, seen)},
            save=lambda state: save_state(tmp_path / "c", state))  # fmt: skip
    assert state.average is not None
    assert seen[-1] == float(state.average.weights["weight"]) != step.weight.item()
    other = Line()
    resumed = build_state(other, cfg)
    load_state(tmp_path / "c", resumed)
    assert other.weight.item() == step.weight.item()
    assert resumed.average is not None
    assert resumed.average.weights["weight"] == state.average.weights["weight"]


def note(module: nn.Module, seen: list[float]) -> float:
    assert not module.training
    seen.append(module.get_parameter("weight").item())
    return seen[-1]


def test_training_stops_after_patience_and_keeps_the_weights_of_the_best_validation(tmp_path: Path) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    step, weights = Line(), []
    cfg = OptimConfig(epochs=9, validate_every_epochs=1, patience=2, patience_metric="score", ema_decay=0.5)
    state = build_state(step, cfg)

    def validate(module: nn.Module) -> dict[str, float]:
        weights.append(module.get_parameter("weight").item())
        return {"score": next(scores)}

    def save(state: TrainState) -> None:
        save_state(tmp_path / "c", state)

    _, reports = trained(step, lambda e: [torch.tensor(1.0)], 1, cfg, state, validate=validate, save=save)
    assert [r["val/score"] for r in reports] == [0.1, 0.3, 0.2, 0.25]
    assert step.training
    resumed = build_state(Line(), cfg)
    load_state(tmp_path / "c", resumed)
    assert step.weight.item() == weights[1] == resumed.module.get_parameter("weight").item()
    assert resumed.patience.stopped
    _, more = trained(resumed.module, lambda e: pytest.fail("trained on"), 1, cfg, resumed, validate=validate)
    assert more == []


def test_patience_takes_nan_for_no_progress() -> None:
    patience = Patience()
    assert patience.judge(0.5, 0, patience=2)
    assert not patience.judge(float("nan"), 1, patience=2)
    assert not patience.stopped
    assert not patience.judge(0.5, 2, patience=2)  # equal is not better
    assert (patience.stopped, patience.epoch) == (True, 0)


def test_a_metric_that_is_not_measured_is_named() -> None:
    cfg = OptimConfig(epochs=1, validate_every_epochs=1, patience=1, patience_metric="mrr")
    with pytest.raises(ConfigError, match=r"patience_metric='mrr' is not one of \['ndcg_at_10'\]"):
        trained(Line(), lambda e: [torch.tensor(1.0)], 1, cfg, validate=lambda m: {"ndcg_at_10": 0.0})


def test_validation_happens_as_often_as_asked_and_not_at_all_by_default() -> None:
    for every, expected in ((0, 0), (2, 2)):
        calls: list[int] = []
        cfg = OptimConfig(epochs=5, validate_every_epochs=every)
        trained(
            Line(), lambda e: [torch.tensor(1.0)], 1, cfg, validate=lambda m, calls=calls: {"n": calls.append(1) or 0.0}
        )
        assert len(calls) == expected


def test_each_epoch_tells_rate_norm_and_pace_and_the_first_how_long_it_waited() -> None:
    cfg = OptimConfig(epochs=3, learning_rate=0.5)
    _, (first, second, third) = trained(Line(), lambda e: [torch.tensor(3.0)], 1, cfg)
    assert first["grad_norm"] == pytest.approx(6.0)
    assert first["learning_rate"] == pytest.approx(0.5)
    assert second["learning_rate"] > third["learning_rate"] > 0
    assert first["time_to_first_batch_seconds"] >= 0
    assert "time_to_first_batch_seconds" not in second
    assert second["steps_per_second"] > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_with_float32_weights_and_other_arithmetic(precision: str) -> None:
    losses = []
    for chosen in ("float32", precision):
        step, batches, cfg = finetune_parts()
        cfg = dataclasses.replace(cfg, epochs=6, learning_rate=1e-2, precision=chosen)
        _, reports = trained(step, batches, batches.steps_per_epoch, cfg)
        losses.append([r["loss"] for r in reports])
        assert {p.dtype for p in step.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1][-1] < losses[1][0]
    if precision == "bfloat16":  # float16 skips its first updates, until its scale is small enough
        assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_auto_precision_is_float32_on_a_cpu_and_does_nothing() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == "float32"
    with autocast("float32", cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with autocast("bfloat16", cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert not grad_scaler("bfloat16", cpu).is_enabled()
    assert grad_scaler("float16", cpu).is_enabled()


def test_float16_skips_an_update_whose_gradient_overflows() -> None:
    step, cfg = Line(), OptimConfig(epochs=1, precision="float16")
    state = build_state(step, cfg)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    _, (report,) = trained(step, lambda e: [torch.tensor(1e17)], 1, cfg, state)
    assert step.weight.item() == 0.0
    assert report["grad_norm"] == 0.0
    assert state.scaler.get_scale() == 2.0**99


def test_batches_that_can_start_anywhere_are_not_asked_for_what_was_done() -> None:
    class Startable:
        asked: list[int]

        def __call__(self, epoch: int) -> Iterator[Tensor]:
            return self.starting_at(epoch, 0)

        def starting_at(self, epoch: int, first: int) -> Iterator[Tensor]:
            self.asked = list(range(first, 4))
            return (torch.tensor(float(n)) for n in self.asked)

    batches, cfg = Startable(), OptimConfig(epochs=1)
    state = build_state(Line(), cfg)
    state.step = 3
    state.sums.update(loss=4.0)
    _, (report,) = trained(state.module, batches, 4, cfg, state)
    assert batches.asked == [3]
    assert report["loss"] == pytest.approx((4.0 + 9.0) / 4)


def test_the_global_batch_is_shared_out_evenly_or_refused() -> None:
    cfg = OptimConfig(batch_size=7, global_batch_size=12)
    assert [cfg.for_workers(n).batch_size for n in (1, 2, 3, 4)] == [12, 6, 4, 3]
    assert OptimConfig(batch_size=7).for_workers(5).batch_size == 7
    with pytest.raises(ConfigError, match="global_batch_size=12 does not divide among 5 workers; take 15"):
        cfg.for_workers(5)
    refreshed = FinetuneConfig(validate_every_epochs=1, patience=2).for_refresh()
    assert (refreshed.validate_every_epochs, refreshed.patience) == (0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accumulate_steps": 0}, "accumulate_steps=0 is outside"),
        ({"ema_decay": 1.0}, "ema_decay=1.0 is outside"),
        ({"precision": "int8"}, "precision='int8' is not one of"),
        ({"patience": 2}, "patience=2 needs validations; set validate_every_epochs"),
    ],
)
def test_impossible_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**values)
