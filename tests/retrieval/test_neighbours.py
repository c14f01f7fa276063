"""Item-to-item neighbours: the cosine by plain loops, and files that do not fit refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from avrec_ray.errors import BundleError
from avrec_ray.retrieval.neighbours import fit_neighbours, load_neighbours

NUM_USERS, NUM_ITEMS = 6, 8
CHOICES = st.lists(st.tuples(st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1)), max_size=40)


def arrays(choices: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(choices, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


@given(CHOICES, st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6))
def test_scores_equal_plain_loops(choices: list[tuple[int, int]], history: list[int]) -> None:
    neighbours = fit_neighbours(*arrays(choices), NUM_USERS, NUM_ITEMS)
    users = [{user for user, item in choices if item == i} for i in range(NUM_ITEMS)]
    expected = np.zeros(NUM_ITEMS)
    for i in range(NUM_ITEMS):
        for j in set(history) - {i}:
            if users[i] and users[j]:
                expected[i] += len(users[i] & users[j]) / np.sqrt(len(users[i]) * len(users[j]))
    assert neighbours.scores(np.array(history, np.int64)) == pytest.approx(expected, abs=1e-6)


def test_only_the_nearest_of_the_scored_item_count() -> None:
    choices = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2)]  # 0 and 1 share two users, 0 and 2 one
    neighbours = fit_neighbours(*arrays(choices), 3, 3, num_neighbours=1)
    assert neighbours.scores(np.array([1]))[0] > 0
    assert neighbours.scores(np.array([2]))[0] == 0  # 1 is nearer to 0 than 2 is
    assert neighbours.scores(np.array([0]))[2] > 0  # and 0 is the nearest of 2


def test_a_saved_table_loads_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    neighbours = fit_neighbours(rng.integers(0, 5, 30), rng.integers(0, 8, 30), 5, 8)
    neighbours.save(tmp_path / "n.safetensors")
    again = load_neighbours(tmp_path / "n.safetensors", 8)
    for item in range(8):
        assert again.scores(np.array([item])).tolist() == neighbours.scores(np.array([item])).tolist()


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    fit_neighbours(*arrays([(0, 0), (0, 1)]), 1, 2).save(path)
    with pytest.raises(BundleError, match="not of a catalogue of 3 items"):
        load_neighbours(path, 3)
    starts, far = np.array([0, 1, 1]), np.array([2])
    save_file({"starts": starts, "items": far, "cosines": np.ones(1, np.float32)}, str(path))
    with pytest.raises(BundleError, match="outside the catalogue"):
        load_neighbours(path, 2)
    path.write_bytes(b"torn")
    with pytest.raises(BundleError, match="cannot be read"):
        load_neighbours(path, 2)
