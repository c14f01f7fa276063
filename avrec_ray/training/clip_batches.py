"""Batches for pretraining from decoded clips: one of the clips of each item with its text, augmented."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from avrec_ray.media.front_end_presets import FRONT_ENDS, FrontEnd
from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.augment import AugmentDraws, augment, draw_augmentations, step_generator
from avrec_ray.training.config import PretrainConfig
from avrec_ray.training.epoch_plan import EpochPlan


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
    vectors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """[items, W] of each modality that comes as a vector; see ItemInputs."""

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """[clips]: whether there is a picture or a sound."""
        return np.logical_or(*(self._has(name) for name in ("video", "audio")))

    def _has(self, modality: str) -> npt.NDArray[np.bool_]:
        if modality in self.vectors:
            return np.asarray(~np.isnan(self.vectors[modality][self.item_idx, 0]))
        return self.has_video if modality == "video" else self.has_audio

    def inputs(self, clips: npt.NDArray[np.int64]) -> ItemInputs:
        """Tower inputs of the given clips."""
        return ItemInputs(
            frames=torch.from_numpy(self.frames[clips]),
            log_mel=torch.from_numpy(self.log_mel[clips]),
            word_ids=torch.from_numpy(self.word_ids[self.item_idx[clips]]),
            has_video=torch.from_numpy(self.has_video[clips]),
            has_audio=torch.from_numpy(self.has_audio[clips]),
            **{f"{name}_vector": torch.from_numpy(v[self.item_idx[clips]]) for name, v in self.vectors.items()},
        )


class Augmenter:
    """Callable: (a worker's batch, epoch, step) -> the batch, changed as (seed, epoch, step) decide."""

    def __init__(self, cfg: PretrainConfig, plan: EpochPlan, front_end: FrontEnd) -> None:
        self.cfg, self.plan, self.front_end = cfg, plan, front_end

    def __call__(self, inputs: ItemInputs, epoch: int, step: int) -> ItemInputs:
        return augment(inputs, self.cfg, self.draws(epoch, step, inputs.word_ids.shape[1]), self.front_end)

    def draws(self, epoch: int, step: int, num_words: int) -> AugmentDraws:
        """This worker's rows of what is drawn for the whole step."""
        generator = step_generator(self.plan.seed, epoch, step)
        whole = draw_augmentations(self.cfg, generator, self.plan.global_batch, num_words)
        return whole.rows(self.plan.rank, self.plan.num_workers)


class ClipBatches:
    """Callable: epoch -> this worker's batches, of clips that were decoded before."""

    def __init__(
        self,
        clips: ClipArrays,
        cfg: PretrainConfig,
        seed: int,
        rank: int = 0,
        num_workers: int = 1,
        front_end: str = "whisper",
    ) -> None:
        self.clips = clips
        self.plan = EpochPlan(clips.item_idx, clips.present, cfg, seed, rank, num_workers)
        self.augmenter = Augmenter(cfg, self.plan, FRONT_ENDS[front_end])

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch, the same on every worker."""
        return self.plan.steps_per_epoch

    def __call__(self, epoch: int) -> Iterator[ItemInputs]:
        return self.starting_at(epoch, 0)

    def starting_at(self, epoch: int, first: int) -> Iterator[ItemInputs]:
        """The batches of an epoch from the `first`-th on."""
        for step, rows in enumerate(self.plan.batches(epoch)[first:], first):
            yield self.augmenter(self.clips.inputs(rows), epoch, step)
