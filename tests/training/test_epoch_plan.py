"""The plan of an epoch: each item once, equal shards, from (seed, epoch) alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.training.config import PretrainConfig
from avrec_ray.training.epoch_plan import EpochPlan, clip_draw


def plan(num_items: int, batch: int, rank: int = 0, num_workers: int = 1, clips_each: int = 2) -> EpochPlan:
    item_idx = np.repeat(np.arange(num_items), clips_each)
    return EpochPlan(item_idx, np.ones(len(item_idx), bool), PretrainConfig(batch_size=batch), 7, rank, num_workers)


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_workers_share_each_step_equally_and_no_item_comes_twice(
    num_items: int, batch: int, num_workers: int, epoch: int
) -> None:
    plans = [plan(num_items, batch, rank, num_workers) for rank in range(num_workers)]
    shards = [p.batches(epoch) for p in plans]
    assert {shard.shape for shard in shards} == {(plans[0].steps_per_epoch, plans[0].batch_size)}
    taken = [int(plans[0].item_idx[row]) for shard in shards for row in shard.reshape(-1)]
    assert len(set(taken)) == len(taken)
    assert 0 <= num_items - len(taken) < max(plans[0].global_batch, num_workers)


def test_two_workers_take_together_what_one_takes_with_twice_the_batch() -> None:
    whole = plan(23, 8).batches(3)
    halves = [plan(23, 4, rank, 2).batches(3) for rank in range(2)]
    for step, rows in enumerate(whole):
        assert halves[0][step].tolist() == rows[0::2].tolist()
        assert halves[1][step].tolist() == rows[1::2].tolist()


def test_every_clip_of_an_item_comes_up_and_epochs_differ() -> None:
    epochs = [plan(6, 6).batches(epoch).reshape(-1).tolist() for epoch in range(20)]
    assert {row for rows in epochs for row in rows} == set(range(12))
    assert epochs[0] == plan(6, 6).batches(0).reshape(-1).tolist()
    assert epochs[0] != epochs[1]


def test_clip_draw_differs_by_seed_epoch_and_item_and_fits_63_bits() -> None:
    keys = [(seed, epoch, item) for seed in range(5) for epoch in range(20) for item in ("a", "b", "1 a")]
    draws = [clip_draw(*key) for key in keys]
    assert len(set(draws)) == len(keys)
    assert all(0 <= draw < 2**63 for draw in draws)
    assert np.mean(draws) / 2**63 == pytest.approx(0.5, abs=0.1)
    assert clip_draw(3, 4, "film") == 676132346964194756  # for good: a resumed run must draw what it drew before
