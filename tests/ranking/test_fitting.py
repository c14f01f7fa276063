"""Early stopping: what is kept helped the users set aside most, and where nothing is learned nothing changes."""

import numpy as np
import pytest
import torch

from avrec_ray.errors import ConfigError
from avrec_ray.ranking.config import SCORES, RerankerConfig
from avrec_ray.ranking.fitting import HeldOut, fit_reranker, weigh_context
from tests.ranking.taste_problem import taste_problem


def test_hold_out_takes_whole_users_out_of_training() -> None:
    batches, _ = taste_problem(num_users=50)
    batches.queries[10:20] = [batches.queries[10]] * 10  # ten lists of one user
    before = set(batches.useful)
    held_out = batches.hold_out(0.2)
    assert set(held_out) | set(batches.useful) == before
    assert not set(held_out) & set(batches.useful)
    assert len({batches.queries[row].start for row in held_out}) == 8  # of 41 users
    assert not {batches.queries[r].start for r in held_out} & {batches.queries[r].start for r in batches.useful}


def test_hold_out_judges_by_lists_with_a_choice_alone() -> None:
    batches, _ = taste_problem(num_users=20)
    batches.labels[:, :, 0] = 0.0
    assert len(batches.hold_out(0.5)) == 0
    assert len(batches.useful) == 10


def test_fit_keeps_the_epoch_that_is_best_for_the_users_set_aside() -> None:
    batches, step = taste_problem(num_users=200)
    held_out = batches.hold_out(0.2)
    fitted = fit_reranker(step, batches, batches.cfg.optim, held_out)
    losses = [epoch["held_out"] for epoch in fitted.epochs]
    assert len(losses) == batches.cfg.optim.epochs
    assert losses[fitted.best_epoch - 1] == min(losses) < 0.7 * fitted.before
    assert HeldOut.of(step, batches, held_out).mean == min(losses)


def test_attention_that_helped_by_chance_is_not_kept() -> None:
    helped = 0
    for seed in range(8):
        batches, step = taste_problem(num_users=60, epochs=6, learning_rate=3e-3)
        rng = np.random.default_rng(seed)
        batches.labels[:] = rng.permuted(batches.labels, axis=1)  # nothing to learn
        held_out = batches.hold_out(0.3)
        fitted = fit_reranker(step, batches, batches.cfg.optim, held_out)
        plain = min(fitted.before, fitted.blended)
        helped += min(epoch["held_out"] for epoch in fitted.epochs) < plain
        assert fitted.best_epoch == 0
        assert HeldOut.of(step, batches, held_out).mean == fitted.kept == plain
    assert helped >= 2


def test_a_difference_counts_by_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    losses, shares = rng.normal(4, 1, 100), np.full(100, 0.01)
    plain = HeldOut(losses, shares)
    assert HeldOut(losses - 0.05, shares).surely_below(plain)  # the same for every list
    assert not plain.surely_below(plain)
    noise = rng.normal(0, 1, 100)
    noise -= noise.mean()
    assert not HeldOut(losses - 0.05 + noise, shares).surely_below(plain)
    assert HeldOut(losses - 0.25 + noise, shares).surely_below(plain)
    assert not HeldOut(losses + 0.25, shares).surely_below(plain)
    nothing = HeldOut(losses[:0], shares[:0])
    assert not nothing.surely_below(nothing)
    assert nothing.mean == 0.0


def test_fit_on_noise_leaves_the_matchers_order_alone() -> None:
    batches, step = taste_problem(num_users=60, epochs=10, learning_rate=0.1)
    rng = np.random.default_rng(1)
    batches.scores[:] = 4.0 * batches.labels[:, :, 0]  # the matcher knows, so that whatever is learned makes it worse
    training = batches.useful[:40]
    batches.labels[training] = rng.permuted(batches.labels[training], axis=1)
    batches.useful, held_out = training, np.arange(40, 60)
    before = {name: value.clone() for name, value in step.model.named_parameters()}
    fitted = fit_reranker(step, batches, batches.cfg.optim, held_out)
    assert fitted.best_epoch == 0
    assert fitted.epochs[-1]["held_out"] > fitted.before
    assert all(torch.equal(before[name], value) for name, value in step.model.named_parameters())


def test_fit_without_lists_changes_nothing() -> None:
    batches, step = taste_problem(num_users=10)
    batches.useful = batches.useful[:0]
    fitted = fit_reranker(step, batches, batches.cfg.optim, np.arange(0))
    assert (fitted.epochs, fitted.best_epoch, fitted.before) == ([], 0, 0.0)


def test_a_score_of_small_numbers_gets_the_weight_of_the_same_score_in_large_ones() -> None:
    batches, step = taste_problem(num_users=80)
    rng = np.random.default_rng(0)
    noisy = (batches.labels[:, :, 0] + rng.normal(size=batches.scores.shape)).astype(np.float32)
    weights = []
    for unit in (1.0, 1e-4):
        batches.scores[:] = unit * noisy
        weigh_context(step, batches)
        weights.append(step.model.context.weight[0, SCORES["matcher"]].item() * unit)
    assert weights[0] > 0.5
    assert weights[1] == pytest.approx(weights[0], rel=1e-3)


def test_scores_that_are_not_wanted_get_no_weight() -> None:
    batches, step = taste_problem(num_users=80)
    batches.scores[:] = 4.0 * batches.labels[:, :, 0]
    weigh_context(step, batches)
    assert step.model.context.weight[0, SCORES["matcher"]] > 1
    batches.cfg.scores = ["taste", "session"]
    weigh_context(step, batches)
    assert step.model.context.weight[0, SCORES["matcher"]] == 0
    with pytest.raises(ConfigError, match="scores"):
        RerankerConfig(scores=["popularity"])
    with pytest.raises(ConfigError, match="scores"):
        RerankerConfig(scores=[])


def test_a_score_is_never_counted_against_what_it_speaks_for() -> None:
    batches, step = taste_problem(num_users=80)
    rng = np.random.default_rng(3)
    signal = np.abs(batches.labels[:, :, 0] + 0.5 * rng.normal(size=batches.scores.shape))
    batches.item_to_item[..., 0] = np.expm1(signal)
    batches.item_to_item[..., 1] = np.expm1(np.abs(0.9 * signal - 0.4 * batches.labels[:, :, 0]))  # nearly the same
    weigh_context(step, batches)
    weights = step.model.context.weight[0].detach()
    assert weights[SCORES["taste"]] > 0.5
    assert weights[SCORES["session"]] == 0.0
    assert (weights[list(SCORES.values())] >= 0).all()


def test_context_weights_are_where_the_listwise_loss_is_least() -> None:
    batches, step = taste_problem(num_users=80)
    rng = np.random.default_rng(2)
    told = batches.item_to_item[..., 0]
    told[:] = np.expm1(np.abs(rng.normal(size=batches.scores.shape)))
    noisy = batches.labels[:, :, 0] + 0.5 * rng.normal(size=batches.scores.shape)
    told += 3 * (noisy > 0.8)  # these tell something, the matcher's scores do not
    weigh_context(step, batches)
    weights = step.model.context.weight[0].detach().clone()
    assert weights[SCORES["taste"]] > 1.0
    assert abs(weights[0]) < 0.6
    best = step(batches.batch(batches.useful))["listwise"].item()
    for feature in (SCORES["matcher"], SCORES["taste"]):  # the others are the same for all items here
        for change in (-0.2, 0.2):
            with torch.no_grad():
                step.model.context.weight[0] = weights
                step.model.context.weight[0, feature] += change
            assert step(batches.batch(batches.useful))["listwise"].item() > best


def test_probabilities_of_the_fitted_heads_are_what_happens() -> None:
    batches, step = taste_problem(num_users=400)
    fitted = fit_reranker(step, batches, batches.cfg.optim, batches.hold_out(0.5))
    before, after = fitted.calibration_errors["choose"]
    assert after < before
    assert after < 0.05
    rows = batches.useful
    batch = batches.batch(rows)
    with torch.no_grad():
        said = step.model.probabilities(step.score(batch))[..., 0]
    assert said.mean().item() == pytest.approx(batch.labels[..., 0].mean().item(), abs=0.03)


def test_without_lists_set_aside_nothing_is_calibrated() -> None:
    batches, step = taste_problem(num_users=20, epochs=1)
    assert fit_reranker(step, batches, batches.cfg.optim, np.arange(0)).calibration_errors == {}
    assert step.model.calibration.tolist() == [[1.0, 0.0]] * 4
