"""Batches for pretraining: one random clip of each item with its text, augmented.

Dimension key: B batch, T frames, F mel bins, A mel frames, S words.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.config import PretrainConfig


@dataclass(eq=False)
class ClipArrays:
    """Every clip of a catalogue in memory, with the words of each item."""

    frames: npt.NDArray[np.uint8]
    """[clips, T, 3, H, W]."""
    log_mel: npt.NDArray[np.float32]
    """[clips, F, A]."""
    has_video: npt.NDArray[np.bool_]
    has_audio: npt.NDArray[np.bool_]
    item_idx: npt.NDArray[np.int64]
    """Item of each clip."""
    word_ids: npt.NDArray[np.int64]
    """[items, S]."""

    def inputs(self, clips: npt.NDArray[np.int64]) -> ItemInputs:
        """Tower inputs of the given clips."""
        return ItemInputs(
            frames=torch.from_numpy(self.frames[clips]),
            log_mel=torch.from_numpy(self.log_mel[clips]),
            word_ids=torch.from_numpy(self.word_ids[self.item_idx[clips]]),
            has_video=torch.from_numpy(self.has_video[clips]),
            has_audio=torch.from_numpy(self.has_audio[clips]),
        )


class ClipBatches:
    """Callable: epoch -> this worker's batches. Drawn from (seed, epoch), the same on every worker, then sliced."""

    def __init__(self, clips: ClipArrays, cfg: PretrainConfig, seed: int, rank: int = 0, num_workers: int = 1) -> None:
        self.clips, self.cfg, self.seed, self.rank, self.num_workers = clips, cfg, seed, rank, num_workers
        present = clips.has_video | clips.has_audio
        self.rows = np.flatnonzero(present)
        self.items = np.unique(clips.item_idx[self.rows])

    @property
    def global_batch(self) -> int:
        """Items a step over all workers; never more than there are."""
        wanted = self.cfg.batch_size * self.num_workers
        return max(self.num_workers, min(wanted, len(self.items) // self.num_workers * self.num_workers))

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps an epoch: equal shards, or the gather of negatives would hang."""
        return len(self.items) // self.global_batch

    def __call__(self, epoch: int) -> Iterator[ItemInputs]:
        rng = np.random.default_rng([self.seed, epoch, 0])
        rows = rng.permutation(self.rows)
        # The first row met of each item, in shuffled order: one random clip an item.
        _, first = np.unique(self.clips.item_idx[rows], return_index=True)
        chosen = rows[np.sort(first)]
        for step in range(self.steps_per_epoch):
            batch = chosen[step * self.global_batch : (step + 1) * self.global_batch]
            yield augment(self.clips.inputs(batch[self.rank :: self.num_workers]), self.cfg)


def augment(inputs: ItemInputs, cfg: PretrainConfig) -> ItemInputs:
    """A random crop and brightness a clip, hidden mel bands, hidden words. Draws from torch's global generator."""
    word_ids = inputs.word_ids
    hidden = torch.rand(word_ids.shape) < cfg.token_dropout
    return ItemInputs(
        frames=_crop_and_brighten(inputs.frames, cfg),
        log_mel=_hide_bands(inputs.log_mel, cfg.spec_masks),
        word_ids=torch.where(hidden & (word_ids > 0).sum(1, keepdim=True).gt(4), 0, word_ids),
        has_video=inputs.has_video,
        has_audio=inputs.has_audio,
    )


def _crop_and_brighten(frames: Tensor, cfg: PretrainConfig) -> Tensor:
    """One crop and one brightness a clip, so that motion stays whole: affine sampling of [B, T, 3, H, W]."""
    batch = len(frames)
    size = cfg.crop_share + (1 - cfg.crop_share) * torch.rand(batch)
    shift = (1 - size)[:, None] * (2 * torch.rand(batch, 2) - 1)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = size
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [batch, 1, *frames.shape[3:]], align_corners=False)
    flat = frames.flatten(1, 2).float()
    cropped = F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(frames.shape)
    shade = 255 * cfg.colour_jitter * (2 * torch.rand(batch, 1, 1, 1, 1) - 1)
    return (cropped + shade).round().clamp(0, 255).to(torch.uint8)


def _hide_bands(log_mel: Tensor, num_masks: int) -> Tensor:
    """SpecAugment: `num_masks` bands along bins and along time take the clip's mean."""
    hidden = log_mel.clone()
    fill = log_mel.mean((1, 2), keepdim=True)
    for axis, widest in ((1, log_mel.shape[1] // 8), (2, log_mel.shape[2] // 8)):
        position = torch.arange(log_mel.shape[axis])
        for _ in range(num_masks):
            start = torch.randint(0, log_mel.shape[axis] - widest, (len(log_mel), 1))
            band = (position >= start) & (position < start + torch.randint(0, widest + 1, (len(log_mel), 1)))
            hidden = torch.where(band.unsqueeze(2 if axis == 1 else 1), fill, hidden)
    return hidden
