"""The item tower: unit vectors for every pattern of presence, and id vectors for warm items alone."""

import pytest
import torch
from torch import Tensor

from avrec_ray.towers.config import moment_layout
from avrec_ray.towers.item_tower import ItemTokens, ItemTower, token_shapes
from avrec_ray.types import MODALITIES
from tests.tiny_models import random_inputs, random_tokens, tiny_towers

CFG = tiny_towers()
WARM = torch.tensor([True, False, True, False])


@pytest.fixture
def tower() -> ItemTower:
    torch.manual_seed(0)
    return ItemTower(CFG, num_items=4).eval()


def only(items: ItemTokens, *names: str) -> ItemTokens:
    return ItemTokens(items.tokens, {name: mask & (name in names) for name, mask in items.masks.items()})


def norms(vectors: Tensor) -> Tensor:
    return vectors.norm(dim=-1)


@pytest.mark.parametrize("present", [(), ("text",), ("video",), ("audio", "text"), MODALITIES])
def test_fuse_gives_unit_vectors_for_every_pattern_of_presence(tower: ItemTower, present: tuple[str, ...]) -> None:
    embeddings = tower.fuse(only(random_tokens(CFG, 4), *present), torch.arange(4), WARM)
    assert embeddings.shape == (4, CFG.embedding_dim)
    torch.testing.assert_close(norms(embeddings), torch.ones(4))


@pytest.mark.parametrize("absent", MODALITIES)
def test_fuse_and_moments_do_not_read_an_absent_modality(tower: ItemTower, absent: str) -> None:
    items = only(random_tokens(CFG, 4), *(name for name in MODALITIES if name != absent))
    changed = ItemTokens({**items.tokens, absent: 50 * torch.randn(items.tokens[absent].shape)}, items.masks)
    assert torch.equal(tower.fuse(items), tower.fuse(changed))
    (moments, present), (again, _) = tower.moments(items), tower.moments(changed)
    assert torch.equal(moments[present], again[present])


@pytest.mark.parametrize("absent", MODALITIES)
def test_whole_tower_does_not_read_the_input_of_an_absent_modality(tower: ItemTower, absent: str) -> None:
    inputs, other = random_inputs(CFG, 3), random_inputs(CFG, 3, seed=9)
    first, second = tower.encode_clips(inputs), tower.encode_clips(other)
    masks = {name: torch.full(value.shape[:2], name != absent) for name, value in first.items()}
    mixed = {**first, absent: second[absent]}
    assert not torch.equal(first[absent], second[absent])
    assert torch.equal(tower.fuse(ItemTokens(first, masks)), tower.fuse(ItemTokens(mixed, masks)))


def test_fuse_reads_every_present_modality(tower: ItemTower) -> None:
    items = random_tokens(CFG, 4)
    for name in MODALITIES:
        changed = ItemTokens({**items.tokens, name: random_tokens(CFG, 4, seed=5).tokens[name]}, items.masks)
        assert not torch.allclose(tower.fuse(items), tower.fuse(changed), atol=1e-4)


def test_fuse_adds_id_vectors_to_warm_items_alone(tower: ItemTower) -> None:
    items = random_tokens(CFG, 4)
    content = tower.fuse(items)
    embeddings = tower.fuse(items, torch.arange(4), WARM)
    assert torch.equal(embeddings[~WARM], content[~WARM])
    assert not torch.isclose(embeddings[WARM], content[WARM], atol=1e-3).all(1).any()
    with torch.no_grad():
        tower.ids.weight[1] += 7.0  # a cold item's id vector, untrained, must not matter
    assert torch.equal(tower.fuse(items, torch.arange(4), WARM), embeddings)


def test_fuse_without_item_ids_in_the_config_is_content_alone() -> None:
    tower, items = ItemTower(tiny_towers(use_item_ids=False), 4).eval(), random_tokens(CFG, 4)
    assert torch.equal(tower.fuse(items, torch.arange(4), WARM), tower.fuse(items))


def test_fuse_in_training_drops_id_vectors_at_the_asked_rate() -> None:
    torch.manual_seed(0)
    tower = ItemTower(tiny_towers(id_dropout=0.3), 1).train()
    items = random_tokens(CFG, 1).take(torch.zeros(2000, dtype=torch.int64))
    rows = torch.zeros(2000, dtype=torch.int64)
    content = tower.fuse(items)
    hidden = (tower.fuse(items, rows, torch.ones(2000, dtype=torch.bool)) - content).norm(dim=1) < 1e-5
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_fuse_in_training_hides_modalities_and_in_serving_does_not() -> None:
    torch.manual_seed(0)
    tower = ItemTower(tiny_towers(modality_dropout=0.5), 1)
    items = random_tokens(CFG, 1).take(torch.zeros(50, dtype=torch.int64))
    assert tower.train().fuse(items).std(0).max() > 0.01
    assert tower.eval().fuse(items).std(0).max() < 1e-6


def test_moments_are_unit_vectors_where_they_exist(tower: ItemTower) -> None:
    items = random_tokens(CFG, 4)
    items.masks["video"][0] = False
    items.masks["audio"][1, 2:] = False  # the second clip's two tokens
    items.masks["text"][2] = False
    moments, present = tower.moments(items)
    assert moments.shape == (4, 5, CFG.embedding_dim)
    assert present.tolist() == [
        [False, False, True, True, True],
        [True, True, True, False, True],
        [True, True, True, True, False],
        [True, True, True, True, True],
    ]
    torch.testing.assert_close(norms(moments)[present], torch.ones(int(present.sum())))
    assert moments.isfinite().all()


def test_moments_of_an_item_with_nothing_are_finite_and_absent(tower: ItemTower) -> None:
    moments, present = tower.moments(only(random_tokens(CFG, 2)))
    assert moments.isfinite().all()
    assert not present.any()


def test_moments_do_not_depend_on_training_mode() -> None:
    tower, items = ItemTower(tiny_towers(modality_dropout=0.9), 0), random_tokens(CFG, 3)
    torch.testing.assert_close(tower.train().moments(items)[0], tower.eval().moments(items)[0], atol=1e-6, rtol=0)


def test_contrast_gives_a_unit_vector_a_modality(tower: ItemTower) -> None:
    vectors = tower.contrast(tower.encode_clips(random_inputs(CFG, 3)))
    assert tuple(vectors) == MODALITIES
    for value in vectors.values():
        torch.testing.assert_close(norms(value), torch.ones(3))


def test_presence_of_text_is_having_a_word() -> None:
    inputs = random_inputs(CFG, 3)
    inputs.word_ids[1] = 0
    inputs.has_audio[2] = False
    presence = {name: value.tolist() for name, value in inputs.presence().items()}
    assert presence == {"video": [True] * 3, "audio": [True, True, False], "text": [True, False, True]}


def test_take_selects_tokens_and_masks_together() -> None:
    items = random_tokens(CFG, 4)
    items.masks["video"][3] = False
    taken = items.take(torch.tensor([3, 0, 3]))
    assert len(taken) == 3
    assert torch.equal(taken.tokens["audio"], items.tokens["audio"][[3, 0, 3]])
    assert taken.masks["video"].any(1).tolist() == [False, True, False]


def test_layout_and_shapes_agree_with_what_the_tower_makes(tower: ItemTower) -> None:
    assert moment_layout(2) == [("video", 0), ("video", 1), ("audio", 0), ("audio", 1), ("text", -1)]
    clip = tower.encode_clips(random_inputs(CFG, 1))
    for name, (tokens, width) in token_shapes(CFG).items():
        clips = 1 if name == "text" else CFG.max_clips
        assert (clip[name].shape[1] * clips, clip[name].shape[2]) == (tokens, width)
