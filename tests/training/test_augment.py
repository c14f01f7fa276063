"""Augmentation keeps what a clip is, follows from its draws alone, and does nothing when every dial is at nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avrec_ray.media.front_end_presets import FRONT_ENDS
from avrec_ray.media.front_ends import features
from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.augment import AugmentDraws, augment, draw_augmentations, step_generator
from avrec_ray.training.config import PretrainConfig
from tests.media.test_front_ends import CONFIGS, sounds
from tests.tiny_models import random_inputs, tiny_towers

CFG = tiny_towers()
WHISPER = FRONT_ENDS["whisper"]
STILL: dict[str, Any] = {
    "crop_share": 1.0, "flip_share": 0.0, "brightness_jitter": 0.0, "contrast_jitter": 0.0, "tint_jitter": 0.0,
    "gain_db": 0.0, "spec_masks": 0, "token_dropout": 0.0,
}  # fmt: skip
"""Every dial at nothing."""
NAMES = ("frames", "log_mel", "word_ids", "has_video", "has_audio")


def draws_for(inputs: ItemInputs, cfg: PretrainConfig, seed: int = 0) -> AugmentDraws:
    return draw_augmentations(cfg, step_generator(seed, 0, 0), *inputs.word_ids.shape)


def changed(inputs: ItemInputs, seed: int = 0, **dials: Any) -> ItemInputs:
    """The batch with the given dials turned and the others at nothing."""
    cfg = PretrainConfig(**{**STILL, **dials})
    return augment(inputs, cfg, draws_for(inputs, cfg, seed), WHISPER)


DIALS = st.fixed_dictionaries(
    {
        "crop_share": st.floats(0.1, 1.0), "flip_share": st.floats(0, 1), "brightness_jitter": st.floats(0, 0.9),
        "contrast_jitter": st.floats(0, 0.9), "tint_jitter": st.floats(0, 0.9), "gain_db": st.floats(0, 40),
        "spec_masks": st.integers(0, 4), "token_dropout": st.floats(0, 0.9),
    }
)  # fmt: skip


@settings(max_examples=40)
@given(DIALS, st.integers(1, 5), st.integers(0, 1000), st.sampled_from(sorted(FRONT_ENDS)))
def test_shapes_ranges_and_presence_stay_and_the_same_draws_give_the_same(
    dials: dict[str, Any], batch: int, seed: int, front_end: str
) -> None:
    inputs, cfg, preset = random_inputs(CFG, batch, seed), PretrainConfig(**dials), FRONT_ENDS[front_end]
    inputs.log_mel = inputs.log_mel.clamp(min=preset.silence)
    copy = ItemInputs(**{name: getattr(inputs, name).clone() for name in NAMES})
    draws = draws_for(inputs, cfg, seed)
    first, second = (augment(inputs, cfg, draws, preset) for _ in range(2))
    for name in NAMES:
        before, after = getattr(inputs, name), getattr(first, name)
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert torch.equal(after, getattr(second, name))
        assert torch.equal(before, getattr(copy, name))  # the inputs are left alone
    assert first.log_mel.isfinite().all()
    assert (first.log_mel >= preset.silence - 1e-4).all()
    for name, present in inputs.presence().items():
        assert torch.equal(first.presence()[name], present)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_with_every_dial_at_nothing_the_batch_comes_back(batch: int, seed: int) -> None:
    inputs = random_inputs(CFG, batch, seed)
    after = changed(inputs, seed)
    assert all(torch.equal(getattr(after, name), getattr(inputs, name)) for name in NAMES)


@settings(max_examples=20)
@given(DIALS, st.integers(0, 1000))
def test_absent_modalities_stay_zero(dials: dict[str, Any], seed: int) -> None:
    inputs = random_inputs(CFG, 4)
    inputs.has_video[[0, 3]] = inputs.has_audio[[1, 3]] = False
    inputs.frames[[0, 3]], inputs.log_mel[[1, 3]], inputs.word_ids[3] = 0, 0.0, 0
    after = changed(inputs, seed, **dials)
    assert not after.frames[[0, 3]].any()
    assert not after.log_mel[[1, 3]].any()
    assert not after.word_ids[3].any()


@pytest.mark.parametrize(
    ("dial", "value", "touched"),
    [
        ("crop_share", 0.5, "frames"),
        ("flip_share", 1.0, "frames"),
        ("brightness_jitter", 0.3, "frames"),
        ("contrast_jitter", 0.5, "frames"),
        ("tint_jitter", 0.3, "frames"),
        ("gain_db", 12.0, "log_mel"),
        ("spec_masks", 3, "log_mel"),
        ("token_dropout", 0.8, "word_ids"),
    ],
)
def test_each_dial_changes_its_modality_alone(dial: str, value: float, touched: str) -> None:
    inputs = random_inputs(CFG, 8)
    inputs.word_ids[:] = 5
    after = changed(inputs, **{dial: value})
    assert [name for name in NAMES if not torch.equal(getattr(after, name), getattr(inputs, name))] == [touched]


def test_workers_share_what_is_drawn_for_the_whole_step() -> None:
    inputs, cfg = random_inputs(CFG, 6), PretrainConfig()
    draws = draws_for(inputs, cfg)
    whole = augment(inputs, cfg, draws, WHISPER)
    for rank in range(2):
        mine = ItemInputs(**{name: getattr(inputs, name)[rank::2] for name in NAMES})
        part = augment(mine, cfg, draws.rows(rank, 2), WHISPER)
        assert all(torch.equal(getattr(part, name), getattr(whole, name)[rank::2]) for name in NAMES)


def test_generators_differ_by_seed_epoch_and_step_and_leave_torchs_own_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [torch.rand(1, generator=step_generator(*key)).item() for key in ((0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert len(set(first)) == 3
    changed(random_inputs(CFG, 2), crop_share=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_clip_is_cropped_flipped_and_coloured_as_a_whole() -> None:
    inputs = random_inputs(CFG, 3)
    inputs.frames[:] = inputs.frames[:, :1]  # a still: every frame the same
    frames = changed(inputs, crop_share=0.5, flip_share=0.5, brightness_jitter=0.3, contrast_jitter=0.3).frames
    assert torch.equal(frames[:, 0], frames[:, 1])
    assert not torch.equal(frames[0] - inputs.frames[0], frames[1] - inputs.frames[1])


def test_flip_mirrors_the_share_of_clips_that_is_asked_for() -> None:
    inputs = random_inputs(CFG, 400)
    frames = changed(inputs, flip_share=0.3).frames
    mirrored = (frames == inputs.frames.flip(-1)).flatten(1).all(1)
    assert ((frames == inputs.frames).flatten(1).all(1) | mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.3, abs=0.07)


def test_contrast_keeps_the_mean_and_brightness_the_contrast() -> None:
    inputs = random_inputs(CFG, 6)
    inputs.frames[:] = 100 + inputs.frames // 8  # away from black and white, so that nothing is cut
    before = inputs.frames.float()
    contrast = changed(inputs, contrast_jitter=0.5).frames.float()
    torch.testing.assert_close(contrast.mean((1, 2, 3, 4)), before.mean((1, 2, 3, 4)), atol=0.3, rtol=0)
    ratio = contrast.std((1, 2, 3, 4)) / before.std((1, 2, 3, 4))
    assert ((ratio > 0.45) & (ratio < 1.55)).all()
    assert ratio.std() > 0.1
    bright = changed(inputs, brightness_jitter=0.2).frames.float() - before
    assert (bright.amax((1, 2, 3, 4)) - bright.amin((1, 2, 3, 4)) == 0).all()
    assert bright.abs().max() <= 51
    tint = (changed(inputs, tint_jitter=0.2).frames.float() - before).mean((1, 3, 4))
    assert tint.shape == (6, 3)
    assert (tint.std(1) > 0.5).any()


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("draw", [0.0, 0.25, 0.9])
def test_gain_equals_that_of_the_waveform(name: str, draw: float) -> None:
    cfg, preset = CONFIGS[name], FRONT_ENDS[name]
    noise, tone, half_silent, silence, _, _ = (torch.from_numpy(s) for s in sounds(cfg.sample_rate_hz))
    waves = torch.stack([noise, half_silent, silence, tone] if name == "whisper" else [noise, half_silent, silence])
    settings_ = PretrainConfig(**{**STILL, "gain_db": 12.0})
    gain_db = 12.0 * (2 * draw - 1)
    inputs = random_inputs(CFG, len(waves))
    inputs.log_mel = features(waves, cfg)
    draws = draws_for(inputs, settings_)
    draws.gain[:] = draw
    ours = augment(inputs, settings_, draws, preset).log_mel
    theirs = features(waves * 10 ** (gain_db / 20), cfg)
    tolerance = 1e-3 if name == "whisper" else 1e-2 * preset.units_per_decibel
    unknown = inputs.log_mel < preset.silence + 13 * preset.units_per_decibel  # the floor may hide how little it was
    assert unknown.float().mean() < 0.6
    assert (ours - theirs).abs().masked_fill(unknown, 0).max() < tolerance
    silent_columns = slice(int(ours.shape[2] * 0.55), None)  # of the clip whose second half is silent
    assert (ours - theirs)[1, :, silent_columns].abs().max() < tolerance
    assert (ours[2] - preset.silence).abs().max() < 1e-4  # digital silence stays so


def test_hidden_bands_take_the_clips_mean() -> None:
    inputs = random_inputs(CFG, 40)
    log_mel = changed(inputs, spec_masks=1).log_mel
    hidden = log_mel != inputs.log_mel
    means = inputs.log_mel.mean((1, 2), keepdim=True).expand_as(log_mel)
    torch.testing.assert_close(log_mel[hidden], means[hidden])
    assert 0.02 < hidden.float().mean() < 0.3
    for clip in hidden:  # whole bands, of at most an eighth of the side
        rows, columns = clip.all(1), clip.all(0)
        assert torch.equal(clip, rows[:, None] | columns[None, :])
        assert rows.sum() <= CFG.num_mel_bins // 8
        assert columns.sum() <= CFG.num_mel_frames // 8


def test_words_of_longer_texts_alone_are_hidden() -> None:
    inputs = random_inputs(CFG, 2000)
    inputs.word_ids[:] = 5
    inputs.word_ids[1000:, 4:] = 0
    words: Tensor = changed(inputs, token_dropout=0.3).word_ids
    assert (words[:1000] == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(words[1000:], inputs.word_ids[1000:])


def test_draws_are_uniform() -> None:
    draws = draw_augmentations(PretrainConfig(), step_generator(0, 0, 0), 4000, 3)
    for values in vars(draws).values():
        assert np.allclose(values.mean(0), 0.5, atol=0.03)
        assert values.min() >= 0
        assert values.max() < 1
