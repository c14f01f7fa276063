"""Every family of checkpoints, by the contract of encoders, and what each mode trains. No network, nothing pickled."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avrec_ray.errors import ConfigError
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.encoder_registry import build_encoder, token_shape
from avrec_ray.towers.pretrained import FrozenEncoder, TunedEncoder
from avrec_ray.towers.text_checkpoints import tokenize
from tests.towers.tiny_checkpoints import ALL, towers_of

CASES = [(modality, name) for modality, families in ALL.items() for name in families]
Saved = Callable[[str, str], Path]
each = pytest.mark.parametrize(("modality", "name"), CASES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folder of a family's checkpoint, made once."""
    folders: dict[str, Path] = {}

    def folder_of(modality: str, name: str) -> Path:
        if name not in folders:
            torch.manual_seed(len(folders))
            folders[name] = tmp_path_factory.mktemp(name)
            ALL[modality][name](folders[name])
        return folders[name]

    return folder_of


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def values_of(modality: str, cfg: TowersConfig, seed: int = 0) -> Tensor:
    """Four inputs of a modality."""
    rng = torch.Generator().manual_seed(seed)
    if modality == "video":
        shape = (4, cfg.num_frames, 3, cfg.frame_size, cfg.frame_size)
        return torch.randint(0, 256, shape, generator=rng).to(torch.uint8)
    if modality == "audio":
        return torch.randn(4, cfg.num_mel_bins, cfg.num_mel_frames, generator=rng)
    return torch.from_numpy(tokenize(["cat plays", "dog sleeps night", "", "loud"], cfg))


def trained(encoder: torch.nn.Module) -> set[str]:
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


@each
def test_frozen_encoder_keeps_the_contract(modality: str, name: str, saved: Saved) -> None:
    cfg = towers_of(modality, name, saved(modality, name))
    encoder, values = build_encoder(modality, cfg), values_of(modality, cfg)
    tokens = encoder.train()(values)
    assert tokens.shape == (4, *token_shape(modality, cfg))
    assert tokens.isfinite().all()
    assert not tokens.requires_grad
    assert torch.equal(encoder.eval()(values), tokens)
    torch.testing.assert_close(encoder(values[1:2]), tokens[1:2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-4)
    assert isinstance(encoder, FrozenEncoder)
    assert not encoder.state_dict()
    assert not list(encoder.parameters())


@each
def test_encoder_first_asked_in_inference_mode_can_be_asked_outside_of_it(
    modality: str, name: str, saved: Saved
) -> None:
    cfg = towers_of(modality, name, saved(modality, name))
    encoder, values = build_encoder(modality, cfg), values_of(modality, cfg)
    with torch.inference_mode():
        first = encoder(values)
    assert torch.equal(encoder(values), first)


@each
def test_full_mode_reaches_every_weight_that_trains(modality: str, name: str, saved: Saved) -> None:
    cfg = towers_of(modality, name, saved(modality, name), **{f"{modality}_mode": "full"})
    encoder = build_encoder(modality, cfg).train()
    torch.testing.assert_close(encoder(values_of(modality, cfg)), _frozen(modality, name, saved), atol=1e-5, rtol=1e-5)
    encoder(values_of(modality, cfg)).pow(2).sum().backward()
    without = {key for key, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None}
    assert not {key for key in without if not key.endswith("embeddings.mask_token")}  # of DINOv2's own pretraining
    assert not {key for key in trained(encoder) if "batch_norm" in key}


@each
def test_top_mode_trains_the_last_block_and_what_comes_after_it(modality: str, name: str, saved: Saved) -> None:
    cfg = towers_of(modality, name, saved(modality, name), **{f"{modality}_mode": "top"})
    encoder = build_encoder(modality, cfg)
    names = trained(encoder)
    last = "layers.1." if name == "clap" else "2."
    blocks = {key for key in names if ".layers." in key or ".layer." in key}
    assert blocks
    assert all(last in key for key in blocks)
    assert not [key for key in names if "embed" in key or "conv" in key or "batch_norm" in key]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], 0.1)
    encoder(values_of(modality, cfg)).pow(2).sum().backward()
    optimizer.step()
    changed = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= names
    assert len(changed) > len(names) // 2


@each
def test_low_rank_mode_starts_as_the_checkpoint_and_trains_its_matrices_alone(
    modality: str, name: str, saved: Saved
) -> None:
    cfg = towers_of(modality, name, saved(modality, name), **{f"{modality}_mode": "lora", "lora_rank": 2})
    encoder = build_encoder(modality, cfg).train()
    assert isinstance(encoder, TunedEncoder)
    names = trained(encoder)
    assert names
    assert all(".lora_A." in key or ".lora_B." in key for key in names)
    assert all(2 in weight.shape for key, weight in encoder.named_parameters() if key in names)
    values = values_of(modality, cfg)
    torch.testing.assert_close(encoder(values), _frozen(modality, name, saved), atol=1e-5, rtol=1e-5)
    encoder(values).pow(2).sum().backward()
    assert {key for key, weight in encoder.named_parameters() if weight.grad is not None} == names


def _frozen(modality: str, name: str, saved: Saved) -> Tensor:
    cfg = towers_of(modality, name, saved(modality, name))
    tokens: Tensor = build_encoder(modality, cfg)(values_of(modality, cfg))
    return tokens


@each
def test_tuned_encoder_survives_its_state(modality: str, name: str, saved: Saved) -> None:
    cfg = towers_of(modality, name, saved(modality, name), **{f"{modality}_mode": "lora"})
    first, second = build_encoder(modality, cfg), build_encoder(modality, cfg)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    second.load_state_dict(first.state_dict())
    values = values_of(modality, cfg)
    assert torch.equal(first(values), second(values))


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_text_does_not_depend_on_what_stands_behind_its_end(name: str, saved: Saved) -> None:
    cfg = towers_of("text", name, saved("text", name))
    encoder, ids = build_encoder("text", cfg), values_of("text", cfg)
    longest = int((ids > 0).sum(1).max())
    torch.testing.assert_close(encoder(ids[:, :longest]), encoder(ids), atol=1e-5, rtol=1e-5)
    assert (encoder(ids)[2] == 0).all()


def test_videomae_sees_the_order_of_frames_and_takes_any_number_of_them(saved: Saved) -> None:
    folder = saved("video", "videomae")
    cfg = towers_of("video", "videomae", folder)
    encoder, frames = build_encoder("video", cfg), values_of("video", cfg)
    assert not torch.allclose(encoder(frames), encoder(frames.flip(1)), atol=1e-4)
    for num_frames in (1, 2, 8, 12):
        other = towers_of("video", "videomae", folder, num_frames=num_frames)
        tokens = build_encoder("video", other)(values_of("video", other))
        assert tokens.shape == (4, *token_shape("video", other))
    twice = frames.repeat_interleave(2, 1)
    torch.testing.assert_close(encoder(twice), encoder(frames), atol=1e-6, rtol=0)


def test_checkpoint_without_safetensors_is_refused(saved: Saved, tmp_path: Path) -> None:
    source = saved("text", "bert")
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    cfg = towers_of("text", "bert", tmp_path)
    with pytest.raises(ConfigError, match="text_checkpoint=.*cannot be loaded.*weights as safetensors"):
        build_encoder("text", cfg)(torch.ones(1, 10, dtype=torch.int64))


def test_checkpoint_that_is_not_there_or_of_no_known_family_is_refused(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        token_shape("video", towers_of("video", "clip", tmp_path / "nowhere"))
    cfg = towers_of("video", "bert", saved("text", "bert"))
    with pytest.raises(ConfigError, match=r"is a 'bert' model, which is not one of \['clip', 'clip_vision_model', "):
        build_encoder("video", cfg)(values_of("video", cfg))


def test_width_of_another_checkpoint_is_refused(saved: Saved) -> None:
    cfg = towers_of("video", "siglip", saved("video", "siglip"), video_width=32)
    with pytest.raises(ConfigError, match="video_width=32, but the checkpoint's tokens have 16"):
        build_encoder("video", cfg)(values_of("video", cfg))


def test_more_text_than_the_checkpoint_reads_is_refused(saved: Saved) -> None:
    cfg = towers_of("text", "bert", saved("text", "bert"), max_text_tokens=13)
    with pytest.raises(ConfigError, match="max_text_tokens=13, but .* reads 12 at most"):
        build_encoder("text", cfg)(torch.ones(1, 13, dtype=torch.int64))


def test_preprocessing_without_a_mean_is_refused(saved: Saved, tmp_path: Path) -> None:
    source = saved("video", "siglip")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 16, "width": 16}}')
    cfg = towers_of("video", "siglip", tmp_path)
    with pytest.raises(ConfigError, match="image_mean None"):
        build_encoder("video", cfg)(values_of("video", cfg))


def test_weights_file_that_is_torn_is_refused(saved: Saved, tmp_path: Path) -> None:
    source = saved("video", "siglip")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file({"unknown": torch.ones(1)}, tmp_path / "model.safetensors")
    cfg = towers_of("video", "siglip", tmp_path)
    with pytest.raises(ConfigError, match="lacks"):
        build_encoder("video", cfg)(values_of("video", cfg))
