"""Fusion: the presence mask really hides, and modality dropout leaves every item something."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avrec_ray.towers.fusion import BottleneckFusion, drop_modalities
from avrec_ray.types import MODALITIES
from tests.tiny_models import random_tokens, tiny_towers

CFG = tiny_towers()


def masks_of(present: list[list[bool]]) -> dict[str, Tensor]:
    """Masks of two tokens a modality, from rows of (video, audio, text)."""
    return {name: torch.tensor(present)[:, [column]].repeat(1, 2) for column, name in enumerate(MODALITIES)}


@pytest.mark.parametrize("absent", MODALITIES)
def test_fusion_is_bit_equal_whatever_an_absent_modality_holds(absent: str) -> None:
    torch.manual_seed(0)
    fusion, items = BottleneckFusion(CFG), random_tokens(CFG, 3)
    items.masks[absent][1] = False
    fused, states = fusion(items.tokens, items.masks)
    changed = {**items.tokens, absent: items.tokens[absent].clone()}
    changed[absent][1] = 100 * torch.randn_like(changed[absent][1])
    again, changed_states = fusion(changed, items.masks)
    assert torch.equal(fused, again)
    for name in MODALITIES:
        seen = items.masks[name]
        assert torch.equal(states[name][seen], changed_states[name][seen])


def test_fusion_hides_single_tokens_of_a_present_modality() -> None:
    fusion, items = BottleneckFusion(CFG), random_tokens(CFG, 2)
    items.masks["video"][0, -2:] = False
    fused, _ = fusion(items.tokens, items.masks)
    items.tokens["video"][0, -2:] = 10 * torch.randn(2, CFG.model_dim)
    assert torch.equal(fusion(items.tokens, items.masks)[0], fused)
    items.tokens["video"][0, 0] = 10 * torch.randn(CFG.model_dim)
    assert not torch.allclose(fusion(items.tokens, items.masks)[0][0], fused[0], atol=1e-4)


def test_fusion_averages_the_bottleneck_over_present_modalities_only() -> None:
    fusion, items = BottleneckFusion(tiny_towers(fusion_layers=1)), random_tokens(CFG, 1)
    alone = []
    for name in MODALITIES:
        masks = {other: mask & (other == name) for other, mask in items.masks.items()}
        alone.append(fusion(items.tokens, masks)[0])
    torch.testing.assert_close(fusion(items.tokens, items.masks)[0], torch.stack(alone).mean(0), atol=1e-6, rtol=0)


def test_fusion_of_nothing_is_the_learned_bottleneck() -> None:
    fusion, items = BottleneckFusion(CFG), random_tokens(CFG, 2)
    fused, _ = fusion(items.tokens, {name: torch.zeros_like(mask) for name, mask in items.masks.items()})
    torch.testing.assert_close(fused, fusion.bottleneck.mean(0).expand(2, -1))


def test_fusion_passes_information_between_modalities() -> None:
    fusion, items = BottleneckFusion(CFG), random_tokens(CFG, 2)
    _, states = fusion(items.tokens, items.masks)
    items.tokens["audio"][0] += 3 * torch.randn_like(items.tokens["audio"][0])
    _, changed = fusion(items.tokens, items.masks)
    assert not torch.allclose(states["video"][0], changed["video"][0], atol=1e-4)
    assert torch.equal(states["video"][1], changed["video"][1])


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=20),
    st.floats(0, 0.99),
    st.integers(),
)
def test_drop_modalities_never_adds_and_never_drops_the_last(present: list[list[bool]], rate: float, seed: int) -> None:
    torch.manual_seed(seed % 2**31)
    masks = masks_of(present)
    kept = drop_modalities(masks, rate)
    had = torch.stack([masks[name].any(1) for name in MODALITIES], 1)
    has = torch.stack([kept[name].any(1) for name in MODALITIES], 1)
    assert not (has & ~had).any()
    assert torch.equal(has.any(1), had.any(1))
    for name in MODALITIES:  # a modality goes or stays as a whole
        assert torch.equal(kept[name], masks[name] & has[:, [MODALITIES.index(name)]])


def test_drop_modalities_hides_about_the_asked_share() -> None:
    torch.manual_seed(0)
    kept = drop_modalities(masks_of([[True] * 3] * 20_000), 0.2)
    for name in MODALITIES:
        # All three below the rate would lose the item, so the largest draw stays: a third of rate^3 comes back.
        assert kept[name][:, 0].float().mean().item() == pytest.approx(1 - 0.2 + 0.2**3 / 3, abs=0.01)


def test_drop_modalities_at_rate_zero_changes_nothing() -> None:
    masks = masks_of([[True, False, True], [False, False, False]])
    assert all(torch.equal(drop_modalities(masks, 0.0)[name], masks[name]) for name in MODALITIES)
