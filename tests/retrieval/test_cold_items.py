"""Items that nobody chose: kernels by hand, leaving out by refitting, and a planted link from content to behaviour."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.retrieval.cold_items import (
    ContentView,
    ContentWeights,
    _left_out,
    choose_weights,
    joined,
    sampled_scores,
    with_cold_items,
)
from avrec_ray.retrieval.config import NeighbourConfig
from avrec_ray.retrieval.neighbours import ItemNeighbours, fit_neighbours

EVERY = np.arange(4)


def test_words_are_alike_by_cosine_and_nothing_is_like_nothing() -> None:
    view = ContentView("tags", np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]], np.float32), "words")
    half = np.sqrt(0.5)
    expected = [[1, half, 0, 0], [half, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert view.kernel(EVERY, EVERY) == pytest.approx(np.array(expected), abs=1e-6)


def test_dense_vectors_are_alike_by_what_differs_from_the_mean() -> None:
    told = np.array([[5, 1], [5, -1], [5, 1], [0, 0]], np.float32)  # the mean of the told ones is (5, 1/3)
    kernel = ContentView("text", told).kernel(EVERY, EVERY)
    assert kernel[0] == pytest.approx([1, np.exp(-4), 1, 0], abs=1e-6)
    assert kernel[3].tolist() == [0, 0, 0, 0]


def test_times_are_alike_by_how_far_apart_they_are() -> None:
    view = ContentView("published", np.array([[0.0], [10.0], [20.0], [np.nan]]), "time")  # usually 10 from the middle
    kernel = view.kernel(EVERY, EVERY)
    assert kernel[0] == pytest.approx([1, np.exp(-1), np.exp(-2), 0])


@given(st.integers(0, 1000), st.sampled_from([0.3, 3.0]))
def test_left_out_error_is_that_of_fitting_without_the_item(seed: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    points, targets = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    plain = ContentView("x", points).kernel(np.arange(7), np.arange(7))
    kernel = plain**2
    centred = targets - targets.mean(0)
    squared = []
    for out in range(7):
        rest = [row for row in range(7) if row != out]
        fitted = np.linalg.solve(kernel[np.ix_(rest, rest)] + ridge * np.eye(6), centred[rest])
        squared.append((centred[out] - kernel[out, rest] @ fitted) ** 2)
    expected = np.mean(squared) / np.mean(centred**2)
    assert _left_out({"x": plain}, {"x": 1.0}, ridge, targets).error == pytest.approx(expected)


def test_items_alike_in_two_things_are_more_than_twice_as_alike_as_in_one() -> None:
    one, both = np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]])
    assert joined({"tags": one, "published": both}, {"tags": 1.0, "published": 1.0}) == pytest.approx(
        np.array([[0.25, 1.0]])
    )
    assert joined({"tags": one, "published": both}, {"tags": 3.0, "published": 0.0}) == pytest.approx(
        np.array([[0.0, 1.0]])
    )
    assert joined({"tags": one, "published": both}, {"tags": 0.0, "published": 0.0}).tolist() == [[0.0, 0.0]]


def planted() -> tuple[ItemNeighbours, list[np.ndarray], np.ndarray, list[ContentView]]:
    """Two circles of users, each with items of its own, and tags that tell which circle's an item is; the last of each
    circle's items nobody chose. Colours say nothing.
    """
    rng = np.random.default_rng(0)
    histories = [np.sort(rng.permutation(19)[:8]) + 20 * (user % 2) for user in range(60)]
    users, items = np.repeat(np.arange(60), 8), np.concatenate(histories)
    table = fit_neighbours(users, items, 60, 40, NeighbourConfig(num_neighbours=40))
    circle = np.arange(40) // 20
    tags = np.stack([circle == 0, circle == 1], 1).astype(np.float32)
    views = [ContentView("tags", tags, "words"), ContentView("colours", rng.normal(size=(40, 6)))]
    return table, histories, np.bincount(items, minlength=40), views


def test_what_tells_is_weighed_and_what_does_not_is_dropped() -> None:
    table, histories, counts, views = planted()
    known = np.flatnonzero(counts)
    weights = choose_weights(views, known, sampled_scores(table, histories, known))
    assert weights.views["tags"] > 0
    assert weights.views["colours"] == 0
    assert weights.error < 0.3


def test_cold_items_are_spoken_for_by_their_circle_and_known_items_stay_as_they_were() -> None:
    table, histories, counts, views = planted()
    weights = ContentWeights({"tags": 1.0, "colours": 0.0}, 0.3, 0.0)
    full = with_cold_items(table, views, weights, counts, num_neighbours=30)
    cold = [19, 39]
    assert (counts[cold] == 0).all()
    for user, history in enumerate(histories):
        scores, before = full.scores(history), table.scores(history)
        own, other = cold[user % 2], cold[1 - user % 2]
        assert scores[own] > 10 * abs(scores[other])
        assert before[cold].tolist() == [0, 0]
        assert np.delete(scores, cold) == pytest.approx(np.delete(before, cold), abs=1e-6)


def test_nothing_changes_where_no_item_is_cold_or_none_is_wanted() -> None:
    table, _, counts, views = planted()
    weights = ContentWeights({"tags": 1.0, "colours": 0.0}, 1.0, 0.0)
    assert with_cold_items(table, views, weights, counts, 0) is table
    assert with_cold_items(table, views, weights, counts + 1, 9) is table
    assert with_cold_items(table, views, weights, 0 * counts, 9) is table


def test_at_most_so_many_speak_for_a_cold_item() -> None:
    table, _, counts, views = planted()
    weights = ContentWeights({"tags": 1.0, "colours": 1.0}, 1.0, 0.0)
    full = with_cold_items(table, views, weights, counts, num_neighbours=5)
    assert [int((full.items == item).sum()) for item in (19, 39)] == [5, 5]


def test_content_that_tells_little_is_not_given_up() -> None:
    """Scores are three parts noise to one of content: small ridges err more than knowing nothing does."""
    rng = np.random.default_rng(0)
    content = rng.normal(size=(150, 6))
    views = [ContentView("video", content), ContentView("audio", rng.normal(size=(150, 6)))]
    told = np.exp(2 * views[0].directions() @ views[0].directions().T) @ rng.normal(size=(150, 40))
    scores_SW = (told / told.std(0) + 3.0 * rng.normal(size=told.shape)).T
    small = _left_out({v.name: v.kernel(np.arange(150), np.arange(150)) for v in views}, {"video": 1.0, "audio": 1.0},
                      0.3, scores_SW.T)  # fmt: skip
    weights = choose_weights(views, np.arange(150), scores_SW)
    assert small.error > 1.0 > weights.error
    assert weights.views["video"] > weights.views["audio"]
