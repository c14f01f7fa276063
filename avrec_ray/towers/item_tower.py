"""The item tower: clips and text to one embedding and to moments with time spans.

Dimension key: B batch, C clips, K tokens a clip, M moments, D embedding, W an encoder's width, E model width.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.encoder_registry import build_adapter, build_encoder, token_shape
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
    video_vector: Tensor = field(default_factory=lambda: torch.empty(0))
    """float32 [B, W] where the modality comes as a vector, or is absent everywhere: read instead of what is above.
    A row of NaN says that the item has none. Without a value: not in use. The same for the next two."""
    audio_vector: Tensor = field(default_factory=lambda: torch.empty(0))
    text_vector: Tensor = field(default_factory=lambda: torch.empty(0))

    def presence(self) -> dict[str, Tensor]:
        """Which modalities each item has: bool [B] a modality."""
        found = {"video": self.has_video, "audio": self.has_audio, "text": (self.word_ids > 0).any(1)}
        given = {name: getattr(self, f"{name}_vector") for name in MODALITIES}
        return found | {name: ~vector[:, 0].isnan() for name, vector in given.items() if vector.numel()}

    def source(self, modality: str) -> Tensor:
        """What the encoder of a modality reads."""
        vector: Tensor = getattr(self, f"{modality}_vector")
        raw = {"video": self.frames, "audio": self.log_mel, "text": self.word_ids}
        return vector if vector.numel() else raw[modality]


@dataclass(eq=False)
class ClipFeatures:
    """What frozen encoders made of one clip and the text of each item of a batch, float32 [B, K, W] a modality."""

    video: Tensor
    audio: Tensor
    text: Tensor
    has_video: Tensor
    """bool [B]. The same for the next two."""
    has_audio: Tensor
    has_text: Tensor

    def presence(self) -> dict[str, Tensor]:
        """As `ItemInputs.presence`."""
        return {"video": self.has_video, "audio": self.has_audio, "text": self.has_text}


def rows_of(batch: ItemInputs | ClipFeatures, rows: slice) -> ItemInputs | ClipFeatures:
    """Some items of a batch; vectors that are not in use stay so."""
    return dataclasses.replace(batch, **{name: value[rows] for name, value in vars(batch).items()})


@dataclass(eq=False)
class ItemTokens:
    """What the encoders leave of whole items; cheap to keep, so that frozen encoders run once."""

    tokens: dict[str, Tensor]
    """float32 [B, C*K, W] for video and audio, [B, K, W] for text."""
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
    """Encoders, adapters, fusion and projection. `num_items` rows of id vectors are added where items are warm."""

    def __init__(self, cfg: TowersConfig, num_items: int = 0, encodes: bool = True) -> None:
        """Without `encodes` the tower reads tokens alone, and loads no checkpoint: for fine-tuning and serving."""
        super().__init__()
        self.cfg = cfg
        built = [name for name in MODALITIES if encodes or cfg.encoder_of(name) == "scratch"]
        self.encoders = nn.ModuleDict({name: build_encoder(name, cfg) for name in built})
        self.adapters = nn.ModuleDict({name: build_adapter(name, cfg) for name in MODALITIES})
        self.contrast_heads = nn.ModuleDict({name: nn.Linear(cfg.model_dim, cfg.embedding_dim) for name in MODALITIES})
        self.fusion = BottleneckFusion(cfg)
        self.project = nn.Sequential(nn.LayerNorm(cfg.model_dim), nn.Linear(cfg.model_dim, cfg.embedding_dim))
        self.ids = nn.Embedding(max(num_items, 1), cfg.embedding_dim)
        nn.init.normal_(self.ids.weight, std=cfg.embedding_dim**-0.5)

    def encode_clips(self, inputs: ItemInputs | ClipFeatures) -> dict[str, Tensor]:
        """Tokens of each modality, [B, K, W]. Absent modalities give rows to be masked; features are tokens already."""
        if isinstance(inputs, ClipFeatures):
            return {name: getattr(inputs, name) for name in MODALITIES}
        return {name: self.encoders[name](inputs.source(name)) for name in MODALITIES}

    def adapt(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tokens of the encoders at the width of the model, [B, K, E]."""
        return {name: self.adapters[name](tokens[name]) for name in MODALITIES}

    def contrast(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unit vectors [B, D] of each modality alone, compared with one another in pretraining."""
        adapted = self.adapt(tokens)
        return {name: F.normalize(self.contrast_heads[name](adapted[name].mean(1)), dim=-1) for name in MODALITIES}

    def fuse(self, items: ItemTokens, item_idx: Tensor | None = None, warm: Tensor | None = None) -> Tensor:
        """Item embeddings, unit [B, D]; `item_idx` int64 [B] and `warm` bool [B] add id vectors to warm items.

        Content has the length `content_weight`, id vectors start with length 1 and grow where behaviour says so.
        """
        if not self.cfg.content_weight and item_idx is not None and warm is not None:
            # Ids alone. A cold item keeps the direction it was drawn with, which says nothing, but can be indexed.
            known = warm if self.training else torch.ones_like(warm)
            return F.normalize(self._id_vectors(self.ids.weight, item_idx, known), dim=-1)
        masks = drop_modalities(items.masks, self.cfg.modality_dropout) if self.training else items.masks
        fused_BE, _ = self.fusion(self.adapt(items.tokens), masks)
        content_BD = F.normalize(self.project(fused_BE), dim=-1) * self.cfg.content_weight
        return F.normalize(content_BD + self._id_vectors(fused_BE, item_idx, warm), dim=-1)

    def moments(self, items: ItemTokens) -> tuple[Tensor, Tensor]:
        """Moments, unit [B, M, D], and which exist, bool [B, M]; M = 2 * max_clips + 1.

        In order: the video of each clip, the audio of each clip, the text.
        """
        _, states = self.fusion(self.adapt(items.tokens), items.masks)
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
    """Shape of one item's tokens, (tokens, W), a modality. No weight is loaded for it."""
    spans = {"video": cfg.max_clips, "audio": cfg.max_clips, "text": 1}
    shapes = {name: token_shape(name, cfg) for name in MODALITIES}
    return {name: (spans[name] * tokens, width) for name, (tokens, width) in shapes.items()}
