"""Every encoder by modality and name, the shape of its tokens, and the adapter that brings them to the model's width.

An encoder is a module from one input a row (frames, log-mel, word ids, or a given vector) to tokens [B, K, W] of its
own width W. A row never depends on the others of its batch.

Dimension key: B batch, K tokens a span (a clip; the whole text), W the encoder's width, E model width.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from avrec_ray.errors import ConfigError
from avrec_ray.towers.audio_checkpoints import audio_width, build_audio
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.encoders import TEXT_TOKENS, AudioEncoder, TextEncoder, VideoEncoder
from avrec_ray.towers.offline import EFFICIENTNET_WIDTH
from avrec_ray.towers.text_checkpoints import build_text, text_width
from avrec_ray.towers.vision_checkpoints import build_efficientnet, build_video, video_width

_LEAST_NORMED = 16
"""Narrowest tokens that an adapter normalises."""


@dataclass(frozen=True)
class EncoderKind:
    """One way to encode one modality."""

    build: Callable[[TowersConfig], nn.Module]
    num_tokens: Callable[[TowersConfig], int]
    """K."""
    width: Callable[[TowersConfig], int]
    """W, without loading a weight; 0 where only the pipeline can know it."""


class GivenVector(nn.Module):
    """A vector [B, W] as the one token of its item, [B, 1, W]; NaN, which says that there is none, gives zeros."""

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.nan_to_num().unsqueeze(1)


class AbsentAdapter(nn.Module):
    """Zeros [B, K, E] for a modality that is absent everywhere."""

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.model_dim = model_dim

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.new_zeros(*tokens.shape[:2], self.model_dim)


def frame_tokens(cfg: TowersConfig) -> int:
    """Tokens of a clip's frames: neighbouring frames share one where there are more than `tokens_per_clip`."""
    return min(cfg.num_frames, cfg.tokens_per_clip)


NONE = EncoderKind(lambda _: GivenVector(), lambda _: 1, lambda _: 1)

ENCODERS: dict[str, dict[str, EncoderKind]] = {
    "video": {
        "scratch": EncoderKind(VideoEncoder, frame_tokens, lambda cfg: cfg.model_dim),
        "none": NONE,
        "precomputed": EncoderKind(lambda _: GivenVector(), lambda _: 1, lambda cfg: cfg.video_width),
        "transformers": EncoderKind(build_video, frame_tokens, video_width),
        "efficientnet_lite0": EncoderKind(build_efficientnet, frame_tokens, lambda _: EFFICIENTNET_WIDTH),
    },
    "audio": {
        "scratch": EncoderKind(AudioEncoder, lambda cfg: cfg.tokens_per_clip, lambda cfg: cfg.model_dim),
        "none": NONE,
        "precomputed": EncoderKind(lambda _: GivenVector(), lambda _: 1, lambda cfg: cfg.audio_width),
        "transformers": EncoderKind(build_audio, lambda cfg: cfg.tokens_per_clip, audio_width),
    },
    "text": {
        "scratch": EncoderKind(TextEncoder, lambda _: TEXT_TOKENS, lambda cfg: cfg.model_dim),
        "none": NONE,
        "precomputed": EncoderKind(lambda _: GivenVector(), lambda _: 1, lambda cfg: cfg.text_width),
        "transformers": EncoderKind(build_text, lambda _: 1, text_width),
        "minilm": EncoderKind(build_text, lambda _: 1, text_width),
    },
}
"""Modality and `towers.<modality>_encoder` to the encoder."""


def encoder_kind(modality: str, cfg: TowersConfig) -> EncoderKind:
    """The entry that the config names."""
    return ENCODERS[modality][cfg.encoder_of(modality)]


def build_encoder(modality: str, cfg: TowersConfig) -> nn.Module:
    """The modality's encoder."""
    return encoder_kind(modality, cfg).build(cfg)


def build_adapter(modality: str, cfg: TowersConfig) -> nn.Module:
    """From the encoder's width to the model's; an encoder from scratch has the model's already."""
    if modality not in cfg.modalities:
        return AbsentAdapter(cfg.model_dim)
    if cfg.encoder_of(modality) == "scratch":
        return nn.Identity()
    width = encoder_width(modality, cfg)
    # Of one or two numbers a layer norm would leave their signs alone.
    norm = nn.LayerNorm(width) if width >= _LEAST_NORMED else nn.Identity()
    return nn.Sequential(norm, nn.Linear(width, cfg.model_dim))


def encoder_width(modality: str, cfg: TowersConfig) -> int:
    """W of a modality's tokens.

    Raises:
        ConfigError: nobody has said yet how wide the precomputed vectors are.
    """
    width = encoder_kind(modality, cfg).width(cfg)
    if not width:
        raise ConfigError(
            f"towers.{modality}_width=0 with {modality}_encoder={cfg.encoder_of(modality)!r}; the pipeline reads it "
            "from the items table, elsewhere give the width of the vectors"
        )
    return width


def token_shape(modality: str, cfg: TowersConfig) -> tuple[int, int]:
    """(K, W) of one span."""
    return encoder_kind(modality, cfg).num_tokens(cfg), encoder_width(modality, cfg)
