"""What a matcher replica does: user tower and index, queries batched."""

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from ray import serve

from avrec_ray.dataclass_io import from_dict
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Query
from serve_apps.answers import MatchAnswer, SearchAnswer
from serve_apps.following import begin_to_follow
from serve_apps.loopback import keep_replica_on_loopback


class MatcherDeployment:
    """One replica holds one bundle, and follows what joins and leaves it; every answer says which bundle."""

    def __init__(self, bundle: str, matcher: dict[str, Any], follow: dict[str, Any] | None = None) -> None:
        keep_replica_on_loopback()
        torch.set_num_threads(1)
        self._matcher = Matcher(bundle, from_dict(MatcherConfig, matcher))
        self._matcher.search("warm up", 1)  # loads the text encoder
        self._follower = begin_to_follow(follow, self._matcher.bundle, self._matcher.apply)
        self.check_health()  # the first call of a model is slow; no client should wait for it

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def match(self, queries: list[Query]) -> list[MatchAnswer]:
        """Candidates of each query."""
        return self.match_now(queries)

    def match_now(self, queries: Sequence[Query]) -> list[MatchAnswer]:
        """Candidates of each query, for who has a batch at hand."""
        return [MatchAnswer(self._matcher.model_version, found) for found in self._matcher.match(queries)]

    async def score(self, query: Query, item_ids: Sequence[str]) -> MatchAnswer:
        """The given items as candidates; unknown ones are left out."""
        await self._know(item_ids)
        return MatchAnswer(self._matcher.model_version, self._matcher.score(query, item_ids))

    async def similar(self, item_id: str, k: int) -> MatchAnswer:
        """The k nearest items of an item."""
        await self._know([item_id])
        return MatchAnswer(self._matcher.model_version, self._matcher.similar(item_id, k))

    async def search(self, text: str, k: int) -> SearchAnswer:
        """The k items nearest to a text."""
        return SearchAnswer(self._matcher.model_version, self._matcher.search(text, k))

    async def version(self) -> str:
        """model_version of the bundle."""
        return self._matcher.model_version

    async def _know(self, item_ids: Sequence[str]) -> None:
        """The gateway may have heard of an item before this replica did: look at once."""
        if self._follower is not None and not all(map(self._matcher.knows, item_ids)):
            await asyncio.to_thread(self._follower.catch_up)

    def check_health(self) -> None:
        """Serve calls this; a replica that cannot answer a query is replaced."""
        if not self._matcher.match([Query(user_id=None, k=1)])[0]:
            raise RuntimeError(f"the matcher of {self._matcher.model_version} finds no item at all")
