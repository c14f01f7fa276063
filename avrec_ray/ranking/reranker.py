"""The reranker as serving and batch scoring use it: loads a bundle once, then orders candidates and says why.

Dimension key: I interests, M moments, K candidates.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avrec_ray.bundle import CONTENT_FILE, NEIGHBOUR_FILES, Bundle, load_bundle
from avrec_ray.errors import BundleError
from avrec_ray.ranking.content_likeness import load_likeness
from avrec_ray.ranking.exposure import ExposureLedger
from avrec_ray.ranking.interaction import AttentionReranker, combine
from avrec_ray.ranking.lists import ItemArrays, ItemToItem, context_features, interests_of
from avrec_ray.ranking.policy import Policy, PolicyConfig
from avrec_ray.retrieval.neighbours import load_neighbours
from avrec_ray.towers.config import moment_layout
from avrec_ray.training.checkpoint import load_weights
from avrec_ray.training.histories import columns_from_events
from avrec_ray.types import Because, Candidate, Query, RankedItem

REQUESTED = "request"
"""Source of candidates that the client named, see `Matcher.score`."""
MAX_REASONS = 3
"""Pairs of watched item and moment named in an explanation."""


class Reranker:
    """Orders candidates for a query. A pure function of bundle, policy, query, candidates, day and exposure so far."""

    def __init__(self, bundle: Bundle | str | Path, policy: PolicyConfig | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.policy = Policy(self.bundle.items, self.bundle.embeddings, policy or PolicyConfig())
        self.cfg = self.bundle.metadata.reranker
        self.model_version = self.bundle.metadata.model_version
        self.model = AttentionReranker(self.cfg, self.bundle.metadata.towers.embedding_dim)
        load_weights(self.bundle.path / "reranker.safetensors", self.model)
        self.model.eval()
        self.items = item_arrays(self.bundle)
        self.item_to_item = load_item_to_item(self.bundle)
        self.layout = moment_layout(self.bundle.metadata.towers.max_clips)

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
            BundleError: a candidate is not in this bundle's catalogue (the matcher serves another one).
        """
        if not candidates:
            return []
        if any(candidate.source == REQUESTED for candidate in candidates):
            ledger = None
        else:
            candidates = [*candidates, *self._pinned(query, candidates, at_seconds)]
        rows = np.array([self._row(c) for c in candidates], np.int64)
        scores, attention, watched = self._score(query, candidates, rows)
        placement = self.policy(scores, rows, query, at_seconds, ledger.state if ledger else None)
        if ledger is not None and placement.exposure is not None:
            ledger.state = placement.exposure
        ranking = []
        for rank, position in enumerate(placement.order, start=1):
            because = self._because(attention[position], watched, rows[position]) if query.explain else ()
            ranking.append(
                RankedItem(
                    item_id=candidates[position].item_id,
                    rank=rank,
                    score=float(scores[position]),
                    because=because,
                    tags=self._shared_tags(rows[position], because),
                    propensity=float(placement.propensities[rank - 1]),
                )
            )
        return ranking

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

    @torch.inference_mode()
    def _score(
        self, query: Query, candidates: Sequence[Candidate], rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], Tensor, npt.NDArray[np.int64]]:
        """Scores [K], attention [K, I, M], and the catalogue rows of the interests [I] (-1 where there is none)."""
        columns = columns_from_events([query.history], self.bundle.items.index_of, self.bundle.items.durations)
        interests = interests_of(columns, [(0, len(columns.item_idx))], self.cfg.num_interests)
        matcher_scores = torch.tensor([[c.score for c in candidates]], dtype=torch.float32)
        candidate_idx = torch.from_numpy(rows)[None]
        said = self.item_to_item.scores(columns, (0, len(columns.item_idx)), rows)
        logits, attention = self.model(
            self.items.embeddings[interests.item_idx],
            interests.event,
            interests.watch_ratio,
            interests.mask,
            self.items.moments[candidate_idx],
            self.items.moment_mask[candidate_idx],
            context_features(matcher_scores, self.items.popularity[candidate_idx], torch.from_numpy(said)[None]),
        )
        watched = np.where(interests.mask[0].numpy(), interests.item_idx[0].numpy(), -1)
        scores = combine(logits, self.cfg.target_weights)[0] if (watched >= 0).any() else matcher_scores[0]
        return scores.numpy(), attention[0], watched

    def _because(self, attention_IM: Tensor, watched: npt.NDArray[np.int64], row: int) -> tuple[Because, ...]:
        """The pairs that took most attention, one a watched item."""
        best = attention_IM.max(1)
        reasons = []
        for interest in torch.argsort(best.values, descending=True, stable=True)[:MAX_REASONS].tolist():
            if watched[interest] < 0 or best.values[interest] <= 0:
                continue
            moment = int(best.indices[interest])
            start, end = self.bundle.moment_spans[row, moment]
            reasons.append(
                Because(
                    item_id=self.bundle.items.item_ids[watched[interest]],
                    weight=float(best.values[interest]),
                    modality=self.layout[moment][0],
                    start_seconds=float(start),
                    end_seconds=float(end),
                )
            )
        return tuple(reasons)

    def _shared_tags(self, row: int, because: tuple[Because, ...]) -> tuple[str, ...]:
        """Tags of the item that the watched items named as reasons have too."""
        items = self.bundle.items
        watched = {tag for b in because for tag in items.tags[items.index_of[b.item_id]]}
        return tuple(tag for tag in items.tags[row] if tag in watched)


def item_arrays(bundle: Bundle) -> ItemArrays:
    """The bundle's vectors as tensors."""
    return ItemArrays(
        embeddings=torch.from_numpy(bundle.embeddings),
        moments=torch.from_numpy(bundle.moments),
        moment_mask=torch.from_numpy(bundle.moment_mask),
        popularity=torch.from_numpy(np.stack([bundle.items.popularity, bundle.items.recent_popularity], 1)),
    )


def load_item_to_item(bundle: Bundle) -> ItemToItem:
    """The bundle's item-to-item tables, and its vectors of content."""
    taste, session = (load_neighbours(bundle.path / name, len(bundle.items)) for name in NEIGHBOUR_FILES)
    return ItemToItem(taste, session, load_likeness(bundle.path / CONTENT_FILE, len(bundle.items)))
