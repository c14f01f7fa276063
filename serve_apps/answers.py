"""What the gateway asks the models for, as calls: Ray handles in the service, plain coroutines in a test."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from avrec_ray.types import Candidate, Query, RankedItem


@dataclass(frozen=True)
class MatchAnswer:
    """Candidates, best first, and the bundle that they came from."""

    model_version: str
    candidates: list[Candidate]


@dataclass(frozen=True)
class RankAnswer:
    """A ranking, rank 1 first, and the bundle that ordered it."""

    model_version: str
    items: list[RankedItem]


@dataclass(frozen=True)
class SearchAnswer:
    """Items near a text, best first, and the bundle that they came from; None where it cannot encode text."""

    model_version: str
    candidates: list[Candidate] | None


@dataclass(frozen=True)
class FusedAnswer:
    """A ranking made by one call, and what the gateway tells of it."""

    model_version: str
    sources: dict[str, int]
    """How many candidates each source named."""
    items: list[RankedItem] | None
    """Rank 1 first; None where the reranker failed."""
    candidates: list[Candidate]
    """Best first, where the reranker failed; else none, to save the way."""
    match_ms: float
    """Milliseconds of the whole batch; of reranking only this query's."""
    rerank_ms: float


@dataclass(frozen=True)
class Models:
    """The matcher and the reranker as the gateway sees them. Any call may fail or take too long."""

    match: Callable[[Query], Awaitable[MatchAnswer]]
    """Candidates for a query."""
    score: Callable[[Query, Sequence[str]], Awaitable[MatchAnswer]]
    """The given items as candidates; unknown ones are left out."""
    similar: Callable[[str, int], Awaitable[MatchAnswer]]
    """The k nearest items of an item of the catalogue."""
    rerank: Callable[[Query, Sequence[Candidate]], Awaitable[RankAnswer]]
    """Candidates in their final order."""
    versions: Callable[[], Awaitable[tuple[str, str]]]
    """model_version of matcher and reranker."""
    search: Callable[[str, int], Awaitable[SearchAnswer]]
    """The k items nearest to a text."""
    recommend: Callable[[Query], Awaitable[FusedAnswer]] | None = None
    """Both stages by one call, where one replica holds both models; None: `match`, then `rerank`."""
