"""The user tower: no look into the future, no influence of padding, finite for every history."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.two_tower import HistoryBatch, TwoTower
from avrec_ray.training.histories import pad_histories, with_profiles
from avrec_ray.training.weights import load_weights, save_weights
from tests.tiny_models import random_columns, random_history, random_tokens, tiny_profiles, tiny_towers

CFG = tiny_towers()
NUM_ITEMS = 20
VARIANTS: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "sasrec_time": {"time_bias": True},
    "hstu": {"user_blocks": "hstu"},
    "attributes": {"num_attribute_buckets": 32},
    "friends": {"num_friends": 3, "friend_items": 2},
    "sasrec_all": {"time_bias": True, "num_attribute_buckets": 32, "num_friends": 3, "friend_items": 2},
    "hstu_all": {"user_blocks": "hstu", "num_attribute_buckets": 32, "num_friends": 3, "friend_items": 2},
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


COLUMNS = ("item_idx", "event", "watch_ratio", "gap_seconds", "at_seconds")


def edited(history: HistoryBatch, columns: slice, seed: int) -> HistoryBatch:
    """The same history with other events at `columns`; what is padding stays padding, and profiles what they are."""
    other = random_history(CFG, len(history.mask), NUM_ITEMS, seed)
    new = {name: getattr(history, name).clone() for name in COLUMNS}
    for name, value in new.items():
        value[:, columns] = getattr(other, name)[:, columns]
    return dataclasses.replace(history, **new)


def newest(cfg: TowersConfig, events: int, length: int) -> HistoryBatch:
    """The newest `events` of four users, padded to `length`."""
    columns = tiny_profiles(random_columns(4, NUM_ITEMS), cfg)
    spans = [(max(columns.starts[u], columns.starts[u + 1] - events), columns.starts[u + 1]) for u in range(4)]
    return pad_histories(columns, spans, length)


def to_rows(batch: Any, rows: slice) -> Any:
    """Some users of a batch."""
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    cut = {
        name: to_rows(v, rows) if dataclasses.is_dataclass(v) else v[rows]
        for name, v in values.items()
        if v is not None
    }
    return dataclasses.replace(batch, **cut)


def test_queries_are_unit_vectors_everywhere(towers: TwoTower, embeddings: Tensor) -> None:
    queries = towers.queries(random_history(towers.cfg, 5, NUM_ITEMS), embeddings)
    assert queries.shape == (5, CFG.history_length, CFG.embedding_dim)
    torch.testing.assert_close(queries.norm(dim=-1), torch.ones(5, CFG.history_length))


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25)
@given(position=st.integers(0, CFG.history_length - 2), seed=st.integers(1, 1000))
def test_queries_up_to_t_are_bit_equal_whatever_comes_after(variant: str, position: int, seed: int) -> None:
    towers = towers_of(variant)
    vectors = torch.nn.functional.normalize(torch.randn(NUM_ITEMS, CFG.embedding_dim), dim=1)
    history = random_history(towers.cfg, 4, NUM_ITEMS)
    before = towers.queries(history, vectors)
    after = towers.queries(edited(history, slice(position + 1, None), seed), vectors)
    assert torch.equal(before[:, : position + 1], after[:, : position + 1])
    assert not torch.equal(before[:, position + 1 :], after[:, position + 1 :])


@pytest.mark.parametrize("column", ["item_idx", "event", "watch_ratio", "gap_seconds"])
def test_last_query_reads_every_column_of_an_older_event(towers: TwoTower, embeddings: Tensor, column: str) -> None:
    history = random_history(towers.cfg, 3, NUM_ITEMS)
    changed = dataclasses.replace(history, **{column: getattr(history, column).clone()})
    value = {"item_idx": 7, "event": 9, "watch_ratio": 0.77, "gap_seconds": 3.0}[column]
    getattr(changed, column)[:, -2] = value
    difference = towers.queries(changed, embeddings)[:, -1] - towers.queries(history, embeddings)[:, -1]
    assert (difference.abs().amax(1) > 1e-5).all()


@pytest.mark.parametrize("length", [3, 4, 5, 6])
def test_last_query_does_not_depend_on_how_long_the_padding_is(
    towers: TwoTower, embeddings: Tensor, length: int
) -> None:
    expected = towers.queries(newest(towers.cfg, 3, 3), embeddings)[:, -1]
    again = towers.queries(newest(towers.cfg, 3, length), embeddings)[:, -1]
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


def test_last_query_reads_the_times_where_attention_does(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(towers.cfg, 3, NUM_ITEMS)
    later = dataclasses.replace(history, at_seconds=history.at_seconds.clone())
    later.at_seconds[:, -1] += 1e6
    same = torch.equal(towers.queries(later, embeddings), towers.queries(history, embeddings))
    assert same == (towers.cfg.user_blocks == "sasrec" and not towers.cfg.time_bias)


def test_queries_do_not_depend_on_when_a_history_began(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(towers.cfg, 3, NUM_ITEMS)
    history.at_seconds.round_()
    moved = dataclasses.replace(history, at_seconds=history.at_seconds + 2**30)
    assert torch.equal(towers.queries(moved, embeddings), towers.queries(history, embeddings))


def test_last_query_does_not_read_what_padding_holds(towers: TwoTower, embeddings: Tensor) -> None:
    history = newest(towers.cfg, 3, CFG.history_length)
    filled = edited(history, slice(0, 3), seed=5)
    assert torch.equal(towers.queries(history, embeddings)[:, 3:], towers.queries(filled, embeddings)[:, 3:])


def test_query_does_not_depend_on_other_users_of_the_batch(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(towers.cfg, 4, NUM_ITEMS)
    alone = to_rows(history, slice(2, 3))
    together = towers.queries(history, embeddings)[2:3]
    torch.testing.assert_close(towers.queries(alone, embeddings), together, atol=1e-5, rtol=0)


def test_query_of_no_history_and_no_profile_is_the_learned_one(towers: TwoTower, embeddings: Tensor) -> None:
    columns = tiny_profiles(random_columns(4, NUM_ITEMS), towers.cfg)
    columns = with_profiles(columns, columns.profiles, ["?"] * 4)
    queries = towers.queries(pad_histories(columns, [(0, 0), (0, 0)], 6, users=[0, 1]), embeddings)
    expected = torch.nn.functional.normalize(towers.user.empty, dim=0)
    torch.testing.assert_close(queries, expected.expand_as(queries))


def test_query_of_no_history_is_moved_by_what_is_known_of_the_user(towers: TwoTower, embeddings: Tensor) -> None:
    columns = tiny_profiles(random_columns(4, NUM_ITEMS), towers.cfg)
    columns = with_profiles(columns, columns.profiles, ["newcomer", "?", "silent", "u2"])
    queries = towers.queries(pad_histories(columns, [(0, 0)] * 4, 6, users=range(4)), embeddings)[:, -1]
    told = (queries - torch.nn.functional.normalize(towers.user.empty, dim=0)).abs().amax(1) > 1e-4
    assert told.tolist() == [towers.cfg.reads_profiles, False, False, towers.cfg.reads_profiles]
    assert queries.isfinite().all()


@pytest.mark.parametrize("variant", ["attributes", "friends"])
def test_towers_without_the_profiles_they_read_are_refused(variant: str) -> None:
    with pytest.raises(ValueError, match="attach profiles"):
        towers_of(variant).queries(random_history(CFG, 2, NUM_ITEMS), torch.zeros(NUM_ITEMS, CFG.embedding_dim))


@pytest.mark.parametrize("variant", ["friends", "sasrec_all", "hstu_all"])
def test_gate_of_friends_starts_shut_and_can_open(variant: str) -> None:
    torch.manual_seed(0)
    towers = TwoTower(tiny_towers(**VARIANTS[variant]), NUM_ITEMS)
    vectors = torch.nn.functional.normalize(torch.randn(NUM_ITEMS, CFG.embedding_dim), dim=1)
    history = random_history(towers.cfg, 4, NUM_ITEMS)
    assert history.friends is not None
    deaf = dataclasses.replace(history.friends, reads=torch.zeros_like(history.friends.reads))
    first = towers.queries(history, vectors)
    assert torch.equal(first, towers.queries(dataclasses.replace(history, friends=deaf), vectors))
    (first * torch.randn_like(first)).sum().backward()
    assert towers.user.friends is not None
    assert towers.user.friends.gate.grad is not None
    assert towers.user.friends.gate.grad.abs().item() > 1e-4


def test_state_of_the_default_config_has_the_names_it_always_had() -> None:
    names = [name for name in TwoTower(TowersConfig(user_layers=1), 3).state_dict() if name.startswith("user.")]
    layer = "user.blocks.layers.0."
    expected = [
        *(f"user.{n}" for n in ("position", "empty", "items.weight", "items.bias", "events.weight", "gaps.weight")),
        "user.watch.weight", "user.watch.bias",
        *(f"{layer}self_attn.{n}" for n in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
        *(f"{layer}{n}.{k}" for n in ("linear1", "linear2", "norm1", "norm2") for k in ("weight", "bias")),
        *(f"user.project.{n}.{k}" for n in (0, 1) for k in ("weight", "bias")),
    ]  # fmt: skip
    assert names == expected


def test_weights_come_back_from_a_file(towers: TwoTower, embeddings: Tensor, tmp_path: Path) -> None:
    save_weights(tmp_path / "towers.safetensors", towers)
    torch.manual_seed(9)
    again = TwoTower(towers.cfg, NUM_ITEMS).eval()
    load_weights(tmp_path / "towers.safetensors", again)
    history = random_history(towers.cfg, 3, NUM_ITEMS)
    assert torch.equal(again.queries(history, embeddings), towers.queries(history, embeddings))


def test_query_with_an_enormous_gap_or_watch_ratio_is_finite(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(towers.cfg, 2, NUM_ITEMS)
    history.gap_seconds[:, -1] = 1e12
    history.gap_seconds[:, -2] = -5.0
    history.watch_ratio[:, -1] = float("inf")
    history.at_seconds[:, -1] = 1e15
    history.at_seconds[:, -2] = -1e15
    assert towers.queries(history, embeddings).isfinite().all()


def test_query_in_inference_mode_is_the_one_that_was_trained(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(towers.cfg, 4, NUM_ITEMS)
    trained = towers.train().queries(history, embeddings)  # every dropout of CFG is 0
    with torch.inference_mode():
        served = towers.eval().queries(history, embeddings)
    torch.testing.assert_close(served, trained, atol=1e-5, rtol=0)


def test_queries_through_a_row_map_equal_those_of_the_whole_catalogue(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(towers.cfg, 4, NUM_ITEMS)
    used = torch.unique(history.item_rows())
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


def test_queries_in_half_precision_are_close(towers: TwoTower, embeddings: Tensor) -> None:
    history = random_history(towers.cfg, 3, NUM_ITEMS)
    expected = towers.queries(history, embeddings)
    with torch.autocast("cpu", torch.bfloat16):
        found = towers.queries(history, embeddings)
    found.float().sum().backward()
    assert (found.float() * expected).sum(-1).min() > 0.98
