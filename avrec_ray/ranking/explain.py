"""Why an item was listed: the watched items that carried its score, its moment that counted, and what would be without.

Dimension key: V watched items, S items shown, K candidates, M moments.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from avrec_ray.bundle import Bundle
from avrec_ray.ranking.diversity import Order
from avrec_ray.ranking.exposure import ExposureState
from avrec_ray.ranking.leave_one_out import LEAST_EFFECT, LeaveOneOut, MomentEffects, Rows, Scores, shares
from avrec_ray.ranking.policy import Policy
from avrec_ray.ranking.scoring import HistoryScorer
from avrec_ray.ranking.sentences import NOTHING_CARRIED, because_sentence, counted_most, nearest_to_it
from avrec_ray.types import Because, Counterfactual, Query, RankedItem

MAX_REASONS = 3
"""Watched items named in an explanation."""


class Explainer:
    """Says why. Loads the towers once; what it says depends on (bundle, policy, query, candidates) alone."""

    def __init__(self, bundle: Bundle, scorer: HistoryScorer, policy: Policy) -> None:
        self.bundle, self.policy = bundle, policy
        self.leave_one_out = LeaveOneOut(bundle, scorer)

    def explained(
        self,
        query: Query,
        rows: Rows,
        order: Order,
        ranking: Sequence[RankedItem],
        at_seconds: float | None = None,
        state: ExposureState | None = None,
    ) -> list[RankedItem]:
        """`ranking` with reasons, shared tags, a sentence, and the rank without the first reason.

        Args:
            rows: [K] catalogue rows of all candidates.
            order: [S] positions among them of the items of `ranking`.
            at_seconds, state: what the policy was given when it made the ranking.
        """
        histories = self.leave_one_out.histories(query)
        if not len(histories.watched) or not len(order):
            return list(ranking)
        shown = rows[order]
        shares_VS = shares(self.leave_one_out.contributions(histories, shown))
        effects = self.leave_one_out.moment_effects(histories, shown)
        most_VS = np.argsort(-shares_VS, axis=0, kind="stable")[:MAX_REASONS]
        firsts = {int(most_VS[0, item]) for item in np.flatnonzero(shares_VS.any(0))}
        ranks_without = {}
        for first in firsts:
            served = self.leave_one_out.served_without(histories, first, rows)
            ranks_without[first] = self._ranks(query, served, rows, at_seconds, state)
        explained = []
        for item, ranked in enumerate(ranking):
            numbers = [int(number) for number in most_VS[:, item] if shares_VS[number, item] > 0]
            if not numbers:
                explained.append(replace(ranked, sentence=NOTHING_CARRIED))
                continue
            counted = self._moment_that_counted(effects, item, shown[item])
            because = tuple(
                self._because(histories.watched[number], shares_VS[number, item], shown[item], counted)
                for number in numbers
            )
            without = Counterfactual(because[0].item_id, int(ranks_without[numbers[0]][order[item]]))
            event = histories.events[numbers[0]]
            explained.append(
                replace(
                    ranked,
                    because=because,
                    tags=self._shared_tags(shown[item], because),
                    counterfactual=without,
                    sentence=self._sentence(ranked, shown[item], because[0], event, counted is not None, without.rank),
                )
            )
        return explained

    def _ranks(
        self, query: Query, scores: Scores, rows: Rows, at_seconds: float | None, state: ExposureState | None
    ) -> Rows:
        """int64 [K]: the rank of each candidate by other scores and the same policy; 0 for those it drops."""
        order = self.policy(scores, rows, replace(query, k=len(rows)), at_seconds, state).order
        ranks = np.zeros(len(rows), np.int64)
        ranks[order] = np.arange(1, len(order) + 1)
        return ranks

    def _moment_that_counted(self, effects: MomentEffects, item: int, row: int) -> int | None:
        """Of the modality without which the score falls most, the moment without which it falls most; None if the score
        falls without no modality."""
        best = int(effects.modality[item].argmax())
        if effects.modality[item, best] <= LEAST_EFFECT:
            return None
        of_best_M = np.array(self.leave_one_out.modality_of) == self.leave_one_out.modalities[best]
        return int(np.where(of_best_M & self.bundle.moment_mask[row], effects.moment[item], -np.inf).argmax())

    def _because(self, watched: int, weight: float, row: int, counted: int | None) -> Because:
        item_id = self.bundle.items.item_ids[watched]
        moment = self.leave_one_out.nearest_moment(watched, row) if counted is None else counted
        if moment is None:
            return Because(item_id, float(weight), "", 0.0, 0.0)
        start, end = self.bundle.moment_spans[row, moment].tolist()
        return Because(item_id, float(weight), self.leave_one_out.modality_of[moment], start, end)

    def _sentence(
        self, ranked: RankedItem, row: int, first: Because, event: str, counted: bool, rank_without: int
    ) -> str:
        title = self.bundle.items.titles[self.bundle.items.index_of[first.item_id]] or first.item_id
        say = counted_most if counted else nearest_to_it
        moment = say(first.modality, first.start_seconds, first.end_seconds) if first.modality else ""
        return because_sentence(event, title, moment, self._shared_tags(row, (first,)), ranked.rank, rank_without)

    def _shared_tags(self, row: int, because: Sequence[Because]) -> tuple[str, ...]:
        """Tags of the item that the watched items named as reasons have too."""
        items = self.bundle.items
        watched = {tag for b in because for tag in items.tags[items.index_of[b.item_id]]}
        return tuple(tag for tag in items.tags[row] if tag in watched)
