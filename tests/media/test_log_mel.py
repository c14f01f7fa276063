import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.media.log_mel import log_mel, whisper_filters


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_log_mel_equals_whisper_on_the_same_samples(num_mel_bins: int) -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=4)
    rng = np.random.default_rng(0)
    times = np.arange(64000) / 16000
    sounds = [
        rng.standard_normal(64000) * 0.1,
        0.5 * np.sin(2 * np.pi * 440 * times),
        np.where(times < 2, rng.standard_normal(64000), 0.0),
        np.zeros(64000),
        rng.standard_normal(64000) * 1e-4,
    ]
    for sound in sounds:
        samples = sound.astype(np.float32)
        theirs = extractor(samples, sampling_rate=16000, return_tensors="np").input_features[0]
        ours = log_mel(torch.from_numpy(samples)[None], num_mel_bins)[0].numpy()
        assert ours.shape == theirs.shape == (num_mel_bins, 400)
        assert np.abs(ours - theirs).max() < 1e-5


def test_mel_filters_equal_transformers_at_another_rate() -> None:
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(201, 64, 0.0, 12000.0, 24000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(whisper_filters(64, 24000).numpy(), theirs.T, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(3, 30), st.integers(0, 2**31))
def test_log_mel_is_finite_bounded_and_independent_of_its_batch(batch: int, columns: int, seed: int) -> None:
    samples = torch.rand(batch, columns * 160, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    mels = log_mel(samples)
    assert mels.shape == (batch, 80, columns)
    assert mels.dtype == torch.float32
    assert torch.isfinite(mels).all()
    assert (mels.amax((1, 2)) - mels.amin((1, 2)) <= 2.0 + 1e-6).all()
    torch.testing.assert_close(mels[:1], log_mel(samples[:1]))
