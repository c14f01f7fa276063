"""What a reranker replica does: scores of each candidate by the history, then the policy, and why where it is asked."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from avrec_ray.dataclass_io import from_dict
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.reranker import REQUESTED, Reranker
from avrec_ray.types import Candidate, Query
from serve_apps.answers import RankAnswer
from serve_apps.loopback import keep_replica_on_loopback


class RerankerDeployment:
    """One replica holds one bundle; every answer says which."""

    def __init__(self, bundle: str, policy: dict[str, Any]) -> None:
        keep_replica_on_loopback()
        torch.set_num_threads(1)
        self._reranker = Reranker(bundle, from_dict(PolicyConfig, policy))
        self._ledger = self._reranker.policy.ledger()  # exposure in the lists of this replica
        self.check_health()

    async def rerank(self, query: Query, candidates: Sequence[Candidate]) -> RankAnswer:
        """Candidates in their final order."""
        return RankAnswer(
            self._reranker.model_version, self._reranker.rerank(query, candidates, time.time(), self._ledger)
        )

    async def version(self) -> str:
        """model_version of the bundle."""
        return self._reranker.model_version

    def check_health(self) -> None:
        """Serve calls this; a replica that cannot rank an item is replaced."""
        first = self._reranker.bundle.items.item_ids[0]
        # No list may come of it: a rule can block this item, which is no illness.
        self._reranker.rerank(Query(user_id=None, k=1), [Candidate(first, 0.0, REQUESTED)], time.time())
