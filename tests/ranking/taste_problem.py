"""A small world in which a reranker has something to learn."""

from typing import Any

import numpy as np
import torch

from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.ranking.interaction import AttentionReranker
from avrec_ray.ranking.lists import ItemArrays
from avrec_ray.ranking.training import RerankBatches, RerankQuery, RerankStep
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.histories import EVENT_CODES, EventColumns

NUM_ITEMS, DIM = 40, 8


def taste_problem(num_users: int = 60, **settings: Any) -> tuple[RerankBatches, RerankStep]:
    """A world in which users choose what lies near their history, and a matcher that scores at random."""
    rng = np.random.default_rng(0)
    items = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)), dim=1)
    columns, queries, candidates = [], [], []
    for user in range(num_users):
        near = torch.argsort(items @ items[rng.integers(NUM_ITEMS)], descending=True).numpy()
        columns += [*rng.permutation(near[:4]), near[4]]
        queries.append(RerankQuery(5 * user, 5 * user + 4, 5 * user + 5))
        candidates.append(rng.permutation([near[4], *rng.choice(near[10:], 7, replace=False)]))
    behaviour = EventColumns(
        item_idx=np.array(columns, np.int64),
        event=np.full(5 * num_users, EVENT_CODES["view"]),
        watch_ratio=np.full(5 * num_users, 0.95, np.float32),
        at_seconds=np.arange(5 * num_users, dtype=np.float64),
        user_ids=[str(user) for user in range(num_users)],
        starts=np.arange(0, 5 * num_users + 1, 5),
    )
    cfg = RerankerConfig(
        hidden_dim=16,
        num_interests=4,
        optim=OptimConfig(**{"epochs": 25, "batch_size": 20, "learning_rate": 1e-2, **settings}),
    )
    popularity = np.full((NUM_ITEMS, 3), 1 / NUM_ITEMS, np.float32)
    scores = rng.normal(size=(num_users, 8)).astype(np.float32)
    batches = RerankBatches(
        behaviour,
        queries,
        np.stack(candidates),
        scores,
        np.zeros((*scores.shape, 4), np.float32),
        popularity,
        cfg,
        seed=0,
    )
    arrays = ItemArrays(items, items[:, None].clone(), torch.ones(NUM_ITEMS, 1).bool(), torch.from_numpy(popularity))
    torch.manual_seed(0)
    return batches, RerankStep(AttentionReranker(cfg, DIM), arrays)
