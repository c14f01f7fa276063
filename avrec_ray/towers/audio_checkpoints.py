"""Pretrained encoders of sound: Whisper's, AST and CLAP, each on the log-mel of its own front end (media.front_end).

Their inputs have one length. A shorter clip is filled up as the checkpoint's feature extractor does it: with silence,
or for CLAP with repetitions first. Tokens are means over equal parts of the clip's own time; what was filled in is left
out.

Dimension key: B batch, F mel bins, A columns of the log-mel, T steps of the encoder, K tokens a clip, W its width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.errors import ConfigError
from avrec_ray.media.front_end_presets import AST_MEAN, AST_STD, FRONT_ENDS
from avrec_ray.towers.checkpoints import family_of, from_source, load_model, part_config
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.pretrained import pretrained

_WHISPER_RANGE = FRONT_ENDS["whisper"].range_units
_CLAP_SILENCE = FRONT_ENDS["clap"].silence


@dataclass(frozen=True)
class AudioFamily:
    """How checkpoints of one kind are used."""

    front_end: str
    """What media.front_end must be."""
    load: Callable[[str], nn.Module]
    columns: Callable[[Any, dict[str, Any]], int]
    """(model config, feature extractor's settings) -> columns of the input."""
    width: Callable[[Any], int]
    """W of a model config."""
    steps: Callable[[Any, Tensor, int, dict[str, Any]], Tensor]
    """(model, log-mel [B, F, A], columns, feature extractor's settings) -> states over the clip's time [B, T, W]."""


class AudioCheckpoint(nn.Module):
    """Log-mel [B, F, A] to tokens [B, K, W]."""

    def __init__(self, model: Any, family: AudioFamily, settings: dict[str, Any], num_tokens: int) -> None:
        super().__init__()
        self.model, self.family, self.settings, self.num_tokens = model, family, settings, num_tokens
        self.width = family.width(model.config)
        self.columns = family.columns(model.config, settings)

    def forward(self, log_mel: Tensor) -> Tensor:
        steps_BTW = self.family.steps(self.model, log_mel, self.columns, self.settings)
        return F.adaptive_avg_pool1d(steps_BTW.transpose(1, 2), self.num_tokens).transpose(1, 2)


def whisper_steps(model: Any, log_mel: Tensor, columns: int, settings: dict[str, Any]) -> Tensor:
    """Filled with Whisper's silence, which lies a fixed way below the loudest value of the clip."""
    silence = log_mel.amax((1, 2), keepdim=True) - _WHISPER_RANGE
    filling = silence.clamp(min=FRONT_ENDS["whisper"].silence).expand(-1, log_mel.shape[1], columns - log_mel.shape[2])
    states: Tensor = model(torch.cat([log_mel, filling], 2)).last_hidden_state
    return states[:, : -(-log_mel.shape[2] * states.shape[1] // columns)]


def ast_steps(model: Any, log_mel: Tensor, columns: int, settings: dict[str, Any]) -> Tensor:
    """Normalised as the checkpoint asks, which may differ from AudioSet's constants; filled with its zero."""
    mean, deviation = float(settings.get("mean", AST_MEAN)), float(settings.get("std", AST_STD))
    values = (log_mel * 2 * AST_STD + AST_MEAN - mean) / (2 * deviation)
    values = F.pad(values, (0, columns - values.shape[2]), value=-mean / (2 * deviation))
    config = model.config
    num_bins = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    states = model(values.transpose(1, 2)).last_hidden_state[:, 2:].unflatten(1, (num_bins, -1)).mean(1)
    return states[:, : max(1, (log_mel.shape[2] - config.patch_size) // config.time_stride + 1)]


def clap_steps(model: Any, log_mel: Tensor, columns: int, settings: dict[str, Any]) -> Tensor:
    """Repeated as often as it fits whole, then filled with silence ("repeatpad")."""
    hops = log_mel.shape[2] - 1  # the last column is the first of what follows
    repeats = max(1, (columns - 1) // hops)
    values = torch.cat([log_mel[..., :hops].repeat(1, 1, repeats), log_mel[..., hops:]], 2)
    values = F.pad(values, (0, columns - values.shape[2]), value=_CLAP_SILENCE)
    states: Tensor = model(values.transpose(1, 2).unsqueeze(1)).last_hidden_state.mean(2).transpose(1, 2)
    return states[:, : -(-hops * states.shape[1] // columns)]


def _load_whisper(checkpoint: str) -> nn.Module:
    return load_model("WhisperModel", "audio", checkpoint).get_submodule("encoder")


def _load_clap(checkpoint: str) -> nn.Module:
    if part_config("audio", checkpoint).enable_fusion:
        raise ConfigError(
            f"towers.audio_checkpoint={checkpoint!r} is a CLAP with fusion of four cuts; expected one without, such as "
            "laion/clap-htsat-unfused"
        )
    return load_model("ClapAudioModel", "audio", checkpoint)


_CLAP = AudioFamily(
    "clap",
    _load_clap,
    lambda _, settings: int(settings["nb_max_samples"]) // int(settings["hop_length"]) + 1,
    lambda config: int(config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1)),
    clap_steps,
)
FAMILIES = {
    "whisper": AudioFamily(
        "whisper",
        _load_whisper,
        lambda config, _: 2 * int(config.max_source_positions),
        lambda config: int(config.d_model),
        whisper_steps,
    ),
    "audio-spectrogram-transformer": AudioFamily(
        "ast",
        partial(load_model, "ASTModel", "audio"),
        lambda config, _: int(config.max_length),
        lambda config: int(config.hidden_size),
        ast_steps,
    ),
    **dict.fromkeys(("clap", "clap_audio_model"), _CLAP),
}
"""`model_type` -> how it is used."""


def build_audio(cfg: TowersConfig) -> nn.Module:
    """The encoder of `audio_checkpoint`."""
    return pretrained(partial(_load, cfg), "audio", cfg)


def audio_width(cfg: TowersConfig) -> int:
    """W, from the checkpoint's config alone."""
    if cfg.audio_width:
        return cfg.audio_width
    return _family(cfg).width(part_config("audio", cfg.audio_checkpoint))


def _family(cfg: TowersConfig) -> AudioFamily:
    return FAMILIES[family_of("audio", cfg.audio_checkpoint, FAMILIES)]


def check_audio(cfg: TowersConfig) -> None:
    """Raise ConfigError, with the media preset to choose, where clips are no input for the audio checkpoint."""
    family, config = _family(cfg), part_config("audio", cfg.audio_checkpoint)
    bins = int(config.num_mel_bins)
    if (cfg.front_end, cfg.num_mel_bins) != (family.front_end, bins):
        preset = "clips" if family.front_end == "whisper" else family.front_end
        choose = f"media={preset}" + (f" media.num_mel_bins={bins}" if preset == "clips" and bins != 80 else "")
        raise ConfigError(
            f"towers.audio_checkpoint={cfg.audio_checkpoint!r} reads {bins} mel bins of the front end "
            f"{family.front_end!r}, clips have {cfg.num_mel_bins} of {cfg.front_end!r}; choose {choose}"
        )
    columns = family.columns(config, _settings(cfg.audio_checkpoint))
    if cfg.num_mel_frames > columns:
        raise ConfigError(
            f"towers.audio_checkpoint={cfg.audio_checkpoint!r} reads {columns} columns of the log-mel, clips have "
            f"{cfg.num_mel_frames}; choose a smaller media.clip_seconds"
        )


def _settings(checkpoint: str) -> dict[str, Any]:
    """The checkpoint's preprocessor_config.json."""
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    values, _ = from_source("audio", checkpoint, FeatureExtractionMixin.get_feature_extractor_dict)
    return dict(values)


def _load(cfg: TowersConfig) -> AudioCheckpoint:
    check_audio(cfg)
    family = _family(cfg)
    model = family.load(cfg.audio_checkpoint)
    return AudioCheckpoint(model, family, _settings(cfg.audio_checkpoint), cfg.tokens_per_clip)
