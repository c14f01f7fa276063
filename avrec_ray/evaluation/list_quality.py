"""What lists are worth beside being right, as one row of a metric table: means of list_metrics.py over users."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.hits import Bools, Floats, Ranked, Targets, match_targets
from avrec_ray.evaluation.list_metrics import (
    category_distance_at_k,
    category_matrix,
    intra_list_distance_at_k,
    miscalibration_at_k,
    novelty_at_k,
    popularity_at_k,
    serendipity_at_k,
    unexpected_hits_at_k,
)

LIST_QUALITY = (
    "novelty",
    "popularity",
    "intra_list_distance",
    "category_distance",
    "serendipity",
    "unexpected_hits",
    "miscalibration",
)
"""Names of the metrics, in the order of `list_quality`."""


@dataclass(frozen=True, eq=False)
class ItemFacts:
    """What the metrics need to know of the catalogue."""

    embeddings: npt.NDArray[np.floating]
    """[N, D]."""
    popularity: npt.NDArray[np.floating]
    """[N] counts or shares of training choices."""
    categories: Bools
    """[N, C]: see `category_matrix`; C = 0 where no item has one."""

    @classmethod
    def of(
        cls,
        embeddings: npt.NDArray[np.floating],
        popularity: npt.NDArray[np.floating],
        categories: Sequence[str | Sequence[str] | None],
    ) -> "ItemFacts":
        """From the columns of a catalogue."""
        return cls(embeddings, popularity, category_matrix(categories)[0])


def list_quality(
    ranked: Ranked,
    targets: Targets,
    histories: Sequence[npt.NDArray[np.int64]],
    items: ItemFacts,
    k: int = 10,
    obvious: Ranked | None = None,
) -> dict[str, float]:
    """Means over users, keys like "novelty_at_10"; users for whom a metric says nothing are left out of its mean.

    A metric that says nothing of any user, such as those of categories where no item has one, has no key.

    Args:
        histories: for each user the `item_idx` of the choices so far, for miscalibration.
        obvious: [U, K'] lists of a plain recommender; where given, hits that these lack are counted.

    >>> facts = ItemFacts.of(np.eye(3), np.array([0.5, 0.25, 0.25]), [None, None, None])
    >>> found = list_quality(np.array([[0, 1]]), [[2]], [np.array([2])], facts, k=2)
    >>> found["novelty_at_2"], found["intra_list_distance_at_2"], "miscalibration_at_2" in found
    (1.5, 1.0, False)
    """
    hits = match_targets(ranked, targets)
    shares = items.popularity / max(float(items.popularity.sum()), 1e-12)
    values: dict[str, Floats] = {
        "novelty": novelty_at_k(ranked, shares, k),
        "popularity": popularity_at_k(ranked, shares, k),
        "intra_list_distance": intra_list_distance_at_k(ranked, items.embeddings, k),
        "serendipity": serendipity_at_k(ranked, hits, items.popularity, k),
    }
    if items.categories.shape[1]:
        values["category_distance"] = category_distance_at_k(ranked, items.categories, k)
        values["miscalibration"] = miscalibration_at_k(ranked, histories, items.categories, k)
    if obvious is not None:
        values["unexpected_hits"] = unexpected_hits_at_k(ranked, hits, obvious, k)
    known = {name: values[name][~np.isnan(values[name])] for name in LIST_QUALITY if name in values}
    return {f"{name}_at_{k}": float(each.mean()) for name, each in known.items() if len(each)}
