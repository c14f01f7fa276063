import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.item_knn import ItemKNN, LastItem
from tests.evaluation.test_baselines import ITEMS, TIMES, USERS


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


def test_item_knn_by_jaccard_divides_by_the_users_of_either() -> None:
    model = ItemKNN(similarity="jaccard", shrinkage=1.0)
    model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
    users_of = [set(USERS[item == ITEMS].tolist()) for item in range(5)]
    expected = [len(users_of[0] & other) / (len(users_of[0] | other) + 1.0) for other in users_of]
    assert model.score([np.array([0])])[0] == pytest.approx([0, *expected[1:]])


def test_item_knn_refuses_an_unknown_similarity() -> None:
    with pytest.raises(ConfigError, match="neighbours.similarity='euclid'"):
        ItemKNN(similarity="euclid")


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


def test_last_item_reads_the_newest_choice_alone() -> None:
    last, neighbours = LastItem(), ItemKNN()
    for model in (last, neighbours):
        model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
    histories = [np.array([0, 1]), np.array([1, 0]), np.array([3]), np.zeros(0, np.int64)]
    newest = [np.array([1]), np.array([0]), np.array([3]), np.zeros(0, np.int64)]
    assert np.array_equal(last.score(histories), neighbours.score(newest))
    assert not np.array_equal(last.score(histories), neighbours.score(histories))
