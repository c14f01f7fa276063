"""Lists without a model, in process and without I/O, from the best that is known of the user down to popularity.

- cached_vector: what the models served the user last, as a vector of its items
- content_mean: the mean of the items that the user chose, newer ones counting more
- segment_popular: popular among the categories and languages of what the user chose
- popular

Filters and what was met hold on every rung. A vector of a list or a history is compared with all items exactly.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.types import POSITIVE_EVENTS, Event, Query, RankedItem
from serve_apps.popular import PopularItems

Vectors = npt.NDArray[np.float16]
RUNGS = ("cached_vector", "content_mean", "segment_popular", "popular")
_MOST_USERS = 50_000
_CACHED_SECONDS = 3600.0
_DECAY = 0.9
_MOST_CHOSEN = 50
_LIST_ITEMS = 20
_SEGMENT_CHOICES = 3
"""Fewer choices make no segment."""


class Fallback:
    """What one bundle's catalogue can still give. Not safe for threads: it belongs to one event loop."""

    def __init__(self, catalogue: Catalogue, vectors: Vectors | None = None) -> None:
        """`vectors`: unit vectors [N, D] of the items as the bundle was built, those that joined later have none.

        None: too many to hold, and the two rungs that need them are left out.
        """
        self._items, self._vectors = catalogue, vectors
        self._popular = PopularItems(catalogue)
        self._cached: OrderedDict[str, tuple[float, npt.NDArray[np.float16]]] = OrderedDict()

    def recommend(self, query: Query) -> tuple[str, list[RankedItem]]:
        """The rung that gives a list, and the list: shorter than `query.k` only where no more items are allowed."""
        vector, rung = self._cached_vector(query.user_id), "cached_vector"
        if vector is None:
            vector, rung = self._history_vector(query.history), "content_mean"
        if vector is not None and (near := self._nearest(vector, query, rung)):
            return rung, near
        if segment := self._segment(query.history):
            return "segment_popular", self._popular.recommend(query, segment)
        return "popular", self._popular.recommend(query)

    def remember(self, user_id: str | None, items: Sequence[RankedItem]) -> None:
        """What the models served a user, the best first."""
        if user_id is None or self._vectors is None or not items:
            return
        vector = self._mean([item.item_id for item in items[:_LIST_ITEMS]])
        if vector is not None:
            self._cached[user_id] = (time.monotonic(), vector.astype(np.float16))
            self._cached.move_to_end(user_id)
            if len(self._cached) > _MOST_USERS:
                self._cached.popitem(last=False)

    def rank(self, item_ids: Sequence[str]) -> list[RankedItem]:
        """The given items, the most popular first."""
        return self._popular.rank(item_ids)

    def similar(self, row: int, k: int) -> list[RankedItem]:
        """Items of the same category, the most popular first."""
        return self._popular.similar(row, k)

    def _cached_vector(self, user_id: str | None) -> npt.NDArray[np.float32] | None:
        found = None if user_id is None else self._cached.get(user_id)
        if found is None or time.monotonic() - found[0] > _CACHED_SECONDS:
            return None
        return found[1].astype(np.float32)

    def _history_vector(self, history: Sequence[Event]) -> npt.NDArray[np.float32] | None:
        chosen = [e.item_id for e in reversed(history) if e.event in POSITIVE_EVENTS]
        return self._mean(chosen[:_MOST_CHOSEN])

    def _mean(self, item_ids: Sequence[str]) -> npt.NDArray[np.float32] | None:
        """The mean of items' vectors, each counting less than the one before; None where no vector is known."""
        if self._vectors is None:
            return None
        rows = [row for row in map(self._items.idx, item_ids) if row is not None and row < len(self._vectors)]
        if not rows:
            return None
        weights = _DECAY ** np.arange(len(rows), dtype=np.float32)
        return weights @ self._vectors[rows].astype(np.float32) / weights.sum()

    def _nearest(self, vector: npt.NDArray[np.float32], query: Query, rung: str) -> list[RankedItem]:
        assert self._vectors is not None
        num_built = len(self._vectors)
        keep = self._popular.allowed(query)[:num_built]
        scores = np.where(keep, self._vectors @ vector.astype(np.float16), -np.inf).astype(np.float32)
        most = min(query.k, int(keep.sum()))
        if not most:
            return []
        rows = np.argpartition(-scores, most - 1)[:most]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        item_ids = self._items.item_ids
        return [
            RankedItem(item_ids[row], rank, float(scores[row]), source=rung) for rank, row in enumerate(rows, start=1)
        ]

    def _segment(self, history: Sequence[Event]) -> tuple[set[str], set[str]] | None:
        """Categories and languages of what the user chose."""
        chosen = [self._items.idx(e.item_id) for e in history if e.event in POSITIVE_EVENTS]
        rows = [row for row in dict.fromkeys(chosen) if row is not None]
        if len(rows) < _SEGMENT_CHOICES:
            return None
        categories = {c for c in (self._items.categories[row] for row in rows) if c is not None}
        languages = {c for c in (self._items.languages[row] for row in rows) if c is not None}
        return (categories, languages) if categories or languages else None
