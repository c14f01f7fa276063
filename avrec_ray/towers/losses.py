"""Losses as equations on arrays. Scores are dot products of unit vectors times a learned scale.

Dimension key: B batch, G gathered batch over all workers, D embedding, Q queries, V candidates.
"""

import math
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrast_pair(
    a_BD: Tensor, b_BD: Tensor, a_GD: Tensor, b_GD: Tensor, both_B: Tensor, both_G: Tensor, rank: int, scale: Tensor
) -> Tensor:
    """Sum over this worker's rows of the symmetric InfoNCE between two modalities (CLIP, Radford et al. 2021).

    Rows where either modality is absent are neither anchors nor negatives: an absent modality has no vector, and
    a shared stand-in would become a class of its own.

    Args:
        a_BD, b_BD: this worker's unit vectors.
        a_GD, b_GD: those of all workers, in rank order, with gradient.
        both_B, both_G: true where an item has both modalities.
        rank: position of this worker's rows in the gathered batch.
        scale: inverse temperature.

    Returns:
        a scalar; divide by the number of rows with both over all workers.
    """
    target_B = torch.arange(len(a_BD), device=a_BD.device) + rank * len(a_BD)
    absent_1G = ~both_G[None, :]
    forward = F.cross_entropy((scale * a_BD @ b_GD.T).masked_fill(absent_1G, -1e9), target_B, reduction="none")
    backward = F.cross_entropy((scale * b_BD @ a_GD.T).masked_fill(absent_1G, -1e9), target_B, reduction="none")
    return 0.5 * ((forward + backward) * both_B).sum()


def modality_pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every unordered pair.

    >>> modality_pairs(("video", "audio", "text"))
    [('video', 'audio'), ('video', 'text'), ('audio', 'text')]
    """
    return list(combinations(names, 2))


def mixed_log_q(frequency_V: Tensor, num_in_batch: int, num_uniform: int, num_items: int) -> Tensor:
    """log of the one proposal of mixed negative sampling (Yang et al. 2020), for candidates that are kept once each.

    Drawn B times by frequency p and B' times uniformly out of N, an item is among the distinct candidates with chance
    1 - (1 - p)^B (1 - 1/N)^B'. For rare items that is B p + B' / N, the paper's Q times its constant B + B'; an item
    that is in every step has chance 1, where Q would take it for many and make its logit too small.

    `frequency_V` is the share of each candidate among training targets; it sums to one over the catalogue.
    """
    missed_V = num_in_batch * torch.log1p(-frequency_V.double().clamp(max=1.0))
    missed_V = missed_V + num_uniform * math.log1p(-1.0 / max(num_items, 2))
    return torch.log(-torch.expm1(missed_V)).to(frequency_V.dtype)


def sampled_softmax(
    queries_QD: Tensor,
    candidates_VD: Tensor,
    target_Q: Tensor,
    barred_QV: Tensor,
    scale: Tensor,
    log_q_V: Tensor | None,
) -> Tensor:
    """Cross entropy of each query against sampled candidates, [Q].

    Subtracting `log_q_V`, the log chance that sampling proposed each candidate, undoes the penalty on popular
    items (Yi et al., RecSys 2019). It belongs to training only: serve without it.

    Args:
        queries_QD, candidates_VD: unit vectors.
        target_Q: column of each query's positive.
        barred_QV: true where a candidate must not count as a negative (accidental hits, own history).
        scale: inverse temperature.
        log_q_V: log proposal probability, or None for a full softmax over the catalogue.
    """
    logits_QV = scale * queries_QD @ candidates_VD.T
    if log_q_V is not None:
        logits_QV = logits_QV - log_q_V[None, :]
    barred_QV = barred_QV.scatter(1, target_Q[:, None], False)
    return F.cross_entropy(logits_QV.masked_fill(barred_QV, -1e9), target_Q, reduction="none")
