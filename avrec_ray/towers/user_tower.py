"""The user tower: causal attention over a history, by blocks of SASRec or HSTU.

Dimension key: B batch, L history length, D embedding, E model width, A attributes, P friends' choices.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.profile import AttributeBag, FriendAttention
from avrec_ray.towers.user_blocks import USER_BLOCKS
from avrec_ray.types import EVENTS

NUM_GAP_BUCKETS = 24
"""Buckets of log2(1 + seconds since the event before); 2**23 s is 97 days."""

Friends = tuple[Tensor, Tensor, Tensor] | None
"""Of friends' choices: unit item embeddings [B, P, D], log weight [B, P], and bool [B, L, P] whether each is read."""


class UserTower(nn.Module):
    """What a user watched, how, and when, to a query: at every position the unit vector of what comes next."""

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.scale_in = cfg.embedding_dim**0.5
        self.items = nn.Linear(cfg.embedding_dim, cfg.model_dim)
        self.events = nn.Embedding(len(EVENTS) + 1, cfg.model_dim, padding_idx=0)
        self.gaps = nn.Embedding(NUM_GAP_BUCKETS, cfg.model_dim)
        self.watch = nn.Linear(2, cfg.model_dim)
        self.position = nn.Parameter(torch.randn(cfg.history_length, cfg.model_dim) * 0.02)
        for table in (self.events, self.gaps):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = USER_BLOCKS[cfg.user_blocks](cfg)
        self.dropout = nn.Dropout(cfg.dropout)
        self.project = nn.Sequential(nn.LayerNorm(cfg.model_dim), nn.Linear(cfg.model_dim, cfg.embedding_dim))
        self.empty = nn.Parameter(torch.randn(cfg.embedding_dim) * 0.02)
        self.last_item = nn.Parameter(torch.tensor(0.5)) if cfg.last_item else None
        self.attributes = AttributeBag(cfg) if cfg.num_attribute_buckets else None
        self.friends = FriendAttention(cfg) if cfg.num_friends else None
        self.told = nn.Linear(cfg.model_dim, cfg.embedding_dim, bias=False) if cfg.reads_profiles else None

    def forward(
        self,
        items_BLD: Tensor,
        event_BL: Tensor,
        watch_ratio_BL: Tensor,
        gap_seconds_BL: Tensor,
        mask_BL: Tensor,
        at_seconds_BL: Tensor,
        attributes_BA: Tensor | None = None,
        friends: Friends = None,
    ) -> Tensor:
        """Queries, unit [B, L, D]. Histories are left padded.

        Padded positions give the query of no history: a learned one, and what attributes and friends add to it.

        Args:
            items_BLD: unit item embeddings.
            event_BL: 1 + index in EVENTS, 0 where padded.
            watch_ratio_BL: watched share of the item, NaN where unknown.
            gap_seconds_BL: seconds since the event before, 0 for the first.
            mask_BL: true where an event exists.
            at_seconds_BL: float64, POSIX time of the event; anything finite where padded.
            attributes_BA: int64, buckets from 1, 0 for none; needed if and only if towers read them.
            friends: likewise.

        Raises:
            ValueError: towers read attributes or friends, and they are not given.
        """
        states_BLE = self._inputs(items_BLD, event_BL, watch_ratio_BL, gap_seconds_BL)
        told_BLE = self._attributes(attributes_BA)
        if told_BLE is not None:
            states_BLE = states_BLE + told_BLE
        states_BLE = self.blocks(self.dropout(states_BLE), mask_BL, at_seconds_BL)
        if self.friends is not None:
            if friends is None:
                raise ValueError("towers.num_friends > 0, but the history has no friends; attach profiles to it")
            heard_BLE = self.friends(states_BLE, mask_BL, *friends)
            states_BLE = states_BLE + heard_BLE
            told_BLE = heard_BLE if told_BLE is None else told_BLE + heard_BLE
        empty = self.empty if told_BLE is None or self.told is None else self.empty + self.told(told_BLE)
        found_BLD = self.project(states_BLE)
        if self.last_item is not None:
            found_BLD = found_BLD + self.last_item * self.scale_in * items_BLD
        queries_BLD = torch.where(mask_BL.unsqueeze(-1), found_BLD, empty)
        return F.normalize(queries_BLD, dim=-1)

    def _inputs(self, items_BLD: Tensor, event_BL: Tensor, watch_ratio_BL: Tensor, gap_seconds_BL: Tensor) -> Tensor:
        """What each event is to the first block, [B, L, E]."""
        known_BL = ~watch_ratio_BL.isnan()
        watch_BL2 = torch.stack([watch_ratio_BL.nan_to_num(0.0).clamp(0, 2), known_BL.to(items_BLD.dtype)], -1)
        bucket_BL = torch.log2(1 + gap_seconds_BL.clamp(min=0)).long().clamp(max=NUM_GAP_BUCKETS - 1)
        length = items_BLD.shape[1]
        states_BLE: Tensor = (
            self.items(items_BLD * self.scale_in)
            + self.events(event_BL)
            + self.watch(watch_BL2)
            + self.gaps(bucket_BL)
            + self.position[-length:]
        )
        return states_BLE

    def _attributes(self, attributes_BA: Tensor | None) -> Tensor | None:
        """[B, 1, E], or None where the tower reads none."""
        if self.attributes is None:
            return None
        if attributes_BA is None:
            raise ValueError(
                "towers.num_attribute_buckets > 0, but the history has no attributes; attach profiles to it"
            )
        told_BE: Tensor = self.attributes(attributes_BA)
        return told_BE.unsqueeze(1)
