"""The user tower: no look into the future, no influence of padding, finite for every history."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avrec_ray.towers.two_tower import HistoryBatch, TwoTower
from tests.tiny_models import random_history, random_tokens, tiny_towers

CFG = tiny_towers()
NUM_ITEMS = 20
VARIANTS: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "sasrec_time": {"time_bias": True},
    "hstu": {"user_blocks": "hstu"},
}
"""Every kind of user tower; each test below holds for all of them."""


def towers_of(variant: str, **overrides: Any) -> TwoTower:
    """A variant's towers in eval mode; what starts at zero has an opinion of its own."""
    torch.manual_seed(0)
    towers = TwoTower(tiny_towers(**VARIANTS[variant], **overrides), NUM_ITEMS).eval()
    for weight in towers.user.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.5)
    return towers


@pytest.fixture(scope="module", params=VARIANTS)
def towers(request: pytest.FixtureRequest) -> TwoTower:
    return towers_of(request.param)


@pytest.fixture(scope="module")
def embeddings(towers: TwoTower) -> Tensor:
    with torch.no_grad():
        return towers.embed_items(
            random_tokens(CFG, NUM_ITEMS), torch.arange(NUM_ITEMS), torch.ones(NUM_ITEMS, dtype=torch.bool)
        )


def edited(history: HistoryBatch, columns: slice, seed: int) -> HistoryBatch:
    """The same history with other events at `columns`; what is padding stays padding."""
    other = random_history(CFG, len(history.mask), NUM_ITEMS, seed)
    new = {}
    for field in dataclasses.fields(history):
        new[field.name] = getattr(history, field.name).clone()
        if field.name != "mask":
            new[field.name][:, columns] = getattr(other, field.name)[:, columns]
    return HistoryBatch(**new)


def left_padded(history: HistoryBatch, length: int) -> HistoryBatch:
    """The newest `length` events at most, or as many padded positions more."""
    fill = {
        "item_idx": 0,
        "event": 0,
        "watch_ratio": float("nan"),
        "gap_seconds": 0.0,
        "mask": False,
        "at_seconds": 0.0,
    }
    padded = {}
    for name, value in fill.items():
        column = getattr(history, name)
        extra = column.new_full((len(column), max(0, length - column.shape[1])), value)
        padded[name] = torch.cat([extra, column], 1)[:, -length:]
    return HistoryBatch(**padded)


def test_queries_are_unit_vectors_everywhere(towers: TwoTower, embeddings: Tensor) -> None:
    queries = towers.queries(random_history(CFG, 5, NUM_ITEMS), embeddings)
    assert queries.shape == (5, CFG.history_length, CFG.embedding_dim)
    torch.testing.assert_close(queries.norm(dim=-1), torch.ones(5, CFG.history_length))


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25)
@given(position=st.integers(0, CFG.history_length - 2), seed=st.integers(1, 1000))
def test_queries_up_to_t_are_bit_equal_whatever_comes_after(variant: str, position: int, seed: int) -> None:
    towers = towers_of(variant)
    vectors = torch.nn.functional.normalize(torch.randn(NUM_ITEMS, CFG.embedding_dim), dim=1)
    history = random_history(CFG, 4, NUM_ITEMS)
    before = towers.queries(history, vectors)
    after = towers.queries(edited(history, slice(position + 1, None), seed), vectors)
    assert torch.equal(before[:, : position + 1], after[:, : position + 1])
    assert not torch.equal(before[:, position + 1 :], after[:, position + 1 :])


@pytest.mark.parametrize("column", ["item_idx", "event", "watch_ratio", "gap_seconds"])
def test_last_query_reads_every_column_of_an_older_event(towers: TwoTower, embeddings: Tensor, column: str) -> None:
    history = random_history(CFG, 3, NUM_ITEMS)
    changed = dataclasses.replace(history, **{column: getattr(history, column).clone()})
    value = {"item_idx": 7, "event": 9, "watch_ratio": 0.77, "gap_seconds": 3.0}[column]
    getattr(changed, column)[:, -2] = value
    difference = towers.queries(changed, embeddings)[:, -1] - towers.queries(history, embeddings)[:, -1]
    assert (difference.abs().amax(1) > 1e-5).all()


@pytest.mark.parametrize("length", [3, 4, 5, 6])
def test_last_query_does_not_depend_on_how_long_the_padding_is(
    towers: TwoTower, embeddings: Tensor, length: int
) -> None:
    short = left_padded(random_history(CFG, 4, NUM_ITEMS), 3)
    expected = towers.queries(short, embeddings)[:, -1]
    again = towers.queries(left_padded(short, length), embeddings)[:, -1]
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


def test_last_query_reads_the_times_where_attention_does(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(CFG, 3, NUM_ITEMS)
    later = dataclasses.replace(history, at_seconds=history.at_seconds.clone())
    later.at_seconds[:, -1] += 1e6
    same = torch.equal(towers.queries(later, embeddings), towers.queries(history, embeddings))
    assert same == (towers.cfg.user_blocks == "sasrec" and not towers.cfg.time_bias)


def test_queries_do_not_depend_on_when_a_history_began(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(CFG, 3, NUM_ITEMS)
    history.at_seconds.round_()
    moved = dataclasses.replace(history, at_seconds=history.at_seconds + 2**30)
    assert torch.equal(towers.queries(moved, embeddings), towers.queries(history, embeddings))


def test_last_query_does_not_read_what_padding_holds(towers: TwoTower, embeddings: Tensor) -> None:
    history = left_padded(random_history(CFG, 4, NUM_ITEMS), 3)
    history = left_padded(history, CFG.history_length)
    filled = edited(history, slice(0, 3), seed=5)
    assert torch.equal(towers.queries(history, embeddings)[:, 3:], towers.queries(filled, embeddings)[:, 3:])


def test_query_does_not_depend_on_other_users_of_the_batch(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(CFG, 4, NUM_ITEMS)
    alone = HistoryBatch(*(getattr(history, f.name)[2:3] for f in dataclasses.fields(history)))
    together = towers.queries(history, embeddings)[2:3]
    torch.testing.assert_close(towers.queries(alone, embeddings), together, atol=1e-5, rtol=0)


def test_query_of_no_history_is_the_learned_one_and_finite(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(CFG, 2, NUM_ITEMS)
    history = dataclasses.replace(history, mask=torch.zeros_like(history.mask))
    queries = towers.queries(history, embeddings)
    expected = torch.nn.functional.normalize(towers.user.empty, dim=0)
    torch.testing.assert_close(queries, expected.expand_as(queries))


def test_query_with_an_enormous_gap_or_watch_ratio_is_finite(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(CFG, 2, NUM_ITEMS)
    history.gap_seconds[:, -1] = 1e12
    history.gap_seconds[:, -2] = -5.0
    history.watch_ratio[:, -1] = float("inf")
    history.at_seconds[:, -1] = 1e15
    history.at_seconds[:, -2] = -1e15
    assert towers.queries(history, embeddings).isfinite().all()


def test_query_in_inference_mode_is_the_one_that_was_trained(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(CFG, 4, NUM_ITEMS)
    trained = towers.train().queries(history, embeddings)  # every dropout of CFG is 0
    with torch.inference_mode():
        served = towers.eval().queries(history, embeddings)
    torch.testing.assert_close(served, trained, atol=1e-5, rtol=0)


def test_queries_through_a_row_map_equal_those_of_the_whole_catalogue(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(CFG, 4, NUM_ITEMS)
    used = torch.unique(history.item_idx)
    row_of_item = torch.full((NUM_ITEMS,), 10**6)
    row_of_item[used] = torch.arange(len(used))
    mapped = towers.queries(history, embeddings[used], row_of_item)
    assert torch.equal(mapped, towers.queries(history, embeddings))


def test_scale_starts_at_ten_and_stops_at_a_hundred() -> None:
    towers = TwoTower(CFG, 1)
    assert towers.scale().item() == pytest.approx(10.0)
    with torch.no_grad():
        towers.log_scale.fill_(9.0)
    assert towers.scale().item() == pytest.approx(100.0)
