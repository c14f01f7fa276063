from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import TableError
from avrec_ray.evaluation.metrics import evaluate_rankings
from avrec_ray.evaluation.recommendations import read_table, score_recommendations


def lists(rows: list[tuple[str, str, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [[], [], []]
    return pa.table(
        {
            "user_id": pa.array(columns[0], pa.string()),
            "item_id": pa.array(columns[1], pa.string()),
            "rank": pa.array(columns[2], pa.int32()),
        }
    )


def truth(*pairs: tuple[str, str]) -> pa.Table:
    users, items = zip(*pairs, strict=True)
    return pa.table({"user_id": list(users), "item_id": list(items)})


def catalogue(*items: str) -> pa.Table:
    return pa.table({"item_id": list(items)})


def numbered(count: int) -> pa.Table:
    return catalogue(*(f"i{n}" for n in range(count)))


def test_score_counts_users_without_list_as_misses_and_leaves_out_users_without_truth() -> None:
    recommendations = lists([("a", "i2", 2), ("a", "i1", 1), ("x", "i1", 1), ("b", "i9", 1)])
    results = score_recommendations(
        recommendations, truth(("a", "i2"), ("b", "i1"), ("c", "i5"), ("a", "i2")), ks=(1, 2)
    )
    assert results["recall_at_2"] == pytest.approx(1 / 3)
    assert results["mrr_at_2"] == pytest.approx(0.5 / 3)
    assert results["recall_at_1"] == 0
    assert (results["num_users"], results["num_users_without_list"], results["num_users_extra"]) == (3, 1, 1)
    assert "coverage_at_1" not in results


def test_score_with_the_catalogue_size_adds_coverage_and_gini() -> None:
    recommendations = lists([("a", "i1", 1), ("a", "i2", 2)])
    results = score_recommendations(recommendations, truth(("a", "i7")), candidates=numbered(8), ks=(1, 2))
    assert (results["coverage_at_1"], results["coverage_at_2"]) == (1 / 8, 2 / 8)


def test_score_reads_the_first_places_of_long_lists_and_checks_the_rest() -> None:
    recommendations = lists([("a", f"i{n}", n) for n in range(1, 41)])
    assert (
        score_recommendations(recommendations, truth(("a", "i40")), candidates=numbered(50), ks=(3,))["hit_rate_at_3"]
        == 0
    )
    assert score_recommendations(recommendations, truth(("a", "i40")), ks=(40,))["hit_rate_at_40"] == 1


def test_score_of_no_lists_is_zero() -> None:
    results = score_recommendations(lists([]), truth(("a", "i1")), candidates=numbered(3))
    assert (results["ndcg_at_10"], results["coverage_at_10"], results["num_users_without_list"]) == (0, 0, 1)


def test_score_takes_other_column_types_and_orders_and_extra_columns() -> None:
    table = pa.table({"score": [0.1, 0.2], "rank": [2.0, 1.0], "item_id": [7, 8], "user_id": [1, 1]})
    assert score_recommendations(table, pa.table({"item_id": [7], "user_id": [1]}))["mrr_at_10"] == 0.5


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[int]], list[set[int]]]:
    ranked = draw(st.lists(st.permutations(range(8)).map(lambda p: p[:5]), min_size=1, max_size=4))
    targets = [draw(st.sets(st.integers(0, 9), min_size=1, max_size=4)) for _ in ranked]
    return [row[: draw(st.integers(0, 5))] for row in ranked], targets


@given(tables(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_score_equals_the_metrics_of_the_same_arrays(
    case: tuple[list[list[int]], list[set[int]]], random: Random
) -> None:
    ranked, targets = case
    rows = [(f"u{u}", f"i{i}", rank) for u, items in enumerate(ranked) for rank, i in enumerate(items, start=1)]
    random.shuffle(rows)
    wanted = [(f"u{u}", f"i{i}") for u, items in enumerate(targets) for i in sorted(items)]
    results = score_recommendations(lists(rows), truth(*wanted), candidates=numbered(10), ks=(3, 5))
    padded = np.array([items + [-1] * (5 - len(items)) for items in ranked])
    expected = evaluate_rankings(padded, targets, 10, ks=(3, 5))
    assert {name: results[name] for name in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "i", 1), ("a", "j", 3)], "rank 3 of user 'a' in row 1, expected 2"),
        ([("a", "i", 0)], "rank 0 of user 'a' in row 0, expected 1"),
        ([("b", "i", 1), ("a", "i", 1), ("a", "j", 1)], "rank 1 of user 'a' in row 2, expected 2"),
        ([("a", "i", 2), ("a", "j", 1), ("a", "j", 3)], "item 'j' is twice in the list of user 'a', again in row 2"),
    ],
)
def test_score_refuses_what_is_no_list_and_names_the_row(rows: list[tuple[str, str, int]], message: str) -> None:
    with pytest.raises(TableError, match=message):
        score_recommendations(lists(rows), truth(("a", "i")))


@pytest.mark.parametrize("column", ["user_id", "item_id", "rank"])
def test_score_without_a_column_names_it(column: str) -> None:
    with pytest.raises(TableError, match=f"recommendations: column '{column}' is missing"):
        score_recommendations(lists([("a", "i", 1)]).drop_columns(column), truth(("a", "i")))


def test_score_refuses_bad_truth_and_a_catalogue_that_is_too_small() -> None:
    recommendations = lists([("a", "i", 1), ("a", "j", 2)])
    with pytest.raises(TableError, match="truth: column 'item_id' is missing"):
        score_recommendations(recommendations, truth(("a", "i")).drop_columns("item_id"))
    with pytest.raises(TableError, match="truth has no rows"):
        score_recommendations(recommendations, truth(("a", "i")).slice(0, 0))
    with pytest.raises(TableError, match="truth: column 'user_id' is null in row 0"):
        score_recommendations(recommendations, pa.table({"user_id": pa.nulls(1, pa.string()), "item_id": ["i"]}))
    with pytest.raises(TableError, match="recommendations: item 'j' in row 1 is none of 1 candidates"):
        score_recommendations(recommendations, truth(("a", "i")), candidates=catalogue("i"))
    with pytest.raises(TableError, match="truth: item 'k' in row 0 is none of 2 candidates"):
        score_recommendations(recommendations, truth(("a", "k")), candidates=catalogue("i", "j"))
    half_ranks = pa.table({"user_id": ["a", "a"], "item_id": ["i", "j"], "rank": [1.0, 1.5]})
    with pytest.raises(TableError, match=r"row 1 holds 1\.5"):
        score_recommendations(half_ranks, truth(("a", "i")))


def test_score_refuses_a_list_with_what_its_user_has_seen() -> None:
    recommendations = lists([("a", "i", 1), ("a", "j", 2), ("b", "j", 1)])
    score_recommendations(recommendations, truth(("a", "i")), seen=truth(("b", "i")))
    with pytest.raises(TableError, match="the list of user 'a' holds 'j', which is in seen"):
        score_recommendations(recommendations, truth(("a", "i")), seen=truth(("b", "i"), ("a", "j")))


def test_score_with_candidates_adds_auc_over_the_whole_list() -> None:
    """Of 5 candidates the target stands third: it beats 2 of the 4 others; unlisted ones tie behind the list."""
    recommendations = lists([("a", f"i{n}", n + 1) for n in range(3)])
    results = score_recommendations(recommendations, truth(("a", "i2")), candidates=numbered(5), ks=(1,))
    assert results["auc"] == 2 / 4
    unlisted = score_recommendations(recommendations, truth(("a", "i4")), candidates=numbered(5), ks=(1,))
    assert unlisted["auc"] == pytest.approx(0.5 / 4)


def test_read_table_round_trips_and_refuses_other_files(tmp_path: Path) -> None:
    table = lists([("a", "i", 1)])
    pq.write_table(table, tmp_path / "lists.parquet")
    assert read_table(tmp_path / "lists.parquet").equals(table)
    (tmp_path / "lists.csv").write_text("user_id,item_id,rank\n")
    for name in ("lists.csv", "absent.parquet"):
        with pytest.raises(TableError, match=f"{name} cannot be read as Parquet"):
            read_table(tmp_path / name)
