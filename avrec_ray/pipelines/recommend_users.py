"""Shards of users to parts with their lists: what each worker does. Knows no Ray."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from avrec_ray.bundle import load_bundle
from avrec_ray.dataclass_io import from_dict
from avrec_ray.pipelines.atomic import write_atomically
from avrec_ray.pipelines.recommend_parts import part_path
from avrec_ray.pipelines.recommend_shards import read_shard
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import RECOMMENDATIONS, Filters, Query, RankedItem

BATCH_USERS = 64
"""Users in one call of the matcher; beyond 16 more makes no difference."""


class RecommendUsers:
    """Numbers of shards to parts in `folder`. Loads the bundle once a worker; one thread, for one worker a core."""

    def __init__(
        self,
        bundle: str,
        folder: str,
        matcher: dict[str, Any],
        policy: dict[str, Any],
        k: int,
        candidates: Sequence[str] | None = None,
        at_seconds: float | None = None,
    ) -> None:
        """`at_seconds`: when all these lists are made, for a policy to which that matters."""
        torch.set_num_threads(1)
        opened = load_bundle(bundle)
        self.matcher = Matcher(opened, from_dict(MatcherConfig, matcher))
        self.reranker = Reranker(opened, from_dict(PolicyConfig, policy))
        self.folder = Path(folder)
        self.k = k
        self.at_seconds = at_seconds
        wanted = set(opened.items.item_ids if candidates is None else candidates)
        self.filters = Filters(exclude_items=tuple(i for i in opened.items.item_ids if i not in wanted))
        # What is loaded by now stays. Looking through it for garbage, over and over, took 5 % of a Ray worker's time.
        gc.collect()
        gc.freeze()

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`shard` int64 [B] to `shard` and `num_rows`: list places of its part, which is then on disk."""
        shards = [int(shard) for shard in batch["shard"]]
        num_rows = [self.write_part(shard) for shard in shards]
        return {"shard": np.array(shards, np.int64), "num_rows": np.array(num_rows, np.int64)}

    def write_part(self, shard: int) -> int:
        """Write the part of one shard and return its rows.

        Exposure is counted from zero in each shard: a part is the same whichever worker computes it, and when.
        """
        users, histories = read_shard(self.folder, shard)
        queries = [
            Query(user_id=user, history=history, k=self.k, filters=self.filters)
            for user, history in zip(users, histories, strict=True)
        ]
        lists: list[list[RankedItem]] = []
        ledger = self.reranker.policy.ledger()
        for start in range(0, len(queries), BATCH_USERS):
            batch = queries[start : start + BATCH_USERS]
            lists += recommend(self.matcher, self.reranker, batch, self.at_seconds, ledger)
        table = lists_table(users, lists)
        write_atomically(part_path(self.folder, shard), lambda staged: pq.write_table(table, staged))
        return int(table.num_rows)


def lists_table(users: Sequence[str], lists: Sequence[Sequence[RankedItem]]) -> pa.Table:
    """Rows of the recommendations table, in the order given."""
    items = [item for ranking in lists for item in ranking]
    columns = {
        "user_id": [user for user, ranking in zip(users, lists, strict=True) for _ in ranking],
        "item_id": [item.item_id for item in items],
        "rank": [item.rank for item in items],
        "score": [item.score for item in items],
    }
    return pa.table(columns, schema=RECOMMENDATIONS)
