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


def sigmoid_pair(
    a_BD: Tensor, b_GD: Tensor, both_B: Tensor, both_G: Tensor, rank: int, scale: Tensor, bias: Tensor
) -> Tensor:
    """Sum over this worker's anchors of the sigmoid loss between two modalities (SigLIP, Zhai et al. 2023).

    Every pair of an anchor `a` and a `b` of any worker is a decision of its own: -log sigmoid(z (scale a.b + bias)), z
    being 1 for the same item and -1 else. Arguments are those of `contrast_pair`; absent modalities take part in none.

    Returns:
        a scalar; divide by the number of rows with both over all workers (anchors, not pairs).
    """
    logits_BG = scale * a_BD @ b_GD.T + bias
    row_B = torch.arange(len(a_BD), device=a_BD.device)
    sign_BG = torch.full_like(logits_BG, -1.0)
    sign_BG[row_B, row_B + rank * len(a_BD)] = 1.0
    counts_BG = both_B[:, None] & both_G[None, :]
    return -(F.logsigmoid(sign_BG * logits_BG) * counts_BG).sum()


def retrieved_first(a_BD: Tensor, b_GD: Tensor, both_B: Tensor, both_G: Tensor, rank: int) -> Tensor:
    """How many anchors with both modalities find their own item's other modality before all others, a scalar."""
    found_B = (a_BD @ b_GD.T).masked_fill(~both_G[None, :], -torch.inf).argmax(1)
    target_B = torch.arange(len(a_BD), device=a_BD.device) + rank * len(a_BD)
    return ((found_B == target_B) & both_B).sum()


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


def corrected_softmax(
    queries_QD: Tensor,
    candidates_VD: Tensor,
    target_Q: Tensor,
    barred_QV: Tensor,
    scale: Tensor,
    log_q_V: Tensor | None,
) -> Tensor:
    """As `sampled_softmax`, with the positive outside of the correction (arXiv 2507.09331, RecSys 2025).

    The positive is among the candidates with certainty, so only negatives are divided by their chance of being drawn;
    each example weighs 1 - P(positive), which does not pass gradient. Without `log_q_V` this is the plain softmax.
    """
    if log_q_V is None:
        return sampled_softmax(queries_QD, candidates_VD, target_Q, barred_QV, scale, None)
    logits_QV = scale * queries_QD @ candidates_VD.T
    positive_Q = logits_QV.gather(1, target_Q[:, None]).squeeze(1)
    barred_QV = barred_QV.scatter(1, target_Q[:, None], True)
    negatives_Q = torch.logsumexp((logits_QV - log_q_V[None, :]).masked_fill(barred_QV, -1e9), 1)
    # The gradient of the full loss is 1 - P times that of (log sum of negatives - positive), and 1 - P is this sigmoid.
    weight_Q = torch.sigmoid(negatives_Q - positive_Q).detach()
    return weight_Q * (negatives_Q - positive_Q)


def gbce(
    queries_QD: Tensor,
    candidates_VD: Tensor,
    target_Q: Tensor,
    barred_QV: Tensor,
    scale: Tensor,
    num_items: int,
    calibration: float,
) -> Tensor:
    """Generalised binary cross entropy, [Q] (gSASRec, Petrov & Macdonald, RecSys 2023).

    -(log sigmoid(s+)^beta + sum of log(1 - sigmoid(s-)) over k negatives) / (k + 1). Few negatives make probabilities
    overconfident; beta = alpha (t (1 - 1/alpha) + 1/alpha) with alpha the share of all negatives that is sampled and t
    `calibration`: 0 is plain binary cross entropy, 1 undoes the sampling. Nothing else is corrected for.
    """
    logits_QV = scale * queries_QD @ candidates_VD.T
    positive_Q = logits_QV.gather(1, target_Q[:, None]).squeeze(1)
    counts_QV = ~barred_QV.scatter(1, target_Q[:, None], True)
    alpha_Q = (counts_QV.sum(1).double() / max(num_items - 1, 1)).clamp(1e-9, 1.0)
    beta_Q = alpha_Q * (calibration * (1 - 1 / alpha_Q) + 1 / alpha_Q)
    wrong_Q = (F.logsigmoid(-logits_QV) * counts_QV).sum(1)
    return -(beta_Q.to(logits_QV.dtype) * F.logsigmoid(positive_Q) + wrong_Q) / (counts_QV.sum(1) + 1)
