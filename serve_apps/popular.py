"""The list of last resort: popular items, in process, no model and no I/O."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.ranking.policy import allowed_mask
from avrec_ray.types import Filters, Query, RankedItem


class PopularItems:
    """Popular items of a catalogue. Scores are shares of the training positives."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._items = catalogue

    def recommend(self, query: Query, segment: tuple[set[str], set[str]] | None = None) -> list[RankedItem]:
        """The `query.k` most popular items that the filters allow and the user has not met.

        `segment`: categories and languages whose items come before all others; an empty set asks for nothing.
        """
        order = self._items.popular_order
        if segment is not None:
            inside = self._within(*segment)[order]
            order = np.concatenate([order[inside], order[~inside]])
        source = "popular" if segment is None else "segment_popular"
        return self._ranking(order, self.allowed(query), query.k, source)

    def allowed(self, query: Query) -> npt.NDArray[np.bool_]:
        """bool [N]: what the filters allow and the user has not met."""
        met = {e.item_id for e in query.history if e.event != "impression"} | set(query.filters.exclude_items)
        keep = self._allowed(query.filters)
        keep[[row for row in map(self._items.idx, met) if row is not None]] = False
        return keep

    def rank(self, item_ids: Sequence[str]) -> list[RankedItem]:
        """The given items of the catalogue, the most popular first."""
        keep = np.zeros(len(self._items), bool)
        keep[[row for row in map(self._items.idx, item_ids) if row is not None]] = True
        return self._ranking(self._items.popular_order, keep, len(item_ids))

    def similar(self, row: int, k: int) -> list[RankedItem]:
        """Popular items of the same category, then any others, without the item itself."""
        keep = np.ones(len(self._items), bool)
        keep[row] = False
        category = self._items.categories[row]
        same = np.array([c is not None and c == category for c in self._items.categories], bool)
        order = self._items.popular_order
        return self._ranking(np.concatenate([order[same[order]], order[~same[order]]]), keep, k)

    def _allowed(self, filters: Filters) -> npt.NDArray[np.bool_]:
        items = self._items
        return allowed_mask(items.categories, items.languages, items.durations, filters).copy()

    def _within(self, categories: set[str], languages: set[str]) -> npt.NDArray[np.bool_]:
        fits = [
            (not categories or category in categories) and (not languages or language in languages)
            for category, language in zip(self._items.categories, self._items.languages, strict=True)
        ]
        return np.array(fits, bool)

    def _ranking(
        self, order: npt.NDArray[np.int64], keep: npt.NDArray[np.bool_], k: int, source: str = "popular"
    ) -> list[RankedItem]:
        rows = order[keep[order]][:k]
        return [
            RankedItem(self._items.item_ids[row], rank, float(self._items.popularity[row]), source=source)
            for rank, row in enumerate(rows, start=1)
        ]
