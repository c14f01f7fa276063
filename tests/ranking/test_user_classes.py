"""Kinds of users: told apart by what they choose, equal to the formula, and the same after a bundle was written."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.stats import norm

from avrec_ray.errors import BundleError
from avrec_ray.ranking import user_class_fitting
from avrec_ray.ranking.config import ClassesConfig
from avrec_ray.ranking.user_class_fitting import PSEUDO_CHOICES, fit_classes, tell_users
from avrec_ray.ranking.user_classes import (
    LEAST_SHARE,
    MAX_LIFT,
    ClassTastes,
    History,
    UserClasses,
    WatchLines,
    choice_weights,
    history_of,
    item_vectors,
    load_tastes,
    watched_items,
    weighted_choices,
)
from avrec_ray.training.histories import EVENT_CODES, POSITIVE_CODES, EventColumns

NUM_ITEMS, NUM_USERS, NUM_CHOICES = 60, 120, 8
GENRE = np.arange(NUM_ITEMS) % 3
CFG = ClassesConfig(num_classes=6, num_starts=2)
UNKNOWN = float("nan")
NOTHING = np.zeros(0, np.int64), np.zeros(0)


def columns_of(histories: list[list[tuple[int, str, float]]]) -> EventColumns:
    """One user a history of (item, event, watched share), a second apart."""
    rows = [row for history in histories for row in history]
    return EventColumns(
        item_idx=np.array([item for item, _, _ in rows], np.int64),
        event=np.array([EVENT_CODES[event] for _, event, _ in rows], np.int64),
        watch_ratio=np.array([watched for _, _, watched in rows], np.float32),
        at_seconds=np.concatenate([np.arange(len(history), dtype=np.float64) for history in histories]),
        user_ids=[f"u{user}" for user in range(len(histories))],
        starts=np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64),
    )


def planted(seed: int = 0) -> tuple[EventColumns, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Users who choose from one genre each, eight items in ten, and vectors that tell genres with some noise."""
    rng = np.random.default_rng(seed)
    vectors = (np.eye(3)[GENRE] + 0.1 * rng.normal(size=(NUM_ITEMS, 3))).astype(np.float32)
    histories = []
    for user in range(NUM_USERS):
        odds = np.where(user % 3 == GENRE, 8.0, 1.0)
        items = rng.choice(NUM_ITEMS, NUM_CHOICES, replace=False, p=odds / odds.sum())
        histories.append([(int(item), "view", 0.5) for item in items])
    return columns_of(histories), vectors


@pytest.fixture(scope="module")
def learned() -> tuple[EventColumns, UserClasses]:
    columns, vectors = planted()
    embeddings, content = vectors[:, :2], vectors[:, 2:]
    return columns, UserClasses(fit_classes(columns, vectors, CFG), embeddings, content)


def scores_of(classes: UserClasses, columns: EventColumns, user: int, rows: list[int]) -> list[float]:
    return classes.scores(history_of(columns, span_of(columns, user)), np.array(rows)).tolist()


def span_of(columns: EventColumns, user: int) -> tuple[int, int]:
    return int(columns.starts[user]), int(columns.starts[user + 1])


def test_unseen_items_of_the_users_kind_stand_out(learned: tuple[EventColumns, UserClasses]) -> None:
    columns, classes = learned
    told = 0
    for user in range(NUM_USERS):
        scores = np.array(scores_of(classes, columns, user, list(range(NUM_ITEMS))))
        unseen = ~np.isin(np.arange(NUM_ITEMS), columns.item_idx[columns.rows(user)])
        mine, other = (scores[unseen & ((user % 3 == GENRE) == is_mine)] for is_mine in (True, False))
        told += mine.min() > other.max() and mine.mean() > 0.5 and other.mean() < -0.5
    assert told >= 0.9 * NUM_USERS


def test_an_item_that_nobody_chose_is_told_by_its_vector() -> None:
    columns, vectors = planted()
    for new in (7, 8):
        chosen = [columns.item_idx[columns.rows(user)].tolist() for user in range(NUM_USERS)]
        without = [[(item, "view", 0.5) for item in items if item != new] for items in chosen]
        told = columns_of(without)
        classes = UserClasses(fit_classes(told, vectors, CFG), vectors, vectors[:, :0])
        assert scores_of(classes, told, GENRE[new], [new])[0] > scores_of(classes, told, GENRE[new] + 1, [new])[0] + 1


def test_each_class_chooses_one_item_at_a_time() -> None:
    """The shares of a class over the items that it was learned on sum to 1."""
    columns, vectors = planted()
    tastes = fit_classes(columns, vectors, CFG)
    assert tastes.tastes.shape == (CFG.num_classes * CFG.num_starts, 3)
    assert float(tastes.shares.sum()) == pytest.approx(1.0, abs=1e-5)
    counts = np.asarray(tell_users(columns, NUM_ITEMS, 0).choices_UN.sum(0)).ravel() + PSEUDO_CHOICES
    shares_NK = counts[:, None] / counts.sum() * np.exp(vectors @ tastes.tastes.T - tastes.offsets)
    np.testing.assert_allclose(shares_NK.sum(0), 1.0, atol=1e-4)


@settings(max_examples=10)
@given(st.floats(0.1, 50.0), st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_unit_and_origin_of_vectors_do_not_matter(unit: float, origin: list[float]) -> None:
    columns, vectors = planted(1)
    cfg = ClassesConfig(num_classes=3, num_starts=1, rounds=4)
    moved = (vectors * unit + np.array(origin)).astype(np.float32)
    plain, other = (UserClasses(fit_classes(columns, v, cfg), v, v[:, :0]) for v in (vectors, moved))
    for user in (0, 1, 2):
        every = list(range(NUM_ITEMS))
        assert scores_of(other, columns, user, every) == pytest.approx(scores_of(plain, columns, user, every), abs=0.1)


def test_score_is_the_log_of_the_mixture() -> None:
    rng = np.random.default_rng(3)
    shares = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    lines = WatchLines(rng.normal(size=4).astype(np.float32), rng.random(4).astype(np.float32), 0.8, 0.25)
    tastes = ClassTastes(
        rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32), shares, 0.7, 0.9, lines
    )
    vectors = rng.normal(size=(10, 3)).astype(np.float32)
    log_lift = (vectors @ tastes.tastes.T - tastes.offsets).astype(np.float16).astype(np.float64)
    lift = np.exp(log_lift)
    chosen = lift[5] ** (0.7 * 2.0 * 0.9) * lift[3] ** (0.7 * 0.5)
    seen = [norm.pdf(share, lines.intercepts + lines.slopes * log_lift[i], 0.8) for i, share in ((3, 1.2), (8, -0.4))]
    watched = seen[0] ** (0.25 * 0.9) * seen[1] ** 0.25
    classes = UserClasses(tastes, vectors[:, :1], vectors[:, 1:])
    choices, shares_watched = (np.array([5, 3]), np.array([2.0, 0.5])), (np.array([3, 8]), np.array([1.2, -0.4]))
    for history, odds in (
        (History(*choices, *NOTHING), shares * chosen),
        (History(*NOTHING, *shares_watched), shares * watched),
        (History(*choices, *shares_watched), shares * chosen * watched),
        (History(*NOTHING, *NOTHING), shares),
    ):
        found = classes.scores(history, np.arange(10))
        np.testing.assert_allclose(found, np.log(lift @ (odds / odds.sum())), atol=1e-5)


def watching(deviation: float, told: bool = True, seed: int = 0) -> tuple[EventColumns, np.ndarray]:  # type: ignore[type-arg]
    """As `planted`, but users watch .88 of what is of their genre and .12 of other items, give or take some noise."""
    columns, vectors = planted(seed)
    mine = np.repeat(np.arange(NUM_USERS), NUM_CHOICES) % 3 == GENRE[columns.item_idx]
    logits = np.where(mine, 2.0, -2.0) + deviation * np.random.default_rng(seed).normal(size=len(mine))
    watched = 1 / (1 + np.exp(-logits)) if told else np.full(len(mine), UNKNOWN)
    return replace(columns, watch_ratio=watched.astype(np.float32)), vectors


def test_what_was_watched_long_tells_the_class_without_a_choice() -> None:
    columns, vectors = watching(0.5)
    classes = UserClasses(fit_classes(columns, vectors, CFG), vectors, vectors[:, :0])
    assert np.median(classes.tastes.lines.slopes) > 0.3  # a class of nobody has a flat line
    skipped = [[(genre, "skip", 0.9), *((other, "skip", 0.1) for other in range(3, 9) if other % 3 != genre)]
               for genre in range(3)]  # fmt: skip
    for genre in range(3):
        scores = np.array(scores_of(classes, columns_of(skipped), genre, list(range(30, 60))))
        assert scores[GENRE[30:] == genre].min() > scores[GENRE[30:] != genre].max() + 1


@pytest.mark.parametrize("deviation", [0.01, 0.3])
def test_exactly_watched_shares_leave_tastes_as_strong_as_choices_say(deviation: float) -> None:
    """Noise that is small must not hold the scale of tastes where the first rounds put it."""
    apart = []
    for told in (False, True):
        columns, vectors = watching(deviation, told)
        classes = UserClasses(fit_classes(columns, vectors, CFG), vectors, vectors[:, :0])
        scores = np.array([scores_of(classes, columns, user, list(range(NUM_ITEMS))) for user in range(30)])
        mine = np.arange(30)[:, None] % 3 == GENRE
        apart.append(scores[mine].mean() - scores[~mine].mean())
    assert apart[1] > 0.8 * apart[0] > 1.0


def test_unknown_shares_change_nothing() -> None:
    columns, vectors = watching(0.5, told=False)
    with_watch, without = (
        fit_classes(columns, vectors, replace(CFG, watch_weight=weight, watch_evidence=weight)) for weight in (0.3, 0.0)
    )
    np.testing.assert_array_equal(with_watch.tastes, without.tastes)
    assert not with_watch.lines.slopes.any()


EVENTS = st.tuples(st.integers(0, 5), st.sampled_from(["view", "like", "skip", "dislike"]), st.floats(0, 2) | st.none())


@given(st.lists(EVENTS, max_size=15), st.integers(0, 3))
def test_choices_count_once_by_their_newest_event_and_their_best_watch(
    events: list[tuple[int, str, float | None]], skipped: int
) -> None:
    history = [(item, event, float("nan") if watched is None else watched) for item, event, watched in events]
    columns = columns_of([history])
    start = min(skipped, len(history))
    expected: dict[int, float] = {}
    for item, event, watched in history[start:]:
        if EVENT_CODES[event] in POSITIVE_CODES:
            weight = float(choice_weights(np.array([watched], np.float32))[0])
            expected[item] = max(expected.pop(item, 0.0), weight)  # popped: it moves to the end
    items, weights = weighted_choices(columns, (start, len(history)))
    assert items.tolist() == list(expected)
    assert weights.tolist() == pytest.approx(list(expected.values()))


@given(st.lists(EVENTS, max_size=15), st.integers(0, 3))
def test_watched_items_count_once_by_the_newest_event_that_tells_the_share(
    events: list[tuple[int, str, float | None]], skipped: int
) -> None:
    history = [(item, event, UNKNOWN if watched is None else watched) for item, event, watched in events]
    start = min(skipped, len(history))
    expected: dict[int, float] = {}
    for item, _, watched in history[start:]:
        if not np.isnan(watched):
            expected.pop(item, None)  # it moves to the end
            expected[item] = np.clip(np.float32(watched), LEAST_SHARE, 1 - LEAST_SHARE)
    items, logits = watched_items(columns_of([history]), (start, len(history)))
    assert items.tolist() == list(expected)
    assert (1 / (1 + np.exp(-logits))).tolist() == pytest.approx(list(expected.values()))


@given(st.lists(st.lists(EVENTS, max_size=10), min_size=1, max_size=4))
def test_classes_are_learned_from_what_tells_them_later(
    histories: list[list[tuple[int, str, float | None]]],
) -> None:
    columns = columns_of(
        [[(item, event, UNKNOWN if watched is None else watched) for item, event, watched in h] for h in histories]
    )
    told = tell_users(columns, 6, 0)
    users = [u for u in range(len(histories)) if len(weighted_choices(columns, span_of(columns, u))[0])]
    assert told.choices_UN.shape == told.watched.known_UN.shape == told.watched.logits_UN.shape == (len(users), 6)
    for row, user in enumerate(users):
        history = history_of(columns, span_of(columns, user))
        for matrix, items, values in (
            (told.choices_UN, history.chosen, history.weights),
            (told.watched.known_UN, history.watched, np.ones(len(history.watched))),
            (told.watched.logits_UN, history.watched, history.watch_logits),
        ):
            expected = np.zeros(6)
            expected[items] = values
            np.testing.assert_allclose(matrix[[row]].toarray()[0], expected)


def test_scores_of_extreme_tastes_are_finite() -> None:
    vectors = np.array([[1.0], [-1.0], [0.0]], np.float32)
    tastes = ClassTastes(
        np.array([[9e3], [-9e3]], np.float32), np.zeros(2, np.float32), np.full(2, 0.5, np.float32), 1, 1,
        WatchLines(np.zeros(2, np.float32), np.full(2, 9e3, np.float32), 0.1, 0.5),
    )  # fmt: skip
    history = History(np.array([0]), np.ones(1), *NOTHING)
    scores = UserClasses(tastes, vectors, vectors[:, :0]).scores(history, np.arange(3))
    # Of the other class with a chance of exp(-2 MAX_LIFT), which has item 1 exp(MAX_LIFT) times as often.
    np.testing.assert_allclose(scores, [MAX_LIFT, np.log(2) - MAX_LIFT, 0.0], atol=1e-3)
    watched = History(*NOTHING, np.arange(3), np.array([3.0, -3.0, 0.0]))
    assert np.isfinite(UserClasses(tastes, vectors, vectors[:, :0]).scores(watched, np.arange(3))).all()


def test_nothing_to_learn_from_gives_no_classes_and_no_score() -> None:
    columns, vectors = planted()
    skips = columns_of([[(1, "skip", 0.1)], [(2, "dislike", 0.1)]])
    alike = np.ones_like(vectors)
    for told, given_vectors, cfg in (
        (skips, vectors, CFG), (columns, alike, CFG), (columns, vectors[:, :0], CFG),
        (columns, vectors, ClassesConfig(num_classes=0)),
    ):  # fmt: skip
        tastes = fit_classes(told, given_vectors, cfg)
        assert tastes.tastes.shape == (0, given_vectors.shape[1])
        assert scores_of(UserClasses(tastes, given_vectors, vectors[:, :0]), columns, 0, [0, 1]) == [0.0, 0.0]


def test_large_data_are_learned_from_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, vectors = planted()
    monkeypatch.setattr(user_class_fitting, "MAX_USERS", 60)
    monkeypatch.setattr(user_class_fitting, "MAX_ITEMS", 40)
    assert tell_users(columns, NUM_ITEMS, 0).choices_UN.shape == (60, NUM_ITEMS)
    classes = UserClasses(fit_classes(columns, vectors, CFG), vectors, vectors[:, :0])
    mine, other = scores_of(classes, columns, 0, [57]), scores_of(classes, columns, 1, [57])
    assert mine[0] > other[0] + 1


def test_same_seed_gives_the_same_classes() -> None:
    columns, vectors = planted()
    cfg = ClassesConfig(num_classes=3, num_starts=1, rounds=3)
    first, again, other = (fit_classes(columns, vectors, cfg, seed).tastes for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_items_that_join_or_change_are_as_if_they_had_been_there(learned: tuple[EventColumns, UserClasses]) -> None:
    columns, classes = learned
    _, vectors = planted()
    grown = np.concatenate([vectors, -vectors[:3]])
    grown[4] = vectors[5]
    living = UserClasses(classes.tastes, vectors[:, :2], vectors[:, 2:])
    for rows, changed, added in ((61, [4], [60]), (63, [4, 61], [61, 62])):
        living.cover(grown[:rows, :2], grown[:rows, 2:], changed, added)
    built = UserClasses(classes.tastes, grown[:, :2], grown[:, 2:])
    every = list(range(63))
    for user in (0, 1):
        assert scores_of(living, columns, user, every) == scores_of(built, columns, user, every)


def test_tastes_survive_the_bundle(learned: tuple[EventColumns, UserClasses], tmp_path: Path) -> None:
    tastes, path = learned[1].tastes, tmp_path / "classes.safetensors"
    tastes.save(path)
    again = load_tastes(path, 3)
    for written, read in ((tastes, again), (tastes.lines, again.lines)):
        for name, value in vars(written).items():
            if name != "lines":
                np.testing.assert_array_equal(getattr(read, name), value)


def test_files_that_do_not_fit_are_refused(learned: tuple[EventColumns, UserClasses], tmp_path: Path) -> None:
    path = tmp_path / "classes.safetensors"
    with pytest.raises(BundleError, match=r"classes.safetensors cannot be read .*rebuild"):
        load_tastes(path, 3)
    learned[1].tastes.save(path)
    arrays = load_file(path)
    with pytest.raises(BundleError, match="not of vectors of 4 numbers"):
        load_tastes(path, 4)
    for name, value, message in (
        ("tastes", np.full_like(arrays["tastes"], np.nan), "out of range"),
        ("shares", np.zeros_like(arrays["shares"]), "classes of nobody"),
        ("counted", np.ones(3), "cannot be read"),
        ("counted", np.array([0.7, 0.9, 0.5, 0.0]), "out of range"),
        ("watch_slopes", np.zeros(1, np.float32), "not of vectors"),
        ("offsets", np.zeros(1, np.float32), "not of vectors"),
    ):
        save_file({**arrays, name: value}, path)
        with pytest.raises(BundleError, match=message):
            load_tastes(path, 3)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BundleError, match="cannot be read"):
        load_tastes(path, 3)


def test_vectors_are_joined_as_float32() -> None:
    joined = item_vectors(np.ones((2, 3), np.float32), np.full((2, 1), 0.5, np.float16))
    assert (joined.dtype, joined[0].tolist()) == (np.float32, [1.0, 1.0, 1.0, 0.5])


def test_few_users_have_few_classes() -> None:
    columns, vectors = planted()
    few = columns_of([[(item, "view", 0.5) for item in columns.item_idx[columns.rows(u)].tolist()] for u in range(20)])
    for told, expected in ((columns, 15), (few, 2)):
        tastes = fit_classes(told, vectors, ClassesConfig(num_classes=48, num_starts=1, rounds=2))
        assert len(tastes.shares) == expected


def test_starts_are_pooled() -> None:
    columns, vectors = planted()
    pooled = fit_classes(columns, vectors, ClassesConfig(num_classes=2, num_starts=3, rounds=3))
    assert len(pooled.shares) == 6
    parts = [pooled.tastes[a:b] for a, b in pairwise((0, 2, 4, 6))]
    assert not np.allclose(parts[0], parts[1])
