"""Item-to-item neighbours: the cosine by plain loops, and files that do not fit refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from avrec_ray.errors import BundleError, ConfigError
from avrec_ray.retrieval.config import NeighbourConfig
from avrec_ray.retrieval.neighbours import fit_neighbours, load_neighbours

NUM_USERS, NUM_ITEMS = 6, 8
CHOICES = st.lists(st.tuples(st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1)), max_size=40)


def arrays(choices: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(choices, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


@given(CHOICES, st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6))
def test_scores_equal_plain_loops(choices: list[tuple[int, int]], history: list[int]) -> None:
    neighbours = fit_neighbours(*arrays(choices), NUM_USERS, NUM_ITEMS, NeighbourConfig())
    users = [{user for user, item in choices if item == i} for i in range(NUM_ITEMS)]
    expected = np.zeros(NUM_ITEMS)
    for i in range(NUM_ITEMS):
        for j in set(history) - {i}:
            if users[i] and users[j]:
                expected[i] += len(users[i] & users[j]) / np.sqrt(len(users[i]) * len(users[j]))
    assert neighbours.scores(np.array(history, np.int64)) == pytest.approx(expected, abs=1e-6)


@given(
    CHOICES,
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6),
    st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 3),
    st.sampled_from([1.0, 0.9, 0.4]),
    st.sampled_from([1.0, 0.7]),
)
def test_powers_steps_and_recency_equal_plain_loops(
    choices: list[tuple[int, int]],
    history: list[int],
    powers: tuple[float, float, float],
    step_decay: float,
    recency: float,
) -> None:
    user_power, watched_power, scored_power = powers
    cfg = NeighbourConfig(
        shrinkage=0.5, step_decay=step_decay, recency=recency,
        user_power=user_power, watched_power=watched_power, scored_power=scored_power,
    )  # fmt: skip
    neighbours = fit_neighbours(*arrays(choices), NUM_USERS, NUM_ITEMS, cfg)
    chosen = {user: list(dict.fromkeys(i for u, i in choices if u == user)) for user in range(NUM_USERS)}
    counts = [sum(i in items for items in chosen.values()) for i in range(NUM_ITEMS)]
    newest = list(dict.fromkeys(history[::-1]))
    expected = np.zeros(NUM_ITEMS)
    for i in range(NUM_ITEMS):
        for place, j in enumerate(newest):
            both = 0.0
            for items in chosen.values():
                if i in items and j in items and i != j:
                    steps = abs(items.index(i) - items.index(j))
                    both += step_decay ** (steps - 1) / len(items) ** user_power
            if both:
                norm = counts[i] ** scored_power * counts[j] ** watched_power + 0.5
                expected[i] += recency**place * both / norm
    # What is far away counts next to nothing, and is left out.
    assert neighbours.scores(np.array(history, np.int64)) == pytest.approx(expected, abs=0.02 * len(history))


def test_what_is_too_far_to_count_is_left_out() -> None:
    long = [(0, item) for item in range(8)]
    neighbours = fit_neighbours(*arrays(long), 1, 8, NeighbourConfig(step_decay=0.1, recency=0.1))
    assert np.flatnonzero(neighbours.scores(np.array([0]))).tolist() == [1, 2, 3]
    # of a history, what is three places back
    assert np.flatnonzero(neighbours.scores(np.array([0, 7, 6, 7, 6, 7]))).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert neighbours.scores(np.array([0, 4, 5, 6]))[1] == pytest.approx(0.1**4)  # said by 4, two places back


def test_only_the_nearest_of_the_scored_item_count() -> None:
    choices = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2)]  # 0 and 1 share two users, 0 and 2 one
    neighbours = fit_neighbours(*arrays(choices), 3, 3, NeighbourConfig(num_neighbours=1))
    assert neighbours.scores(np.array([1]))[0] > 0
    assert neighbours.scores(np.array([2]))[0] == 0  # 1 is nearer to 0 than 2 is
    assert neighbours.scores(np.array([0]))[2] > 0  # and 0 is the nearest of 2


def test_a_saved_table_loads_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    neighbours = fit_neighbours(rng.integers(0, 5, 30), rng.integers(0, 8, 30), 5, 8, NeighbourConfig(recency=0.5))
    neighbours.save(tmp_path / "n.safetensors")
    again = load_neighbours(tmp_path / "n.safetensors", 8)
    for item in range(8):
        history = np.array([3, item])
        assert again.scores(history).tolist() == neighbours.scores(history).tolist()


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    fit_neighbours(*arrays([(0, 0), (0, 1)]), 1, 2, NeighbourConfig()).save(path)
    with pytest.raises(BundleError, match="not of a catalogue of 3 items"):
        load_neighbours(path, 3)
    starts, far = np.array([0, 1, 1]), np.array([2])
    parts = {"starts": starts, "items": far, "weights": np.ones(1, np.float32), "recency": np.ones(1)}
    save_file(parts, str(path))
    with pytest.raises(BundleError, match="outside the catalogue"):
        load_neighbours(path, 2)
    path.write_bytes(b"torn")
    with pytest.raises(BundleError, match="cannot be read"):
        load_neighbours(path, 2)


def test_ease_table_is_ease_cut_to_the_largest_weights() -> None:
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 20, 150), rng.integers(0, NUM_ITEMS, 150)
    chosen = np.zeros((20, NUM_ITEMS))
    chosen[users, items] = 1
    inverse = np.linalg.inv(chosen.T @ chosen + 2.0 * np.eye(NUM_ITEMS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    whole = fit_neighbours(users, items, 20, NUM_ITEMS, NeighbourConfig(similarity="ease", regularization=2.0))
    for item in range(NUM_ITEMS):
        assert whole.scores(np.array([item])) == pytest.approx(weights[item], abs=1e-5)
    cfg = NeighbourConfig(similarity="ease", regularization=2.0, num_neighbours=3)
    cut = fit_neighbours(users, items, 20, NUM_ITEMS, cfg)
    for scored in range(NUM_ITEMS):
        kept = np.argsort(-np.abs(weights[:, scored]))[:3]
        found = np.array([cut.scores(np.array([item]))[scored] for item in range(NUM_ITEMS)])
        assert sorted(np.flatnonzero(found)) == sorted(kept)


def test_ease_refuses_a_catalogue_beyond_its_memory() -> None:
    with pytest.raises(ConfigError, match="8 items need a matrix of 256 bytes, expected at most max_bytes=255"):
        fit_neighbours(*arrays([(0, 1)]), 1, 8, NeighbourConfig(similarity="ease", max_bytes=255))


@given(st.integers(0, 500), st.lists(st.integers(0, 11), max_size=8), st.sampled_from(["cosine", "ease"]))
def test_relative_scores_are_scores_over_their_size(seed: int, history: list[int], similarity: str) -> None:
    rng = np.random.default_rng(seed)
    cfg = NeighbourConfig(num_neighbours=4, recency=0.7, similarity=similarity)
    neighbours = fit_neighbours(rng.integers(0, 9, 40), rng.integers(0, 12, 40), 9, 12, cfg)
    chosen, rows = np.array(history, np.int64), rng.permutation(12)[:7]
    whole = neighbours.scores(chosen).astype(np.float64)
    size = np.sqrt(np.mean(whole**2))
    expected = whole[rows] / size if size else np.zeros(7)
    assert neighbours.relative_scores(chosen, rows) == pytest.approx(expected, rel=1e-4, abs=1e-6)
