"""The blocks by plain loops over their equations, and what the fast form of each must not change."""

import math
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avrec_ray.towers.config import USER_BLOCK_NAMES
from avrec_ray.towers.encoders import transformer
from avrec_ray.towers.user_blocks import (
    NUM_TIME_BUCKETS,
    USER_BLOCKS,
    HSTUBlocks,
    HSTULayer,
    SASRecBlocks,
    look_up,
    time_buckets,
    visible_keys,
)
from tests.tiny_models import tiny_towers

BATCH, LENGTH = 3, 6
NOW = 1.7e9
"""A POSIX time, at which float32 counts in steps of 128 s."""


def left_padded_mask(*counts: int) -> Tensor:
    return torch.arange(LENGTH)[None] >= LENGTH - torch.tensor(counts)[:, None]


MASK = left_padded_mask(6, 4, 1)


def inputs(width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    at_seconds = NOW + torch.rand(BATCH, LENGTH, generator=rng, dtype=torch.float64).cumsum(1) * 1000
    return torch.randn(BATCH, LENGTH, width, generator=rng), MASK, at_seconds * MASK


def test_every_name_of_the_config_has_blocks() -> None:
    assert set(USER_BLOCKS) == set(USER_BLOCK_NAMES)


@given(st.lists(st.floats(0, 4e9), min_size=1, max_size=8))
def test_time_buckets_are_half_octaves_of_the_seconds_between(times: list[float]) -> None:
    times.sort()
    (buckets,) = time_buckets(torch.tensor([times], dtype=torch.float64)).tolist()
    for row, later in enumerate(times):
        for column, earlier in enumerate(times):
            exact = 2 * math.log2(1 + max(0.0, later - earlier))
            assert exact - 1.001 <= buckets[row][column] <= exact + 0.001
            assert 0 <= buckets[row][column] < NUM_TIME_BUCKETS


def test_time_buckets_of_posix_times_see_single_seconds() -> None:
    (buckets,) = time_buckets(torch.tensor([[NOW - 3e8, NOW - 3e8 + 1, NOW]], dtype=torch.float64)).tolist()
    assert buckets[1][0] == 2
    assert buckets[2][0] == buckets[2][1] == 56


@given(st.integers(0, 1000))
def test_visible_keys_are_events_up_to_the_position(seed: int) -> None:
    mask = torch.rand(2, 5, generator=torch.Generator().manual_seed(seed)) < 0.6
    visible = visible_keys(mask)
    for batch in range(2):
        for row in range(5):
            for column in range(5):
                assert visible[batch, row, column] == (column <= row and bool(mask[batch, column]))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_sasrec_is_bit_equal_to_the_transformer_encoder_with_its_weights(dropout: float) -> None:
    cfg = tiny_towers(dropout=dropout)
    torch.manual_seed(0)
    blocks = SASRecBlocks(cfg)
    torch.manual_seed(0)
    encoder = transformer(cfg, cfg.user_layers)
    assert list(blocks.state_dict()) == list(encoder.state_dict())
    states, mask, at_seconds = inputs(cfg.model_dim)
    seen = visible_keys(mask) | torch.eye(LENGTH, dtype=torch.bool)
    torch.manual_seed(1)
    expected = encoder(states, mask=(~seen).repeat_interleave(cfg.num_heads, 0))
    torch.manual_seed(1)
    found = blocks(states, mask, at_seconds)
    assert torch.equal(found, expected)
    for result in (expected, found):
        result.square().sum().backward()
    for ours, theirs in zip(blocks.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_time_bias_of_sasrec_is_added_to_the_logits_of_its_bucket() -> None:
    cfg = tiny_towers(time_bias=True, user_layers=1)
    torch.manual_seed(0)
    blocks = SASRecBlocks(cfg).eval()
    plain = SASRecBlocks(tiny_towers(user_layers=1)).eval()
    plain.load_state_dict({k: v for k, v in blocks.state_dict().items() if not k.startswith("times.")})
    states, mask, at_seconds = inputs(cfg.model_dim)
    torch.testing.assert_close(blocks(states, mask, at_seconds), plain(states, mask, at_seconds), atol=1e-6, rtol=0)
    # A large bias for "at the same moment" leaves each position with itself alone.
    with torch.no_grad():
        blocks.times[0].table.weight[0] = 50.0
    alone = plain(states.flatten(0, 1)[:, None], torch.ones(BATCH * LENGTH, 1, dtype=torch.bool), torch.zeros(1, 1))
    found = blocks(states, mask, at_seconds)
    torch.testing.assert_close(found[mask], alone.view_as(found)[mask], atol=1e-5, rtol=0)


def hstu_by_loops(layer: HSTULayer, states_LE: Tensor, mask_L: Tensor, at_seconds_L: Tensor) -> Tensor:
    """Equations 1 to 3 of the paper, one pair of positions and one head at a time."""
    width, num_heads = states_LE.shape[1], layer.num_heads
    size = width // num_heads
    projected = F.silu(F.layer_norm(states_LE, (width,), layer.norm.weight, layer.norm.bias) @ layer.uvqk.weight.T)
    gate, value, query, key = projected.split(width, 1)
    result = states_LE.clone()
    for i in range(len(states_LE)):
        seen = [j for j in range(i + 1) if mask_L[j]]
        read = torch.zeros(width)
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            for j in seen:
                bucket = int(2 * math.log2(1 + float(at_seconds_L[i] - at_seconds_L[j])))
                bias = layer.distance.weight[i - j, head] + layer.time.table.weight[bucket, head]
                read[part] += F.silu(query[i, part] @ key[j, part] + bias) / len(seen) * value[j, part]
        result[i] += layer.out(F.layer_norm(read, (width,), eps=1e-6) * gate[i])
    return result


def test_hstu_equals_plain_loops() -> None:
    cfg = tiny_towers(user_blocks="hstu")
    torch.manual_seed(0)
    blocks = HSTUBlocks(cfg)
    for layer in blocks.layers:
        torch.nn.init.normal_(layer.time.table.weight)
        torch.nn.init.normal_(layer.distance.weight)
    states, mask, at_seconds = inputs(cfg.model_dim)
    with torch.no_grad():
        found = blocks(states, mask, at_seconds)
        for row in range(BATCH):
            expected = states[row]
            for layer in blocks.layers:
                expected = hstu_by_loops(layer, expected, mask[row], at_seconds[row])
            torch.testing.assert_close(found[row][mask[row]], expected[mask[row]], atol=1e-5, rtol=1e-5)


def test_look_up_gives_and_learns_what_an_embedding_does() -> None:
    rows = torch.randint(0, 7, (BATCH, LENGTH, LENGTH), dtype=torch.int32)
    ours, theirs = (torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    weight = torch.randn(BATCH, 2, LENGTH, LENGTH)
    found, expected = look_up(ours, rows), F.embedding(rows, theirs).permute(0, 3, 1, 2)
    assert torch.equal(found, expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("settings", [{}, {"time_bias": True}, {"user_blocks": "hstu"}], ids=["sasrec", "time", "hstu"])
def test_a_thousand_events_train_in_seconds_and_stay_finite(settings: dict[str, object]) -> None:
    cfg = tiny_towers(history_length=1000, dropout=0.1, **settings)
    torch.manual_seed(0)
    blocks = USER_BLOCKS[cfg.user_blocks](cfg)
    mask = torch.arange(1000)[None] >= torch.tensor([0, 300])[:, None]
    at_seconds = NOW + torch.arange(1000, dtype=torch.float64) * 3600 + torch.zeros(2, 1)
    began = time.process_time()
    states = blocks(torch.randn(2, 1000, cfg.model_dim), mask, at_seconds)
    states.square().mean().backward()
    assert time.process_time() - began < 10
    assert states.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in blocks.parameters())
