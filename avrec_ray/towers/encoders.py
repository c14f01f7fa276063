"""One encoder a modality, from scratch: a small ViT over frames, a transformer over log-mel, one over words.

The ViT also reads what changes from frame to frame. Each turns its input into a few tokens of width `model_dim`; fusion
joins the tokens of all modalities.

Dimension key: B batch, T frames, C channels, H W pixels, P patches, F mel bins, A mel frames, S words,
K tokens a clip, E model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.towers.config import TowersConfig

TEXT_TOKENS = 2
"""Tokens the text encoder leaves: the mean and the maximum over words."""


def transformer(
    cfg: TowersConfig, num_layers: int, layer_type: type[nn.TransformerEncoderLayer] = nn.TransformerEncoderLayer
) -> nn.TransformerEncoder:
    """Pre-norm transformer of width `model_dim`, batch first."""
    layer = layer_type(
        cfg.model_dim, cfg.num_heads, 4 * cfg.model_dim, cfg.dropout, F.gelu, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)


class VideoEncoder(nn.Module):
    """uint8 frames [B, T, 3, H, W] to tokens [B, K, E]: patches of a frame attend, then frames attend in time.

    A patch is read with what changed in it since the frame before (RGB difference: Wang et al., Temporal Segment
    Networks, 2016): from small data, movement is not learned from positions alone.
    """

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        num_patches = (cfg.frame_size // cfg.patch_size) ** 2
        self.patchify = nn.Conv2d(6, cfg.model_dim, cfg.patch_size, cfg.patch_size)
        self.patch_position = nn.Parameter(torch.randn(num_patches, cfg.model_dim) * 0.02)
        self.space = transformer(cfg, cfg.encoder_layers)
        self.frame_position = nn.Parameter(torch.randn(cfg.num_frames, cfg.model_dim) * 0.02)
        self.time = transformer(cfg, 1)
        self.num_tokens = min(cfg.num_frames, cfg.tokens_per_clip)

    def forward(self, frames: Tensor) -> Tensor:
        batch, num_frames = frames.shape[:2]
        pixels = (frames.float() / 255.0 - 0.5) / 0.25
        patches_NPE = self.patchify(with_change(pixels).flatten(0, 1)).flatten(2).transpose(1, 2) + self.patch_position
        frames_BTE = self.space(patches_NPE).mean(1).view(batch, num_frames, -1) + self.frame_position
        return self.time(frames_BTE).unflatten(1, (self.num_tokens, -1)).mean(2)


def with_change(pixels: Tensor) -> Tensor:
    """[B, T, C, H, W] to [B, T, 2C, H, W]: each frame, and what it has more than the one before; of the first, 0."""
    change = torch.cat([torch.zeros_like(pixels[:, :1]), pixels.diff(dim=1)], 1)
    return torch.cat([pixels, change], 2)


class AudioEncoder(nn.Module):
    """Log-mel [B, F, A] to tokens [B, K, E]: two strided convolutions (25 mel frames a step), then attention."""

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(cfg.num_mel_bins, cfg.model_dim, 10, 5, padding=3),
            nn.GELU(),
            nn.Conv1d(cfg.model_dim, cfg.model_dim, 5, 5),
        )
        steps = self.stem(torch.zeros(1, cfg.num_mel_bins, cfg.num_mel_frames)).shape[2]
        self.position = nn.Parameter(torch.randn(steps, cfg.model_dim) * 0.02)
        self.time = transformer(cfg, cfg.encoder_layers)
        self.num_tokens = cfg.tokens_per_clip

    def forward(self, log_mel: Tensor) -> Tensor:
        steps_BSE = self.stem(log_mel).transpose(1, 2) + self.position
        return F.adaptive_avg_pool1d(self.time(steps_BSE).transpose(1, 2), self.num_tokens).transpose(1, 2)


class TextEncoder(nn.Module):
    """Word ids int64 [B, S] (0 is padding) to tokens [B, 2, E]. A text without words gives zeros."""

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(cfg.num_text_buckets, cfg.model_dim, padding_idx=0)
        nn.init.normal_(self.words.weight, std=0.5)
        self.position = nn.Parameter(torch.randn(cfg.max_text_tokens, cfg.model_dim) * 0.02)
        self.order = transformer(cfg, 1)

    def forward(self, word_ids: Tensor) -> Tensor:
        present_BS = word_ids > 0
        # A row of padding alone would give NaN in the softmax: let it see its first slot, zeroed below.
        hidden_BS = ~present_BS
        hidden_BS = torch.cat([hidden_BS[:, :1] & present_BS.any(1, keepdim=True), hidden_BS[:, 1:]], 1)
        states_BSE = self.order(self.words(word_ids) + self.position, src_key_padding_mask=hidden_BS)
        weight_BS1 = present_BS.unsqueeze(2).to(states_BSE.dtype)
        mean_BE = (states_BSE * weight_BS1).sum(1) / weight_BS1.sum(1).clamp(min=1)
        peak_BE = states_BSE.masked_fill(weight_BS1 == 0, -1e4).amax(1) * present_BS.any(1, keepdim=True)
        return torch.stack([mean_BE, peak_BE], 1)
