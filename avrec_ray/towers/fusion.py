"""Bottleneck fusion under a presence mask (Nagrani et al., Attention Bottlenecks for Multimodal Fusion, 2021).

Dimension key: B batch, Q bottleneck tokens, K tokens of one modality, E model width, O modalities.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.towers.config import TowersConfig
from avrec_ray.types import MODALITIES


class FusionLayer(nn.Module):
    """Each modality attends over its own tokens and the bottleneck; the bottleneck is averaged over the present.

    Modalities that are absent everywhere have no weights, and their tokens pass.
    """

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.names = cfg.modalities
        self.attend = nn.ModuleDict(
            {
                name: nn.TransformerEncoderLayer(
                    cfg.model_dim, cfg.num_heads, 2 * cfg.model_dim, cfg.dropout, F.gelu,
                    batch_first=True, norm_first=True,
                )
                for name in cfg.modalities
            }
        )  # fmt: skip

    def forward(
        self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], bottleneck_BQE: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        num_bottleneck = bottleneck_BQE.shape[1]
        seen = bottleneck_BQE.new_zeros(len(bottleneck_BQE), num_bottleneck, dtype=torch.bool)
        updated, total = dict(tokens), torch.zeros_like(bottleneck_BQE)
        count = bottleneck_BQE.new_zeros(len(bottleneck_BQE), 1, 1)
        for name, layer in self.attend.items():
            if name not in self.names:  # absent everywhere: its share would be computed and masked away
                updated[name] = tokens[name]
                continue
            joined = torch.cat([bottleneck_BQE, tokens[name]], 1)
            out = layer(joined, src_key_padding_mask=torch.cat([seen, ~masks[name]], 1))
            present_B11 = masks[name].any(1)[:, None, None].to(out.dtype)
            updated[name] = out[:, num_bottleneck:]
            total, count = total + out[:, :num_bottleneck] * present_B11, count + present_B11
        # An item with no modality at all keeps the learned bottleneck: a valid, if uninformed, embedding.
        fused = torch.where(count > 0, total / count.clamp(min=1.0), bottleneck_BQE)
        return updated, fused


class BottleneckFusion(nn.Module):
    """Tokens of the present modalities to one vector [B, E] and to the fused tokens of each modality."""

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.bottleneck = nn.Parameter(torch.randn(cfg.num_bottleneck_tokens, cfg.model_dim) * 0.02)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(cfg.model_dim) for name in cfg.modalities})
        self.layers = nn.ModuleList(FusionLayer(cfg) for _ in range(cfg.fusion_layers))

    def forward(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """`tokens[m]` float [B, K_m, E], `masks[m]` bool [B, K_m], true where the token exists."""
        states = {**tokens, **{name: norm(tokens[name]) for name, norm in self.norms.items()}}
        bottleneck_BQE = self.bottleneck.expand(len(states["text"]), -1, -1)
        for layer in self.layers:
            states, bottleneck_BQE = layer(states, masks, bottleneck_BQE)
        return bottleneck_BQE.mean(1), states


def drop_modalities(masks: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Hide each present modality with chance `rate`, never the last one of an item (modality dropout).

    Draws from torch's global generator: one seed a step fixes it.
    """
    present_BO = torch.stack([masks[name].any(1) for name in MODALITIES], 1)
    draw_BO = torch.rand(present_BO.shape, device=present_BO.device).masked_fill(~present_BO, -1.0)
    keep_BO = (draw_BO >= rate) | (draw_BO == draw_BO.amax(1, keepdim=True))
    return {name: masks[name] & keep_BO[:, index, None] for index, name in enumerate(MODALITIES)}
