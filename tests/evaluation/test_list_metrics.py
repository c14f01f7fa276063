import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.evaluation import list_metrics
from avrec_ray.evaluation.list_metrics import (
    category_distance_at_k,
    category_matrix,
    coverage_at_k,
    exposure_at_k,
    gini_at_k,
    intra_list_distance_at_k,
    miscalibration_at_k,
    novelty_at_k,
    popularity_at_k,
    serendipity_at_k,
    unexpected_hits_at_k,
)
from avrec_ray.evaluation.metrics import evaluate_rankings, match_targets, precision_at_k
from tests.evaluation.golden_metrics import KS, load, our_list_values

N = 12
RANKED = np.array([[3, 1, 2, 0], [5, 6, -1, -1], [-1, -1, -1, -1]])
GOLDEN = ("serendipity", "intra_list_distance", "category_distance", "miscalibration", "popularity")


@st.composite
def listed(draw: st.DrawFn) -> npt.NDArray[np.int64]:
    """Lists of distinct items, some short or empty."""
    num_users, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    ranked = np.full((num_users, width), -1, np.int64)
    for row in range(num_users):
        items = draw(st.permutations(range(N)))[: draw(st.integers(0, width))]
        ranked[row, : len(items)] = items
    return ranked


@pytest.mark.parametrize("name", GOLDEN)
def test_list_metrics_equal_other_libraries(name: str) -> None:
    golden = load()
    ours = our_list_values(golden["lists"], golden["catalogue"])
    num_known = 0
    for k in KS:
        for row, expected in enumerate(golden["values"][f"{name}_at_{k}"]):
            if expected is not None:
                assert ours[f"{name}_at_{k}"][row] == pytest.approx(expected, abs=1e-9), (row, k)
                num_known += 1
    assert num_known > 100


def test_exposure_metrics_by_hand() -> None:
    assert exposure_at_k(RANKED, N, 2).tolist() == [0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    assert coverage_at_k(RANKED, N, 2) == 4 / 12
    assert coverage_at_k(RANKED, N, 4) == 6 / 12
    assert gini_at_k(np.array([[0], [0], [0]]), 4, 1) == pytest.approx(3 / 4)
    assert gini_at_k(np.array([[0], [1], [2], [3]]), 4, 1) == pytest.approx(0)
    assert math.isnan(gini_at_k(RANKED[2:], N, 4))


def test_popularity_and_novelty_by_hand() -> None:
    popularity = np.array([0.5, 0.25, 0.25, 0.0])
    ranked = np.array([[0, 1, -1], [3, 2, 0], [-1, -1, -1]])
    assert popularity_at_k(ranked, popularity, 2)[:2].tolist() == [0.375, 0.125]
    assert novelty_at_k(ranked, popularity, 2)[:2].tolist() == [1.5, 2.5]  # the unchosen item: 0.125, that is 3 bits
    assert np.isnan(popularity_at_k(ranked, popularity, 2)[2])
    results = evaluate_rankings(ranked, [[0]] * 3, ks=(2,), popularity=popularity)
    assert (results["popularity_at_2"], results["novelty_at_2"]) == (0.25, 2.0)


def test_intra_list_distance_by_hand() -> None:
    embeddings = np.array([[1.0, 0], [0, 3], [-2, 0], [0, 0]])
    ranked = np.array([[0, 1, 2, -1], [0, 2, 1, 3], [0, 3, -1, -1], [1, -1, -1, -1], [-1, -1, -1, -1]])
    assert intra_list_distance_at_k(ranked, embeddings, 2)[:3] == pytest.approx([1, 2, 1])
    assert intra_list_distance_at_k(ranked, embeddings, 3)[:2] == pytest.approx([4 / 3, 4 / 3])
    assert np.isnan(intra_list_distance_at_k(ranked, embeddings, 4)[3:]).all()
    assert np.isnan(intra_list_distance_at_k(ranked, embeddings, 1)).all()


def test_category_distance_by_hand() -> None:
    categories, _ = category_matrix(["music", "music", "news", ["music", "news"], None, None])
    ranked = np.array([[0, 1, 2], [0, 3, -1], [4, 5, -1], [4, 0, -1], [2, -1, -1]])
    assert category_distance_at_k(ranked, categories, 3)[:4] == pytest.approx([2 / 3, 1 / 2, 0, 1])
    assert np.isnan(category_distance_at_k(ranked, categories, 3)[4])


@given(listed(), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_distances_are_the_mean_over_pairs_in_any_order_and_in_blocks(
    ranked: npt.NDArray[np.int64], k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings, categories = rng.normal(size=(N, 3)), rng.random((N, 4)) < 0.4
    found = intra_list_distance_at_k(ranked, embeddings, k), category_distance_at_k(ranked, categories, k)
    for row, items in enumerate(ranked[:, :k]):
        pairs = list(itertools.combinations(items[items >= 0], 2))
        if not pairs:
            assert all(np.isnan(values[row]) for values in found)
            continue
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        assert found[0][row] == pytest.approx(np.mean([1 - unit[a] @ unit[b] for a, b in pairs]))
        assert -1e-12 <= found[1][row] <= 1
    order = rng.permuted(np.tile(np.arange(ranked[:, :k].shape[1]), (len(ranked), 1)), axis=1)
    shuffled = np.take_along_axis(ranked[:, :k], order, 1)
    assert intra_list_distance_at_k(shuffled, embeddings * 7, k) == pytest.approx(found[0], nan_ok=True)
    assert category_distance_at_k(shuffled, categories, k) == pytest.approx(found[1], nan_ok=True)


def test_distances_in_blocks_of_users_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(N)[:5] for _ in range(30)])
    embeddings, categories = rng.normal(size=(N, 3)), rng.random((N, 4)) < 0.4
    whole = intra_list_distance_at_k(ranked, embeddings, 5), category_distance_at_k(ranked, categories, 5)
    monkeypatch.setattr(list_metrics, "MAX_VALUES", 60)
    assert intra_list_distance_at_k(ranked, embeddings, 5) == pytest.approx(whole[0], abs=1e-12)
    assert category_distance_at_k(ranked, categories, 5) == pytest.approx(whole[1], abs=1e-12)


def test_serendipity_counts_hits_above_their_place_by_popularity() -> None:
    popularity = np.array([9, 5, 5, 0])
    assert serendipity_at_k(np.array([[0, 1, 2]]), [[0, 1, 2]], popularity, 3).tolist() == [0]
    # item 3, never chosen, first: (4 + 1 - 1) / 4; item 2, second by popularity, is second here
    assert serendipity_at_k(np.array([[3, 2, 0]]), [[3, 2]], popularity, 3)[0] == pytest.approx(1 / 3)
    assert serendipity_at_k(np.array([[2, 3]]), [[2, 3]], popularity, 2)[0] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert serendipity_at_k(np.array([[3, 2, 0]]), [[0]], popularity, 3).tolist() == [0]
    assert serendipity_at_k(np.array([[2, 3]]), [[2]], popularity / popularity.sum(), 1).tolist() == [1 / 4]


@given(listed(), st.integers(1, 6), st.sets(st.integers(0, N - 1), min_size=1))
@settings(max_examples=60)
def test_surprising_hits_are_at_most_all_hits(ranked: npt.NDArray[np.int64], k: int, wanted: set[int]) -> None:
    targets = [wanted] * len(ranked)
    precision = precision_at_k(ranked, targets, k)
    popularity = np.arange(N)
    for found in (
        serendipity_at_k(ranked, targets, popularity, k),
        unexpected_hits_at_k(ranked, targets, ranked[::-1], k),
    ):
        assert (found >= 0).all()
        assert (found <= precision + 1e-12).all()
    assert not unexpected_hits_at_k(ranked, targets, ranked, k).any()
    nothing = np.full((len(ranked), 3), -1)
    assert unexpected_hits_at_k(ranked, match_targets(ranked, targets), nothing, k) == pytest.approx(precision)


def test_unexpected_hits_by_hand() -> None:
    expected = np.array([[1, 2, 9, -1], [0, 0, 0, 6]])
    assert unexpected_hits_at_k(RANKED[:2], [{1, 3, 9}, {5, 6}], expected, 2).tolist() == [1 / 2, 1]


def test_miscalibration_by_hand() -> None:
    categories, names = category_matrix(["music", "news", ["music", "news"], None])
    assert names == ["music", "news"]
    ranked = np.array([[0, -1], [0, 1], [2, -1], [3, -1], [-1, -1], [0, -1]])
    histories = [np.array(items, np.int64) for items in ([0, 0, 1, 1], [1, 0, 3], [0, 1], [0], [0], [3])]
    found = miscalibration_at_k(ranked, histories, categories, 2)
    listed_news, wanted = 0.01 * 0.5, 0.5
    assert found[0] == pytest.approx(wanted * math.log(wanted / 0.995) + wanted * math.log(wanted / listed_news))
    assert found[1:3] == pytest.approx([0, 0])
    assert np.isnan(found[3:]).all()  # a list without categories, an empty list, a history without categories
    with pytest.raises(ValueError, match="alpha=0; expected a number between 0 and 1"):
        miscalibration_at_k(ranked, histories, categories, 2, alpha=0)


@given(listed(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_miscalibration_is_zero_for_the_history_and_never_below(ranked: npt.NDArray[np.int64], seed: int) -> None:
    rng = np.random.default_rng(seed)
    categories = rng.random((N, 3)) < 0.6
    same = miscalibration_at_k(ranked, [row[row >= 0] for row in ranked], categories, 6)
    assert same[~np.isnan(same)] == pytest.approx(0, abs=1e-12)
    other = miscalibration_at_k(ranked, [rng.integers(0, N, 4) for _ in ranked], categories, 6)
    assert (other[~np.isnan(other)] >= -1e-12).all()


def test_category_matrix_of_nothing_has_no_columns() -> None:
    matrix, names = category_matrix([None, []])
    assert (matrix.shape, names) == ((2, 0), [])
    assert np.isnan(miscalibration_at_k(np.array([[0, 1]]), [np.array([0])], matrix, 2)).all()
