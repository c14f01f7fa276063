"""What a reranker replica does: scores of each candidate by the history, then the policy, and why where it is asked."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import torch
from ray.serve.handle import DeploymentHandle

from avrec_ray.dataclass_io import from_dict
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.reranker import REQUESTED, Reranker
from avrec_ray.types import Candidate, Query
from serve_apps.answers import RankAnswer
from serve_apps.following import begin_to_follow
from serve_apps.loopback import keep_replica_on_loopback


class RerankerDeployment:
    """One replica holds one bundle, and follows what joins and leaves it; every answer says which bundle."""

    def __init__(
        self, bundle: str, policy: dict[str, Any], follow: dict[str, Any] | None = None, *_beside: DeploymentHandle
    ) -> None:
        """`_beside` is never called: an application runs what its first deployment is given."""
        keep_replica_on_loopback()
        torch.set_num_threads(1)
        self._reranker = Reranker(bundle, from_dict(PolicyConfig, policy))
        self._ledger = self._reranker.policy.ledger()  # exposure in the lists of this replica
        self._follower = begin_to_follow(follow, self._reranker.bundle, self._reranker.apply)
        self.check_health()

    async def rerank(self, query: Query, candidates: Sequence[Candidate]) -> RankAnswer:
        """Candidates in their final order; those that a replica of the matcher knows before this one are left out."""
        if self._follower is not None and not all(self._reranker.knows(c.item_id) for c in candidates):
            await asyncio.to_thread(self._follower.catch_up)
        return RankAnswer(
            self._reranker.model_version, self._reranker.rerank(query, candidates, time.time(), self._ledger)
        )

    async def version(self) -> str:
        """model_version of the bundle."""
        return self._reranker.model_version

    def check_health(self) -> None:
        """Serve calls this; a replica that cannot rank an item is replaced."""
        first = next(iter(self._reranker.bundle.items.index_of), None)
        if first is None:
            return  # all of them were taken down
        # No list may come of it: a rule can block this item, which is no illness.
        self._reranker.rerank(Query(user_id=None, k=1), [Candidate(first, 0.0, REQUESTED)], time.time())
