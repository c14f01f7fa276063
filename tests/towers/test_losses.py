"""Losses against slow loops and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avrec_ray.towers.losses import (
    contrast_pair,
    corrected_softmax,
    gbce,
    mixed_log_q,
    modality_pairs,
    retrieved_first,
    sampled_softmax,
    sigmoid_pair,
)

SCALE = torch.tensor(5.0)


def unit(rows: int, seed: int, dim: int = 6) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_contrast(a: Tensor, b: Tensor, both: Tensor, scale: float) -> float:
    """InfoNCE with plain loops over the rows that have both modalities."""
    rows = [row for row in range(len(a)) if both[row]]
    total = 0.0
    for anchor in rows:
        for left, right in ((a, b), (b, a)):
            exps = {other: math.exp(scale * float(left[anchor] @ right[other])) for other in rows}
            total += -0.5 * math.log(exps[anchor] / sum(exps.values()))
    return total


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 1000))
def test_contrast_pair_equals_plain_loops(both: list[bool], seed: int) -> None:
    a, b, mask = unit(len(both), seed), unit(len(both), seed + 1), torch.tensor(both)
    loss = contrast_pair(a, b, a, b, mask, mask, 0, SCALE)
    assert loss.item() == pytest.approx(naive_contrast(a, b, mask, 5.0), rel=1e-4, abs=1e-5)


def test_contrast_pair_of_workers_adds_up_to_that_of_one() -> None:
    a, b, both = unit(6, 0), unit(6, 1), torch.tensor([True, True, False, True, True, True])
    whole = contrast_pair(a, b, a, b, both, both, 0, SCALE)
    parts = [
        contrast_pair(a[rows], b[rows], a, b, both[rows], both, rank, SCALE)
        for rank, rows in enumerate((slice(0, 3), slice(3, 6)))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_contrast_pair_ignores_rows_without_both() -> None:
    a, b, both = unit(5, 0), unit(5, 1), torch.tensor([True, False, True, True, False])
    loss = contrast_pair(a, b, a, b, both, both, 0, SCALE)
    other = torch.where(both[:, None], b, unit(5, 7))
    assert torch.equal(contrast_pair(a, other, a, other, both, both, 0, SCALE), loss)
    kept = contrast_pair(a[both], b[both], a[both], b[both], both[both], both[both], 0, SCALE)
    torch.testing.assert_close(loss, kept)


def test_contrast_pair_gives_absent_rows_no_gradient() -> None:
    a, b = unit(4, 0).requires_grad_(), unit(4, 1).requires_grad_()
    both = torch.tensor([True, False, True, True])
    contrast_pair(a, b, a, b, both, both, 0, SCALE).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert (a.grad[1] == 0).all()
    assert (b.grad[1] == 0).all()
    assert (a.grad[both].abs().sum(1) > 0).all()


@pytest.mark.parametrize("both", [[False, False, False], [True, False, False]])
def test_contrast_pair_without_two_rows_to_compare_is_zero_and_finite(both: list[bool]) -> None:
    a, mask = unit(3, 0).requires_grad_(), torch.tensor(both)
    loss = contrast_pair(a, a, a, a, mask, mask, 0, SCALE)
    loss.backward()
    assert loss.item() == 0.0
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_modality_pairs_are_all_of_them() -> None:
    assert modality_pairs(("video", "audio", "text")) == [("video", "audio"), ("video", "text"), ("audio", "text")]


def test_sampled_softmax_over_the_catalogue_is_cross_entropy() -> None:
    queries, items, target = unit(7, 0), unit(20, 1), torch.randint(0, 20, (7,))
    loss = sampled_softmax(queries, items, target, torch.zeros(7, 20, dtype=torch.bool), SCALE, None)
    torch.testing.assert_close(loss, F.cross_entropy(5.0 * queries @ items.T, target, reduction="none"))


@given(st.integers(0, 1000))
def test_sampled_softmax_equals_plain_loops(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    queries, items = unit(4, seed), unit(9, seed + 1)
    target = torch.randint(0, 9, (4,), generator=rng)
    barred = torch.rand(4, 9, generator=rng) < 0.4
    log_q = torch.randn(9, generator=rng)
    loss = sampled_softmax(queries, items, target, barred, SCALE, log_q)
    for row in range(4):
        logits = {
            column: 5.0 * float(queries[row] @ items[column]) - float(log_q[column])
            for column in range(9)
            if column == target[row] or not barred[row, column]
        }
        expected = math.log(sum(math.exp(value) for value in logits.values())) - logits[int(target[row])]
        assert loss[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_sampled_softmax_never_bars_the_target_and_gives_barred_items_no_gradient() -> None:
    queries, items = unit(1, 0), unit(3, 1).requires_grad_()
    loss = sampled_softmax(queries, items, torch.tensor([1]), torch.tensor([[True, True, False]]), SCALE, None)
    loss.sum().backward()
    assert items.grad is not None
    assert (items.grad[0] == 0).all()
    assert (items.grad[1] != 0).any()


def test_mixed_log_q_of_rare_items_is_the_papers_proposal() -> None:
    frequency = torch.tensor([1e-5, 3e-5, 0.0])
    papers_q = (64 * frequency + 32 / 50_000) / (64 + 32)
    log_q = mixed_log_q(frequency, 64, 32, 50_000)
    torch.testing.assert_close(log_q - math.log(64 + 32), torch.log(papers_q), atol=2e-3, rtol=0)


def test_mixed_log_q_is_the_chance_to_be_among_the_distinct_candidates() -> None:
    frequency = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    rng = np.random.default_rng(0)
    hits = np.zeros(5)
    for _ in range(20_000):
        hits[np.union1d(rng.choice(5, 4, p=frequency), rng.integers(0, 5, 2))] += 1
    chance = mixed_log_q(torch.from_numpy(frequency), 4, 2, 5).exp().numpy()
    np.testing.assert_allclose(hits / 20_000, chance, atol=0.012)


@pytest.mark.parametrize("num_in_batch", [3, 40, 1000])
def test_mixed_log_q_makes_the_sampled_partition_unbiased(num_in_batch: int) -> None:
    # The denominator of the softmax over sampled candidates must be, on average, that over the whole catalogue.
    rng = np.random.default_rng(1)
    num_items, num_uniform = 60, 10
    frequency = 1 / np.arange(1, num_items + 1)
    frequency /= frequency.sum()
    exp_logit = np.exp(rng.normal(size=num_items))
    log_q = mixed_log_q(torch.from_numpy(frequency), num_in_batch, num_uniform, num_items).numpy()
    estimates = []
    for _ in range(4000):
        drawn = rng.choice(num_items, num_in_batch, p=frequency)
        candidates = np.union1d(drawn, rng.integers(0, num_items, num_uniform))
        estimates.append((exp_logit[candidates] / np.exp(log_q[candidates])).sum())
    assert np.mean(estimates) == pytest.approx(exp_logit.sum(), rel=0.02)


@pytest.mark.parametrize("frequency", [0.0, 1.0])
def test_mixed_log_q_is_finite_at_the_ends(frequency: float) -> None:
    log_q = mixed_log_q(torch.tensor([frequency]), 10, 5, 100)
    assert log_q.isfinite().all()
    assert log_q.item() <= 0.0


def test_sigmoid_pair_equals_plain_loops_over_pairs_that_have_both() -> None:
    a, b, both, bias = unit(5, 0), unit(5, 1), torch.tensor([True, False, True, True, True]), -2.0
    rows = [row for row in range(5) if both[row]]
    wanted = sum(
        math.log1p(math.exp((-1 if i == j else 1) * (5.0 * float(a[i] @ b[j]) + bias))) for i in rows for j in rows
    )
    loss = sigmoid_pair(a, b, both, both, 0, SCALE, torch.tensor(bias))
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_sigmoid_pair_gives_absent_rows_nothing() -> None:
    a, b, both = unit(4, 0).requires_grad_(), unit(4, 1).requires_grad_(), torch.tensor([True, False, True, True])
    loss = sigmoid_pair(a, b, both, both, 0, SCALE, torch.tensor(-10.0))
    loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    assert not a.grad[1].any()
    assert not b.grad[1].any()
    garbage = torch.where(both[:, None], b.detach(), torch.full_like(b, 7.0))
    assert torch.equal(sigmoid_pair(a.detach(), garbage, both, both, 0, SCALE, torch.tensor(-10.0)), loss.detach())


def test_retrieved_first_counts_anchors_whose_other_half_is_nearest() -> None:
    a, both = unit(4, 0), torch.tensor([True, True, True, False])
    assert retrieved_first(a, a, both, both, 0).item() == 3
    assert retrieved_first(a, a[[1, 0, 2, 3]], both, both, 0).item() == 1


def test_corrected_softmax_has_the_gradient_of_the_full_softmax_where_everything_is_a_candidate() -> None:
    target, barred, log_q = torch.tensor([2, 0, 4]), torch.zeros(3, 5, dtype=torch.bool), torch.zeros(5)
    grads = []
    for loss in (sampled_softmax, corrected_softmax):
        queries = unit(3, 0).requires_grad_()
        loss(queries, unit(5, 1), target, barred, SCALE, log_q).sum().backward()
        grads.append(queries.grad)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_equals_the_published_formula(calibration: float) -> None:
    queries, items, target, num_items = unit(3, 0), unit(5, 1), torch.tensor([2, 0, 4]), 40
    barred = torch.zeros(3, 5, dtype=torch.bool)
    barred[0, 1] = True
    found = gbce(queries, items, target, barred, SCALE, num_items, calibration)
    for q in range(3):
        negatives = [v for v in range(5) if v != target[q] and not barred[q, v]]
        alpha = len(negatives) / (num_items - 1)
        beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
        score = [1 / (1 + math.exp(-5.0 * float(queries[q] @ items[v]))) for v in range(5)]
        wanted = -(math.log(score[target[q]] ** beta) + sum(math.log(1 - score[v]) for v in negatives))
        assert found[q].item() == pytest.approx(wanted / (len(negatives) + 1), rel=1e-4)
