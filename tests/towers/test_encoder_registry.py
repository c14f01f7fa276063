"""The choices of the config are those that can be built; adapters bring any width to the model's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import ConfigError
from avrec_ray.towers.config import ENCODER_CHOICES, TowersConfig
from avrec_ray.towers.encoder_registry import ENCODERS, build_adapter
from avrec_ray.towers.item_tower import ClipFeatures, ItemTokens, ItemTower, token_shapes
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.types import MODALITIES
from tests.tiny_models import random_inputs, random_tokens, tiny_towers

GIVEN: dict[str, Any] = {
    "video_encoder": "precomputed", "video_width": 7, "audio_encoder": "precomputed", "audio_width": 1,
    "text_encoder": "none",
}  # fmt: skip


def test_choices_of_the_config_are_the_encoders() -> None:
    assert {modality: tuple(kinds) for modality, kinds in ENCODERS.items()} == ENCODER_CHOICES
    assert tuple(ENCODERS) == MODALITIES


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"text_encoder": "clip"},
            r"towers.text_encoder='clip' is not one of \['minilm', 'none', 'precomputed', 'scra",
        ),
        ({"video_encoder": "transformers"}, "a checkpoint and the encoder transformers go together"),
        ({"audio_checkpoint": "x"}, "a checkpoint and the encoder transformers go together"),
        ({"audio_mode": "frozen"}, "an encoder from scratch learns everything; expected full"),
        ({"video_encoder": "none", "video_mode": "top"}, "encoder 'none' has no weights"),
        ({"text_encoder": "minilm", "text_mode": "half"}, r"text_mode='half' is not one of \['frozen', 'full', 'lora'"),
        ({"top_blocks": 0}, "towers.top_blocks=0 is outside"),
    ],
)
def test_encoders_that_cannot_be_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TowersConfig(**overrides)


def test_modes_and_what_is_frozen() -> None:
    assert [TowersConfig().mode_of(name) for name in MODALITIES] == ["full"] * 3
    assert not TowersConfig().all_frozen
    assert tiny_towers(**GIVEN).all_frozen
    mixed = tiny_towers(**{**GIVEN, "text_encoder": "minilm", "text_mode": "lora"})
    assert not mixed.all_frozen
    assert from_dict(TowersConfig, to_dict(mixed)) == mixed


def test_tower_that_reads_tokens_alone_loads_no_checkpoint() -> None:
    """The checkpoint does not even exist."""
    tuned = {"text_encoder": "transformers", "text_checkpoint": "/nowhere", "text_mode": "top", "text_width": 5}
    cfg = tiny_towers(**{**GIVEN, **tuned})
    assert cfg.tuned == ("text",)
    tower = TwoTower(cfg, 4).item.eval()
    assert not tower.encoders
    assert token_shapes(cfg)["text"] == (1, 5)
    assert tower.fuse(random_tokens(cfg, 4)).isfinite().all()
    assert list(TwoTower(tiny_towers(), 4).item.encoders) == list(MODALITIES)


def test_scratch_encoders_have_no_adapter() -> None:
    adapters = [build_adapter(name, tiny_towers()) for name in MODALITIES]
    assert all(isinstance(adapter, nn.Identity) for adapter in adapters)


def test_width_that_nobody_said_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="towers.video_width=0 with video_encoder='precomputed'"):
        ItemTower(tiny_towers(**{**GIVEN, "video_width": 0}))


@pytest.fixture
def tower() -> ItemTower:
    torch.manual_seed(0)
    return ItemTower(tiny_towers(**GIVEN), 4).eval()


def test_tower_takes_vectors_of_any_width(tower: ItemTower) -> None:
    assert token_shapes(tower.cfg) == {"video": (2, 7), "audio": (2, 1), "text": (1, 1)}
    items = random_tokens(tower.cfg, 4)
    items.masks["text"][:] = False
    embeddings = tower.fuse(items)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    moments, present = tower.moments(items)
    assert moments.shape == (4, 5, tower.cfg.embedding_dim)
    assert present[:, :4].all()
    assert not present[:, 4].any()


def test_modality_that_is_absent_everywhere_has_no_weights_and_no_effect(tower: ItemTower) -> None:
    names = [name for name, _ in tower.named_parameters() if "text" in name and "contrast" not in name]
    assert not names
    items = random_tokens(tower.cfg, 4)
    items.masks["text"][:] = False
    other = ItemTokens({**items.tokens, "text": 100 + items.tokens["text"]}, items.masks)
    assert torch.equal(tower.fuse(items), tower.fuse(other))
    assert torch.equal(tower.moments(items)[0][:, :4], tower.moments(other)[0][:, :4])


def test_vector_of_one_number_is_read(tower: ItemTower) -> None:
    items = random_tokens(tower.cfg, 4)
    doubled = ItemTokens({**items.tokens, "audio": 2 * items.tokens["audio"]}, items.masks)
    assert not torch.allclose(tower.fuse(items), tower.fuse(doubled), atol=1e-4)


def test_missing_vector_has_exactly_no_effect(tower: ItemTower) -> None:
    items = random_tokens(tower.cfg, 4)
    items.masks["video"][1], items.masks["text"][:] = False, False
    other = {**items.tokens, "video": items.tokens["video"].clone()}
    other["video"][1] = 1e4
    assert torch.equal(tower.fuse(items), tower.fuse(ItemTokens(other, items.masks)))


def test_no_encoder_at_all_leaves_ids_alone() -> None:
    cfg = tiny_towers(**{f"{name}_encoder": "none" for name in MODALITIES}, content_weight=0.0)
    tower, warm = ItemTower(cfg, 4).eval(), torch.ones(4, dtype=torch.bool)
    items = random_tokens(cfg, 4)
    for mask in items.masks.values():
        mask[:] = False
    embeddings = tower.fuse(items, torch.arange(4), warm)
    torch.testing.assert_close(embeddings, nn.functional.normalize(tower.ids.weight, dim=1))


def test_inputs_with_vectors_are_compared_by_them(tower: ItemTower) -> None:
    inputs = random_inputs(tower.cfg, 3)
    inputs.video_vector, inputs.audio_vector = torch.randn(3, 7), torch.randn(3, 1)
    inputs.text_vector = torch.full((3, 1), torch.nan)
    inputs.audio_vector[2] = torch.nan
    presence = {name: value.tolist() for name, value in inputs.presence().items()}
    assert presence == {"video": [True] * 3, "audio": [True, True, False], "text": [False] * 3}
    tokens = tower.encode_clips(inputs)
    assert torch.equal(tokens["video"][:, 0], inputs.video_vector)
    assert all(value.isfinite().all() for value in tower.contrast(tokens).values())
    features = ClipFeatures(**tokens, **{f"has_{name}": value for name, value in inputs.presence().items()})
    assert features.presence().keys() == presence.keys()
    for name, value in tower.contrast(tower.encode_clips(features)).items():
        assert torch.equal(value, tower.contrast(tokens)[name])


def test_adapters_learn_from_the_contrast(tower: ItemTower) -> None:
    inputs = random_inputs(tower.cfg, 3)
    inputs.video_vector, inputs.audio_vector = torch.randn(3, 7), torch.randn(3, 1)
    inputs.text_vector = torch.full((3, 1), torch.nan)
    loss: Tensor = sum(tower.contrast(tower.encode_clips(inputs)).values(), torch.zeros(())).sum()
    loss.backward()
    for name in ("video", "audio"):
        assert all(p.grad is not None for p in tower.adapters[name].parameters())
