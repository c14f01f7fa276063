"""Is a set of embeddings well spread? Numbers that fall or rise before recommendations get worse.

Dimension key: N embeddings, D embedding, P pairs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_ROWS = 2048
"""Rows that `uniformity` compares with one another: 2 million pairs, an error of about .001."""


def embedding_health(embeddings_ND: Tensor, seed: int = 0) -> dict[str, float]:
    """Norms, collapse and uniformity of float embeddings [N, D], N at least 2.

    - `norm_mean`, `norm_std`: lengths before anything is normalised.
    - `spread`: mean standard deviation of a dimension of the unit vectors, times sqrt(D). 1 is evenly over the sphere,
      0 is all in one point (collapse; Chen & He 2021).
    - `dead_dimensions`: share of dimensions whose standard deviation is below a tenth of 1 / sqrt(D).
    - `effective_rank`: exp of the entropy of the singular values' shares, over D (Roy & Vetterli 2007). 1: all
      directions are used alike.
    - `uniformity`: see there.

    >>> health = embedding_health(torch.ones(5, 3))
    >>> health["spread"], health["dead_dimensions"], round(health["norm_mean"], 3)
    (0.0, 1.0, 1.732)
    """
    norms = embeddings_ND.norm(dim=1)
    unit_ND = F.normalize(embeddings_ND.double(), dim=1)
    num_dims = unit_ND.shape[1]
    deviation_D = unit_ND.std(0, correction=0)
    return {
        "norm_mean": norms.mean().item(),
        "norm_std": norms.std(correction=0).item(),
        "spread": deviation_D.mean().item() * math.sqrt(num_dims),
        "dead_dimensions": (deviation_D < 0.1 / math.sqrt(num_dims)).double().mean().item(),
        "effective_rank": effective_rank(unit_ND) / num_dims,
        "uniformity": uniformity(unit_ND, seed=seed),
    }


def effective_rank(vectors_ND: Tensor) -> float:
    """Directions that the centred vectors use, from 1 (or 0 if they are all equal) to min(N, D)."""
    values = torch.linalg.svdvals((vectors_ND - vectors_ND.mean(0)).double())
    if values.sum() < 1e-9 * max(1.0, vectors_ND.abs().max().item()):
        return 0.0
    shares = values / values.sum()
    return torch.exp(-torch.special.xlogy(shares, shares).sum()).item()


def uniformity(embeddings_ND: Tensor, t: float = 2.0, seed: int = 0) -> float:
    """log mean exp(-t |x - y|^2) over all pairs of unit vectors (Wang & Isola 2020): 0 in one point, lower: more even.

    Of more than 2,048 embeddings a sample is compared.
    """
    unit_ND = F.normalize(embeddings_ND.double(), dim=1)
    if len(unit_ND) > _MOST_ROWS:
        generator = torch.Generator().manual_seed(seed)
        unit_ND = unit_ND[torch.randperm(len(unit_ND), generator=generator)[:_MOST_ROWS].to(unit_ND.device)]
    first, second = torch.triu_indices(len(unit_ND), len(unit_ND), 1, device=unit_ND.device)
    # |x - y|^2 of unit vectors from their product: no matrix of differences.
    distances_P = (2 - 2 * (unit_ND @ unit_ND.T)[first, second]).clamp(min=0)
    return (torch.logsumexp(-t * distances_P, 0) - math.log(len(distances_P))).item()


def alignment(first_ND: Tensor, second_ND: Tensor, alpha: float = 2.0) -> float:
    """Mean |x - y|^alpha of unit vectors that belong together, such as two moments of an item (Wang & Isola 2020).

    0: they are equal; with alpha = 2 the mean over unrelated ones on the sphere is 2.
    """
    first, second = F.normalize(first_ND.double(), dim=1), F.normalize(second_ND.double(), dim=1)
    return (first - second).norm(dim=1).pow(alpha).mean().item()
