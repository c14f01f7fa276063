"""Matcher and reranker in one replica: a list takes one hop instead of two, and many lists take one together.

For services whose two models scale alike. What is given up: the reranker cannot have more replicas than the matcher,
and one that is slow, or dead, takes the matcher with it, so that lists go from personal to popular.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from avrec_ray.types import Candidate, Query, RankedItem
from serve_apps.answers import FusedAnswer, MatchAnswer, RankAnswer, SearchAnswer
from serve_apps.matcher import MatcherDeployment
from serve_apps.packing import pack_answers, unpack_queries
from serve_apps.reranker import RerankerDeployment

logger = logging.getLogger(__name__)


class ModelsDeployment:
    """The calls of both deployments, and one that does both."""

    def __init__(
        self,
        bundle: str,
        matcher: dict[str, Any],
        policy: dict[str, Any],
        follow: dict[str, Any] | None = None,
        *_beside: Any,
    ) -> None:
        """`_beside` are never called: an application runs what its first deployment is given."""
        self._matching = MatcherDeployment(bundle, matcher, follow)
        self._ranking = RerankerDeployment(bundle, policy, follow)
        self.check_health()

    async def recommend_many(self, packed: bytes) -> bytes:
        """A `FusedAnswer` of each query, packed. What one query breaks is missing in its own answer alone."""
        queries = unpack_queries(packed)
        started = time.perf_counter()
        matched = self._matching.match_now(queries)
        match_ms = (time.perf_counter() - started) * 1000
        ranked = [await self._ranked(query, found) for query, found in zip(queries, matched, strict=True)]
        return pack_answers([self._fused(m, r, match_ms) for m, r in zip(matched, ranked, strict=True)])

    async def match(self, query: Query) -> MatchAnswer:
        """Candidates of a query."""
        return self._matching.match_now([query])[0]

    async def score(self, query: Query, item_ids: Sequence[str]) -> MatchAnswer:
        """As the matcher's."""
        return await self._matching.score(query, item_ids)

    async def similar(self, item_id: str, k: int) -> MatchAnswer:
        """As the matcher's."""
        return await self._matching.similar(item_id, k)

    async def search(self, text: str, k: int) -> SearchAnswer:
        """As the matcher's."""
        return await self._matching.search(text, k)

    async def rerank(self, query: Query, candidates: Sequence[Candidate]) -> RankAnswer:
        """As the reranker's."""
        return await self._ranking.rerank(query, candidates)

    async def version(self) -> str:
        """model_version of the bundle."""
        return await self._matching.version()

    def check_health(self) -> None:
        """Serve calls this; a replica one of whose models does not answer is replaced."""
        self._matching.check_health()
        self._ranking.check_health()

    async def _ranked(self, query: Query, matched: MatchAnswer) -> tuple[list[RankedItem] | None, float]:
        started = time.perf_counter()
        items: list[RankedItem] | None = None
        try:
            items = (await self._ranking.rerank(query, matched.candidates)).items
            if not all(math.isfinite(item.score) for item in items):
                raise ValueError(f"the reranker of {matched.model_version} gave a score that is not finite")
        except Exception:  # the matcher's order is better than nothing, and the neighbours in the batch did no harm
            logger.warning("reranking failed", exc_info=True)
            items = None
        return items, (time.perf_counter() - started) * 1000

    def _fused(
        self, matched: MatchAnswer, ranked: tuple[list[RankedItem] | None, float], match_ms: float
    ) -> FusedAnswer:
        items, rerank_ms = ranked
        return FusedAnswer(
            model_version=matched.model_version,
            sources=Counter(candidate.source for candidate in matched.candidates),
            items=items,
            candidates=matched.candidates if items is None else [],
            match_ms=match_ms,
            rerank_ms=rerank_ms,
        )
