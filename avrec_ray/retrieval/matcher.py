"""The matcher: a query's history and its user's profile through the user tower, then the nearest items of the index.

Dimension key: K candidates, N catalogue.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avrec_ray.bundle import NEIGHBOUR_FILES, Bundle, load_bundle
from avrec_ray.errors import BundleError
from avrec_ray.ranking.policy import allowed_mask
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.index import load_index
from avrec_ray.retrieval.neighbours import ItemNeighbours, load_neighbours
from avrec_ray.retrieval.query_vectors import QueryVectors, log_popularity
from avrec_ray.types import POSITIVE_EVENTS, Candidate, Filters, Query


class Matcher:
    """Finds candidates: by the user tower where a history or a profile says something, else by popularity."""

    def __init__(self, bundle: Bundle | str | Path, config: MatcherConfig | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.cfg = config or MatcherConfig()
        self.model_version = self.bundle.metadata.model_version
        self.query_vectors = QueryVectors(self.bundle)
        self.towers, self.embeddings = self.query_vectors.towers, self.query_vectors.embeddings
        self.index = load_index(self.bundle.path / "index", self.bundle.metadata.towers_version)
        self.session: ItemNeighbours | None = None
        if self.cfg.num_neighbours:
            self.session = load_neighbours(self.bundle.path / NEIGHBOUR_FILES[1], len(self.bundle.items))
        if self.index.num_items != len(self.bundle.items):
            raise BundleError(
                f"{self.bundle.path}: the index holds {self.index.num_items} vectors, the catalogue "
                f"{len(self.bundle.items)} items; rebuild the bundle"
            )

    def match(self, queries: Sequence[Query]) -> list[list[Candidate]]:
        """Candidates of each query, best first: at least `query.k` while so many allowed and unseen items exist."""
        if not queries:
            return []
        excluded = {query.filters.exclude_items for query in queries}
        rows_of = {item_ids: self._rows(item_ids) for item_ids in excluded}  # a batch shares one long exclusion
        seen = [np.union1d(self._rows(_met(query)), rows_of[query.filters.exclude_items]) for query in queries]
        vectors, known = self.query_vectors.of_queries(queries)
        found: list[list[Candidate]] = [[] for _ in queries]
        for row, query in enumerate(queries):
            k = max(self.cfg.num_candidates, query.k)
            allowed = self._allowed(query.filters)
            if known[row]:
                found[row] = self._nearest(vectors[row], k, allowed, seen[row], "user_tower")
                found[row] += self._spoken_for(query, vectors[row], allowed, seen[row], found[row])
                found[row] += self._fresh(vectors[row], allowed, seen[row], found[row])
            else:
                found[row] = self._popular(k, allowed, seen[row])
        return found

    def score(self, query: Query, item_ids: Sequence[str]) -> list[Candidate]:
        """The given items as candidates with the matcher's score, in the order given; unknown items are left out."""
        vectors, known = self.query_vectors.of_queries([query])
        rows = self._rows(item_ids)
        items = self.bundle.items
        scores = vectors[0] @ self.bundle.embeddings[rows].T if known[0] else log_popularity(items, rows)
        source = "request"
        return [Candidate(items.item_ids[row], float(score), source) for row, score in zip(rows, scores, strict=True)]

    def similar(self, item_id: str, k: int) -> list[Candidate]:
        """The `k` items nearest to an item, without itself.

        Raises:
            KeyError: the item is not in the catalogue.
        """
        row = self.bundle.items.index_of[item_id]
        vector = self.bundle.embeddings[row]
        return self._nearest(vector, k, None, np.array([row]), "similar")

    def _nearest(
        self,
        vector: npt.NDArray[np.float32],
        k: int,
        allowed: npt.NDArray[np.bool_] | None,
        seen: npt.NDArray[np.int64],
        source: str,
    ) -> list[Candidate]:
        scores, rows = self.index.search(vector[None], k, allowed=allowed, exclude=[seen])
        return [
            Candidate(self.bundle.items.item_ids[row], score, source)
            for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True)  # NumPy's own numbers are slow
            if row >= 0
        ]

    def _spoken_for(
        self,
        query: Query,
        vector: npt.NDArray[np.float32],
        allowed: npt.NDArray[np.bool_] | None,
        seen: npt.NDArray[np.int64],
        found: list[Candidate],
    ) -> list[Candidate]:
        """What the newest choices speak for most and was not found yet, with the user tower's score."""
        if self.session is None:
            return []
        spoken_for = self.session.scores(self._rows_in_order(query))
        spoken_for[seen] = 0.0
        if allowed is not None:
            spoken_for[~allowed] = 0.0
        rows = np.flatnonzero(spoken_for > 0)  # few, whatever the size of the catalogue
        rows = rows[np.argsort(-spoken_for[rows], kind="stable")][: self.cfg.num_neighbours]
        known = {candidate.item_id for candidate in found}
        return [
            Candidate(self.bundle.items.item_ids[row], float(vector @ self.bundle.embeddings[row]), "neighbours")
            for row in rows.tolist()
            if self.bundle.items.item_ids[row] not in known
        ]

    def _rows_in_order(self, query: Query) -> npt.NDArray[np.int64]:
        """Rows of the items that the user chose, oldest first."""
        events = sorted((e for e in query.history if e.event in POSITIVE_EVENTS), key=lambda event: event.at_seconds)
        rows = (self.bundle.items.idx(event.item_id) for event in events)
        return np.array([row for row in rows if row is not None], np.int64)

    def _fresh(
        self,
        vector: npt.NDArray[np.float32],
        allowed: npt.NDArray[np.bool_] | None,
        seen: npt.NDArray[np.int64],
        found: list[Candidate],
    ) -> list[Candidate]:
        """The nearest items without behaviour that were not found among all."""
        fresh = ~self.bundle.items.warm if allowed is None else ~self.bundle.items.warm & allowed
        if not self.cfg.num_fresh or not fresh.any():
            return []
        nearest = self._nearest(vector, self.cfg.num_fresh, fresh, seen, "fresh")
        known = {candidate.item_id for candidate in found}
        return [candidate for candidate in nearest if candidate.item_id not in known]

    def _popular(self, k: int, allowed: npt.NDArray[np.bool_] | None, seen: npt.NDArray[np.int64]) -> list[Candidate]:
        keep = np.ones(len(self.bundle.items), bool) if allowed is None else allowed.copy()
        keep[seen] = False
        rows = self.bundle.items.popular_order
        rows = rows[keep[rows]][:k]
        return [
            Candidate(self.bundle.items.item_ids[row], float(score), "popular")
            for row, score in zip(rows, log_popularity(self.bundle.items, rows), strict=True)
        ]

    def _rows(self, item_ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of the items that are in the catalogue."""
        rows = (self.bundle.items.idx(item_id) for item_id in item_ids)
        return np.array([row for row in rows if row is not None], np.int64)

    def _allowed(self, filters: Filters) -> npt.NDArray[np.bool_] | None:
        if not (filters.categories or filters.languages or filters.max_duration_seconds is not None):
            return None
        items = self.bundle.items
        return allowed_mask(items.categories, items.languages, items.durations, filters)


def _met(query: Query) -> set[str]:
    """Items that the user acted on."""
    return {event.item_id for event in query.history if event.event != "impression"}
