"""What sampled losses converge to: trained on choices from known chances, they must give these chances back.

Dimension key: K kinds of users, N items, D embedding, B choices a step, V candidates.
"""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from avrec_ray.towers.losses import corrected_softmax, mixed_log_q, sampled_softmax

KINDS, NUM_ITEMS, DIM, BATCH, NUM_UNIFORM, STEPS = 4, 60, 16, 24, 4, 1200
LOSSES = {"softmax": sampled_softmax, "corrected": corrected_softmax}


def chances() -> Tensor:
    """[K, N]: popularity falls as 1 / rank, and each kind of user has its own taste on top."""
    generator = torch.Generator().manual_seed(0)
    popularity_N = -torch.log(torch.arange(1, NUM_ITEMS + 1).float())
    return (popularity_N + torch.randn(KINDS, NUM_ITEMS, generator=generator)).softmax(1)


@cache
def gap(loss: str, sampled: bool, logq: bool = True) -> float:
    """Mean KL divergence, nats, of the chances that training finds from those that choices were drawn by."""
    torch.manual_seed(0)
    rng, truth_KN = np.random.default_rng(0), chances()
    query_KD, item_ND = (torch.nn.Parameter(0.1 * torch.randn(rows, DIM)) for rows in (KINDS, NUM_ITEMS))
    optimizer = torch.optim.Adam([query_KD, item_ND], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    frequency_N = truth_KN.mean(0)
    for _ in range(STEPS):
        kind_B = torch.from_numpy(rng.integers(0, KINDS, BATCH))
        chosen_B = torch.from_numpy(
            np.array([rng.choice(NUM_ITEMS, p=truth_KN[k].double() / truth_KN[k].double().sum()) for k in kind_B])
        )
        candidates_V, log_q_V = torch.arange(NUM_ITEMS), None
        if sampled:
            drawn = rng.integers(0, NUM_ITEMS, NUM_UNIFORM)
            candidates_V = torch.from_numpy(np.union1d(chosen_B.numpy(), drawn))
            if logq:
                log_q_V = mixed_log_q(frequency_N[candidates_V], BATCH, NUM_UNIFORM, NUM_ITEMS)
        column_N = torch.zeros(NUM_ITEMS, dtype=torch.long)
        column_N[candidates_V] = torch.arange(len(candidates_V))
        barred_BV = torch.zeros(BATCH, len(candidates_V), dtype=torch.bool)
        one = torch.tensor(1.0)
        loss_B = LOSSES[loss](query_KD[kind_B], item_ND[candidates_V], column_N[chosen_B], barred_BV, one, log_q_V)
        optimizer.zero_grad()
        loss_B.mean().backward()
        optimizer.step()
        schedule.step()
    found_KN = (query_KD @ item_ND.T).detach().log_softmax(1)
    return float((truth_KN * (truth_KN.log() - found_KN)).sum(1).mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_sampled_loss_with_logq_converges_to_the_full_softmax(loss: str) -> None:
    full, sampled = gap("softmax", sampled=False), gap(loss, sampled=True)
    assert sampled < full + 0.05, f"KL from the truth: full softmax {full:.4f}, sampled with logQ {sampled:.4f}"


def test_without_logq_it_converges_to_something_else() -> None:
    with_logq, without = gap("softmax", sampled=True), gap("softmax", sampled=True, logq=False)
    assert without > 3 * with_logq, f"KL from the truth: with logQ {with_logq:.4f}, without {without:.4f}"
