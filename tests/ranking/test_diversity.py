"""MMR and DPP: each place by the formula, robust to copies, and the list less alike along the dial."""

import doctest

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError
from avrec_ray.ranking import diversity
from avrec_ray.ranking.diversity import Dpp, diversifier_of, dpp, mmr


def unit_vectors(num: int, seed: int = 0, dim: int = 6) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def similarity_within(order: npt.NDArray[np.int64], embeddings: npt.NDArray[np.float32]) -> float:
    """Mean cosine between the items of a list."""
    cosine = embeddings[order] @ embeddings[order].T
    return float((cosine.sum() - len(order)) / (len(order) * (len(order) - 1)))


scores_lists = st.lists(st.floats(-1e3, 1e3, width=32), max_size=25)


@given(scores_lists, st.integers(1, 30))
def test_mmr_without_diversity_is_the_ranking(scores: list[float], k: int) -> None:
    order = mmr(np.array(scores, np.float32), unit_vectors(len(scores)), 0.0, k)
    assert order.tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def test_mmr_without_diversity_keeps_differences_that_normalising_would_lose() -> None:
    scores = np.array([1e30, 1.0, 1.0 + 1e-6, -1e30], np.float32)
    assert mmr(scores, unit_vectors(4), 0.0, 4).tolist() == [0, 2, 1, 3]


@given(scores_lists, st.floats(0, 1), st.integers(1, 30), st.integers(0, 9))
@settings(deadline=None)
def test_mmr_lists_distinct_candidates_and_starts_with_the_best(
    scores: list[float], diversity: float, k: int, seed: int
) -> None:
    values, embeddings = np.array(scores, np.float32), unit_vectors(len(scores), seed)
    order = mmr(values, embeddings, diversity, k)
    assert len(order) == min(k, len(scores))
    assert len(set(order.tolist())) == len(order)
    assert np.array_equal(order, mmr(values, embeddings, diversity, k))
    if len(order) and diversity < 1:
        assert values[order[0]] == pytest.approx(values.max(), abs=1e-6 * float(np.ptp(values)))
    assert np.array_equal(order, mmr(values, embeddings, diversity, len(scores) + 1)[:k])


@given(st.integers(2, 9), st.floats(0.01, 1), st.integers(0, 50))
@settings(deadline=None)
def test_mmr_equals_the_formula_one_place_at_a_time(num: int, diversity: float, seed: int) -> None:
    scores = np.random.default_rng(seed).random(num).astype(np.float32)
    embeddings = unit_vectors(num, seed).astype(np.float64)
    relevance = (scores.astype(np.float64) - scores.min()) / (np.float64(scores.max()) - scores.min())
    placed: list[int] = []
    for _ in range(num):
        left = [i for i in np.argsort(-scores, kind="stable").tolist() if i not in placed]
        worth = [
            (1 - diversity) * relevance[i]
            - diversity * max([(1 + embeddings[i] @ embeddings[j]) / 2 for j in placed], default=0.0)
            for i in left
        ]
        placed.append(left[int(np.argmax(worth))])
    assert mmr(scores, embeddings.astype(np.float32), diversity, num).tolist() == placed


@given(st.floats(0.01, 100), st.floats(-50, 50), st.floats(0, 1))
@settings(deadline=None)
def test_mmr_does_not_depend_on_the_scale_of_scores(scale: float, shift: float, diversity: float) -> None:
    scores = np.array([8, 7, 6, 4, 2, 1], np.float64)
    embeddings = unit_vectors(6)
    assert np.array_equal(mmr(scores * scale + shift, embeddings, diversity, 6), mmr(scores, embeddings, diversity, 6))


def test_mmr_moves_a_copy_behind_what_differs() -> None:
    embeddings = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.array([3, 2.9, 1.0])
    assert mmr(scores, embeddings, 0.0, 3).tolist() == [0, 1, 2]
    assert mmr(scores, embeddings, 0.8, 3).tolist() == [0, 2, 1]


def test_mmr_similarity_falls_along_the_dial() -> None:
    embeddings, scores = unit_vectors(60), np.random.default_rng(1).random(60)
    within = [similarity_within(mmr(scores, embeddings, d, 10), embeddings) for d in (0.0, 0.3, 0.6, 1.0)]
    assert within == sorted(within, reverse=True)
    assert within[-1] < within[0] - 0.1


def test_mmr_with_equal_scores_keeps_the_order_where_items_are_equal() -> None:
    assert mmr(np.ones(4), np.tile([[1.0, 0.0]], (4, 1)).astype(np.float32), 0.5, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([np.inf, 1.0]), np.ones(3)])
def test_mmr_refuses_scores_that_are_not_finite_or_do_not_fit(bad: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"expected finite \[K\]"):
        mmr(bad, unit_vectors(2), 0.5, 2)


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan")])
def test_mmr_refuses_diversity_outside_its_range(diversity: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        mmr(np.ones(2), unit_vectors(2), diversity, 2)


def brute_force_dpp(
    scores: npt.NDArray[np.float64], embeddings: npt.NDArray[np.float64], dial: float, k: int, window: int = 0
) -> list[int]:
    """Greedy by determinants of submatrices of L = q S q itself, as the paper defines it."""
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    quality = np.exp(relevance * (1 - dial) / (2 * dial))
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    likeness = (1 + embeddings @ embeddings.T) / 2
    np.fill_diagonal(likeness, 1)
    kernel = quality[:, None] * likeness * quality[None, :]
    placed: list[int] = []
    while len(placed) < k:
        recent = placed[-window:] if window else placed
        below = np.linalg.slogdet(kernel[np.ix_(recent, recent)])[1] if recent else 0.0
        gains = {
            i: np.linalg.slogdet(kernel[np.ix_([*recent, i], [*recent, i])])[1] - below
            for i in np.argsort(-scores, kind="stable").tolist()
            if i not in placed
        }
        placed.append(max(gains, key=lambda i: gains[i]))
    return placed


@given(st.integers(2, 9), st.floats(0.05, 1), st.integers(0, 5), st.integers(0, 10_000))
@settings(deadline=None)
def test_dpp_equals_greedy_determinants(num: int, dial: float, window: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=num)
    embeddings = unit_vectors(num, seed, dim=10)  # more ranks than items: no determinant is 0
    expected = brute_force_dpp(scores, embeddings.astype(np.float64), dial, num, window)
    assert dpp(scores, embeddings, dial, num, window).tolist() == expected


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 6), st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None)
def test_dpp_lists_every_candidate_once_whatever_the_rank(
    num: int, dim: int, window: int, dial: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings = unit_vectors(num, seed, dim)[rng.integers(0, num, num)]  # with copies
    order = dpp(rng.random(num), embeddings, dial, num + 3, window)
    assert sorted(order.tolist()) == list(range(num))


@given(scores_lists, st.integers(1, 30), st.integers(0, 5))
def test_dpp_without_diversity_is_the_ranking(scores: list[float], k: int, window: int) -> None:
    order = dpp(np.array(scores, np.float32), unit_vectors(len(scores)), 0.0, k, window)
    assert order.tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def test_dpp_beyond_the_rank_goes_on_by_score() -> None:
    embeddings = np.tile(np.array([[1, 0], [0, 1], [-1, 0]], np.float32), (4, 1))  # likeness has 3 ranks
    scores = np.linspace(1, 0, 12)
    order = dpp(scores, embeddings, 0.5, 12).tolist()
    assert sorted(order[:3]) == [0, 1, 2]
    assert order[3:] == list(range(3, 12))


def test_dpp_leaves_the_same_of_a_candidate_when_the_window_slid_as_when_it_was_built_so() -> None:
    """Rotating an item out of the factor is as good as a factor without it, over many slides."""
    embeddings = unit_vectors(60, 3, dim=16).astype(np.float64)
    sliding = Dpp(np.zeros(60), embeddings, 1.0, window=4)
    for position in range(50):
        sliding.place(position)
    built = Dpp(np.zeros(60), embeddings, 1.0)
    for position in range(46, 50):
        built.place(position)
    np.testing.assert_allclose(sliding.utility[50:], built.utility[50:], rtol=1e-9)


def test_dpp_with_a_window_forgets_a_copy_only_when_both_left() -> None:
    """Position 1 copies 0: as 0 leaves the window, 1 repels in its place."""
    embeddings = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float64)
    diversifier = Dpp(np.zeros(5), embeddings, 1.0, window=2)
    diversifier.place(0)
    diversifier.place(1)
    diversifier.place(2)  # the window holds 1 and 2
    assert diversifier.utility[4] < -1e3
    diversifier.place(3)  # the window holds 2 and 3
    assert diversifier.utility[4] > -1


def test_dpp_sees_copies_and_starts_with_the_best_in_spite_of_rounding() -> None:
    embeddings = unit_vectors(40, 5, 33)[np.repeat(np.arange(20), 2)]
    order = dpp(np.linspace(1, 0, 40), embeddings, 1.0, 40)
    assert order[0] == 0
    assert sorted((order[:20] // 2).tolist()) == list(range(20))  # one of each pair
    assert (np.diff(order[20:]) > 0).all()


def test_dpp_moves_a_copy_behind_what_differs() -> None:
    embeddings = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.array([3, 2.9, 1.0])
    assert dpp(scores, embeddings, 0.0, 3).tolist() == [0, 1, 2]
    assert dpp(scores, embeddings, 0.01, 3).tolist() == [0, 2, 1]


@pytest.mark.parametrize("name", ["mmr", "dpp"])
def test_along_the_dial_items_are_less_alike_and_scores_fall(name: str) -> None:
    within, worth = [], []
    for dial in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        lists = []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            embeddings = unit_vectors(8, seed, 24)[rng.integers(0, 8, 80)] + unit_vectors(80, seed, 24) / 2  # 8 kinds
            embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
            scores = rng.normal(size=80)
            order = {"mmr": mmr, "dpp": dpp}[name](scores, embeddings, dial, 10)
            lists.append((similarity_within(order, embeddings), scores[order].mean()))
        within.append(float(np.mean([alike for alike, _ in lists])))
        worth.append(float(np.mean([score for _, score in lists])))
    assert within == sorted(within, reverse=True)
    assert worth == sorted(worth, reverse=True)


def test_unknown_diversifier_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"diversifier='mrr' is not one of \['dpp', 'mmr'\]"):
        diversifier_of("mrr", np.zeros(1), unit_vectors(1), 0.5)


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(diversity).failed == 0
