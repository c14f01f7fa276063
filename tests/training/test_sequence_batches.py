"""Fine-tuning batches: the same whole step on every worker, the right targets, the right candidates."""

from typing import Any

import numpy as np
import pytest
import torch

from avrec_ray.towers.losses import mixed_log_q
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.histories import EVENT_CODES, EventColumns
from avrec_ray.training.sequence_batches import SequenceBatch, SequenceBatches, target_weights
from tests.tiny_models import random_columns

NUM_ITEMS, LENGTH = 30, 5
COLUMNS = random_columns(num_users=21, num_items=NUM_ITEMS, seed=3)


def batches_of(
    columns: EventColumns = COLUMNS, seed: int = 7, rank: int = 0, num_workers: int = 1, **settings: Any
) -> SequenceBatches:
    cfg = FinetuneConfig(**{"batch_size": 8, "negatives": "mixed", "num_uniform": 6, **settings})
    return SequenceBatches(columns, NUM_ITEMS, cfg, LENGTH, seed, rank, num_workers)


def columns_of(*users: list[tuple[int, str]]) -> EventColumns:
    """Users as lists of (item, event), a second apart."""
    flat = [pair for user in users for pair in user]
    return EventColumns(
        item_idx=np.array([item for item, _ in flat], np.int64),
        event=np.array([EVENT_CODES[event] for _, event in flat], np.int64),
        watch_ratio=np.full(len(flat), np.nan, np.float32),
        at_seconds=np.arange(len(flat), dtype=np.float64),
        user_ids=[str(number) for number in range(len(users))],
        starts=np.cumsum([0, *map(len, users)]),
    )


def same(first: SequenceBatch, second: SequenceBatch) -> bool:
    return (
        torch.equal(first.history.item_idx, second.history.item_idx)
        and torch.equal(first.target_idx, second.target_idx)
        and torch.equal(first.candidate_idx, second.candidate_idx)
    )


@pytest.mark.parametrize("num_workers", [2, 4])
def test_batches_of_the_workers_are_slices_of_the_whole_step(num_workers: int) -> None:
    whole = list(batches_of(batch_size=8)(epoch=1))
    shards = [
        list(batches_of(batch_size=8 // num_workers, rank=r, num_workers=num_workers)(1)) for r in range(num_workers)
    ]
    assert len(whole) == 2
    for step, batch in enumerate(whole):
        for rank in range(num_workers):
            part = shards[rank][step]
            assert torch.equal(part.history.item_idx, batch.history.item_idx[rank::num_workers])
            assert torch.equal(part.history.mask, batch.history.mask[rank::num_workers])
            assert torch.equal(part.target_idx, batch.target_idx[rank::num_workers])
            assert torch.equal(part.weight, batch.weight[rank::num_workers])
            assert torch.equal(part.candidate_idx, batch.candidate_idx)
            assert part.log_q is not None
            assert batch.log_q is not None
            assert torch.equal(part.log_q, batch.log_q)
            assert part.total_weight == batch.total_weight
        assert batch.total_weight == pytest.approx(float(batch.weight.sum()))


def test_batches_are_drawn_from_seed_and_epoch_alone() -> None:
    batches = batches_of()
    first, again = list(batches(3)), list(batches(3))  # no state is kept between epochs
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert all(same(a, b) for a, b in zip(first, batches_of()(3), strict=True))
    assert not same(first[0], next(iter(batches(4))))
    assert not same(first[0], next(iter(batches_of(seed=8)(3))))


def test_targets_are_the_events_that_follow() -> None:
    for batch in batches_of()(0):
        history, mask = batch.history.item_idx, batch.history.mask
        follows = mask[:, :-1]
        assert torch.equal(batch.target_idx[:, :-1][follows], history[:, 1:][follows])
        assert (batch.weight[~mask] == 0).all()
        assert (batch.target_idx[~mask] == 0).all()


def test_windows_hold_at_most_length_events_and_stay_inside_one_user() -> None:
    columns = columns_of([(item, "view") for item in range(20)], [(item, "view") for item in range(20, 23)])
    seen: set[int] = set()
    for epoch in range(200):
        (batch,) = batches_of(columns)(epoch)
        for row in range(2):
            items = [*batch.history.item_idx[row][batch.history.mask[row]].tolist(), int(batch.target_idx[row, -1])]
            assert items == list(range(items[0], items[0] + len(items)))
            assert len(items) == (LENGTH + 1 if items[0] < 20 else 3)
            if items[0] < 20:
                assert items[-1] < 20
                seen.add(items[0])
    assert seen == set(range(20 - LENGTH))  # every start comes up, the first and the last too


def test_each_epoch_meets_a_user_at_most_once_and_all_come_up_over_epochs() -> None:
    columns = columns_of(*[[(user, "view"), (user + 1, "view")] for user in range(20)])
    met: set[int] = set()
    for epoch in range(12):
        firsts = [item for batch in batches_of(columns)(epoch) for item in batch.history.item_idx[:, -1].tolist()]
        assert len(firsts) == len(set(firsts)) == 16
        met |= set(firsts)
    assert met == set(range(20))


def test_batches_with_fewer_users_than_asked_take_what_there_is() -> None:
    columns = columns_of(*[[(user, "view"), (user + 1, "view")] for user in range(5)])
    assert [len(batch.weight) for batch in batches_of(columns)(0)] == [5]
    assert [len(batch.weight) for batch in batches_of(columns, num_workers=2)(0)] == [2]


def test_users_with_one_event_teach_nothing_and_are_left_out() -> None:
    batches = batches_of(columns_of([(1, "view")], [(2, "view"), (3, "view")]))
    assert batches.users.tolist() == [1]
    assert batches_of(columns_of([(1, "view")])).steps_per_epoch == 0
    assert list(batches_of(columns_of([(1, "view")]))(0)) == []


def test_users_whose_later_events_are_no_targets_are_left_out() -> None:
    columns = columns_of([(1, "like"), (2, "skip")], [(3, "skip"), (4, "like")], [(5, "view"), (5, "like")])
    assert batches_of(columns).users.tolist() == [1]


@pytest.mark.parametrize("negatives", ["full", "mixed"])
def test_items_that_nobody_chose_are_no_negatives(negatives: str) -> None:
    columns = columns_of([(0, "view"), (1, "like"), (2, "skip")], [(1, "view"), (3, "view")])
    for epoch in range(30):
        (batch,) = batches_of(columns, negatives=negatives, num_uniform=50)(epoch)
        assert batch.candidate_idx.tolist() == [0, 1, 3]  # 2 was turned down, the rest is new


def test_full_negatives_are_every_chosen_item_without_correction() -> None:
    for settings in ({"negatives": "full"}, {"negatives": "auto", "full_max_items": NUM_ITEMS}):
        batch = next(iter(batches_of(**settings)(0)))
        assert torch.equal(batch.candidate_idx, torch.arange(NUM_ITEMS))
        assert batch.log_q is None
    assert next(iter(batches_of(negatives="auto", full_max_items=NUM_ITEMS - 1)(0))).log_q is not None


def test_mixed_candidates_are_distinct_and_hold_every_target() -> None:
    for batch in batches_of()(0):
        targets = batch.target_idx[batch.weight > 0]
        assert torch.isin(targets, batch.candidate_idx).all()
        assert len(torch.unique(batch.candidate_idx)) == len(batch.candidate_idx)
        assert len(batch.candidate_idx) <= len(torch.unique(targets)) + 6


def test_mixed_log_q_is_that_of_the_whole_step() -> None:
    batches = batches_of()
    assert batches.frequency.sum() == pytest.approx(1.0)
    for batch in batches(0):
        frequency = torch.from_numpy(batches.frequency[batch.candidate_idx.numpy()]).float()
        expected = mixed_log_q(frequency, int((batch.weight > 0).sum()), 6, NUM_ITEMS)
        assert batch.log_q is not None
        torch.testing.assert_close(batch.log_q, expected)


def test_target_weights_follow_the_event_and_drop_repeats_and_rejections() -> None:
    columns = columns_of(
        [(1, "view"), (2, "like"), (1, "share"), (3, "skip"), (3, "view"), (4, "dislike")], [(1, "view"), (2, "report")]
    )
    weights = target_weights(columns, {"view": 1.0, "like": 3.0, "share": 5.0})
    assert weights.tolist() == [1.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def test_a_repeat_before_the_window_has_no_weight_either() -> None:
    items = [9, *range(10, 10 + LENGTH), 9]  # the first event is outside every window that reaches the last
    (batch,) = batches_of(columns_of([(item, "view") for item in items]))(1)
    again = batch.target_idx == 9
    assert (batch.weight[again] == 0).all()


def test_learn_first_makes_a_target_of_the_first_event_where_a_padded_position_can_ask() -> None:
    short, long = [(1, "view"), (2, "view"), (3, "view")], [(item, "view") for item in range(LENGTH + 1)]
    columns = columns_of(short, long)
    cfg = FinetuneConfig(batch_size=2, negatives="mixed", num_uniform=6)
    (batch,) = SequenceBatches(columns, NUM_ITEMS, cfg, LENGTH, 0, learn_first=True)(0)
    row = int(torch.nonzero(batch.history.mask.sum(1) == 2))
    assert batch.target_idx[row].tolist() == [0, 0, 1, 2, 3]
    assert batch.weight[row].tolist() == [0, 0, 1, 1, 1]
    assert batch.history.mask[row].tolist() == [False, False, False, True, True]
    assert batch.weight[1 - row].tolist() == [1] * LENGTH  # its window has no padded position
    assert batch.target_idx[1 - row].tolist() == [1, 2, 3, 4, 5]
    assert batch.total_weight == batch.weight.sum() == 8
    assert 1 in batch.candidate_idx


def test_learn_first_of_a_window_inside_a_history_changes_nothing() -> None:
    columns = columns_of([(item, "view") for item in range(3 * LENGTH)])
    cfg = FinetuneConfig(batch_size=1, negatives="mixed", num_uniform=6)
    for epoch in range(5):
        plain, first = (
            next(iter(SequenceBatches(columns, NUM_ITEMS, cfg, LENGTH, 0, learn_first=flag)(epoch)))
            for flag in (False, True)
        )
        assert torch.equal(plain.target_idx, first.target_idx)
        assert plain.total_weight == first.total_weight


def test_newest_share_cuts_the_window_that_a_request_will_read() -> None:
    columns = columns_of([(item, "view") for item in range(NUM_ITEMS)])
    newest = set(range(NUM_ITEMS - LENGTH - 1, NUM_ITEMS - 1))
    for epoch in range(5):
        batch = next(iter(batches_of(columns, newest_share=1.0)(epoch)))
        assert set(batch.history.item_idx.flatten().tolist()) == newest
    anywhere = {tuple(next(iter(batches_of(columns)(epoch))).history.item_idx[0].tolist()) for epoch in range(8)}
    assert len(anywhere) > 1


def test_unordered_histories_are_the_same_events_in_an_order_of_the_epoch() -> None:
    columns = columns_of([(item, "view" if item % 2 else "like") for item in range(LENGTH + 1)])
    seen = [next(iter(batches_of(columns, unordered=True, batch_size=1)(epoch))) for epoch in range(6)]
    orders = set()
    for batch in seen:
        items = [*batch.history.item_idx[0].tolist(), int(batch.target_idx[0, -1])]
        events = batch.history.event[0].tolist()
        assert sorted(items) == list(range(LENGTH + 1))
        assert all(
            event == EVENT_CODES["view" if item % 2 else "like"] for item, event in zip(items, events, strict=False)
        )
        orders.add(tuple(items))
    assert len(orders) > 1
    again = next(iter(batches_of(columns, unordered=True, batch_size=1)(2)))
    assert torch.equal(again.history.item_idx, seen[2].history.item_idx)


def test_uniform_negatives_are_not_the_targets_of_others() -> None:
    batch = next(iter(batches_of(negatives="uniform", num_uniform=3)(0)))
    assert batch.is_negative is not None
    assert 1 <= int(batch.is_negative.sum()) <= 3
    targets = set(batch.target_idx[batch.weight > 0].tolist())
    assert targets <= set(batch.candidate_idx.tolist())


def test_label_weight_scales_targets_and_zero_takes_them_out() -> None:
    columns = columns_of([(0, "view"), (1, "view"), (2, "like")], [(3, "view"), (4, "view")])
    columns.label_weight = np.array([1.0, 0.5, 0.0, 1.0, 0.0], np.float32)
    batches = batches_of(columns)
    assert batches.weight.tolist() == [1.0, 0.5, 0.0, 1.0, 0.0]
    assert batches.users.tolist() == [0]  # the other's only target counts nothing
    assert batches.choosable.tolist() == [0, 1, 3]


def test_watch_weight_favours_what_was_watched_longer_and_leaves_the_unknown_alone() -> None:
    columns = columns_of([(item, "view") for item in range(6)])
    columns.watch_ratio[:] = [0.1, 0.2, 0.5, 0.9, np.nan, 1.0]
    cfg, durations = FinetuneConfig(watch_weight=0.5), np.full(NUM_ITEMS, 30, np.float32)
    weight = SequenceBatches(columns, NUM_ITEMS, cfg, LENGTH, 0, durations=durations).weight
    assert (np.diff(weight[[0, 1, 2, 3, 5]]) > 0).all()
    assert weight[4] == 1.0
    assert ((weight > 0.5) & (weight < 1.5)).all()
    with pytest.raises(ValueError, match="durations"):
        SequenceBatches(columns, NUM_ITEMS, cfg, LENGTH, 0)
