import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.linear_baselines import EASE
from avrec_ray.retrieval import ease

pairs_of_users_and_items = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=40)


def chosen_of(pairs: list[tuple[int, int]]) -> np.ndarray:
    chosen = np.zeros((6, 8))
    chosen[tuple(np.array(pairs).T)] = 1
    return chosen


@given(pairs_of_users_and_items, st.sampled_from([0.5, 10.0]))
@settings(max_examples=50, deadline=None)
def test_ease_equals_the_regression_of_each_item_on_all_others(pairs: list[tuple[int, int]], ridge: float) -> None:
    chosen = chosen_of(pairs)
    weights = np.zeros((8, 8))
    for item in range(8):
        others = np.delete(np.arange(8), item)
        gram = chosen[:, others].T @ chosen[:, others] + ridge * np.eye(7)
        weights[others, item] = np.linalg.solve(gram, chosen[:, others].T @ chosen[:, item])
    model = EASE(regularization=ridge)
    model.fit(*np.array(pairs).T, np.zeros(len(pairs)), num_users=6, num_items=8)
    assert model.score([np.flatnonzero(row) for row in chosen]) == pytest.approx(chosen @ weights, abs=1e-4)


def test_ease_builds_its_matrix_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = np.random.default_rng(0).integers(0, [6, 8], (30, 2))
    scores = []
    for block in (3, 256):
        monkeypatch.setattr(ease, "_BLOCK", block)
        model = EASE()
        model.fit(*pairs.T, np.zeros(30), num_users=6, num_items=8)
        scores.append(model.score([np.array([0, 4])]))
    assert scores[0] == pytest.approx(scores[1])


def test_ease_refuses_a_catalogue_beyond_its_memory() -> None:
    nothing = np.zeros(0, np.int64)
    with pytest.raises(ConfigError, match="ease: 17000 items need a matrix of 1,156,000,000 bytes, expected at most"):
        EASE().fit(nothing, nothing, np.zeros(0), num_users=1, num_items=17_000)
    with pytest.raises(ConfigError, match="max_bytes=399; raise it, drop rare items"):
        EASE(max_bytes=399).fit(nothing, nothing, np.zeros(0), num_users=1, num_items=10)
    EASE(max_bytes=400).fit(nothing, nothing, np.zeros(0), num_users=1, num_items=10)


def test_ease_without_regularization_is_refused() -> None:
    with pytest.raises(ConfigError, match="ease.regularization=0 is outside"):
        EASE(regularization=0)
