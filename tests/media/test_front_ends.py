"""Each front end against the feature extractor of the installed transformers, and against its own preset."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.media.config import MediaConfig
from avrec_ray.media.front_end_presets import FRONT_ENDS
from avrec_ray.media.front_ends import ast_fbank, clap_log_mel, features

CONFIGS = {
    "whisper": MediaConfig(),
    "ast": MediaConfig(front_end="ast", num_mel_bins=128),
    "clap": MediaConfig(front_end="clap", sample_rate_hz=48000, num_mel_bins=64),
}


def sounds(rate_hz: int, seconds: int = 4) -> list[npt.NDArray[np.float32]]:
    """Noise, a tone, noise that ends in silence, silence, a whisper, and a click on a constant."""
    rng = np.random.default_rng(0)
    times = np.arange(rate_hz * seconds) / rate_hz
    click = np.full(len(times), 0.25)
    click[rate_hz] = -1.0
    return [
        sound.astype(np.float32)
        for sound in (
            0.1 * rng.standard_normal(len(times)),
            0.5 * np.sin(2 * np.pi * 440 * times),
            np.where(times < 2, rng.standard_normal(len(times)), 0.0),
            np.zeros(len(times)),
            1e-4 * rng.standard_normal(len(times)),
            click,
        )
    ]


def test_whisper_equals_its_feature_extractor() -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=4)
    for sound in sounds(16000):
        theirs = extractor(sound, sampling_rate=16000, return_tensors="np").input_features[0]
        ours = features(torch.from_numpy(sound)[None], CONFIGS["whisper"])[0].numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # the second of 128 lies between two frequencies
def test_ast_equals_its_feature_extractor_before_padding() -> None:
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor()
    if not hasattr(extractor, "mel_filters"):
        pytest.skip("torchaudio is installed: ASTFeatureExtractor does not take its numpy path")
    for sound in sounds(16000):
        theirs = extractor(sound, sampling_rate=16000, return_tensors="np").input_values[0]
        ours = features(torch.from_numpy(sound)[None], CONFIGS["ast"])[0].numpy().T
        scale = np.abs(theirs[: len(ours)]).max()
        assert ours.shape == (398, 128)
        assert np.abs(ours - theirs[: len(ours)]).max() < 1e-5 * scale
        # What follows our columns is the padding: one value, so no column of sound was left out.
        assert len(np.unique(theirs[len(ours) :])) == 1


def test_clap_equals_its_feature_extractor_of_the_checkpoints_without_fusion() -> None:
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor(max_length_s=4, truncation="rand_trunc", frequency_min=50)
    for sound in sounds(48000):
        theirs = extractor(sound, sampling_rate=48000, return_tensors="np").input_features[0, 0]
        ours = features(torch.from_numpy(sound)[None], CONFIGS["clap"])[0].numpy().T
        assert ours.shape == theirs.shape == (401, 64)
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_shape_is_the_configs_and_silence_the_presets(name: str) -> None:
    cfg, preset = CONFIGS[name], FRONT_ENDS[name]
    silent = features(torch.zeros(2, cfg.num_samples), cfg)
    assert silent.shape == (2, *cfg.log_mel_shape)
    assert silent.dtype == torch.float32
    np.testing.assert_allclose(silent.numpy(), preset.silence, atol=1e-5)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_decibel_moves_a_value_by_what_the_preset_says(name: str) -> None:
    cfg, preset = CONFIGS[name], FRONT_ENDS[name]
    noise = 0.1 * torch.randn(1, cfg.num_samples, generator=torch.Generator().manual_seed(0))
    before = features(noise, cfg)
    heard = before > preset.silence + 1e-4  # AST's second filter holds no frequency: it is silent always
    change = (features(noise * 10 ** (6 / 20), cfg) - before)[heard]
    assert heard.float().mean() > 0.99
    torch.testing.assert_close(change, torch.full_like(change, 6 * preset.units_per_decibel), rtol=0, atol=2e-4)


@settings(max_examples=10)
@given(st.integers(1, 3), st.integers(2, 12), st.integers(0, 2**31))
def test_a_clip_does_not_depend_on_its_batch(batch: int, hops: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for compute, hop in ((ast_fbank, 160), (clap_log_mel, 480)):
        samples = torch.rand(batch, 1024 + hops * hop, generator=rng) * 2 - 1
        whole = compute(samples)
        assert whole.isfinite().all()
        torch.testing.assert_close(whole[-1:], compute(samples[-1:]))
