"""The contract that every baseline keeps, those that read no history, the registry, and lists from scores."""

import doctest
import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.evaluation.baselines import (
    BASELINES,
    CONTENT_BASELINES,
    Baseline,
    Popularity,
    Random,
    RecentPopularity,
    build_baselines,
    rank_in_parts,
    top_k,
)
from avrec_ray.evaluation.metrics import evaluate_rankings
from avrec_ray.evaluation.split import SplitConfig, eval_targets, split_interactions
from tests.evaluation.test_split import movielens

DAY = 86_400.0
USERS = np.array([0, 0, 0, 1, 1, 2, 2, 3])
ITEMS = np.array([0, 1, 2, 0, 1, 1, 3, 1])
TIMES = DAY * np.array([0.0, 1, 2, 3, 4, 5, 6, 14])
NO_ROWS = np.zeros(0, np.int64)
VECTORS = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0], [-1.0, 0.5]])
NAMES = [*BASELINES, *CONTENT_BASELINES]
READ_HISTORIES = [name for name in NAMES if name not in ("random", "popularity", "recent_popularity")]


def build(name: str) -> Baseline:
    return build_baselines(VECTORS)[name]


def fit(name: str) -> npt.NDArray[np.float32]:
    model = build(name)
    model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
    return model.score([np.array([0]), NO_ROWS])


def test_popularity_counts_each_user_once() -> None:
    model = Popularity()
    model.fit(np.append(USERS, 0), np.append(ITEMS, 0), np.append(TIMES, 9.0), num_users=4, num_items=5)
    assert model.score([np.array([1])] * 2).tolist() == [[2, 4, 1, 1, 0]] * 2


def test_recent_popularity_halves_with_age() -> None:
    model = RecentPopularity(half_life_days=2.0)
    model.fit(np.array([0, 1, 2]), np.array([0, 1, 1]), DAY * np.array([10.0, 8.0, 6.0]), num_users=3, num_items=3)
    assert model.score([NO_ROWS])[0] == pytest.approx([1, 0.5 + 0.25, 0])


def test_random_is_uniform_and_independent_for_each_user() -> None:
    model = Random(seed=3)
    model.fit(NO_ROWS, NO_ROWS, np.zeros(0), num_users=0, num_items=4)
    best = model.score([NO_ROWS] * 4000).argmax(axis=1)
    assert np.bincount(best) / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    follows = np.bincount(4 * best[:-1] + best[1:], minlength=16) / 3999
    assert follows == pytest.approx([1 / 16] * 16, abs=0.02)


def test_random_gives_users_in_parts_what_it_gives_at_once() -> None:
    model = Random(seed=3)
    scores = []
    for sizes in ([7], [2, 4, 1]):
        model.fit(NO_ROWS, NO_ROWS, np.zeros(0), num_users=0, num_items=5)
        scores.append(np.concatenate([model.score([NO_ROWS] * size) for size in sizes]))
    assert np.array_equal(*scores)
    other = Random(seed=4)
    other.fit(NO_ROWS, NO_ROWS, np.zeros(0), num_users=0, num_items=5)
    assert not np.array_equal(scores[0], other.score([NO_ROWS] * 7))


@pytest.mark.parametrize("name", NAMES)
def test_baseline_gives_finite_scores_for_known_and_new_users(name: str) -> None:
    scores = fit(name)
    assert (scores.shape, scores.dtype) == ((2, 5), np.float32)
    assert np.isfinite(scores).all()
    assert np.array_equal(scores, fit(name))


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"random"}))
def test_baseline_fitted_on_nothing_scores_zero(name: str) -> None:
    model = build(name)
    model.fit(NO_ROWS, NO_ROWS, np.zeros(0), num_users=1, num_items=3)
    assert model.score([np.array([2])]).tolist() == [[0, 0, 0]]
    assert model.score([]).shape == (0, 3)


@pytest.mark.parametrize("name", READ_HISTORIES)
def test_baseline_has_no_opinion_about_a_user_without_history(name: str) -> None:
    known, new = fit(name)
    assert len(set(known.tolist())) > 1
    assert new.tolist() == [0] * 5


@pytest.mark.parametrize("name", NAMES)
@given(order=st.permutations(range(len(USERS))))
@settings(max_examples=10, deadline=None)
def test_baseline_does_not_depend_on_the_order_of_rows(name: str, order: list[int]) -> None:
    model = build(name)
    model.fit(USERS[order], ITEMS[order], TIMES[order], num_users=4, num_items=5)
    assert model.score([np.array([0])])[0] == pytest.approx(fit(name)[0])


@pytest.mark.parametrize("name", sorted(set(READ_HISTORIES) - {"last_item"}))
def test_baseline_does_not_depend_on_order_and_repeats_in_a_history(name: str) -> None:
    model = build(name)
    model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
    once, again = model.score([np.array([0, 2]), np.array([2, 0, 2])])
    assert once == pytest.approx(again)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"random"}))
def test_baseline_scores_users_in_parts_as_at_once(name: str) -> None:
    model = build(name)
    model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
    histories = [np.array([0]), np.array([1, 2]), NO_ROWS]
    parts = np.concatenate([model.score([history]) for history in histories])
    assert model.score(histories) == pytest.approx(parts, abs=1e-6)


def test_build_baselines_passes_the_seed_to_those_that_draw_and_vectors_to_those_that_read_them() -> None:
    assert set(build_baselines()) == set(BASELINES)
    assert set(build_baselines(VECTORS)) == set(NAMES)
    differ = set()
    for name in BASELINES:
        scores = []
        for seed in (0, 1):
            model = build_baselines(seed=seed)[name]
            model.fit(USERS, ITEMS, TIMES, num_users=4, num_items=5)
            scores.append(model.score([np.array([0])]))
        if not np.array_equal(*scores):
            differ.add(name)
    assert differ == {"random", "ials", "bpr"}


def test_top_k_masks_seen_and_pads() -> None:
    scores = np.array([[0.5, 0.9, 0.4, 0.6, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    best = top_k(scores, [np.array([1]), np.array([0, 2, 3, 1])], k=3)
    assert best.tolist() == [[3, 0, 2], [4, -1, -1]]


def test_top_k_never_lists_what_cannot_be_scored_or_is_no_candidate() -> None:
    scores = np.array([[np.nan, 1.0, np.inf, -np.inf, 0.0]])
    assert top_k(scores, [NO_ROWS], k=5).tolist() == [[1, 4, -1, -1, -1]]
    only = np.array([True, False, True, True, True])
    assert top_k(scores, [NO_ROWS], k=2, candidates=only).tolist() == [[4, -1]]


def test_top_k_draws_the_order_of_equal_scores_for_each_user() -> None:
    scores = np.zeros((2000, 5), np.float32)
    best = top_k(scores, [NO_ROWS] * 2000, k=1)[:, 0]
    assert np.bincount(best) / 2000 == pytest.approx([0.2] * 5, abs=0.04)
    assert np.array_equal(best, top_k(scores, [NO_ROWS] * 2000, k=1)[:, 0])
    assert not np.array_equal(best, top_k(scores, [NO_ROWS] * 2000, k=1, tie_seed=1)[:, 0])


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60), st.sets(st.integers(0, 59), max_size=20), st.integers(1, 12)
)
@settings(max_examples=80, deadline=None)
def test_top_k_lists_the_highest_scores_in_order(values: list[int], seen: set[int], k: int) -> None:
    seen_rows = np.array(sorted(s for s in seen if s < len(values)), np.int64)
    ranked = top_k(np.array([values], np.float32), [seen_rows], k)[0].tolist()
    unseen = [item for item in range(len(values)) if item not in seen_rows]
    listed = ranked[: min(k, len(unseen))]
    assert set(listed) <= set(unseen)
    assert len(set(listed)) == len(listed)
    assert ranked[len(listed) :] == [-1] * (k - len(listed))
    assert [values[item] for item in listed] == sorted((values[i] for i in unseen), reverse=True)[: len(listed)]


@dataclass(eq=False)
class HeldOut:
    """Leave one out by time: what baselines are fitted on, and what each user is asked."""

    user_idx: npt.NDArray[np.int64]
    item_idx: npt.NDArray[np.int64]
    at_seconds: npt.NDArray[np.float64]
    seen: list[npt.NDArray[np.int64]]
    targets: list[list[int]]
    num_items: int


@pytest.fixture(scope="module")
def ml_100k(shared_data: Path) -> HeldOut:
    split = split_interactions(movielens(shared_data), SplitConfig(kind="leave_one_out"))
    history = split.history
    users, user_idx = np.unique(history["user_id"].to_pylist(), return_inverse=True)
    items, item_idx = np.unique(pa.concat_tables([history, split.test])["item_id"].to_pylist(), return_inverse=True)
    row_of = {item: row for row, item in enumerate(items.tolist())}
    fitted = item_idx[: history.num_rows]
    wanted = eval_targets(split.test, history)
    return HeldOut(
        user_idx=user_idx,
        item_idx=fitted,
        at_seconds=history["at"].cast(pa.int64()).to_numpy() / 1e6,
        seen=[fitted[user_idx == user] for user in range(len(users))],
        targets=[[row_of[item] for item in wanted[user]] for user in users.tolist()],
        num_items=len(items),
    )


@pytest.mark.parametrize(
    ("name", "expected", "within"),
    [
        ("popularity", 0.0413, 0.003),
        ("item_knn", 0.0623, 0.003),
        ("rp3beta", 0.0734, 0.015),
        ("session_knn", 0.119, 0.005),
        ("ease", 0.0729, 0.003),
        ("ials", 0.0742, 0.005),
        ("bpr", 0.0673, 0.01),
        ("random", 0.0033, 0.006),
    ],
)
def test_baseline_reaches_its_figure_on_movielens(name: str, expected: float, within: float, ml_100k: HeldOut) -> None:
    """NDCG@10 on ml-100k, full ranking.

    Popularity, item-kNN, EASE and random: figures of other implementations; RP3beta: another's, tuned. iALS, BPR and
    session-kNN: what ours had by an evaluator other than this package's, iALS and BPR within the spread over seeds;
    others reached .0658 and .0605 with settings of theirs.
    """
    model = BASELINES[name]()
    model.fit(ml_100k.user_idx, ml_100k.item_idx, ml_100k.at_seconds, len(ml_100k.seen), ml_100k.num_items)
    ranked = top_k(model.score(ml_100k.seen), ml_100k.seen, 20)
    results = evaluate_rankings(ranked, ml_100k.targets, ml_100k.num_items)
    assert results["ndcg_at_10"] == pytest.approx(expected, abs=within)
    assert results["num_users"] == 943


@pytest.mark.parametrize("name", ["choices", "split_kinds"])
def test_examples_in_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"avrec_ray.evaluation.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("max_values", [1, 10, 35, 10_000])
def test_rank_in_parts_equals_ranking_all_at_once(max_values: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(13, 7)).astype(np.float32)
    seen = [rng.choice(7, 2, replace=False) for _ in range(13)]
    candidates = np.arange(7) != 3
    parts: list[int] = []

    def score(part: slice) -> np.ndarray:
        parts.append(part.stop - part.start)
        return scores[part]

    ranked = rank_in_parts(score, seen, 4, 7, candidates, max_values)
    assert ranked.tolist() == top_k(scores, seen, 4, candidates).tolist()
    assert max(parts) * 7 <= max(max_values, 7)
    assert rank_in_parts(score, [], 4, 7).shape == (0, 4)
