"""Histories and candidates as the reranker's tensors: one builder for training, batch scoring and serving.

Dimension key: B queries, I interests, M moments, K candidates, D embedding, N catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avrec_ray.ranking.content_likeness import ContentLikeness
from avrec_ray.ranking.user_classes import UserClasses, history_of
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
    """float32 [N, 3]: share of all choices, of the recent ones, and choices a day that the item was out."""


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


@dataclass(eq=False)
class ItemToItem:
    """What items that the user chose say of others: by behaviour, in two tables, by content, and by whose they are."""

    taste: ItemNeighbours
    session: ItemNeighbours
    content: ContentLikeness
    classes: UserClasses

    def scores(
        self, columns: EventColumns, span: tuple[int, int], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """float32 [K, 4]: how much the items chosen in [start, stop) speak for each of `rows` of the catalogue.

        What a table says is told in units of its root mean square over the catalogue: else the weights would be those
        of the users of whose choices most is known.
        """
        chosen = chosen_items(columns, span)
        tables = [table.relative_scores(chosen, rows) for table in (self.taste, self.session)]
        of_kind = self.classes.scores(history_of(columns, span), rows)
        return np.stack([*tables, self.content.scores(chosen, rows), of_kind], 1)


def chosen_items(columns: EventColumns, span: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Items of the positive events in rows [start, stop), oldest first."""
    rows = slice(*span)
    return np.asarray(columns.item_idx[rows][np.isin(columns.event[rows], POSITIVE_CODES)])


def context_features(matcher_score_BK: Tensor, popularity_BK3: Tensor, item_to_item_BK4: Tensor) -> Tensor:
    """What is known of each candidate beyond its moments, float32 [B, K, NUM_CONTEXT].

    The matcher's scaled score; log popularity of all time, of late, and by day that the item was out (floored at one in
    a million); log1p of what the chosen items say in tables and by content, with its sign; what users of the same kind
    choose, a logarithm already; and 1 where nobody chose it yet: then popularity is missing, not low.
    """
    log_popularity_BK3 = torch.log(popularity_BK3.clamp(min=1e-6))
    said_BK3, of_kind_BK1 = item_to_item_BK4.split([3, 1], -1)
    said_BK3 = said_BK3.sign() * torch.log1p(said_BK3.abs())  # EASE speaks against, too
    is_cold_BK = (popularity_BK3[..., 0] <= 0).to(matcher_score_BK.dtype)
    parts = [matcher_score_BK[..., None], log_popularity_BK3, said_BK3, of_kind_BK1, is_cold_BK[..., None]]
    return torch.cat(parts, -1)
