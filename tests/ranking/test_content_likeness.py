"""Likeness by content: weighed by what choices follow, equal to cosines, and narrowed with little loss."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from avrec_ray.errors import BundleError
from avrec_ray.ranking.content_likeness import ContentLikeness, fit_likeness, load_likeness
from avrec_ray.retrieval.cold_items import ContentView
from avrec_ray.retrieval.neighbours import Rows

NUM_ITEMS = 120


def planted(seed: int = 0) -> tuple[list[ContentView], list[Rows]]:
    """Pictures of four kinds, of which each user chooses one; sounds that have nothing to do with it; and times."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, NUM_ITEMS)
    pictures = np.eye(4)[kind] + 0.1 * rng.normal(size=(NUM_ITEMS, 4))
    views = [
        ContentView("video", pictures.astype(np.float32)),
        ContentView("audio", rng.normal(size=(NUM_ITEMS, 5)).astype(np.float32)),
        ContentView("published", np.arange(NUM_ITEMS)[:, None].astype(np.float64), "time"),
    ]
    histories = [rng.choice(np.flatnonzero(kind == user % 4), 5, replace=False) for user in range(80)]
    return views, histories


def test_what_choices_follow_is_what_counts() -> None:
    views, histories = planted()
    likeness = fit_likeness(views, histories, NUM_ITEMS, 64)
    cosine = views[0].directions() @ views[0].directions().T
    every = np.arange(NUM_ITEMS)
    for item in range(5):
        assert likeness.scores(np.array([item]), every) == pytest.approx(cosine[item], abs=0.15)
    assert likeness.scores(np.array([3]), np.array([3]))[0] == pytest.approx(1.0, abs=1e-3)


def test_content_that_choices_do_not_follow_says_nothing() -> None:
    views, _ = planted()
    rng = np.random.default_rng(1)
    liked_unlike = [np.array([row, int(np.argmin(views[0].directions() @ views[0].directions()[row]))]) for row in
                    rng.permutation(NUM_ITEMS)[:60]]  # fmt: skip
    for told, histories in ((views[:1], liked_unlike), (views, [np.array([row]) for row in range(9)]), (views[2:], [])):
        likeness = fit_likeness(told, histories, NUM_ITEMS, 64)
        assert likeness.vectors.shape == (NUM_ITEMS, 0)
        assert likeness.scores(np.array([1, 2]), np.arange(7)).tolist() == [0.0] * 7


def test_a_user_who_chose_everything_tells_nothing_apart() -> None:
    views, _ = planted()
    assert fit_likeness(views, [np.arange(NUM_ITEMS)], NUM_ITEMS, 64).vectors.shape[1] == 0


@given(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6), st.permutations(range(6)))
def test_scores_are_means_over_distinct_choices_in_any_order(chosen: list[int], order: list[int]) -> None:
    rng = np.random.default_rng(2)
    likeness = ContentLikeness(rng.normal(size=(NUM_ITEMS, 3)).astype(np.float16))
    vectors = likeness.vectors.astype(np.float64)
    rows = np.array([5, 0, 99])
    expected = [np.mean([vectors[row] @ vectors[item] for item in set(chosen)]) if chosen else 0.0 for row in rows]
    shuffled = [chosen[place] for place in order if place < len(chosen)]
    for history in (chosen, shuffled, chosen + chosen[:2]):
        assert likeness.scores(np.array(history, np.int64), rows) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 3, 200])
def test_narrowing_keeps_the_likenesses_best(dim: int) -> None:
    """No vectors of so few numbers have dot products nearer to the cosines: the error is what Eckart and Young give."""
    views, histories = planted()
    likeness = fit_likeness(views[:1], histories, NUM_ITEMS, dim)
    assert likeness.vectors.shape == (NUM_ITEMS, min(dim, 4))
    vectors, directions = likeness.vectors.astype(np.float64), views[0].directions()
    error = np.linalg.norm(vectors @ vectors.T - directions @ directions.T)
    left_out = np.linalg.svd(directions, compute_uv=False)[dim:] ** 2
    assert error == pytest.approx(np.linalg.norm(left_out), abs=0.05)


def test_saved_vectors_come_back_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "content.safetensors"
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    for laid_out in (vectors, np.asfortranarray(vectors), np.repeat(vectors, 2, axis=1)[:, ::2]):
        ContentLikeness(laid_out).save(path)
        np.testing.assert_array_equal(load_likeness(path, 5).vectors, vectors)
    with pytest.raises(BundleError, match="catalogue of 6 items"):
        load_likeness(path, 6)
    ContentLikeness(vectors * np.float16(np.inf)).save(path)
    with pytest.raises(BundleError, match="not finite"):
        load_likeness(path, 5)
    save_file({"vectors": vectors.astype(np.float32)}, str(path))
    with pytest.raises(BundleError, match="catalogue of 5 items"):
        load_likeness(path, 5)
    path.write_bytes(b"torn")
    with pytest.raises(BundleError, match="cannot be read"):
        load_likeness(path, 5)
