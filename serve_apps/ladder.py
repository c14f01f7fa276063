"""Who orders the items of a list, rung by rung, when models are missing.

Personal ranking; the matcher's order when the reranker fails; when the matcher fails, time runs out, or the models
disagree on the bundle, what fallback.py gives: by the vector of the last list, by the mean of the history, popular
items of the user's segment, popular items. Filters and seen items are respected on every rung, and `degraded` says what
was missing and which rung it was.
"""

import math
from collections.abc import Awaitable, Callable, Sequence

from avrec_ray.types import Candidate, Query, RankedItem
from serve_apps.answers import FusedAnswer, Models, RankAnswer
from serve_apps.fallback import Fallback
from serve_apps.metrics import GatewayMetrics
from serve_apps.served import Served, in_given_order
from serve_apps.stages import UNAVAILABLE, Stages


class Ladder:
    """Over the models of one bundle."""

    def __init__(
        self, models: Models, fallback: Fallback, stages: Stages, metrics: GatewayMetrics, model_version: str
    ) -> None:
        self._models, self._fallback, self._stages = models, fallback, stages
        self._metrics, self._model_version = metrics, model_version

    async def recommend(self, served: Served, query: Query) -> list[RankedItem]:
        """The best list for `query`, whose history is complete, that can be had now."""
        if self._models.recommend is not None:
            return await self._at_once(served, query, self._models.recommend)
        matched = await self._stages.run(served, "match", lambda: self._models.match(query))
        if matched is None or not self.same_model(served, matched.model_version):
            return self._without_models(served, query)
        if served.is_shown:
            self._metrics.count_candidates(matched.candidates)
        ranked = await self.rerank(served, query, matched.candidates)
        if ranked is None:
            return self._without_models(served, query)
        self._note_whole(served, query, ranked)
        return ranked

    async def rerank(self, served: Served, query: Query, candidates: Sequence[Candidate]) -> list[RankedItem] | None:
        """The reranker's list; the matcher's order if it fails; None if it is of another bundle."""
        ranked = await self._stages.run(served, "rerank", lambda: self._checked_rerank(query, candidates))
        if ranked is None:
            return in_given_order(candidates, query.k)
        return ranked.items if self.same_model(served, ranked.model_version) else None

    def same_model(self, served: Served, model_version: str) -> bool:
        """Whether an answer is of this bundle; if not, `degraded` says so."""
        if model_version == self._model_version:
            return True
        served.lack("mixed_model")
        return False

    async def _at_once(
        self, served: Served, query: Query, recommend: Callable[[Query], Awaitable[FusedAnswer]]
    ) -> list[RankedItem]:
        """Both stages by one call; the time that it took beside reranking is told as that of matching."""
        told = await self._stages.run(served, "match", lambda: recommend(query))
        if told is None or not self.same_model(served, told.model_version):
            return self._without_models(served, query)
        served.stages_ms["rerank"] = told.rerank_ms
        served.stages_ms["match"] = max(0.0, served.stages_ms["match"] - told.rerank_ms)
        if served.is_shown:
            self._metrics.count_sources(told.sources)
        if told.items is None:
            served.lack(UNAVAILABLE["rerank"])
            return in_given_order(told.candidates, query.k)
        self._note_whole(served, query, told.items)
        return told.items

    async def _checked_rerank(self, query: Query, candidates: Sequence[Candidate]) -> RankAnswer:
        ranked = await self._models.rerank(query, candidates)
        if not all(math.isfinite(item.score) for item in ranked.items):
            raise ValueError(f"the reranker of {ranked.model_version} gave a score that is not finite")
        return ranked

    def _note_whole(self, served: Served, query: Query, items: list[RankedItem]) -> None:
        """What a list that lacks nothing teaches: how scores lie, and where the user is."""
        if served.degraded:
            return
        if served.is_shown:
            self._metrics.observe_scores(self._model_version, items)
        self._fallback.remember(query.user_id, items)

    def _without_models(self, served: Served, query: Query) -> list[RankedItem]:
        """The best list that this process can give alone; `degraded` says which, unless it is plain popularity."""
        rung, items = self._fallback.recommend(query)
        if rung != "popular":
            served.lack(rung)
        return items
