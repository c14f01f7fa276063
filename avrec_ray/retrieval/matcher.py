"""The matcher: a query's history and its user's profile through the user tower, then candidates from every source.

Dimension key: D embedding, N catalogue.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from avrec_ray.bundle import NEIGHBOUR_FILES, Bundle, load_bundle
from avrec_ray.errors import BundleError
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.overlay import Overlay, speak_for
from avrec_ray.ranking.policy import allowed_mask
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.index import PreparedFilter, load_index
from avrec_ray.retrieval.index_rows import KEPT_FILTERS
from avrec_ray.retrieval.neighbours import load_neighbours
from avrec_ray.retrieval.query_vectors import QueryVectors, log_popularity
from avrec_ray.retrieval.read_write_lock import ReadWriteLock
from avrec_ray.retrieval.sources import Asked, Stock, gather, popular_rows
from avrec_ray.retrieval.text_queries import TextQueries
from avrec_ray.types import POSITIVE_EVENTS, Candidate, Filters, Query


class Matcher:
    """Finds candidates: by the sources where a history or a profile says something of the user, else by popularity."""

    def __init__(self, bundle: Bundle | str | Path, config: MatcherConfig | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.cfg = config or MatcherConfig()
        self.model_version = self.bundle.metadata.model_version
        self.query_vectors = QueryVectors(self.bundle)
        self.towers = self.query_vectors.towers
        self.index = load_index(self.bundle.path / "index", self.bundle.metadata.towers_version)
        if self.index.num_items != len(self.bundle.items):
            raise BundleError(
                f"{self.bundle.path}: the index holds {self.index.num_items} vectors, the catalogue "
                f"{len(self.bundle.items)} items; rebuild the bundle"
            )
        session = None
        if self.cfg.num_neighbours:
            session = load_neighbours(self.bundle.path / NEIGHBOUR_FILES[1], len(self.bundle.items))
        friends = None if self.bundle.profiles is None else self.bundle.profiles.friends
        self._prepared = lru_cache(KEPT_FILTERS)(self._prepare)
        self.stock = Stock(self.bundle.items, self.bundle.embeddings, self.index, self.cfg, session, friends)
        self._overlay = Overlay(self.bundle)
        self._removed = np.zeros(0, np.int64)
        self._lock = ReadWriteLock()

    @cached_property
    def text_queries(self) -> TextQueries:
        """The text encoder; loaded when first asked for, since only search needs it."""
        return TextQueries(self.bundle, self.query_vectors.towers)

    def match(self, queries: Sequence[Query]) -> list[list[Candidate]]:
        """Candidates of each query, best first: at least `query.k` while so many allowed and unseen items exist."""
        with self._lock.reading():
            return [
                self._from_sources(asked, query.k) if known else self._popular(asked, query.k)
                for query, (asked, known) in zip(queries, self.asked(queries), strict=True)
            ]

    @property
    def embeddings(self) -> Tensor:
        """float32 [N, D], of all rows there are now."""
        return self.query_vectors.embeddings

    def apply(self, changes: Sequence[Change]) -> None:
        """Let items join, change and leave, between two queries; those that run are waited for.

        Raises:
            BundleError: vectors that do not fit; nothing of the batch is applied then.
        """
        with self._lock.writing():
            applied = self._overlay.apply(changes)
            self._prepared.cache_clear()  # what filters allow was of the items before
            embeddings = self.bundle.embeddings
            if applied.added:
                self.index.add(embeddings[list(applied.added)])
                self.stock.add(list(applied.added), embeddings)
            if applied.updated:
                self.index.update(np.array(list(applied.updated)), embeddings[list(applied.updated)])
                self.stock.forget_groups()
            if applied.removed:
                self.index.delete(np.array(applied.removed))
                self._removed = np.append(self._removed, applied.removed)
            if self.stock.session is not None:
                speak_for(self.stock.session, "session", applied.living, self.bundle)

    def knows(self, item_id: str) -> bool:
        """Whether an item is in the catalogue now."""
        return self.bundle.items.idx(item_id) is not None

    def asked(self, queries: Sequence[Query]) -> list[tuple[Asked, bool]]:
        """What sources read of each query, and whether a history or a profile says anything of its user."""
        if not queries:
            return []
        excluded = {query.filters.exclude_items for query in queries}
        rows_of = {item_ids: self._rows(item_ids) for item_ids in excluded}  # a batch shares one long exclusion
        seen = [np.union1d(self._rows(_met(query)), rows_of[query.filters.exclude_items]) for query in queries]
        vectors, known = self.query_vectors.of_queries(queries)
        return [(self._asked(query, vectors[row], seen[row]), bool(known[row])) for row, query in enumerate(queries)]

    def score(self, query: Query, item_ids: Sequence[str]) -> list[Candidate]:
        """The given items as candidates with the matcher's score, in the order given; unknown items are left out."""
        with self._lock.reading():
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
        with self._lock.reading():
            row = self.bundle.items.index_of[item_id]
            vector = self.bundle.embeddings[row]
            scores, rows = self.index.search(vector[None], k, exclude=[np.array([row])])
            return self._nearest(scores[0].tolist(), rows[0].tolist(), "similar")

    def search(self, text: str, k: int) -> list[Candidate] | None:
        """The `k` items nearest to a text, by cosine; none for a text without words, None if it cannot be encoded."""
        if self.text_queries.encoder is None:
            return None
        vectors, written = self.text_queries.vectors([text])
        if not written[0]:
            return []
        with self._lock.reading():
            scores, rows = self.index.search(vectors, k)
            return self._nearest(scores[0].tolist(), rows[0].tolist(), "search")

    def _nearest(self, scores: Sequence[float], rows: Sequence[int], source: str) -> list[Candidate]:
        """What the index found; it fills up with -1 where there is no more."""
        found = zip(scores, rows, strict=True)
        return [Candidate(self.bundle.items.item_ids[row], score, source) for score, row in found if row >= 0]

    def _asked(self, query: Query, vector: npt.NDArray[np.float32], seen: npt.NDArray[np.int64]) -> Asked:
        index_of = self.bundle.items.index_of
        filters = query.filters
        prepared = self._prepared(filters.categories, filters.languages, filters.max_duration_seconds)
        events = [e for e in query.history if e.event != "impression" and e.item_id in index_of]
        chosen = sorted((e for e in events if e.event in POSITIVE_EVENTS), key=lambda event: event.at_seconds)
        return Asked(
            vector=vector,
            chosen=self._rows(event.item_id for event in chosen),
            followed=self._rows(event.item_id for event in chosen if event.event == "follow"),
            seen=seen,
            allowed=None if prepared is None else prepared.mask,
            prepared=prepared,
            profile_row=-1 if self.bundle.profiles is None else int(self.bundle.profiles.rows([query.user_id])[0]),
            newest_at=events[-1].at_seconds if events else np.inf,
            removed=self._removed,
        )

    def _from_sources(self, asked: Asked, k: int) -> list[Candidate]:
        quotas = {**self.cfg.quotas, "user_tower": max(self.cfg.num_candidates, k)}
        return [
            Candidate(self.bundle.items.item_ids[row], score, source)
            for row, (score, source) in gather(self.stock, asked, quotas).items()
        ]

    def _popular(self, asked: Asked, k: int) -> list[Candidate]:
        """Of a user of whom nothing is known: there is no query vector, and the score is log popularity."""
        rows = popular_rows(self.stock, asked, max(self.cfg.num_candidates, k))
        return [
            Candidate(self.bundle.items.item_ids[row], float(score), "popular")
            for row, score in zip(rows, log_popularity(self.bundle.items, rows), strict=True)
        ]

    def _rows(self, item_ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of the items that are in the catalogue."""
        rows = (self.bundle.items.idx(item_id) for item_id in item_ids)
        return np.array([row for row in rows if row is not None], np.int64)

    def _prepare(
        self, categories: tuple[str, ...], languages: tuple[str, ...], max_duration_seconds: float | None
    ) -> PreparedFilter | None:
        """What these filters allow; None: everything. Kept, because users' filters repeat."""
        if not (categories or languages or max_duration_seconds is not None):
            return None
        items, filters = self.bundle.items, Filters(categories, languages, max_duration_seconds)
        return self.index.prepare(allowed_mask(items.categories, items.languages, items.durations, filters))


def _met(query: Query) -> set[str]:
    """Items that the user acted on."""
    return {event.item_id for event in query.history if event.event != "impression"}
