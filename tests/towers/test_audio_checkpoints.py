"""What audio checkpoints are given equals what their own feature extractors make of the same sound."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from avrec_ray.errors import ConfigError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.front_ends import features
from avrec_ray.towers.audio_checkpoints import AudioCheckpoint, check_audio
from avrec_ray.towers.encoder_registry import build_encoder
from avrec_ray.towers.pretrained import FrozenEncoder
from tests.towers.tiny_checkpoints import AUDIO, FRONT_ENDS, towers_of

RATES = {"whisper": 16000, "ast": 16000, "clap": 48000}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            AUDIO[name](folders[name])
        return folders[name]

    return folder_of


def sound(rate: int, seconds: float = 0.5) -> Tensor:
    """A rising tone with some noise."""
    rng = np.random.default_rng(0)
    time = np.arange(round(rate * seconds)) / rate
    wave = 0.4 * np.sin(2 * np.pi * (300 + 900 * time) * time) + 0.01 * rng.normal(size=len(time))
    return torch.from_numpy(wave.astype(np.float32))


def log_mel(name: str, wave: Tensor) -> Tensor:
    front, seconds = FRONT_ENDS[name], len(wave) / RATES[name]
    media = MediaConfig(
        front_end=front["front_end"],
        num_mel_bins=front["num_mel_bins"],
        sample_rate_hz=RATES[name],
        clip_seconds=seconds,
    )
    return features(wave[None], media)


def given_to_model(name: str, folder: Path, mel: Tensor) -> Tensor:
    """The first argument that the model sees."""
    encoder = build_encoder("audio", towers_of("audio", name, folder))
    assert isinstance(encoder, FrozenEncoder)
    loaded = encoder.loaded(torch.device("cpu"))
    assert isinstance(loaded, AudioCheckpoint)
    seen: list[Tensor] = []
    handle = loaded.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loaded(mel)
    handle.remove()
    return seen[0]


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize(("name", "seams"), [("whisper", [50]), ("ast", []), ("clap", [*range(0, 1001, 50)])])
def test_model_is_given_what_its_own_extractor_makes(name: str, seams: list[int], saved: Callable[[str], Path]) -> None:
    folder, wave = saved(name), sound(RATES[name])
    extractor: Any = transformers.AutoFeatureExtractor.from_pretrained(folder)
    expected = next(iter(extractor(wave.numpy(), sampling_rate=RATES[name], return_tensors="pt").values()))
    found = given_to_model(name, folder, log_mel(name, wave))
    assert found.shape == expected.shape
    if name != "whisper":  # time first
        found, expected = found.transpose(-1, -2), expected.transpose(-1, -2)
    # A window over an edge of the clip sees its mirror image here, and what is filled in there.
    away = torch.ones(found.shape[-1], dtype=torch.bool)
    for seam in seams:
        away[max(0, seam - 2) : seam + 3] = False
    torch.testing.assert_close(found[..., away], expected[..., away], atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("name", AUDIO)
def test_tokens_are_in_order_of_time(name: str, saved: Callable[[str], Path]) -> None:
    """Either half of the sound changes the token of its own time more than the other."""
    # CLAP's attention reaches over a third of a second and more: half a second is all one to it.
    frames, seconds = ({"num_mel_frames": 201}, 2.0) if name == "clap" else ({}, 0.5)
    encoder = build_encoder("audio", towers_of("audio", name, saved(name), **frames))
    wave = sound(RATES[name], seconds)
    middle = len(wave) // 2
    for half, near in ((slice(None, middle), 0), (slice(middle, None), 1)):
        changed = wave.clone()
        changed[half] = 0
        change = (encoder(log_mel(name, wave)) - encoder(log_mel(name, changed))).norm(dim=2)[0]
        assert change[near] > change[1 - near]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("clap", FRONT_ENDS["whisper"], r"reads 64 mel bins of the front end 'clap', .* choose media=clap$"),
        ("ast", FRONT_ENDS["clap"], r"reads 128 mel bins of the front end 'ast', .* choose media=ast$"),
        ("whisper", FRONT_ENDS["ast"], r"reads 80 mel bins of the front end 'whisper', .* choose media=clips$"),
        ("whisper", {"num_mel_frames": 101}, r"reads 100 columns .*smaller media\.clip_seconds"),
    ],
)
def test_clips_of_another_front_end_are_refused_with_the_preset_to_choose(
    name: str, overrides: dict[str, Any], message: str, saved: Callable[[str], Path]
) -> None:
    cfg = towers_of("audio", name, saved(name), **overrides)
    with pytest.raises(ConfigError, match=message):
        check_audio(cfg)
    with pytest.raises(ConfigError, match=message):
        build_encoder("audio", cfg)(torch.zeros(1, cfg.num_mel_bins, cfg.num_mel_frames))
