"""Pretraining batches: one clip an item, equal shards, and augmentation that keeps what a clip is."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.clip_batches import ClipArrays, ClipBatches, augment
from avrec_ray.training.config import PretrainConfig
from tests.tiny_models import random_inputs, tiny_towers

CFG = tiny_towers()
STILL = {"crop_share": 1.0, "colour_jitter": 0.0, "spec_masks": 0, "token_dropout": 0.0}


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


def test_clips_without_video_and_audio_are_left_out() -> None:
    has = np.array([True, False, True, True, False, True])
    batches = batches_of(clip_arrays([0, 0, 1, 2, 3, 4], has))
    assert batches.items.tolist() == [0, 1, 2, 4]
    assert sorted(clips_in(next(iter(batches(0))))) == [0, 2, 3, 5]


def test_small_catalogues_give_a_smaller_step_with_equal_shards() -> None:
    clips = clip_arrays([0, 1, 2])
    assert batches_of(clips, batch_size=64).steps_per_epoch == 1
    assert [len(clips_in(b)) for b in batches_of(clips, 1, 2, batch_size=64)(0)] == [1]
    nothing = batches_of(clip_arrays([0, 1], np.zeros(2, bool)))
    assert nothing.steps_per_epoch == 0
    assert list(nothing(0)) == []


def test_augment_keeps_shapes_and_dtypes() -> None:
    torch.manual_seed(0)
    inputs = random_inputs(CFG, 5)
    changed = augment(inputs, PretrainConfig())
    for name in ("frames", "log_mel", "word_ids", "has_video", "has_audio"):
        before, after = getattr(inputs, name), getattr(changed, name)
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
    assert changed.log_mel.isfinite().all()
    assert not torch.equal(changed.frames, inputs.frames)
    assert not torch.equal(changed.log_mel, inputs.log_mel)


def test_augment_with_everything_off_is_the_identity() -> None:
    inputs = random_inputs(CFG, 4)
    changed = augment(inputs, PretrainConfig(**STILL))
    assert torch.equal(changed.frames, inputs.frames)
    assert torch.equal(changed.log_mel, inputs.log_mel)
    assert torch.equal(changed.word_ids, inputs.word_ids)


def test_augment_leaves_its_input_alone_and_presence_as_it_was() -> None:
    inputs = random_inputs(CFG, 4)
    inputs.has_video[0] = inputs.has_audio[1] = False
    inputs.frames[0], inputs.log_mel[1], inputs.word_ids[2] = 0, 0, 0
    copy = random_inputs(CFG, 4)
    changed = augment(inputs, PretrainConfig(token_dropout=0.9))
    assert torch.equal(inputs.frames[1:], copy.frames[1:])
    assert torch.equal(inputs.log_mel[2:], copy.log_mel[2:])
    for name, before in inputs.presence().items():
        assert torch.equal(changed.presence()[name], before)
    assert (changed.log_mel[1] == 0).all()  # a silent stand-in stays silent


def test_augment_crops_and_shades_a_clip_as_a_whole() -> None:
    torch.manual_seed(1)
    inputs = random_inputs(CFG, 3)
    inputs.frames[:] = inputs.frames[:, :1]  # a still: every frame the same
    frames = augment(inputs, PretrainConfig(crop_share=0.5, colour_jitter=0.3)).frames
    assert torch.equal(frames[:, 0], frames[:, 1])
    assert not torch.equal(frames[0] - inputs.frames[0], frames[1] - inputs.frames[1])


def test_augment_hides_bands_by_the_mean() -> None:
    torch.manual_seed(0)
    inputs = random_inputs(CFG, 40)
    log_mel = augment(inputs, PretrainConfig(**{**STILL, "spec_masks": 2})).log_mel
    hidden = log_mel != inputs.log_mel
    means = inputs.log_mel.mean((1, 2), keepdim=True).expand_as(log_mel)
    assert torch.equal(log_mel[hidden], means[hidden])
    assert 0.02 < hidden.float().mean() < 0.4


def test_augment_hides_words_of_longer_texts_alone() -> None:
    torch.manual_seed(0)
    inputs = random_inputs(CFG, 2000)
    inputs.word_ids[:] = 5
    inputs.word_ids[1000:, 4:] = 0
    words = augment(inputs, PretrainConfig(token_dropout=0.3)).word_ids
    assert (words[:1000] == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(words[1000:], inputs.word_ids[1000:])


def test_augment_is_fixed_by_one_seed() -> None:
    inputs, outputs = random_inputs(CFG, 3), []
    for _ in range(2):
        torch.manual_seed(4)
        outputs.append(augment(inputs, PretrainConfig()))
    assert torch.equal(outputs[0].frames, outputs[1].frames)
    assert torch.equal(outputs[0].log_mel, outputs[1].log_mel)
