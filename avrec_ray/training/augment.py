"""What training changes about a clip and its text, so that no epoch sees the same twice.

Every number that decides a change is drawn for the whole step of all workers, from (seed, epoch, step): a worker takes
its rows. So 2 workers x b are shown what 1 x 2b is, a restart is shown the same again, and the batches that read
decoded clips are changed as those that read media.

Dimension key: B batch, T frames, C channels, F mel bins, A mel frames, S words.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avrec_ray.media.front_end_presets import FrontEnd
from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.config import PretrainConfig

_WIDEST_BAND_SHARE = 8
"""A hidden band is at most this part of the log-mel's side."""
_FEWEST_WORDS = 4
"""Texts of no more words keep them all."""


@dataclass(eq=False)
class AugmentDraws:
    """Uniform numbers in [0, 1), a row an item."""

    crop: Tensor
    """[B, 3]: size, and place down and across."""
    flip: Tensor
    """[B]."""
    colour: Tensor
    """[B, 5]: brightness, contrast, tint of red, green and blue."""
    gain: Tensor
    """[B]."""
    bands: Tensor
    """[B, masks, 2, 2]: bins and time; start and width."""
    words: Tensor
    """[B, S]."""

    def rows(self, start: int, step: int) -> "AugmentDraws":
        """Every `step`th row from `start` on: a worker's part."""
        return AugmentDraws(**{field.name: getattr(self, field.name)[start::step] for field in fields(self)})


def draw_augmentations(cfg: PretrainConfig, generator: torch.Generator, num_items: int, num_words: int) -> AugmentDraws:
    """What happens to each item of one step; everything is drawn, whatever the dials say."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(num_items, *shape, generator=generator)

    return AugmentDraws(
        crop=uniform(3),
        flip=uniform(),
        colour=uniform(5),
        gain=uniform(),
        bands=uniform(cfg.spec_masks, 2, 2),
        words=uniform(num_words),
    )


def step_generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """The generator of one step's augmentation; the same on every worker."""
    state = np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def augment(inputs: ItemInputs, cfg: PretrainConfig, draws: AugmentDraws, front_end: FrontEnd) -> ItemInputs:
    """The batch with each clip cropped, flipped, coloured, made louder or softer, and parts of sound and text hidden.

    Shapes, dtypes and presence stay; what is absent stays zero. With every dial at 0 (crop_share at 1) the batch comes
    back unchanged. The inputs are left alone.
    """
    frames = _recolour(_crop_and_flip(inputs.frames, cfg, draws), cfg, draws)
    log_mel = _hide_bands(_amplify(inputs.log_mel, cfg, draws, front_end), draws)
    return replace(
        inputs,
        frames=torch.where(_per_item(inputs.has_video, frames), frames.round().clamp(0, 255).to(torch.uint8), 0),
        log_mel=torch.where(_per_item(inputs.has_audio, log_mel), log_mel, 0.0),
        word_ids=_hide_words(inputs.word_ids, cfg, draws),
    )


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    """[B] in as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _crop_and_flip(frames: Tensor, cfg: PretrainConfig, draws: AugmentDraws) -> Tensor:
    """One crop and one flip a clip, so that motion stays whole: affine sampling of [B, T, 3, H, W] to float32."""
    if cfg.crop_share == 1 and cfg.flip_share == 0:
        return frames.float()
    size = cfg.crop_share + (1 - cfg.crop_share) * draws.crop[:, 0]
    theta = torch.zeros(len(frames), 2, 3)
    theta[:, 0, 0] = torch.where(draws.flip < cfg.flip_share, -size, size)
    theta[:, 1, 1] = size
    theta[:, :, 2] = (1 - size)[:, None] * (2 * draws.crop[:, 1:] - 1)
    grid = F.affine_grid(theta, [len(frames), 1, *frames.shape[3:]], align_corners=False)
    return F.grid_sample(frames.flatten(1, 2).float(), grid, padding_mode="border", align_corners=False).view(
        frames.shape
    )


def _recolour(frames: Tensor, cfg: PretrainConfig, draws: AugmentDraws) -> Tensor:
    """Contrast about the clip's own mean, brightness, and a tint, each one number a clip."""
    signed = 2 * draws.colour - 1
    mean = frames.mean((1, 2, 3, 4), keepdim=True)
    contrast = _per_item(1 + cfg.contrast_jitter * signed[:, 1], frames)
    shift_BC = 255 * (cfg.brightness_jitter * signed[:, :1] + cfg.tint_jitter * signed[:, 2:])
    return (frames - mean) * contrast + mean + shift_BC[:, None, :, None, None]


def _amplify(log_mel: Tensor, cfg: PretrainConfig, draws: AugmentDraws, front_end: FrontEnd) -> Tensor:
    """As if the waveform were louder or softer by up to `gain_db`: [B, F, A].

    A gain moves every value by the same amount, but digital silence stays what it is, and so does the floor that lies
    a fixed way below the loudest value.
    """
    if cfg.gain_db == 0:
        return log_mel
    moved = log_mel + _per_item(cfg.gain_db * (2 * draws.gain - 1) * front_end.units_per_decibel, log_mel)
    heard = torch.where(log_mel > front_end.silence + 1e-4, moved, front_end.silence)
    floor = heard.amax((1, 2), keepdim=True) - front_end.range_units
    return torch.maximum(heard, floor.clamp(min=front_end.silence))


def _hide_bands(log_mel: Tensor, draws: AugmentDraws) -> Tensor:
    """SpecAugment: bands along bins and along time take the clip's mean."""
    hidden = log_mel
    fill = log_mel.mean((1, 2), keepdim=True)
    for axis in (1, 2):
        size = log_mel.shape[axis]
        widest = size // _WIDEST_BAND_SHARE
        position = torch.arange(size)
        for band_B2 in draws.bands[:, :, axis - 1].unbind(1):
            start = (band_B2[:, :1] * (size - widest)).floor()
            width = (band_B2[:, 1:] * (widest + 1)).floor()
            band = (position >= start) & (position < start + width)
            hidden = torch.where(band.unsqueeze(3 - axis), fill, hidden)
    return hidden


def _hide_words(word_ids: Tensor, cfg: PretrainConfig, draws: AugmentDraws) -> Tensor:
    is_long = (word_ids > 0).sum(1, keepdim=True) > _FEWEST_WORDS
    return torch.where((draws.words < cfg.token_dropout) & is_long, 0, word_ids)
