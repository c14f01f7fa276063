"""What carried a score: how much lower it is when one thing is left out, of the history or of the item.

A score is a sum of attention, of the user tower's and of tables', so attention alone does not say what carried it.
Leaving out is exact: each history without one watched item goes through the user tower, the tables and attention anew.

Dimension key: V watched items, S items shown, K candidates, M moments, Q things left out of an item, D embedding.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from avrec_ray.bundle import Bundle
from avrec_ray.ranking.lists import newest_chosen
from avrec_ray.ranking.scoring import HistoryScorer
from avrec_ray.retrieval.query_vectors import QueryVectors, log_popularity
from avrec_ray.towers.config import moment_layout
from avrec_ray.training.histories import EventColumns, columns_from_events
from avrec_ray.types import EVENTS, Query

MAX_LEFT_OUT = 50
"""Newest distinct items that the user chose that are left out, one after the other."""
LEAST_EFFECT = 1e-4
"""Of a score; below is rounding."""
_PAIRS_AT_ONCE = 256
"""Histories times candidates in one pass of the model."""

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(eq=False)
class Histories:
    """A history, and the same without each of the items that the user chose."""

    watched: Rows
    """int64 [V]: catalogue rows, the newest first."""
    events: list[str]
    """What the user last did with each of them, [V]."""
    columns: EventColumns
    """1 + V histories: the whole one, then those without each of `watched`."""
    vectors: Scores
    """float32 [1 + V, D], scaled query vectors."""
    known: npt.NDArray[np.bool_]
    """Bool [1 + V]: whether anything is known of the user."""

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Rows [start, stop) of each history."""
        return list(pairwise(self.columns.starts.tolist()))


@dataclass(eq=False)
class MomentEffects:
    """How much lower the score of each item is without some of its own moments; 0 where there are none."""

    modality: Scores
    """float32 [S, modalities]: without all moments of one modality."""
    moment: Scores
    """float32 [S, M]: without one moment."""


class LeaveOneOut:
    """Loads the towers of a bundle once."""

    def __init__(self, bundle: Bundle, scorer: HistoryScorer) -> None:
        self.bundle, self.scorer = bundle, scorer
        self.query_vectors = QueryVectors(bundle)
        self.modality_of = [modality for modality, _ in moment_layout(bundle.metadata.towers.max_clips)]
        """Of each moment, [M]."""
        self.modalities = list(dict.fromkeys(self.modality_of))

    def histories(self, query: Query) -> Histories:
        """The query's history, and the same without each of the newest items that the user chose."""
        items = self.bundle.items
        whole = columns_from_events([query.history], items.index_of, items.durations)
        newest = newest_chosen(whole, 0, len(whole.item_idx), MAX_LEFT_OUT)[::-1]
        watched = whole.item_idx[newest]
        columns = leave_out(whole, watched)
        vectors, known = self.query_vectors.of_columns(columns, [query.user_id] * (1 + len(watched)))
        events = [EVENTS[code - 1] for code in whole.event[newest].tolist()]
        return Histories(watched, events, columns, vectors, known)

    def contributions(self, histories: Histories, shown: Rows) -> Scores:
        """float32 [V, S]: how much lower the score of each item is without each watched item; below 0: higher.

        Both scores are the blend's, also where nothing is left of the history; what is served then is popularity, in
        another unit.
        """
        matcher_scores = self._matcher_scores(histories, shown)
        size = max(1, _PAIRS_AT_ONCE // len(shown))
        parts = [
            self.scorer(histories.columns, histories.spans[n : n + size], matcher_scores[n : n + size], shown).blended
            for n in range(0, len(matcher_scores), size)
        ]
        scores = np.concatenate(parts)
        return np.asarray(scores[0] - scores[1:])

    def moment_effects(self, histories: Histories, shown: Rows) -> MomentEffects:
        """What each item's own moments add to its score for the whole history, by attention.

        What they add to the item's embedding, and by it to the score of the user tower, is not known: bundles hold no
        tokens. The same is true of likeness of content.
        """
        num_moments, split = len(self.modality_of), len(self.modalities)
        of_modality = [np.array(self.modality_of) == name for name in self.modalities]
        kept_QM = ~np.stack([np.zeros(num_moments, bool), *of_modality, *np.eye(num_moments, dtype=bool)])
        mask_SM = self.scorer.items.moment_mask[torch.from_numpy(shown)]
        mask_QSM = mask_SM & torch.from_numpy(kept_QM)[:, None]
        rows_QS = np.tile(shown, len(kept_QM))  # all in one list, so that tables are asked once
        matcher_scores = self._matcher_scores(histories, rows_QS)[:1]
        scored = self.scorer(histories.columns, histories.spans[:1], matcher_scores, rows_QS, mask_QSM.flatten(0, 1))
        scores_QS = scored.blended.reshape(len(kept_QM), len(shown))
        effects_SQ = (scores_QS[0] - scores_QS[1:]).T
        return MomentEffects(effects_SQ[:, :split], effects_SQ[:, split:])

    def served_without(self, histories: Histories, watched: int, rows: Rows) -> Scores:
        """float32 [K]: what would be served without the watched item of that number; popularity if nothing is left."""
        history = slice(1 + watched, 2 + watched)
        if histories.known[history][0]:
            matcher_scores = histories.vectors[history] @ self.bundle.embeddings[rows].T
        else:
            matcher_scores = log_popularity(self.bundle.items, rows)[None]
        return self.scorer(histories.columns, histories.spans[history], matcher_scores, rows).served[0]

    @torch.inference_mode()
    def nearest_moment(self, watched_row: int, row: int) -> int | None:
        """The moment of the item at `row` that attention holds nearest to a watched item; None without any."""
        model, items = self.scorer.model, self.scorer.items
        distance_M = (model.interest(items.embeddings[watched_row]) - model.moment(items.moments[row])).norm(dim=-1)
        exists_M = items.moment_mask[row]
        return int(distance_M.masked_fill(~exists_M, torch.inf).argmin()) if exists_M.any() else None

    def _matcher_scores(self, histories: Histories, rows: Rows) -> Scores:
        return np.asarray(histories.vectors @ self.bundle.embeddings[rows].T)


def leave_out(whole: EventColumns, watched: Rows) -> EventColumns:
    """1 + V histories: that of the one user of `whole`, and the same without any event of each of `watched`.

    >>> no_time, no_watch = np.zeros(3), np.full(3, np.nan, np.float32)
    >>> whole = EventColumns(np.array([7, 8, 7]), np.array([2, 2, 3]), no_watch, no_time, ["u"], np.array([0, 3]))
    >>> leave_out(whole, np.array([8])).item_idx.tolist()
    [7, 8, 7, 7, 7]
    """
    kept = [np.arange(len(whole.item_idx)), *(np.flatnonzero(whole.item_idx != item) for item in watched)]
    rows = np.concatenate(kept)
    return EventColumns(
        item_idx=whole.item_idx[rows],
        event=whole.event[rows],
        watch_ratio=whole.watch_ratio[rows],
        at_seconds=whole.at_seconds[rows],
        user_ids=[str(number) for number in range(len(kept))],
        starts=np.concatenate([[0], np.cumsum([len(part) for part in kept])]).astype(np.int64),
    )


def shares(contributions_VS: Scores) -> npt.NDArray[np.float64]:
    """[V, S] in [0, 1]: each watched item's share of what raised the score; all 0 where nothing did.

    >>> shares(np.array([[3.0], [-2.0], [1.0]])).tolist()
    [[0.75], [0.0], [0.25]]
    """
    raised = np.where(contributions_VS > LEAST_EFFECT, contributions_VS, 0.0).astype(np.float64)
    total = raised.sum(0)
    return np.asarray(raised / np.where(total > 0, total, 1.0))
