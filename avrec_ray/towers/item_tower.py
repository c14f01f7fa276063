"""The item tower: clips and text to one embedding and to moments with time spans.

Dimension key: B batch, C clips, K tokens a clip, M moments, D embedding, E model width, N catalogue.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.encoders import TEXT_TOKENS, AudioEncoder, TextEncoder, VideoEncoder
from avrec_ray.towers.fusion import BottleneckFusion, drop_modalities
from avrec_ray.types import MODALITIES


@dataclass(eq=False)
class ItemInputs:
    """One clip and the text of each item of a batch."""

    frames: Tensor
    """uint8 [B, T, 3, H, W]; zero where `has_video` is false."""
    log_mel: Tensor
    """float32 [B, F, A]; zero where `has_audio` is false."""
    word_ids: Tensor
    """int64 [B, S]; 0 is padding."""
    has_video: Tensor
    """bool [B]."""
    has_audio: Tensor
    """bool [B]."""

    def presence(self) -> dict[str, Tensor]:
        """Which modalities each item has: bool [B] a modality."""
        return {"video": self.has_video, "audio": self.has_audio, "text": (self.word_ids > 0).any(1)}


@dataclass(eq=False)
class ItemTokens:
    """What the encoders leave of whole items; cheap to keep, so that frozen encoders run once."""

    tokens: dict[str, Tensor]
    """float32 [B, C*K, E] for video and audio, [B, 2, E] for text."""
    masks: dict[str, Tensor]
    """bool, the first two dimensions of `tokens`: true where the token exists."""

    def take(self, rows: Tensor) -> "ItemTokens":
        """The items at `rows`, int64 [R]."""
        return ItemTokens(
            {name: value[rows] for name, value in self.tokens.items()},
            {name: value[rows] for name, value in self.masks.items()},
        )

    def __len__(self) -> int:
        return len(self.tokens["text"])


class ItemTower(nn.Module):
    """Encoders, fusion and projection. `num_items` rows of id vectors are added where items are warm."""

    def __init__(self, cfg: TowersConfig, num_items: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoders = nn.ModuleDict(
            {"video": VideoEncoder(cfg), "audio": AudioEncoder(cfg), "text": TextEncoder(cfg)}
        )
        self.contrast_heads = nn.ModuleDict({name: nn.Linear(cfg.model_dim, cfg.embedding_dim) for name in MODALITIES})
        self.fusion = BottleneckFusion(cfg)
        self.project = nn.Sequential(nn.LayerNorm(cfg.model_dim), nn.Linear(cfg.model_dim, cfg.embedding_dim))
        self.ids = nn.Embedding(max(num_items, 1), cfg.embedding_dim)
        nn.init.normal_(self.ids.weight, std=cfg.embedding_dim**-0.5)

    def encode_clips(self, inputs: ItemInputs) -> dict[str, Tensor]:
        """Tokens of each modality, [B, K, E] ([B, 2, E] for text). Absent modalities give rows to be masked."""
        return {
            "video": self.encoders["video"](inputs.frames),
            "audio": self.encoders["audio"](inputs.log_mel),
            "text": self.encoders["text"](inputs.word_ids),
        }

    def contrast(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unit vectors [B, D] of each modality alone, compared with one another in pretraining."""
        return {name: F.normalize(self.contrast_heads[name](tokens[name].mean(1)), dim=-1) for name in MODALITIES}

    def fuse(self, items: ItemTokens, item_idx: Tensor | None = None, warm: Tensor | None = None) -> Tensor:
        """Item embeddings, unit [B, D]; `item_idx` int64 [B] and `warm` bool [B] add id vectors to warm items.

        Content has the length `content_weight`, id vectors start with length 1 and grow where behaviour says so.
        """
        masks = drop_modalities(items.masks, self.cfg.modality_dropout) if self.training else items.masks
        fused_BE, _ = self.fusion(items.tokens, masks)
        content_BD = F.normalize(self.project(fused_BE), dim=-1) * self.cfg.content_weight
        return F.normalize(content_BD + self._id_vectors(fused_BE, item_idx, warm), dim=-1)

    def moments(self, items: ItemTokens) -> tuple[Tensor, Tensor]:
        """Moments, unit [B, M, D], and which exist, bool [B, M]; M = 2 * max_clips + 1.

        In order: the video of each clip, the audio of each clip, the text.
        """
        _, states = self.fusion(items.tokens, items.masks)
        pooled, present = [], []
        for name in MODALITIES:
            spans = self.cfg.max_clips if name != "text" else 1
            mask = items.masks[name].unflatten(1, (spans, -1))
            weight = mask.unsqueeze(-1).to(states[name].dtype)
            summed = (states[name].unflatten(1, (spans, -1)) * weight).sum(2)
            pooled.append(summed / weight.sum(2).clamp(min=1))
            present.append(mask.any(2))
        return F.normalize(self.project(torch.cat(pooled, 1)), dim=-1), torch.cat(present, 1)

    def _id_vectors(self, like: Tensor, item_idx: Tensor | None, warm: Tensor | None) -> Tensor:
        if item_idx is None or warm is None or not self.cfg.use_item_ids:
            return like.new_zeros(1)
        keep = warm
        if self.training:
            keep = warm & (torch.rand(len(warm), device=warm.device) >= self.cfg.id_dropout)
        return cast(Tensor, self.ids(item_idx)) * keep.unsqueeze(1)


def token_shapes(cfg: TowersConfig) -> dict[str, tuple[int, int]]:
    """Shape of one item's tokens, (tokens, E), a modality."""
    video = cfg.max_clips * min(cfg.num_frames, cfg.tokens_per_clip)
    audio = cfg.max_clips * cfg.tokens_per_clip
    return {
        "video": (video, cfg.model_dim),
        "audio": (audio, cfg.model_dim),
        "text": (TEXT_TOKENS, cfg.model_dim),
    }
