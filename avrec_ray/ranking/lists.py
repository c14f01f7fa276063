"""Histories and candidates as the reranker's tensors: one builder for training, batch scoring and serving.

Dimension key: B queries, I interests, M moments, K candidates, D embedding, N catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avrec_ray.retrieval.neighbours import ItemNeighbours
from avrec_ray.training.histories import POSITIVE_CODES, EventColumns


@dataclass(eq=False)
class ItemArrays:
    """What the reranker reads of the catalogue."""

    embeddings: Tensor
    """float32 [N, D]."""
    moments: Tensor
    """float32 [N, M, D]."""
    moment_mask: Tensor
    """bool [N, M]."""
    popularity: Tensor
    """float32 [N]."""


@dataclass(eq=False)
class Interests:
    """The newest distinct items that each user chose, newest last, left padded."""

    item_idx: Tensor
    """int64 [B, I]."""
    event: Tensor
    watch_ratio: Tensor
    mask: Tensor


def interests_of(columns: EventColumns, spans: Sequence[tuple[int, int]], num_interests: int) -> Interests:
    """Interests from histories at row spans [start, stop). Skips and dislikes are no interests.

    An item met several times counts once, with its newest event.
    """
    shape = (len(spans), num_interests)
    item_idx, event = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    watch, mask = np.full(shape, np.nan, np.float32), np.zeros(shape, bool)
    for row, (start, stop) in enumerate(spans):
        rows = newest_chosen(columns, start, stop, num_interests)
        count = len(rows)
        if count:
            item_idx[row, -count:] = columns.item_idx[rows]
            event[row, -count:] = columns.event[rows]
            watch[row, -count:] = columns.watch_ratio[rows]
            mask[row, -count:] = True
    return Interests(*(torch.from_numpy(a) for a in (item_idx, event, watch, mask)))


def newest_chosen(columns: EventColumns, start: int, stop: int, limit: int) -> npt.NDArray[np.int64]:
    """Rows of the newest `limit` distinct items with a positive event in [start, stop), oldest first."""
    rows = start + np.flatnonzero(np.isin(columns.event[start:stop], POSITIVE_CODES))
    _, first_from_end = np.unique(columns.item_idx[rows][::-1], return_index=True)
    return np.asarray(rows[::-1][np.sort(first_from_end)][:limit][::-1])


def neighbour_scores(
    neighbours: ItemNeighbours, columns: EventColumns, span: tuple[int, int], candidate_idx: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """float32 [K]: how much the items chosen in rows [start, stop) speak for each candidate."""
    rows = slice(*span)
    chosen = columns.item_idx[rows][np.isin(columns.event[rows], POSITIVE_CODES)]
    return neighbours.scores(chosen)[candidate_idx]


def context_features(matcher_score_BK: Tensor, popularity_BK: Tensor, neighbour_score_BK: Tensor) -> Tensor:
    """What is known of each candidate beyond its moments, float32 [B, K, NUM_CONTEXT]: the matcher's scaled score, log
    popularity (floored at one in a million), log1p of the neighbours' score, and 1 where nobody chose it yet.

    The last one says that popularity and neighbours are missing, not low.
    """
    popularity = torch.log(popularity_BK.clamp(min=1e-6))
    is_cold = (popularity_BK <= 0).to(matcher_score_BK.dtype)
    return torch.stack([matcher_score_BK, popularity, torch.log1p(neighbour_score_BK), is_cold], -1)
