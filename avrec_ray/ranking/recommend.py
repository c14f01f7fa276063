"""The request path as one function: what Serve does over HTTP, batch scoring does here, with the same parts."""

from collections.abc import Sequence

from avrec_ray.ranking.exposure import ExposureLedger
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Query, RankedItem


def recommend(
    matcher: Matcher,
    reranker: Reranker,
    queries: Sequence[Query],
    at_seconds: float | None = None,
    ledger: ExposureLedger | None = None,
) -> list[list[RankedItem]]:
    """A ranking for each query: candidates from the matcher, ordered by the reranker, which the rest is passed to."""
    matched = zip(queries, matcher.match(queries), strict=True)
    return [reranker.rerank(query, found, at_seconds, ledger) for query, found in matched]
