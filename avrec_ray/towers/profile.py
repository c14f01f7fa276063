"""What the user tower reads besides a user's own behaviour: attributes, and what friends chose.

Either may be absent, and then adds exactly nothing.

Dimension key: B batch, L history length, A attributes, P friends' choices, D embedding, E model width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.towers.config import TowersConfig


class AttributeBag(nn.Module):
    """Hashed attributes [B, A] to a vector a user [B, E]: the mean of their rows; 0 of a user without any."""

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(cfg.num_attribute_buckets + 1, cfg.model_dim, padding_idx=0)
        nn.init.normal_(self.table.weight[1:].data, std=0.02)
        self.hidden_share = cfg.attribute_dropout

    def forward(self, attributes_BA: Tensor) -> Tensor:
        """`attributes_BA`: int64, buckets from 1, 0 where there is none. In training some users' are hidden."""
        present_BA1 = (attributes_BA > 0).unsqueeze(2)
        if self.training and self.hidden_share:
            shown_B = torch.rand(len(attributes_BA), device=attributes_BA.device) >= self.hidden_share
            present_BA1 = present_BA1 & shown_B[:, None, None]
        sum_BE: Tensor = (self.table(attributes_BA) * present_BA1).sum(1)
        return sum_BE / present_BA1.sum(1).clamp(min=1)


class FriendAttention(nn.Module):
    """What friends chose, as seen from each position: one cross-attention behind a gate that starts at 0.

    A key without value stands beside the choices, so that a position may read nobody, and reads nobody where there
    is nothing to read. The logits of a friend's choices gain the log of the friendship's weight.
    """

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads
        self.scale_in = cfg.embedding_dim**0.5
        self.start = nn.Parameter(torch.randn(cfg.model_dim) * 0.02)
        self.norm = nn.LayerNorm(cfg.model_dim)
        self.query = nn.Linear(cfg.model_dim, cfg.model_dim)
        self.key_value = nn.Linear(cfg.embedding_dim, 2 * cfg.model_dim)
        self.out = nn.Linear(cfg.model_dim, cfg.model_dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, states_BLE: Tensor, mask_BL: Tensor, items_BPD: Tensor, log_weight_BP: Tensor, reads_BLP: Tensor
    ) -> Tensor:
        """What to add to each state, [B, L, E]; a padded position asks as one who did nothing yet."""
        asking_BLE = torch.where(mask_BL.unsqueeze(2), states_BLE, self.start)
        query_BHLd = _by_head(self.query(self.norm(asking_BLE)), self.num_heads)
        key_BHPd, value_BHPd = (
            _by_head(part, self.num_heads) for part in self.key_value(items_BPD * self.scale_in).chunk(2, -1)
        )
        logits_BHLP = query_BHLd @ key_BHPd.transpose(2, 3) * query_BHLd.shape[-1] ** -0.5
        logits_BHLP = logits_BHLP + log_weight_BP[:, None, None, :]
        logits_BHLP = logits_BHLP.masked_fill(~reads_BLP.unsqueeze(1), -torch.inf)
        share_BHLP = F.pad(logits_BHLP, (0, 1)).softmax(-1)[..., :-1]
        read_BLE: Tensor = self.out((share_BHLP.to(value_BHPd.dtype) @ value_BHPd).transpose(1, 2).flatten(2))
        return self.gate * read_BLE


def _by_head(states_BLE: Tensor, num_heads: int) -> Tensor:
    return states_BLE.unflatten(-1, (num_heads, -1)).transpose(1, 2)
