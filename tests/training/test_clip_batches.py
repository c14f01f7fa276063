"""Pretraining batches from decoded clips: one clip an item, equal shards, augmented."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.clip_batches import ClipArrays, ClipBatches
from avrec_ray.training.config import PretrainConfig
from tests.training.test_augment import STILL


def clip_arrays(item_idx: list[int], has: npt.NDArray[np.bool_] | None = None) -> ClipArrays:
    """One clip a row; all its numbers are the row's, so that a batch says what it holds."""
    count = len(item_idx)
    rows = np.arange(count)
    present = np.ones(count, bool) if has is None else has
    return ClipArrays(
        frames=np.broadcast_to(rows[:, None, None, None, None], (count, 2, 3, 16, 16)).astype(np.uint8),
        log_mel=np.broadcast_to(rows[:, None, None], (count, 8, 50)).astype(np.float32),
        has_video=present,
        has_audio=present,
        item_idx=np.array(item_idx, np.int64),
        word_ids=1 + np.tile(np.arange(max(item_idx) + 1)[:, None], (1, 6)),
    )


def batches_of(clips: ClipArrays, rank: int = 0, num_workers: int = 1, **settings: Any) -> ClipBatches:
    return ClipBatches(clips, PretrainConfig(**{"batch_size": 4, **STILL, **settings}), 5, rank, num_workers)


def clips_in(batch: ItemInputs) -> list[int]:
    return [int(value) for value in batch.frames[:, 0, 0, 0, 0]]


def test_epoch_takes_one_clip_an_item_with_its_words() -> None:
    item_idx = [0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7]
    clips = clip_arrays(item_idx)
    chosen: set[int] = set()
    for epoch in range(20):
        rows = []
        for batch in batches_of(clips)(epoch):
            assert [int(ids[0]) - 1 for ids in batch.word_ids] == [item_idx[clip] for clip in clips_in(batch)]
            assert batch.log_mel[:, 0, 0].tolist() == clips_in(batch)
            rows += clips_in(batch)
        assert sorted(item_idx[row] for row in rows) == list(range(8))
        chosen |= set(rows)
    assert chosen == set(range(len(item_idx)))  # each clip of an item comes up


def test_batches_of_the_workers_partition_the_whole_step() -> None:
    clips = clip_arrays(list(range(13)))
    whole = [clips_in(batch) for batch in batches_of(clips, batch_size=4)(2)]
    shards = [[clips_in(b) for b in batches_of(clips, rank, 2, batch_size=2)(2)] for rank in range(2)]
    assert len(whole) == batches_of(clips).steps_per_epoch == 3
    for step, rows in enumerate(whole):
        assert [shards[rank][step] for rank in range(2)] == [rows[0::2], rows[1::2]]


def test_batches_are_drawn_from_seed_and_epoch_alone() -> None:
    batches = batches_of(clip_arrays(list(range(12))))
    first = [clips_in(batch) for batch in batches(0)]
    assert [clips_in(batch) for batch in batches(0)] == first
    assert [clips_in(batch) for batch in batches(1)] != first


def test_batches_can_start_within_an_epoch() -> None:
    batches = batches_of(clip_arrays(list(range(13))), crop_share=0.5, token_dropout=0.5)
    for ours, theirs in zip(batches.starting_at(3, 1), list(batches(3))[1:], strict=True):
        assert all(torch.equal(value, getattr(theirs, name)) for name, value in vars(ours).items())


def test_clips_without_video_and_audio_are_left_out() -> None:
    has = np.array([True, False, True, True, False, True])
    batches = batches_of(clip_arrays([0, 0, 1, 2, 3, 4], has))
    assert batches.plan.items.tolist() == [0, 1, 2, 4]
    assert sorted(clips_in(next(iter(batches(0))))) == [0, 2, 3, 5]


def test_small_catalogues_give_a_smaller_step_with_equal_shards() -> None:
    clips = clip_arrays([0, 1, 2])
    assert batches_of(clips, batch_size=64).steps_per_epoch == 1
    assert [len(clips_in(b)) for b in batches_of(clips, 1, 2, batch_size=64)(0)] == [1]
    nothing = batches_of(clip_arrays([0, 1], np.zeros(2, bool)))
    assert nothing.steps_per_epoch == 0
    assert list(nothing(0)) == []


def test_batches_are_augmented_anew_in_each_epoch_and_alike_however_many_workers_share_a_step() -> None:
    clips = clip_arrays(list(range(8)))
    clips.frames[:] = np.random.default_rng(0).integers(0, 256, clips.frames.shape)
    dials = {"crop_share": 0.5, "brightness_jitter": 0.2, "token_dropout": 0.5}
    whole = [batch.frames for batch in batches_of(clips, batch_size=4, **dials)(1)]
    halves = [[b.frames for b in batches_of(clips, rank, 2, batch_size=2, **dials)(1)] for rank in range(2)]
    for step, frames in enumerate(whole):
        assert torch.equal(halves[0][step], frames[0::2])
        assert torch.equal(halves[1][step], frames[1::2])
    torch.manual_seed(99)  # torch's own generator has no say
    assert torch.equal(next(batches_of(clips, batch_size=4, **dials)(1)).frames, whole[0])
    still = next(batches_of(clips, batch_size=4)(1)).frames
    assert not torch.equal(still, whole[0])
