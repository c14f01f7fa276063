"""The reranker as serving and batch scoring use it: loads a bundle once, then orders candidates and says why.

Dimension key: K candidates.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avrec_ray.bundle import Bundle, load_bundle
from avrec_ray.errors import BundleError
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.overlay import Overlay
from avrec_ray.ranking.config import TARGETS
from avrec_ray.ranking.explain import Explainer
from avrec_ray.ranking.exposure import ExposureLedger
from avrec_ray.ranking.lists import ItemArrays
from avrec_ray.ranking.policy import Policy, PolicyConfig
from avrec_ray.ranking.scoring import HistoryScorer, Scored
from avrec_ray.retrieval.read_write_lock import ReadWriteLock
from avrec_ray.towers.config import moment_layout
from avrec_ray.training.histories import columns_from_events
from avrec_ray.types import Candidate, Query, RankedItem

REQUESTED = "request"
"""Source of candidates that the client named, see `Matcher.score`."""


class Reranker:
    """Orders candidates for a query. A pure function of bundle, policy, query, candidates, day and exposure so far."""

    def __init__(self, bundle: Bundle | str | Path, policy: PolicyConfig | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.policy = Policy(self.bundle.items, self.bundle.embeddings, policy or PolicyConfig())
        self.model_version = self.bundle.metadata.model_version
        self.scorer = HistoryScorer(self.bundle)
        self.model = self.scorer.model
        self.layout = moment_layout(self.bundle.metadata.towers.max_clips)
        self._overlay = Overlay(self.bundle)
        self._lock = ReadWriteLock()
        self._has_changed = False

    @property
    def items(self) -> ItemArrays:
        """What the model reads of all rows there are now."""
        return self.scorer.items

    def apply(self, changes: Sequence[Change]) -> None:
        """Let items join, change and leave, between two lists; those that are being made are waited for.

        Raises:
            BundleError: vectors that do not fit; nothing of the batch is applied then.
        """
        with self._lock.writing():
            self._has_changed = True
            applied = self._overlay.apply(changes)
            self.scorer.cover(applied.living, [*applied.added])
            self.policy.cover([*applied.added, *applied.updated], self.bundle.embeddings)

    def knows(self, item_id: str) -> bool:
        """Whether an item is in the catalogue now."""
        return self.bundle.items.idx(item_id) is not None

    def rerank(
        self,
        query: Query,
        candidates: Sequence[Candidate],
        at_seconds: float | None = None,
        ledger: ExposureLedger | None = None,
    ) -> list[RankedItem]:
        """The best `query.k` candidates, rank 1 first; scores are those before boosts, diversity and exploration.

        Without an interest in the history there is nothing to attend to, and the matcher's order stands. Items that a
        rule pins by name become candidates, unless the client named the candidates itself or the user met the item.

        Args:
            at_seconds: POSIX time of the request; a policy that explores or has rules with dates must be given it.
            ledger: exposure so far, which this list is added to; None: exposure is not steered. A list of items that
                the client named is neither steered nor counted.

        Raises:
            BundleError: a candidate is not in this bundle's catalogue (the matcher serves another one). After the first
                `apply` it is left out instead, unless all are unknown.
        """
        with self._lock.reading():
            if self._has_changed:  # the matcher may know of an item before, or longer than this one
                candidates = [c for c in candidates if self.knows(c.item_id)] or candidates
            return self._rerank(query, candidates, at_seconds, ledger) if candidates else []

    def _rerank(
        self, query: Query, candidates: Sequence[Candidate], at_seconds: float | None, ledger: ExposureLedger | None
    ) -> list[RankedItem]:
        if any(candidate.source == REQUESTED for candidate in candidates):
            ledger = None
        else:
            candidates = [*candidates, *self._pinned(query, candidates, at_seconds)]
        rows = np.array([self._row(c) for c in candidates], np.int64)
        scored = self._score(query, candidates, rows)
        scores = scored.served[0]
        state = ledger.state if ledger else None
        placement = self.policy(scores, rows, query, at_seconds, state)
        if ledger is not None and placement.exposure is not None:
            ledger.state = placement.exposure
        ranking = [
            RankedItem(
                candidates[position].item_id,
                rank,
                float(scores[position]),
                propensity=float(propensity),
                probabilities=_told(scored.probabilities[0, position]),
                source=candidates[position].source,
            )
            for rank, (position, propensity) in enumerate(
                zip(placement.order, placement.propensities, strict=True), start=1
            )
        ]
        if not query.explain:
            return ranking
        return self.explainer.explained(query, rows, placement.order, ranking, at_seconds, state)

    @cached_property
    def explainer(self) -> Explainer:
        """What says why. It needs the towers, which are loaded when somebody first asks."""
        return Explainer(self.bundle, self.scorer, self.policy)

    def _pinned(self, query: Query, candidates: Sequence[Candidate], at_seconds: float | None) -> list[Candidate]:
        """Candidates of the rules, with the least of the matcher's scores: it did not find them."""
        found = {c.item_id for c in candidates} | {e.item_id for e in query.history if e.event != "impression"}
        least = min(candidate.score for candidate in candidates)
        pinned = self.policy.pinned_items(query.k, at_seconds)
        return [Candidate(item_id, least, "pin") for item_id in pinned if item_id not in found]

    def _row(self, candidate: Candidate) -> int:
        row = self.bundle.items.idx(candidate.item_id)
        if row is None:
            raise BundleError(
                f"candidate {candidate.item_id!r} is not in bundle {self.model_version}; "
                "matcher and reranker must serve the same bundle"
            )
        return row

    def _score(self, query: Query, candidates: Sequence[Candidate], rows: npt.NDArray[np.int64]) -> Scored:
        """The candidates by the one history of the query."""
        columns = columns_from_events([query.history], self.bundle.items.index_of, self.bundle.items.durations)
        matcher_scores = np.array([[c.score for c in candidates]], np.float32)
        return self.scorer(columns, [(0, len(columns.item_idx))], matcher_scores, rows)


def _told(probability_T: npt.NDArray[np.float32]) -> dict[str, float]:
    """What is known, by target."""
    return {name: float(p) for name, p in zip(TARGETS, probability_T, strict=True) if not np.isnan(p)}
