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
from avrec_ray.ranking.explain import Explainer
from avrec_ray.ranking.policy import PolicyConfig, apply_policy
from avrec_ray.ranking.scoring import HistoryScorer
from avrec_ray.towers.config import moment_layout
from avrec_ray.training.histories import columns_from_events
from avrec_ray.types import Candidate, Query, RankedItem


class Reranker:
    """Orders candidates for a query. A pure function of (bundle, query, candidates)."""

    def __init__(self, bundle: Bundle | str | Path, policy: PolicyConfig | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.policy = policy or PolicyConfig()
        self.model_version = self.bundle.metadata.model_version
        self.scorer = HistoryScorer(self.bundle)
        self.model, self.items = self.scorer.model, self.scorer.items
        self.layout = moment_layout(self.bundle.metadata.towers.max_clips)

    def rerank(self, query: Query, candidates: Sequence[Candidate]) -> list[RankedItem]:
        """The best `query.k` candidates, rank 1 first; scores are those before diversity.

        Without an interest in the history there is nothing to attend to, and the matcher's order stands.

        Raises:
            BundleError: a candidate is not in this bundle's catalogue (the matcher serves another one).
        """
        if not candidates:
            return []
        rows = np.array([self._row(c) for c in candidates], np.int64)
        scores = self._score(query, candidates, rows)
        order = apply_policy(scores, rows, self.bundle.items, self.bundle.embeddings, query, self.policy)
        ranking = [
            RankedItem(candidates[position].item_id, rank, float(scores[position]))
            for rank, position in enumerate(order, start=1)
        ]
        return self.explainer.explained(query, rows, order, ranking) if query.explain else ranking

    @cached_property
    def explainer(self) -> Explainer:
        """What says why. It needs the towers, which are loaded when somebody first asks."""
        return Explainer(self.bundle, self.scorer, self.policy)

    def _row(self, candidate: Candidate) -> int:
        row = self.bundle.items.idx(candidate.item_id)
        if row is None:
            raise BundleError(
                f"candidate {candidate.item_id!r} is not in bundle {self.model_version}; "
                "matcher and reranker must serve the same bundle"
            )
        return row

    def _score(
        self, query: Query, candidates: Sequence[Candidate], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Scores [K]."""
        columns = columns_from_events([query.history], self.bundle.items.index_of, self.bundle.items.durations)
        matcher_scores = np.array([[c.score for c in candidates]], np.float32)
        return self.scorer(columns, [(0, len(columns.item_idx))], matcher_scores, rows).served[0]
