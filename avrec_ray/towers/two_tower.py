"""Both towers as one module: the unit of fine-tuning and of checkpoints.

Dimension key: B batch, L history length, D embedding, U items taking part in a step.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTokens, ItemTower
from avrec_ray.towers.user_tower import Friends, UserTower


@dataclass(eq=False)
class FriendBatch:
    """What friends of B users chose, P items each; see `training.friends`."""

    item_idx: Tensor
    """int64 [B, P], catalogue rows; 0 where padded."""
    log_weight: Tensor
    """float32 [B, P], of the friendship."""
    reads: Tensor
    """bool [B, L, P]: whether a position may read a choice; false where padded."""


@dataclass(eq=False)
class HistoryBatch:
    """Histories of B users, left padded to L; columns as in `UserTower.forward`."""

    item_idx: Tensor
    """int64 [B, L], catalogue rows; 0 where padded."""
    event: Tensor
    """int64 [B, L], 1 + index in EVENTS; 0 where padded."""
    watch_ratio: Tensor
    """float32 [B, L], NaN where unknown."""
    gap_seconds: Tensor
    """float32 [B, L]."""
    mask: Tensor
    """bool [B, L]."""
    at_seconds: Tensor
    """float64 [B, L], POSIX time; 0 where padded."""
    attributes: Tensor | None = None
    """int64 [B, A], buckets from 1, 0 where a user has fewer; None where towers read none."""
    friends: FriendBatch | None = None
    """None where towers read none."""

    def item_rows(self) -> Tensor:
        """int64: the catalogue rows of every item that is read, repeats and padding included."""
        own = self.item_idx.flatten()
        return own if self.friends is None else torch.cat([own, self.friends.item_idx.flatten()])


class TwoTower(nn.Module):
    """Item tower, user tower and the learned scale (inverse temperature) of their dot product."""

    def __init__(self, cfg: TowersConfig, num_items: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.item = ItemTower(cfg, num_items, encodes=False)
        self.user = UserTower(cfg)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def embed_items(self, items: ItemTokens, item_idx: Tensor, warm: Tensor) -> Tensor:
        """Unit embeddings [U, D] of the items at catalogue rows `item_idx`."""
        return self.item.fuse(items, item_idx, warm)

    def queries(self, history: HistoryBatch, embeddings_UD: Tensor, row_of_item: Tensor | None = None) -> Tensor:
        """Queries, unit [B, L, D]. `row_of_item` int64 [N] maps catalogue rows to rows of `embeddings_UD`."""
        rows = history.item_idx if row_of_item is None else row_of_item[history.item_idx]
        return self.user(
            embeddings_UD[rows] * history.mask.unsqueeze(-1),
            history.event,
            history.watch_ratio,
            history.gap_seconds,
            history.mask,
            history.at_seconds,
            history.attributes,
            self._friends(history.friends, embeddings_UD, row_of_item),
        )

    def _friends(self, friends: FriendBatch | None, embeddings_UD: Tensor, row_of_item: Tensor | None) -> Friends:
        """What `UserTower.forward` wants of friends."""
        if friends is None:
            return None
        rows = friends.item_idx if row_of_item is None else row_of_item[friends.item_idx]
        return embeddings_UD[rows], friends.log_weight, friends.reads

    def scale(self) -> Tensor:
        """Scale of the dot product, at most 100 as in CLIP."""
        return self.log_scale.clamp(max=math.log(100.0)).exp()
