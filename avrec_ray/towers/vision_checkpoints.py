"""Pretrained encoders of pictures, frame by frame, and of whole clips.

Frames come as they were decoded: they are resized to the side and brought to the mean and deviation that the
checkpoint's own preprocessor_config.json names.

Dimension key: B batch, T frames, N = B*T pictures, P places in a picture, K tokens a clip, W the encoder's width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.errors import ConfigError
from avrec_ray.towers import offline
from avrec_ray.towers.checkpoints import family_of, from_source, load_model, part_config
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.pretrained import pretrained

FAMILIES = {
    **dict.fromkeys(("clip", "clip_vision_model"), "CLIPVisionModel"),
    **dict.fromkeys(("siglip", "siglip_vision_model"), "SiglipVisionModel"),
    "dinov2": "Dinov2Model",
    "vit": "ViTModel",
    "videomae": "VideoMAEModel",
}
"""`model_type` -> class of transformers. All but VideoMAE look at one picture at a time."""

_FEW_PICTURES = 8
"""Pictures that a CPU looks at together: what lies between layers stays in its cache (twice as fast as 32)."""


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint wants of pixels in [0, 1]."""

    side: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] to float32 [N, 3, side, side]."""
        pixels = frames.float()
        if pixels.shape[2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 255)
        mean, deviation = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.deviation))
        return (pixels / 255 - mean) / deviation


class FrameEncoder(nn.Module):
    """Frames uint8 [B, T, 3, H, W] to tokens [B, K, W]: each frame alone, neighbouring frames averaged."""

    def __init__(
        self,
        model: nn.Module,
        width: int,
        prepare: Preprocessing,
        num_tokens: int,
        pool: Callable[[Any], Tensor] = lambda output: output,
    ) -> None:
        super().__init__()
        self.model, self.width, self.prepare, self.num_tokens, self.pool = model, width, prepare, num_tokens, pool

    def forward(self, frames: Tensor) -> Tensor:
        few = _FEW_PICTURES if frames.device.type == "cpu" else len(frames) * frames.shape[1]
        parts = frames.flatten(0, 1).split(few)
        features_NW = torch.cat([self.pool(self.model(pixel_values=self.prepare(part))) for part in parts])
        return features_NW.view(len(frames), self.num_tokens, -1, self.width).mean(2)


class ClipEncoder(nn.Module):
    """Frames uint8 [B, T, 3, H, W] to tokens [B, K, W] by a VideoMAE, which sees motion.

    Where the clip has another number of frames than the checkpoint was trained on, the nearest in time are taken.
    """

    def __init__(self, model: Any, width: int, prepare: Preprocessing, num_tokens: int) -> None:
        super().__init__()
        self.model, self.width, self.prepare, self.num_tokens = model, width, prepare, num_tokens
        self.wanted = int(model.config.num_frames)
        self.num_steps = self.wanted // int(model.config.tubelet_size)

    def forward(self, frames: Tensor) -> Tensor:
        batch, given = frames.shape[:2]
        middles = (torch.arange(self.wanted, device=frames.device) + 0.5) * given / self.wanted
        pixels = self.prepare(frames.flatten(0, 1)).unflatten(0, (batch, given))[:, middles.long()]
        states = self.model(pixel_values=pixels).last_hidden_state
        steps_BTW = states.unflatten(1, (self.num_steps, -1)).mean(2)
        return F.adaptive_avg_pool1d(steps_BTW.transpose(1, 2), self.num_tokens).transpose(1, 2)


def build_video(cfg: TowersConfig) -> nn.Module:
    """The encoder of `video_checkpoint`."""
    return pretrained(partial(_load, cfg), "video", cfg)


def build_efficientnet(cfg: TowersConfig) -> nn.Module:
    """EfficientNet-lite0 over frames."""
    return pretrained(partial(_load_efficientnet, cfg), "video", cfg)


def video_width(cfg: TowersConfig) -> int:
    """W, from the checkpoint's config alone."""
    return cfg.video_width or int(part_config("video", cfg.video_checkpoint).hidden_size)


def _load(cfg: TowersConfig) -> nn.Module:
    checkpoint = cfg.video_checkpoint
    family = family_of("video", checkpoint, FAMILIES)
    model = load_model(FAMILIES[family], "video", checkpoint)
    width, prepare = int(model.config.hidden_size), read_preprocessing(checkpoint)
    num_tokens = min(cfg.num_frames, cfg.tokens_per_clip)
    if family == "videomae":
        return ClipEncoder(model, width, prepare, num_tokens)
    if family == "vit":  # its pooling layer was trained for a classifier, or not at all
        model.pooler = None
        return FrameEncoder(model, width, prepare, num_tokens, lambda output: output.last_hidden_state[:, 0])
    return FrameEncoder(model, width, prepare, num_tokens, lambda output: output.pooler_output)


def _load_efficientnet(cfg: TowersConfig) -> nn.Module:
    three = (offline.MEAN,) * 3, (offline.DEVIATION,) * 3
    prepare = Preprocessing(offline.SIDE, *three)
    model = offline.EfficientNetLite0()
    return FrameEncoder(model, offline.EFFICIENTNET_WIDTH, prepare, min(cfg.num_frames, cfg.tokens_per_clip))


def read_preprocessing(checkpoint: str) -> Preprocessing:
    """What the checkpoint's preprocessor_config.json asks for.

    Raises:
        ConfigError: there is none, or it does not name a square, a mean and a deviation.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    values, _ = from_source("video", checkpoint, ImageProcessingMixin.get_image_processor_dict)
    size = values.get("crop_size") if values.get("do_center_crop") else values.get("size")
    sides = set(size.values()) if isinstance(size, dict) else {size}
    mean, deviation = values.get("image_mean"), values.get("image_std")
    if len(sides) != 1 or not mean or not deviation:
        raise ConfigError(
            f"towers.video_checkpoint={checkpoint!r}: preprocessor_config.json has size {size}, image_mean {mean} and "
            f"image_std {deviation}; expected one side, and three numbers each"
        )
    return Preprocessing(int(sides.pop()), tuple(mean), tuple(deviation))
