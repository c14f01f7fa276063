"""Users without history, known by an attribute or by a friend alone: the towers learn what they will choose."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.fit import build_optimizer, fit
from avrec_ray.training.histories import EVENT_CODES, EventColumns, pad_histories, with_profiles
from avrec_ray.training.profile_tables import profiles_from_tables
from avrec_ray.training.sequence_batches import SequenceBatches
from avrec_ray.training.steps import FinetuneStep
from avrec_ray.types import EDGES, USERS
from tests.tiny_models import random_tokens, tiny_towers

NUM_CLUBS, CLUB_ITEMS, NUM_USERS, EVENTS_EACH = 4, 5, 48, 4
NUM_ITEMS = NUM_CLUBS * CLUB_ITEMS


def club_columns() -> EventColumns:
    """User n chooses items of club n % 4 alone; users act in turn, so that friends were always there before."""
    rng = np.random.default_rng(0)
    club = np.arange(NUM_USERS) % NUM_CLUBS
    items = np.stack([c * CLUB_ITEMS + rng.permutation(CLUB_ITEMS)[:EVENTS_EACH] for c in club])
    return EventColumns(
        item_idx=items.flatten(),
        event=np.full(items.size, EVENT_CODES["view"]),
        watch_ratio=np.full(items.size, np.nan, np.float32),
        at_seconds=np.arange(items.size, dtype=np.float64) * 60,
        user_ids=[f"u{n:02d}" for n in range(NUM_USERS)],
        starts=np.arange(NUM_USERS + 1) * EVENTS_EACH,
    )


def club_tables() -> tuple[pa.Table, pa.Table]:
    """Attributes and friends of users and of one newcomer a club; a friend is of the same club."""
    users = [{"user_id": f"u{n:02d}", "attributes": [("club", str(n % NUM_CLUBS))]} for n in range(NUM_USERS)]
    users += [{"user_id": f"new{c}", "attributes": [("club", str(c))]} for c in range(NUM_CLUBS)]
    edges = [(f"u{n:02d}", f"u{n - NUM_CLUBS:02d}") for n in range(NUM_CLUBS, NUM_USERS)]
    edges += [(f"new{c}", f"u{NUM_USERS - NUM_CLUBS + c:02d}") for c in range(NUM_CLUBS)]
    return pa.Table.from_pylist(users, USERS), pa.Table.from_pylist(
        [{"user_id": user, "friend_id": friend, "weight": None} for user, friend in edges], EDGES
    )


@pytest.mark.parametrize(
    "settings",
    [{"num_attribute_buckets": 64}, {"num_friends": 2, "friend_items": 4, "user_blocks": "hstu"}],
    ids=["attributes", "friends"],
)
def test_a_newcomer_is_shown_what_their_club_or_their_friend_likes(settings: dict[str, Any]) -> None:
    cfg = tiny_towers(**settings)
    users, edges = club_tables()
    columns = club_columns()
    tables = (users if cfg.num_attribute_buckets else None, edges if cfg.num_friends else None)
    columns = with_profiles(columns, profiles_from_tables(*tables, columns, cfg))
    torch.manual_seed(0)
    tokens = random_tokens(cfg, NUM_ITEMS)
    step = FinetuneStep(TwoTower(cfg, NUM_ITEMS), tokens, torch.ones(NUM_ITEMS, dtype=torch.bool))
    optim = FinetuneConfig(epochs=60, batch_size=24, learning_rate=1e-2, negatives="full")
    batches = SequenceBatches(columns, NUM_ITEMS, optim, cfg.history_length, seed=0, learn_first=True)
    fit(step, batches, batches.steps_per_epoch, optim, lambda *_: None, optimizer=build_optimizer(step, optim))
    with torch.inference_mode():
        towers = step.towers.eval()
        items = towers.embed_items(tokens, torch.arange(NUM_ITEMS), torch.ones(NUM_ITEMS, dtype=torch.bool))
        asked = with_profiles(columns, columns.profiles, [f"new{c}" for c in range(NUM_CLUBS)])
        history = pad_histories(asked, [(0, 0)] * NUM_CLUBS, cfg.history_length, users=range(NUM_CLUBS))
        best = (towers.queries(history, items)[:, -1] @ items.T).topk(CLUB_ITEMS).indices
    assert (best // CLUB_ITEMS == torch.arange(NUM_CLUBS)[:, None]).float().mean() >= 0.9
