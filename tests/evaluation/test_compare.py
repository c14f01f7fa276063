"""Comparison from tables: a planted difference is found where it is, and different questions are refused."""

import numpy as np
import pyarrow as pa
import pytest

from avrec_ray.errors import TableError
from avrec_ray.evaluation.compare import compare_tables, same_truth, seed_means, verdict

NUM_USERS, NUM_ITEMS = 60, 30


def truth() -> pa.Table:
    """Each user chose a warm item (their number) and a cold one."""
    users = [f"u{user}" for user in range(NUM_USERS)]
    rows = [(user, f"i{n % 20}", False) for n, user in enumerate(users)]
    rows += [(user, f"i{20 + n % 10}", True) for n, user in enumerate(users)]
    return pa.table(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "is_cold": [row[2] for row in rows],
            "popularity": ["tail" if row[2] else "head" for row in rows],
            "history_length": [3 if row[0] < "u3" else 40 for row in rows],
        }
    )


def lists(seed: int, finds_cold: float, finds_warm: float) -> pa.Table:
    """Ten items a user; with the given chances the cold and the warm target stand at a random place."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, str, int]] = []
    for user in range(NUM_USERS):
        places = [f"x{n}" for n in range(10)]
        spots = rng.permutation(10)
        if rng.random() < finds_warm:
            places[spots[0]] = f"i{user % 20}"
        if rng.random() < finds_cold:
            places[spots[1]] = f"i{20 + user % 10}"
        rows += [(f"u{user}", item, rank) for rank, item in enumerate(places, start=1)]
    return pa.table(dict(zip(("user_id", "item_id", "rank"), zip(*rows, strict=True), strict=True)))


def test_a_difference_is_found_on_the_slice_that_has_it() -> None:
    found = compare_tables([lists(0, 0.9, 0.5)], [lists(1, 0.1, 0.5)], truth(), ks=(10,))
    better = {part.slice: {c.metric: c.better for c in part.metrics} for part in found}
    assert better["all"]["recall_at_10"] == "a"
    assert better["cold_items"]["recall_at_10"] == "a"
    assert better["warm_items"]["recall_at_10"] == "neither"
    assert {part.slice: part.num_users for part in found}["cold_items"] == NUM_USERS
    assert "mid_items" not in better  # nobody chose one


def test_the_same_lists_are_never_different() -> None:
    table = lists(0, 0.5, 0.5)
    for part in compare_tables([table], [table], truth(), ks=(10,)):
        assert all(c.better == "neither" and c.difference == 0.0 and c.p_value == 1.0 for c in part.metrics)


def test_another_seed_is_not_called_better() -> None:
    called = 0
    for seed in range(0, 40, 2):
        found = compare_tables([lists(seed, 0.5, 0.5)], [lists(seed + 1, 0.5, 0.5)], truth(), ks=(10,))
        called += found[0].metrics[0].better != "neither"
    assert called <= 3


def test_seeds_count_as_their_mean_a_user() -> None:
    seeds = [lists(seed, 0.9, 0.5) for seed in range(3)]
    (whole, *_) = compare_tables(seeds, [lists(9, 0.1, 0.5)], truth(), ks=(10,))
    ndcg = next(c for c in whole.metrics if c.metric == "ndcg_at_10")
    means = seed_means(seeds, truth(), "ndcg_at_10")
    assert len(set(means)) == 3
    assert ndcg.mean_a == pytest.approx(np.mean(means))
    assert ndcg.better == "a"


def test_the_headline_metric_is_tested_alone() -> None:
    """Its p value is the same whatever else is compared."""
    tables = ([lists(0, 0.6, 0.5)], [lists(1, 0.4, 0.5)], truth())
    alone, beside = (compare_tables(*tables, ks=ks)[0].metrics for ks in ((10,), (5, 10)))
    assert alone[0].metric == beside[0].metric == "ndcg_at_10"
    assert alone[0].p_value == beside[0].p_value
    others = [{c.metric: c.p_value for c in metrics}["recall_at_10"] for metrics in (alone, beside)]
    assert others[0] <= others[1]


def test_verdict_says_who_and_where() -> None:
    better = compare_tables([lists(0, 0.9, 0.5)], [lists(1, 0.1, 0.5)], truth(), ks=(10,))
    assert verdict(better, "ndcg_at_10", "ours", "theirs").startswith("ours is better in ndcg_at_10 over 60 users: ")
    mixed = compare_tables([lists(0, 0.95, 0.1)], [lists(1, 0.1, 0.95)], truth(), ks=(10,))
    sentence = verdict(mixed, "ndcg_at_10")
    assert sentence.startswith("Neither is better")
    assert "a on cold_items" in sentence
    assert "b on warm_items" in sentence


def test_runs_that_were_asked_different_questions_do_not_compare() -> None:
    with pytest.raises(TableError, match="asked about different choices: 120 and 60 pairs of user and item, 60 in"):
        same_truth([truth(), truth().slice(0, NUM_USERS)])
    assert same_truth([truth(), truth().take(list(range(119, -1, -1)))]).num_rows == 120
