import doctest
import importlib
import math
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.evaluation import metrics
from avrec_ray.evaluation.metrics import (
    PER_USER,
    Targets,
    auc,
    average_precision_at_k,
    chance_ndcg,
    chance_recall,
    cold_item_metrics,
    count_targets,
    coverage_at_k,
    evaluate_rankings,
    find_hits,
    hit_rate_at_k,
    keep_items,
    match_targets,
    mrr_at_k,
    ndcg_at_k,
    partial_auc_at_k,
    per_user_metrics,
    precision_at_k,
    recall_at_k,
)
from tests.evaluation.golden_metrics import KS, load, our_list_values, ranked_of

N = 12
RANKED = np.array([[3, 1, 2, 0], [5, 6, -1, -1], [-1, -1, -1, -1]])
TARGETS = [{1, 0, 9}, {5}, {2}]


@st.composite
def cases(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """Lists of distinct items, some short or empty, and targets, some of which are in no list."""
    num_users, width = draw(st.integers(1, 5)), draw(st.integers(1, N))
    ranked = np.full((num_users, width), -1, np.int64)
    targets = []
    for row in range(num_users):
        items = draw(st.permutations(range(N)))[: draw(st.integers(0, width))]
        ranked[row, : len(items)] = items
        targets.append(np.array(draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=N)), np.int64))
    return ranked, targets


def slow_metrics(listed: list[int], wanted: set[int], k: int) -> dict[str, float]:
    """The textbook, one list at a time."""
    ranks = [rank for rank, item in enumerate(listed[:k], start=1) if item in wanted]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
    return {
        "recall": len(ranks) / len(wanted),
        "precision": len(ranks) / k,
        "hit_rate": 1.0 if ranks else 0.0,
        "mrr": 1 / ranks[0] if ranks else 0.0,
        "ndcg": sum(1 / math.log2(rank + 1) for rank in ranks) / ideal,
        "map": sum(position / rank for position, rank in enumerate(ranks, start=1)) / min(k, len(wanted)),
        "partial_auc": slow_partial_auc(listed, wanted, k),
    }


def slow_partial_auc(listed: list[int], wanted: set[int], k: int) -> float:
    """Pair by pair: every target against the k best others, which stand behind the list where it is too short."""
    others = [rank for rank, item in enumerate(listed) if item not in wanted][:k]
    others += [len(listed)] * (k - len(others))
    rank_of = {item: rank for rank, item in enumerate(listed)}
    wins = [rank_of.get(item, math.inf) < other for item in wanted for other in others]
    return sum(wins) / len(wins)


def slow_auc(listed: list[int], wanted: set[int], num_candidates: int) -> float:
    """Pair by pair, what is not listed tied behind the list."""
    others = {*range(num_candidates)} - wanted
    rank_of = {item: rank for rank, item in enumerate(listed)}
    ranks = [(rank_of.get(a, len(listed)), rank_of.get(b, len(listed))) for a in wanted for b in others]
    return sum((a < b) + (a == b) / 2 for a, b in ranks) / len(ranks) if ranks else 0.5


MODULES = ("hits", "rank_metrics", "list_metrics", "watch_metrics", "slices", "significance")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_of_metrics_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"avrec_ray.evaluation.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_metrics_offers_what_it_names() -> None:
    assert set(metrics.__all__) <= set(dir(metrics))
    assert len(set(metrics.__all__)) == len(metrics.__all__)


def test_metrics_by_hand() -> None:
    assert recall_at_k(RANKED, TARGETS, 4).tolist() == [2 / 3, 1, 0]
    assert recall_at_k(RANKED, TARGETS, 2).tolist() == [1 / 3, 1, 0]
    assert precision_at_k(RANKED, TARGETS, 4).tolist() == [2 / 4, 1 / 4, 0]
    assert hit_rate_at_k(RANKED, TARGETS, 1).tolist() == [0, 1, 0]
    assert mrr_at_k(RANKED, TARGETS, 4).tolist() == [1 / 2, 1, 0]
    assert mrr_at_k(RANKED, TARGETS, 1).tolist() == [0, 1, 0]
    gain, ideal = 1 / math.log2(3) + 1 / math.log2(5), 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg_at_k(RANKED, TARGETS, 4) == pytest.approx([gain / ideal, 1, 0])
    assert ndcg_at_k(RANKED, TARGETS, 2) == pytest.approx([(1 / math.log2(3)) / (1 + 1 / math.log2(3)), 1, 0])


def test_popularity_of_nothing_shown_is_unknown_and_warns_nobody() -> None:
    assert math.isnan(evaluate_rankings(RANKED[2:], TARGETS[2:], ks=(2,), popularity=np.ones(N))["popularity_at_2"])


def test_metrics_equal_other_libraries() -> None:
    golden = load()
    ours = our_list_values(golden["lists"], golden["catalogue"])
    names = ["auc", *(f"{name}_at_{k}" for name in (*PER_USER, "map_targets", "map_k") if name != "map" for k in KS)]
    for name in names:
        expected = golden["values"][name]
        assert ours[name] == pytest.approx(expected, abs=1e-9), name
        assert len(set(expected)) > 1


def test_golden_lists_hold_the_hard_cases() -> None:
    lists = load()["lists"]
    assert len(lists) >= 50
    assert any(not case["ranked"] for case in lists)
    assert any(max(case["targets"]) >= 40 for case in lists)
    assert {len(case["targets"]) > 10 for case in lists} == {True, False}


def test_average_precision_equals_libraries_where_these_divide_alike() -> None:
    golden = load()
    ranked, targets = ranked_of(golden["lists"]), [case["targets"] for case in golden["lists"]]
    for k in KS:
        by_targets, by_k = (golden["values"][f"{name}_at_{k}"] for name in ("map_targets", "map_k"))
        assert average_precision_at_k(ranked, targets, k) == pytest.approx(np.maximum(by_targets, by_k), abs=1e-9)


@given(cases(), st.integers(1, N + 3))
@settings(max_examples=150, deadline=None)
def test_metrics_equal_the_textbook(case: tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]], k: int) -> None:
    ranked, targets = case
    found = per_user_metrics(ranked, targets, ks=(k,))
    for row, wanted in enumerate(targets):
        expected = slow_metrics([i for i in ranked[row].tolist() if i >= 0], set(wanted.tolist()), k)
        assert {name: found[f"{name}_at_{k}"][row] for name in expected} == pytest.approx(expected, abs=1e-12)


@given(cases(), st.integers(N, N + 5))
@settings(max_examples=100, deadline=None)
def test_auc_counts_every_pair(
    case: tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]], num_candidates: int
) -> None:
    ranked, targets = case
    found = auc(ranked, targets, num_candidates)
    for row, wanted in enumerate(targets):
        listed = [i for i in ranked[row].tolist() if i >= 0]
        assert found[row] == pytest.approx(slow_auc(listed, set(wanted.tolist()), num_candidates), abs=1e-12)
    assert np.array_equal(auc(ranked, targets, np.full(len(ranked), num_candidates)), found)


def test_auc_by_hand() -> None:
    assert auc(np.array([[0, 1, 2, 3]]), [[0, 2]], 4).tolist() == [3 / 4]
    assert auc(np.array([[-1], [-1]]), [[0], [0, 1]], 2).tolist() == [1 / 2, 1 / 2]
    assert partial_auc_at_k(np.array([[0, 1, 2, 3]]), [[0, 2]], 1).tolist() == [1 / 2]
    assert partial_auc_at_k(np.array([[0, 1, 2, 3]]), [[0, 2]], 2).tolist() == [3 / 4]
    with pytest.raises(ValueError, match="row 1 has 1 targets and 3 other listed items; expected at most 3"):
        auc(np.array([[0, 1, 2], [0, 1, 2]]), [[0], [9]], 3)


def test_average_precision_by_hand_and_its_divisors() -> None:
    ranked, targets = np.array([[3, 1, 2, 0]]), [[3, 2, 8, 9]]
    total = 1 + 2 / 3
    assert average_precision_at_k(ranked, targets, 3)[0] == pytest.approx(total / 3)
    assert average_precision_at_k(ranked, targets, 3, "targets")[0] == pytest.approx(total / 4)
    assert average_precision_at_k(ranked, targets, 10)[0] == pytest.approx(total / 4)
    assert average_precision_at_k(ranked, targets, 10, "k")[0] == pytest.approx(total / 10)
    with pytest.raises(ValueError, match="divide_by='relevant' is not one of"):
        average_precision_at_k(ranked, targets, 3, "relevant")


@given(cases(), st.integers(1, N))
@settings(max_examples=60, deadline=None)
def test_targets_as_arrays_sets_and_matrix_give_the_same(
    case: tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]], k: int
) -> None:
    ranked, targets = case
    matrix = np.zeros((len(ranked), N), bool)
    for row, wanted in enumerate(targets):
        matrix[row, wanted] = True
    for metric in PER_USER.values():
        expected = metric(ranked, targets, k)
        assert np.array_equal(metric(ranked, [set(t.tolist()) for t in targets], k), expected)
        assert np.array_equal(metric(ranked, matrix, k), expected)
        assert np.array_equal(metric(ranked, match_targets(ranked, targets), k), expected)
        assert (expected >= 0).all()
        assert (expected <= 1 + 1e-12).all()


@given(cases(), st.integers(1, N), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_metrics_do_not_depend_on_item_numbers_or_order_of_users(
    case: tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]], k: int, random: Random
) -> None:
    ranked, targets = case
    renamed = np.array([*random.sample(range(N), N), -1])
    users = random.sample(range(len(ranked)), len(ranked))
    for metric in PER_USER.values():
        expected = metric(ranked, targets, k)
        assert np.array_equal(metric(renamed[ranked], [renamed[t] for t in targets], k), expected)
        assert np.array_equal(metric(ranked[users], [targets[u] for u in users], k), expected[users])


@given(cases())
@settings(max_examples=60, deadline=None)
def test_recall_hit_rate_mrr_and_coverage_never_fall_with_k(
    case: tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]],
) -> None:
    ranked, targets = case
    for metric in (recall_at_k, hit_rate_at_k, mrr_at_k):
        values = np.stack([metric(ranked, targets, k) for k in range(1, N + 2)])
        assert (np.diff(values, axis=0) >= 0).all()
    assert (np.diff([coverage_at_k(ranked, N, k) for k in range(1, N + 2)]) >= 0).all()


@given(st.lists(st.sets(st.integers(0, N - 1), min_size=1), min_size=1, max_size=4), st.integers(1, N))
@settings(max_examples=60, deadline=None)
def test_perfect_ranking_has_ndcg_one_and_moving_a_target_up_never_hurts(targets: list[set[int]], k: int) -> None:
    perfect = np.array([[*sorted(t), *sorted(set(range(N)) - t)] for t in targets])
    assert ndcg_at_k(perfect, targets, k) == pytest.approx(np.ones(len(targets)))
    assert mrr_at_k(perfect, targets, k).tolist() == [1.0] * len(targets)
    worst = perfect[:, ::-1]
    assert (ndcg_at_k(worst, targets, k) <= ndcg_at_k(perfect, targets, k) + 1e-12).all()


def test_evaluate_rankings_names_means_and_counts_users() -> None:
    results = evaluate_rankings(RANKED, TARGETS, N, ks=(2, 4))
    assert results["recall_at_4"] == pytest.approx((2 / 3 + 1) / 3)
    assert results["num_users"] == 3
    assert set(results) == {f"{name}_at_{k}" for name in (*PER_USER, "coverage", "gini") for k in (2, 4)} | {
        "num_users"
    }
    assert "coverage_at_10" not in evaluate_rankings(RANKED, TARGETS)


def test_evaluate_rankings_with_zero_width_lists_counts_misses() -> None:
    results = evaluate_rankings(np.zeros((3, 0), np.int64), TARGETS, N)
    assert {results[f"{name}_at_10"] for name in PER_USER} == {0.0}
    assert results["coverage_at_10"] == 0


@pytest.mark.parametrize(
    ("ranked", "targets", "message"),
    [
        (np.zeros((0, 3), np.int64), [], "expected as many, at least one"),
        (RANKED, TARGETS[:2], "got 3 lists and 2 users' targets"),
        (RANKED, [[1], [], [2]], "row 1 has no target"),
        (np.array([[1, 2, 1]]), [[1]], "row 0 holds an item twice"),
        (np.array([[1, 12]]), [[1]], "item_idx 12; the catalogue has 12 items"),
    ],
)
def test_evaluate_rankings_refuses_what_cannot_be_scored(
    ranked: npt.NDArray[np.int64], targets: Targets, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_rankings(ranked, targets, N)


def test_find_hits_never_takes_padding_for_an_item() -> None:
    assert find_hits(np.array([[-1, 0]]), [[0]]).tolist() == [[False, True]]
    assert find_hits(np.array([[0, -1], [-1, 5]]), [[5], [0]]).sum() == 0
    assert count_targets([[1, 1, 2]]).tolist() == [2]


def test_cold_item_metrics_count_cold_targets_alone() -> None:
    is_cold = np.arange(N) >= 8
    ranked = np.array([[0, 8, 9, 1], [8, 0, 1, 2], [0, 1, 2, 3]])
    targets = [np.array([0, 9, 11]), np.array([0, 1]), np.array([10, 10])]
    results = cold_item_metrics(ranked, targets, is_cold, k=3, num_seen=np.array([2, 0, 4]))
    assert results["cold_num_users"] == 2
    assert results["cold_recall_at_3"] == pytest.approx((1 / 2 + 0) / 2)
    assert results["cold_ndcg_at_3"] == pytest.approx((1 / 2) / (1 + 1 / math.log2(3)) / 2)
    assert results["cold_chance_recall_at_3"] == pytest.approx((3 / 10 + 3 / 8) / 2)
    assert results["cold_share_at_3"] == pytest.approx(3 / 9)
    assert results["cold_share_of_catalogue"] == pytest.approx(4 / 12)
    assert not any("only" in name for name in results)


def test_cold_item_metrics_among_cold_items_compare_them_with_each_other() -> None:
    is_cold = np.arange(N) >= 8
    full = np.array([[0, 8, 1, 9, 2, 3, 10, 11, 4, 5, 6, 7]])
    results = cold_item_metrics(full, [[9]], is_cold, k=2, among_cold=keep_items(full, is_cold))
    assert results["cold_recall_at_2"] == 0
    assert results["cold_only_recall_at_2"] == 1
    assert results["cold_only_chance_recall_at_2"] == 0.5
    matrix = np.arange(N)[None] == 9
    assert cold_item_metrics(full, matrix, is_cold, k=2, among_cold=keep_items(full, is_cold)) == results


def test_cold_item_metrics_without_cold_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="none of 3 users has a target among the 1 cold items"):
        cold_item_metrics(RANKED, TARGETS, np.arange(N) == 11, k=3)


@pytest.mark.parametrize(("num_targets", "k"), [(1, 1), (1, 5), (3, 2), (3, 10), (8, 8), (2, 20)])
def test_chance_is_the_mean_over_random_rankings(num_targets: int, k: int) -> None:
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(8) for _ in range(4000)])
    targets = [np.arange(num_targets)] * len(ranked)
    candidates = np.array([8])
    assert recall_at_k(ranked, targets, k).mean() == pytest.approx(chance_recall(candidates, k)[0], abs=0.03)
    assert ndcg_at_k(ranked, targets, k).mean() == pytest.approx(
        chance_ndcg(np.array([num_targets]), candidates, k)[0], abs=0.03
    )


def test_keep_items_moves_kept_ones_up_in_order() -> None:
    keep = np.array([True, False, True, False, True])
    assert keep_items(np.array([[1, 4, 3, 0, 2], [3, 2, -1, -1, -1]]), keep).tolist() == [
        [4, 0, 2, -1, -1],
        [2, -1, -1, -1, -1],
    ]
