"""The request path as one function: what Serve does over HTTP, batch scoring does here, with the same parts."""

from collections.abc import Sequence

from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Query, RankedItem


def recommend(matcher: Matcher, reranker: Reranker, queries: Sequence[Query]) -> list[list[RankedItem]]:
    """A ranking for each query: candidates from the matcher, ordered by the reranker."""
    return [reranker.rerank(query, found) for query, found in zip(queries, matcher.match(queries), strict=True)]
