from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.evaluation.baselines import BASELINES, ItemKNN, Popularity, RecentPopularity, top_k
from avrec_ray.evaluation.metrics import evaluate_rankings
from avrec_ray.evaluation.split import SplitConfig, eval_targets, split_interactions
from tests.evaluation.test_split import movielens

DAY = 86_400.0
USERS = np.array([0, 0, 0, 1, 1, 2, 2, 3])
ITEMS = np.array([0, 1, 2, 0, 1, 1, 3, 1])
TIMES = DAY * np.array([0.0, 1, 2, 3, 4, 5, 6, 14])


def fit(baseline: str) -> npt.NDArray[np.float32]:
    model = BASELINES[baseline]()
    model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
    return model.score([np.array([0]), np.zeros(0, np.int64)])


def test_popularity_counts_each_user_once() -> None:
    model = Popularity()
    model.fit(np.append(USERS, 0), np.append(ITEMS, 0), np.append(TIMES, 9.0), num_users=4, num_items=5)
    assert model.score([np.array([1])] * 2).tolist() == [[2, 4, 1, 1, 0]] * 2


def test_recent_popularity_halves_with_age() -> None:
    model = RecentPopularity(half_life_days=2.0)
    model.fit(np.array([0, 1, 2]), np.array([0, 1, 1]), DAY * np.array([10.0, 8.0, 6.0]), num_users=3, num_items=3)
    assert model.score([np.zeros(0, np.int64)])[0] == pytest.approx([1, 0.5 + 0.25, 0])


def test_item_knn_sums_cosines_of_the_neighbours_of_each_scored_item() -> None:
    model = ItemKNN()
    model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
    both = {(0, 1): 2 / np.sqrt(2 * 4), (0, 2): 1 / np.sqrt(2), (1, 2): 1 / np.sqrt(4), (1, 3): 1 / np.sqrt(4)}
    assert model.score([np.array([0])])[0] == pytest.approx([0, both[0, 1], both[0, 2], 0, 0])
    two = model.score([np.array([0, 1])])[0]
    assert two == pytest.approx([both[0, 1], both[0, 1], both[0, 2] + both[1, 2], both[1, 3], 0])


def test_item_knn_shrinks_and_keeps_the_nearest_neighbours() -> None:
    model = ItemKNN(num_neighbours=1, shrinkage=2.0)
    model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
    scores = model.score([np.array([0]), np.array([1])])
    assert scores[0] == pytest.approx([0, 2 / (np.sqrt(8) + 2), 1 / (np.sqrt(2) + 2), 0, 0])
    assert scores[1] == pytest.approx([2 / (np.sqrt(8) + 2), 0, 0, 1 / (np.sqrt(4) + 2), 0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=40), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_item_knn_equals_dense_matrices(pairs: list[tuple[int, int]], num_neighbours: int) -> None:
    users, items = np.array(pairs).T
    chosen = np.zeros((6, 8))
    chosen[users, items] = 1
    both = chosen.T @ chosen
    counts = np.maximum(np.diag(both), 1)
    cosine = both / np.sqrt(np.outer(counts, counts))
    np.fill_diagonal(cosine, 0)
    nearest = np.zeros_like(cosine)
    for item, row in enumerate(cosine):
        kept = np.argsort(-row, kind="stable")[:num_neighbours]
        nearest[item, kept] = row[kept]
    model = ItemKNN(num_neighbours=num_neighbours)
    model.fit(users, items, np.zeros(len(users)), num_users=6, num_items=8)
    assert model.score([np.flatnonzero(row) for row in chosen]) == pytest.approx(chosen @ nearest.T, abs=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_gives_finite_scores_for_known_and_new_users(name: str) -> None:
    scores = fit(name)
    assert (scores.shape, scores.dtype) == ((2, 5), np.float32)
    assert np.isfinite(scores).all()
    assert np.array_equal(scores, fit(name))


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_fitted_on_nothing_scores_zero(name: str) -> None:
    model = BASELINES[name]()
    empty = np.zeros(0, np.int64)
    model.fit(empty, empty, np.zeros(0), num_users=1, num_items=3)
    assert model.score([np.array([2])]).tolist() == [[0, 0, 0]]
    assert model.score([]).shape == (0, 3)


@pytest.mark.parametrize("name", BASELINES)
@given(order=st.permutations(range(len(USERS))))
@settings(max_examples=10, deadline=None)
def test_baseline_does_not_depend_on_the_order_of_rows(name: str, order: list[int]) -> None:
    model = BASELINES[name]()
    model.fit(USERS[order], ITEMS[order], TIMES[order], num_users=4, num_items=5)
    assert model.score([np.array([0])])[0] == pytest.approx(fit(name)[0])


def test_top_k_masks_seen_keeps_ties_in_item_order_and_pads() -> None:
    scores = np.array([[0.5, 0.9, 0.5, 0.5, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    assert top_k(scores, [np.array([1]), np.array([0, 2, 3])], k=3).tolist() == [[0, 2, 3], [1, 4, -1]]


def test_top_k_never_lists_what_cannot_be_scored_or_is_no_candidate() -> None:
    scores = np.array([[np.nan, 1.0, np.inf, -np.inf, 0.0]])
    assert top_k(scores, [np.zeros(0, np.int64)], k=5).tolist() == [[1, 4, -1, -1, -1]]
    only = np.array([True, False, True, True, True])
    assert top_k(scores, [np.zeros(0, np.int64)], k=2, candidates=only).tolist() == [[4, -1]]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60), st.sets(st.integers(0, 59), max_size=20), st.integers(1, 12)
)
@settings(max_examples=80, deadline=None)
def test_top_k_equals_a_stable_sort(values: list[int], seen: set[int], k: int) -> None:
    seen_rows = np.array(sorted(s for s in seen if s < len(values)), np.int64)
    ranked = top_k(np.array([values], np.float32), [seen_rows], k)[0].tolist()
    expected = [i for i in sorted(range(len(values)), key=lambda i: (-values[i], i)) if i not in seen_rows][:k]
    assert ranked == expected + [-1] * (k - len(expected))


@pytest.mark.parametrize(("name", "expected"), [("popularity", 0.0413), ("item_knn", 0.0623)])
def test_baseline_reaches_its_published_figure_on_movielens(name: str, expected: float, shared_data: Path) -> None:
    """Leave one out by time on ml-100k, full ranking, NDCG@10; other implementations differ in the third digit."""
    split = split_interactions(movielens(shared_data), SplitConfig(kind="leave_one_out"))
    history = pa.concat_tables([split.train, split.valid])
    users, user_idx = np.unique(history["user_id"].to_pylist(), return_inverse=True)
    items, item_idx = np.unique(pa.concat_tables([history, split.test])["item_id"].to_pylist(), return_inverse=True)
    row_of = {item: row for row, item in enumerate(items.tolist())}
    fitted = item_idx[: history.num_rows]
    model = BASELINES[name]()
    model.fit(user_idx, fitted, history["at"].cast(pa.int64()).to_numpy() / 1e6, len(users), len(items))
    seen = [fitted[user_idx == user] for user in range(len(users))]
    wanted = eval_targets(split.test, history)
    targets = [[row_of[item] for item in wanted[user]] for user in users.tolist()]
    results = evaluate_rankings(top_k(model.score(seen), seen, 20), targets, len(items))
    assert results["ndcg_at_10"] == pytest.approx(expected, abs=0.003)
    assert results["num_users"] == 943
