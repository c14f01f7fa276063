"""Nothing of test reaches what models learn from, and a leak that was planted is found."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.evaluation.leaks import Leak, find_leaks
from avrec_ray.evaluation.split import SPLITS, Split, SplitConfig, split_interactions
from avrec_ray.pipelines.catalogue import positive_counts
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.histories import columns_from_table
from avrec_ray.training.sequence_batches import SequenceBatches
from avrec_ray.types import EVENTS, POSITIVE_EVENTS, check_interactions
from tests.evaluation.test_split import Row, interactions, logs, movielens, rows_of, settings_of

ITEMS = [f"i{n}" for n in range(30)]
KINDS = [kind for kind in SPLITS if kind != "given"]


def table(rows: list[Row]) -> pa.Table:
    return check_interactions(interactions(rows))


def behaviour(seed: int, num_users: int = 25) -> list[Row]:
    """A log with ties, repeats and every event; enough choices that every kind of split holds something out."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        times = rng.integers(0, 60, 20).tolist()
        picks = rng.zipf(1.5, 20) % len(ITEMS)
        events = ["view"] * 12 + rng.choice(EVENTS, 8).tolist()
        rows += [(f"u{user}", ITEMS[i], e, t) for i, e, t in zip(picks, events, times, strict=True)]
    return rows


def learned(train: pa.Table) -> dict[str, npt.NDArray[np.generic]]:
    """What models take from train besides its sequences: popularity, logQ estimates, warm flags."""
    columns = columns_from_table(train, {i: n for n, i in enumerate(ITEMS)}, np.full(len(ITEMS), np.nan, np.float32))
    counts = positive_counts(train, ITEMS)
    batches = SequenceBatches(columns, len(ITEMS), FinetuneConfig(negatives="mixed"), length=5, seed=0)
    return {"popularity": counts, "warm": counts > 0, "frequency": batches.frequency}


def other_users(split: Split, rng: np.random.Generator) -> list[Row]:
    """temporal: the same number of choices at the same times, by new users of items drawn anew."""
    seen = {(row[0], row[1]) for row in rows_of(split.history) if row[2] in POSITIVE_EVENTS}
    rows = []
    for number, (user, item, event, at) in enumerate(rows_of(split.test)):
        is_choice = event in POSITIVE_EVENTS and (user, item) not in seen
        seen |= {(user, item)} if is_choice else set()
        rows.append((f"new{number}", str(rng.choice(ITEMS)), "like" if is_choice else "skip", at))
    return rows


def other_items_later(split: Split, rng: np.random.Generator) -> list[Row]:
    """leave_one_out: another item that the user had not met for each last choice, all of it later."""
    met = {(row[0], row[1]) for row in rows_of(split.train) + rows_of(split.valid)}
    rows, done = [], set()
    for user, _, event, at in rows_of(split.test):
        unmet = [item for item in ITEMS if (user, item) not in met]
        is_choice = event in POSITIVE_EVENTS and user not in done and unmet
        done |= {user} if is_choice else set()
        rows.append((user, str(rng.choice(unmet or ITEMS)), "share" if is_choice else "skip", at + 1000))
    return rows


def other_admirers(split: Split, rng: np.random.Generator) -> list[Row]:
    """cold_items: the hidden items, chosen by others at other times."""
    rows = rows_of(split.test)
    return [(f"u{rng.integers(0, 25)}", item, "view", int(rng.integers(0, 60))) for _, item, _, _ in rows]


def other_tastes(split: Split, rng: np.random.Generator) -> list[Row]:
    """hidden_users: the hidden users go on with as many choices of other items."""
    users = Counter(row[0] for row in rows_of(split.test))
    chosen: dict[str, list[str]] = {
        user: [row[1] for row in rows_of(split.context) if row[0] == user] for user in users
    }
    left = {user: [item for item in ITEMS if item not in chosen[user]] for user in users}
    return [(u, str(i), "view", 100) for u, n in users.items() for i in rng.permutation(left[u])[: max(n, 3)]]


REPLACE: dict[str, Callable[[Split, np.random.Generator], list[Row]]] = {
    "temporal": other_users,
    "leave_one_out": other_items_later,
    "cold_items": other_admirers,
    "hidden_users": other_tastes,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_from_train_does_not_change_with_test(kind: str, seed: int) -> None:
    cfg = settings_of(kind, fraction=0.2)
    split = split_interactions(table(behaviour(seed)), cfg)
    kept = rows_of(split.history)
    other = table(kept + REPLACE[kind](split, np.random.default_rng(seed)))
    again = split_interactions(other, cfg)
    assert rows_of(again.test) != rows_of(split.test)
    assert again.digests["train"] == split.digests["train"]
    assert again.digests["valid"] == split.digests["valid"]
    for name, value in learned(split.train).items():
        assert np.array_equal(value, learned(again.train)[name]), name
    # the whole log does change, so that equality above says something
    whole, other_whole = learned(pa.concat_tables([split.history, split.test])), learned(other)
    assert not np.array_equal(whole["popularity"], other_whole["popularity"])
    assert not np.array_equal(whole["frequency"], other_whole["frequency"])


@pytest.mark.parametrize("seed", range(3))
def test_hidden_items_are_cold_and_no_negatives_after_training(seed: int) -> None:
    split = split_interactions(table(behaviour(seed)), settings_of("cold_items", fraction=0.2))
    hidden = np.isin(ITEMS, split.hidden["test"] + split.hidden["valid"])
    from_train = learned(split.train)
    assert hidden.sum() == 12
    assert not from_train["warm"][hidden].any()
    assert not from_train["frequency"][hidden].any()
    assert from_train["warm"][~hidden].any()


@pytest.mark.parametrize("kind", KINDS)
@given(rows=logs, seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_no_leak_is_found_in_what_a_split_gives(kind: str, rows: list[Row], seed: int) -> None:
    split = split_interactions(table(rows), settings_of(kind, seed=seed))
    fitted = pa.concat_tables([split.train, split.valid])
    popularity = dict(zip(ITEMS, positive_counts(fitted, ITEMS).tolist(), strict=True))
    assert find_leaks(split.train, split.valid, split.test, split, popularity) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["train", "valid"])
def test_test_rows_put_into_a_part_are_found(kind: str, part: str) -> None:
    split = split_interactions(table(behaviour(0)), settings_of(kind, fraction=0.2))
    given = {"train": split.train, "valid": split.valid}
    given[part] = pa.concat_tables([given[part], split.test])
    found = leaks_by_kind(find_leaks(given["train"], given["valid"], split.test, split))
    assert found["test_row", part].count == split.test.num_rows
    assert found["target_in_history", part].count > 0
    assert {where for _, where in found} == {part}
    expected = {"temporal": {"after_boundary"}, "leave_one_out": set(), "cold_items": {"hidden_id"}}
    assert expected.get(kind, {"hidden_id"}) <= {kind for kind, _ in found}


@pytest.mark.parametrize("kind", KINDS)
def test_one_test_row_in_train_is_found_and_named(kind: str) -> None:
    split = split_interactions(table(behaviour(1)), settings_of(kind, fraction=0.2))
    row = rows_of(split.test)[-1]
    train = pa.concat_tables([split.train, split.test.slice(split.test.num_rows - 1)])
    leak = leaks_by_kind(find_leaks(train, split.valid, split.test, split))["test_row", "train"]
    assert leak.count == 1
    assert leak.message.startswith("train: 1 rows of test are in train, expected 0; such as ")
    assert f"('{row[0]}', '{row[1]}', '{row[2]}', {row[3]}000000)" in leak.message


@pytest.mark.parametrize("kind", KINDS)
def test_popularity_of_the_whole_log_is_found(kind: str) -> None:
    split = split_interactions(table(behaviour(2)), settings_of(kind, fraction=0.2))
    whole = positive_counts(pa.concat_tables([split.history, split.test]), ITEMS)
    known = positive_counts(pa.concat_tables([split.train, split.valid]), ITEMS)
    popularity = dict(zip(ITEMS, whole.tolist(), strict=True))
    (leak,) = find_leaks(split.train, split.valid, split.test, split, popularity)
    assert (leak.kind, leak.count) == ("popularity", int((whole > known).sum()))
    assert "more were counted than train and valid hold" in leak.message


def test_a_target_known_by_another_row_is_found() -> None:
    """The choice itself is not in train, but something else that its user did with the item is."""
    split = split_interactions(table(behaviour(0)), settings_of("leave_one_out"))
    user, item, _, _ = next(row for row in rows_of(split.test) if row[2] in POSITIVE_EVENTS)
    train = pa.concat_tables([split.train, table([(user, item, "skip", 0)])])
    (leak,) = find_leaks(train, split.valid, split.test, split)
    assert (leak.kind, leak.part, leak.count) == ("target_in_history", "train", 1)
    assert f"('{user}', '{item}')" in leak.message


def test_rows_on_the_wrong_side_of_a_boundary_are_found() -> None:
    split = split_interactions(table(behaviour(0)), SplitConfig())
    late, early = split.valid.slice(0, 1), split.valid.slice(0, 2)
    found = leaks_by_kind(find_leaks(pa.concat_tables([split.train, late]), split.valid, split.test, split))
    assert list(found) == [("after_boundary", "train")]
    assert (
        f"at or after {split.boundaries['valid_at_seconds']:.0f}000000 us" in found["after_boundary", "train"].message
    )
    test = pa.concat_tables([early, split.test])
    found = leaks_by_kind(find_leaks(split.train, split.valid, test, split))
    assert list(found) == [("before_boundary", "test")]
    assert found["before_boundary", "test"].count == 2


def test_a_row_newer_than_its_users_last_choice_is_found() -> None:
    split = split_interactions(table(behaviour(0)), settings_of("leave_one_out"))
    user = rows_of(split.test)[0][0]
    later = table([(user, "i0", "skip", 1000), ("somebody", "i0", "skip", 1000)])
    train = pa.concat_tables([split.train, later])
    found = leaks_by_kind(find_leaks(train, split.valid, split.test, split))
    assert found["after_boundary", "train"].count == 1
    assert "rows of train are newer than test of their user" in found["after_boundary", "train"].message


def test_context_as_new_as_a_target_is_found() -> None:
    split = split_interactions(table(behaviour(0)), settings_of("hidden_users", fraction=0.2))
    tied = split.test.slice(0, 1)
    split.context = pa.concat_tables([split.context, tied])
    found = leaks_by_kind(find_leaks(split.train, split.valid, split.test, split))
    assert found["after_boundary", "context"].count == 1


@pytest.mark.parametrize(("kind", "column"), [("cold_items", "item_ids"), ("hidden_users", "user_ids")])
def test_hidden_ids_in_a_part_are_found(kind: str, column: str) -> None:
    split = split_interactions(table(behaviour(0)), settings_of(kind, fraction=0.2))
    train = pa.concat_tables([split.train, split.valid])
    found = leaks_by_kind(find_leaks(train, split.valid, split.test, split))
    assert list(found) == [("hidden_id", "train")]
    assert f"{column} hidden for valid are in train" in found["hidden_id", "train"].message
    assert found["hidden_id", "train"].count == len(split.hidden["valid"])


@pytest.mark.parametrize("kind", KINDS)
def test_splits_of_movielens_leak_nothing(kind: str, shared_data: Path) -> None:
    split = split_interactions(movielens(shared_data), SplitConfig(kind=kind))
    assert find_leaks(split.train, split.valid, split.test, split) == []


def leaks_by_kind(leaks: list[Leak]) -> dict[tuple[str, str], Leak]:
    return {(leak.kind, leak.part): leak for leak in leaks}
