"""Batches for pretraining from tokens that frozen encoders made before: one of the clips of each item with its text.

Nothing is augmented: the tokens are of the clips as they are.

Dimension key: N items, C clips, K tokens a clip, W an encoder's width.
"""

from collections.abc import Iterator

import numpy as np
import torch

from avrec_ray.towers.item_tower import ClipFeatures, ItemTokens
from avrec_ray.training.config import PretrainConfig
from avrec_ray.training.epoch_plan import EpochPlan
from avrec_ray.types import MODALITIES


class FeatureBatches:
    """Callable: epoch -> this worker's batches. Clips with fewer than two modalities have nothing to compare."""

    def __init__(
        self, items: ItemTokens, max_clips: int, cfg: PretrainConfig, seed: int, rank: int = 0, num_workers: int = 1
    ) -> None:
        spans = {"video": max_clips, "audio": max_clips, "text": 1}
        self.tokens = {name: items.tokens[name].unflatten(1, (spans[name], -1)) for name in MODALITIES}
        present = {name: items.masks[name].unflatten(1, (spans[name], -1)).any(2) for name in MODALITIES}
        self.present = {name: mask.expand(-1, max_clips) for name, mask in present.items()}
        count_NC = sum(mask.long() for mask in self.present.values())
        item_idx = np.repeat(np.arange(len(items)), max_clips)
        paired = np.asarray((torch.as_tensor(count_NC) > 1).flatten())
        self.max_clips = max_clips
        self.plan = EpochPlan(item_idx, paired, cfg, seed, rank, num_workers)

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch, the same on every worker."""
        return self.plan.steps_per_epoch

    def __call__(self, epoch: int) -> Iterator[ClipFeatures]:
        for rows in self.plan.batches(epoch):
            item, clip = (torch.from_numpy(part) for part in np.divmod(rows, self.max_clips))
            yield ClipFeatures(
                **{name: self.tokens[name][item, 0 if name == "text" else clip] for name in MODALITIES},
                **{f"has_{name}": self.present[name][item, clip] for name in MODALITIES},
            )


def num_pairs(items: ItemTokens) -> int:
    """Items with at least two modalities."""
    return int((torch.stack([items.masks[name].any(1) for name in MODALITIES]).sum(0) > 1).sum())
