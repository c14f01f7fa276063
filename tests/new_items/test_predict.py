"""What is predicted of an item that joins is what a bundle would have said, had it been there when that was built."""

from pathlib import Path

import numpy as np
import pytest

from avrec_ray.errors import BundleError
from avrec_ray.evaluation.text_vectors import fit_words
from avrec_ray.media.text import item_text
from avrec_ray.new_items.predict import (
    FILES,
    PUBLISHED,
    TAGS,
    WORDS,
    ContentSpace,
    SpokenFor,
    build_predictor,
    load_predictor,
)
from avrec_ray.new_items.submission import Submission
from avrec_ray.ranking.content_likeness import fit_likeness_map
from avrec_ray.retrieval.cold_items import ContentView, choose_weights, known_rows, sampled_scores, with_cold_items
from avrec_ray.retrieval.config import NeighbourConfig
from avrec_ray.retrieval.neighbours import fit_neighbours

NUM_ITEMS, NUM_COLD, NUM_USERS, NUM_NEIGHBOURS = 60, 8, 40, 12
KINDS = ("cats", "dogs", "birds")


@pytest.mark.parametrize("content_dim", [8, 500])
def test_joined_item_is_spoken_for_as_a_cold_item_of_the_bundle(tmp_path: Path, content_dim: int) -> None:
    """Items of three kinds, users who choose one kind; the last items are cold in the bundle and submitted again."""
    rng = np.random.default_rng(0)
    kind = np.arange(NUM_ITEMS) % 3
    facts = [
        Submission(f"i{n}", f"{KINDS[kind[n]]} number {n % 7}", tags=(KINDS[kind[n]],) if n % 4 else (),
                   category="pets" if n % 5 else None, published_at_seconds=None if n % 6 == 0 else 86_400.0 * n)
        for n in range(NUM_ITEMS)
    ]  # fmt: skip
    tokens = rng.normal(size=(NUM_ITEMS, 5)) + 2 * np.eye(5)[kind]
    tokens[::9] = 0
    users = np.repeat(np.arange(NUM_USERS), 10)
    warm = np.arange(NUM_ITEMS - NUM_COLD)
    chosen = np.concatenate([rng.permutation(warm[kind[warm] == user % 3])[:10] for user in range(NUM_USERS)])
    table = fit_neighbours(users, chosen, NUM_USERS, NUM_ITEMS, NeighbourConfig())
    texts = [item_text(f.title, f.description, f.tags) for f in facts]
    tags = sorted({t for f in facts for t in (*f.tags, *([f.category] if f.category else []))})
    space = ContentSpace({tag: n for n, tag in enumerate(tags)}, fit_words(texts))
    days = np.array([np.nan if f.published_at_seconds is None else f.published_at_seconds / 86_400 for f in facts])
    views = [
        ContentView(TAGS, np.concatenate([space.tag_vector(f.tags, f.category) for f in facts]), "words"),
        ContentView(WORDS, space.words.vectors(texts), "words"),
        ContentView(PUBLISHED, days[:, None], "time"),
        ContentView("video", tokens),
    ]
    histories = np.split(chosen, NUM_USERS)
    counts = np.bincount(chosen, minlength=NUM_ITEMS)
    weights = choose_weights(views, np.flatnonzero(counts), sampled_scores(table, histories, np.flatnonzero(counts)))
    whole = with_cold_items(table, views, weights, counts, NUM_NEIGHBOURS)
    content, likeness = fit_likeness_map(views, histories, NUM_ITEMS, content_dim)
    assert content.vectors.shape[1] > 0

    build_predictor(space, views, known_rows(counts), {"taste": weights}, likeness).save(tmp_path)
    predictor = load_predictor(tmp_path)
    tables = {"taste": SpokenFor(whole, predictor, "taste", NUM_NEIGHBOURS)}
    for row in range(NUM_ITEMS - NUM_COLD, NUM_ITEMS):
        means = {"video": tokens[row]}
        predicted = predictor(facts[row], means, tables, [f.item_id for f in facts], "v-1")
        expected = {
            watched: float(whole.weights[place])
            for watched in range(NUM_ITEMS)
            for place in range(whole.starts[watched], whole.starts[watched + 1])
            if whole.items[place] == row
        }
        item_ids, values = predicted.speakers["taste"]
        got = {int(item_id[1:]): float(value) for item_id, value in zip(item_ids, values, strict=True)}
        largest = max(abs(value) for value in expected.values())
        for watched, value in expected.items():  # where float16 orders the last ones otherwise, they are small
            assert got.get(watched, value) == pytest.approx(value, abs=0.02 * largest)
        assert len(set(got) & set(expected)) >= NUM_NEIGHBOURS - 2
        np.testing.assert_allclose(
            np.asarray(predicted.content, np.float32), content.vectors[row].astype(np.float32), atol=5e-3
        )
    (tmp_path / FILES[1]).write_text("{}")
    with pytest.raises(BundleError, match="cannot be read .* rebuild the bundle"):
        load_predictor(tmp_path)


def test_item_that_tells_nothing_is_predicted_the_mean(tmp_path: Path) -> None:
    words = fit_words(["a b", "a b", "c d"])
    views = [ContentView(WORDS, words.vectors(["a b", "a b", "c d"]), "words")]
    table = fit_neighbours(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), 2, 3, NeighbourConfig())
    counts = np.array([2, 2, 0])
    weights = choose_weights(views, np.array([0, 1]), sampled_scores(table, [np.array([0, 1])], np.array([0, 1])))
    content, likeness = fit_likeness_map(views, [np.array([0, 1]), np.array([0, 1])], 3, 4)
    space = ContentSpace({}, words)
    predictor = build_predictor(space, views, known_rows(counts), {"taste": weights}, likeness)
    spoken = SpokenFor(table, predictor, "taste", 5)
    told = predictor(Submission("n"), {}, {"taste": spoken}, ["x", "y", "z"], "v")
    assert len(told.content) == content.vectors.shape[1]
    assert not told.content.any()
    if told.speakers:
        np.testing.assert_allclose(told.speakers["taste"][1], [0.5, 0.5])
