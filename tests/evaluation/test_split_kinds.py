"""Items and users hidden whole: who is drawn, and that nothing of them is where a model learns."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import TableError
from avrec_ray.evaluation.leaks import find_leaks
from avrec_ray.evaluation.split import SplitConfig, eval_targets, split_interactions
from avrec_ray.evaluation.split_kinds import id_order
from tests.evaluation.test_split import Row, interactions, logs, movielens, pairs_digest, parts_of, rows_of, settings_of


def log_of(num_users: int, num_items: int) -> list[Row]:
    """Each user views each item, in an order of its own, one a second."""
    return [(f"u{u}", f"i{(u + n) % num_items}", "view", n) for u in range(num_users) for n in range(num_items)]


def all_hidden(context_fraction: float = 0.8) -> SplitConfig:
    """Every user of a small log in test."""
    return SplitConfig(
        kind="hidden_users",
        test_fraction=0.95,
        valid_fraction=0.0,
        min_interactions=3,
        context_fraction=context_fraction,
    )


def test_ids_are_ordered_by_number_then_as_text() -> None:
    ids = ["i2", "10", "9", "i10", "", "09", "9" * 5000, "²"]
    assert sorted(ids, key=id_order) == ["09", "9", "10", "9" * 5000, "", "i10", "i2", "²"]


@given(logs, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_cold_items_leaves_no_row_of_a_hidden_item_where_it_is_hidden(rows: list[Row], seed: int) -> None:
    split = split_interactions(interactions(rows), settings_of("cold_items", seed=seed))
    train, valid, test = ({row[1] for row in part} for part in parts_of(split))
    assert test == set(split.hidden["test"])
    assert valid == set(split.hidden["valid"])
    assert len(train | valid | test) == len(train) + len(valid) + len(test)
    num_items = len({row[1] for row in rows})
    assert len(valid) == len(test) == round(0.34 * num_items)


@given(logs, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_hidden_users_leaves_no_row_of_a_hidden_user_where_it_is_hidden(rows: list[Row], seed: int) -> None:
    split = split_interactions(interactions(rows), settings_of("hidden_users", seed=seed))
    train, valid, test = ({row[0] for row in part} for part in parts_of(split))
    asked = test | {row[0] for row in rows_of(split.context)}
    assert asked == set(split.hidden["test"])
    assert valid == set(split.hidden["valid"])
    assert len(train | valid | asked) == len(train) + len(valid) + len(asked)


@given(logs, st.sampled_from([0.0, 0.5, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_context_of_a_hidden_user_is_older_than_every_test_row(rows: list[Row], fraction: float) -> None:
    cfg = all_hidden(context_fraction=fraction)
    split = split_interactions(interactions(rows), cfg)
    for user in split.hidden["test"]:
        test_at = [row[3] for row in rows_of(split.test) if row[0] == user]
        context_at = [row[3] for row in rows_of(split.context) if row[0] == user]
        assert test_at
        assert max(context_at, default=-1) < min(test_at)
    assert set(eval_targets(split.test, split.history)) <= set(split.hidden["test"])


@pytest.mark.parametrize(("fraction", "num_asked"), [(0.0, 9), (0.5, 5), (0.8, 2), (1.0, 1)])
def test_hidden_user_is_asked_for_the_newest_share_of_the_choices(fraction: float, num_asked: int) -> None:
    cfg = SplitConfig(kind="hidden_users", context_fraction=fraction)
    split = split_interactions(interactions(log_of(10, 10)), cfg)
    assert len(split.hidden["test"]) == len(split.hidden["valid"]) == 1
    assert [row[3] for row in rows_of(split.test)] == list(range(10 - num_asked, 10))
    assert [row[3] for row in rows_of(split.context)] == list(range(10 - num_asked))
    user = split.hidden["test"][0]
    assert eval_targets(split.test, split.history) == {user: [row[1] for row in rows_of(split.test)]}


def test_hidden_user_ties_with_the_first_target_go_to_test() -> None:
    rows = [("u", f"i{n}", "view", min(n, 6)) for n in range(10)] + [("u", "i0", "skip", 6), ("u", "i9", "skip", 5)]
    split = split_interactions(interactions(rows), all_hidden())
    assert {row[3] for row in rows_of(split.context)} == set(range(6))
    assert [row[3] for row in rows_of(split.test)] == [6] * 5


def test_hidden_user_whose_choices_have_one_time_is_not_asked_about() -> None:
    split = split_interactions(interactions([("u", f"i{n}", "view", 3) for n in range(6)]), all_hidden())
    assert (split.test.num_rows, split.context.num_rows) == (6, 0)
    assert eval_targets(split.test, split.history) == {}


def test_user_with_few_choices_is_never_hidden() -> None:
    rows = log_of(10, 10) + [(f"few{u}", f"i{n}", "view", n) for u in range(50) for n in range(4)]
    split = split_interactions(interactions(rows), SplitConfig(kind="hidden_users"))
    assert len(split.hidden["test"]) == 1
    assert not [user for part in split.hidden.values() for user in part if user.startswith("few")]


@pytest.mark.parametrize("kind", ["cold_items", "hidden_users"])
def test_draw_depends_on_ids_and_seed_and_not_on_what_was_done(kind: str) -> None:
    first, later, other = log_of(20, 20), [(u, i, "like", at + 7) for u, i, _, at in log_of(20, 20)], log_of(20, 20)
    hidden = [
        split_interactions(interactions(rows), SplitConfig(kind=kind, seed=seed)).hidden
        for rows, seed in ((first, 1), (later, 1), (other, 2))
    ]
    assert hidden[0] == hidden[1] != hidden[2]
    assert all(len(hidden[0][part]) == 2 for part in ("valid", "test"))


def test_candidates_are_the_hidden_items_where_asked_for() -> None:
    table = interactions(log_of(20, 20))
    among_all = split_interactions(table, SplitConfig(kind="cold_items"))
    among_hidden = split_interactions(table, SplitConfig(kind="cold_items", rank_among="hidden"))
    assert among_all.candidates is None
    assert among_hidden.candidates == among_hidden.hidden["test"] == among_all.hidden["test"]


def test_digests_hold_the_context_where_there_is_one() -> None:
    table = interactions(log_of(20, 20))
    assert list(split_interactions(table, SplitConfig()).digests) == ["train", "valid", "test"]
    early, late = (
        split_interactions(table, SplitConfig(kind="hidden_users", context_fraction=share)).digests
        for share in (0.5, 0.8)
    )
    assert early["train"] == late["train"]
    assert early["context"] != late["context"]


def test_cold_items_of_movielens_is_the_published_test_set(shared_data: Path) -> None:
    split = split_interactions(movielens(shared_data), SplitConfig(kind="cold_items", seed=7))
    assert pairs_digest(split.test) == "5865cbea2fe8cff73111dff0496bfee0283487260cc89b18e1e66754742ad797"
    assert pairs_digest(split.train) == "f787059454eceec3e4c8dd9eff4d2047e69dda8f016d47db17035b3ddd7f79f7"
    assert len(eval_targets(split.test, split.history)) == 935


def test_hidden_users_of_movielens_asks_a_tenth_of_the_users(shared_data: Path) -> None:
    split = split_interactions(movielens(shared_data), SplitConfig(kind="hidden_users"))
    assert [len(split.hidden[part]) for part in ("valid", "test")] == [94, 94]
    asked = eval_targets(split.test, split.history)
    assert len(asked) >= 90
    share = sum(map(len, asked.values())) / (split.test.num_rows + split.context.num_rows)
    assert share == pytest.approx(0.2, abs=0.05)


def test_given_reads_the_part_of_each_row() -> None:
    parts = ["test", "train", "valid", "train"]
    table = interactions([("u", f"i{n}", "view", 5) for n in range(4)]).append_column("part", [parts])
    split = split_interactions(table, SplitConfig(kind="given"))
    assert [{row[1] for row in part} for part in parts_of(split)] == [{"i1", "i3"}, {"i2"}, {"i0"}]
    assert find_leaks(split.train, split.valid, split.test, split) == []


def test_given_without_parts_or_with_unknown_ones_says_what_is_wanted() -> None:
    table = interactions([("u", "i0", "view", 0), ("u", "i1", "view", 1)])
    with pytest.raises(TableError, match=r"column 'part' is missing; .*\['test', 'train', 'valid'\]"):
        split_interactions(table, SplitConfig(kind="given"))
    with pytest.raises(TableError, match="holds 'dev' at u, i1; expected one of"):
        split_interactions(table.append_column("part", [["train", "dev"]]), SplitConfig(kind="given"))
