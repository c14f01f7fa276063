"""Small random inputs for towers, training and ranking: real shapes, no randomness beyond the seed given."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemInputs, ItemTokens, token_shapes
from avrec_ray.towers.two_tower import HistoryBatch
from avrec_ray.training.histories import POSITIVE_CODES, EventColumns, pad_histories, with_profiles
from avrec_ray.training.profile_tables import profiles_from_tables
from avrec_ray.types import EDGES, USERS


def tiny_towers(**overrides: Any) -> TowersConfig:
    """A config of a few thousand weights; dropout of every kind is off unless asked for."""
    values: dict[str, Any] = {
        "embedding_dim": 8, "model_dim": 16, "num_heads": 2, "encoder_layers": 1, "user_layers": 2,
        "num_bottleneck_tokens": 2, "tokens_per_clip": 2, "patch_size": 8, "num_text_buckets": 64,
        "max_text_tokens": 6, "history_length": 6, "dropout": 0.0, "modality_dropout": 0.0, "id_dropout": 0.0,
        "attribute_dropout": 0.0,
        "num_frames": 2, "frame_size": 16, "num_mel_bins": 8, "num_mel_frames": 50, "max_clips": 2,
    }  # fmt: skip
    return TowersConfig(**{**values, **overrides})


def random_inputs(cfg: TowersConfig, batch: int, seed: int = 0) -> ItemInputs:
    """Clips with every modality; a few words each, the rest padding."""
    rng = torch.Generator().manual_seed(seed)
    words = torch.randint(1, cfg.num_text_buckets, (batch, cfg.max_text_tokens), generator=rng)
    words[:, 4:] = 0
    frames = torch.randint(0, 256, (batch, cfg.num_frames, 3, cfg.frame_size, cfg.frame_size), generator=rng)
    return ItemInputs(
        frames=frames.to(torch.uint8),
        log_mel=torch.randn(batch, cfg.num_mel_bins, cfg.num_mel_frames, generator=rng),
        word_ids=words,
        has_video=torch.ones(batch, dtype=torch.bool),
        has_audio=torch.ones(batch, dtype=torch.bool),
    )


def random_tokens(cfg: TowersConfig, num_items: int, seed: int = 0) -> ItemTokens:
    """Encoder outputs of items that have every modality in every clip."""
    rng = torch.Generator().manual_seed(seed)
    tokens = {name: torch.randn(num_items, *shape, generator=rng) for name, shape in token_shapes(cfg).items()}
    return ItemTokens(tokens, {name: torch.ones(value.shape[:2], dtype=torch.bool) for name, value in tokens.items()})


def random_columns(num_users: int, num_items: int, seed: int = 0, longest: int = 12) -> EventColumns:
    """Positive events of `num_users` users, between 2 and `longest` each."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, longest + 1, num_users)
    total = int(counts.sum())
    watch = rng.uniform(0, 1.5, total).astype(np.float32)
    watch[rng.random(total) < 0.2] = np.nan
    return EventColumns(
        item_idx=rng.integers(0, num_items, total),
        event=rng.choice(POSITIVE_CODES, total).astype(np.int64),
        watch_ratio=watch,
        at_seconds=np.sort(rng.uniform(0, 1e6, total)),
        user_ids=[f"u{user}" for user in range(num_users)],
        starts=np.concatenate([[0], np.cumsum(counts)]),
    )


def tiny_profiles(columns: EventColumns, cfg: TowersConfig) -> EventColumns:
    """The same events with profiles beside, where `cfg` reads them.

    Every user befriends the next two and one who did nothing; all but every fourth have attributes.
    """
    if not cfg.reads_profiles:
        return columns
    users, edges = tiny_user_tables(columns.user_ids)
    tables = (users if cfg.num_attribute_buckets else None, edges if cfg.num_friends else None)
    return with_profiles(columns, profiles_from_tables(*tables, columns, cfg))


def tiny_user_tables(user_ids: list[str]) -> tuple[pa.Table, pa.Table]:
    """Users and edges as `tiny_profiles` describes them; the user "newcomer" has attributes and a friend, no events."""
    attributes = [[("age", str(20 + n)), ("gender", "FM"[n % 2])][: n % 4] for n in range(1, len(user_ids) + 1)]
    users = [{"user_id": u, "attributes": a} for u, a in zip(user_ids, attributes, strict=True)]
    edges = [
        {"user_id": user, "friend_id": friend, "weight": weight}
        for n, user in enumerate(user_ids)
        for friend, weight in ((user_ids[(n + 1) % len(user_ids)], None), (user_ids[n - 2], 0.5), ("silent", 4.0))
        if friend != user
    ]
    users += [{"user_id": "newcomer", "attributes": [("age", "33")]}, {"user_id": "silent", "attributes": None}]
    edges += [{"user_id": "newcomer", "friend_id": user_ids[0], "weight": 1.0}]
    return pa.Table.from_pylist(users, USERS), pa.Table.from_pylist(edges, EDGES)


def random_history(cfg: TowersConfig, num_users: int, num_items: int, seed: int = 0) -> HistoryBatch:
    """Left-padded histories of `num_users` users, of different lengths; with profiles where `cfg` reads them."""
    columns = tiny_profiles(random_columns(num_users, num_items, seed), cfg)
    spans = [(columns.rows(user).start, columns.rows(user).stop) for user in range(num_users)]
    return pad_histories(columns, spans, cfg.history_length)
