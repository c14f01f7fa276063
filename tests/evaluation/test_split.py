import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.dataclass_io import from_dict
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.evaluation.split import (
    SPLITS,
    Split,
    SplitConfig,
    eval_targets,
    first_choices,
    split_interactions,
    table_digest,
    tie_codes,
)
from avrec_ray.types import EVENTS, INTERACTIONS

Row = tuple[str, str, str, int]


def interactions(rows: list[Row]) -> pa.Table:
    """Rows of user, item, event, second."""
    columns = list(zip(*rows, strict=True)) or [[], [], [], []]
    at = [datetime.fromtimestamp(second, UTC) for second in columns[3]]
    return pa.table(
        {
            "user_id": pa.array(columns[0], pa.string()),
            "item_id": pa.array(columns[1], pa.string()),
            "event": pa.array(columns[2], pa.string()),
            "at": pa.array(at, pa.timestamp("us", tz="UTC")),
        }
    )


def rows_of(table: pa.Table) -> list[Row]:
    rows = table.select(["user_id", "item_id", "event", "at"]).to_pylist()
    return [(r["user_id"], r["item_id"], r["event"], int(r["at"].timestamp())) for r in rows]


def parts_of(split: Split) -> list[list[Row]]:
    return [rows_of(part) for part in (split.train, split.valid, split.test)]


def settings_of(kind: str, fraction: float = 0.34, seed: int = 0) -> SplitConfig:
    """Shares that leave something in each part of a small log."""
    return SplitConfig(kind=kind, test_fraction=fraction, valid_fraction=fraction, min_interactions=3, seed=seed)


logs = st.lists(
    st.tuples(
        st.sampled_from(["u0", "u1", "u2"]),
        st.sampled_from([f"i{n}" for n in range(6)]),
        st.sampled_from(EVENTS),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=60,
).filter(lambda rows: any(row[2] in ("view", "like") for row in rows))


def test_temporal_cuts_all_rows_at_two_times() -> None:
    rows = [("u", f"i{n}", "view", n) for n in range(10)]
    rows += [("u", "i0", "skip", 9), ("u", "i1", "impression", 8), ("u", "i2", "view", 2)]
    split = split_interactions(interactions(rows), SplitConfig())
    assert split.boundaries == {"valid_at_seconds": 8.0, "test_at_seconds": 9.0}
    assert sorted(row[3] for row in rows_of(split.train)) == [0, 1, 2, 2, 3, 4, 5, 6, 7]
    assert {row[1] for row in rows_of(split.valid)} == {"i8", "i1"}
    assert {row[1] for row in rows_of(split.test)} == {"i9", "i0"}


def test_temporal_without_test_fraction_leaves_test_empty() -> None:
    rows = [("u", f"i{n}", "view", n) for n in range(10)] + [("u", "i0", "skip", 50)]
    split = split_interactions(interactions(rows), SplitConfig(test_fraction=0.0, valid_fraction=0.5))
    assert (split.train.num_rows, split.valid.num_rows, split.test.num_rows) == (5, 6, 0)


@given(logs, st.sampled_from([0.1, 0.25, 0.4]))
@settings(max_examples=60, deadline=None)
def test_temporal_lets_nothing_of_the_future_into_an_earlier_part(rows: list[Row], fraction: float) -> None:
    cfg = SplitConfig(test_fraction=fraction, valid_fraction=fraction)
    split = split_interactions(interactions(rows), cfg)
    train, valid, test = parts_of(split)
    assert sorted(train + valid + test) == sorted(rows)
    assert all(row[3] < split.boundaries["valid_at_seconds"] for row in train)
    assert all(row[3] >= split.boundaries["test_at_seconds"] for row in test)
    assert max([row[3] for row in train], default=-1) < min([row[3] for row in valid + test], default=99)
    assert max([row[3] for row in valid], default=-1) < min([row[3] for row in test], default=99)


def test_leave_one_out_holds_out_the_last_two_choices_of_each_user() -> None:
    rows = [("a", f"i{n}", "view", n) for n in range(5)] + [("b", f"i{n}", "view", 10 - n) for n in range(6)]
    train, valid, test = parts_of(split_interactions(interactions(rows), SplitConfig(kind="leave_one_out")))
    assert {row[:2] for row in test} == {("a", "i4"), ("b", "i0")}
    assert {row[:2] for row in valid} == {("a", "i3"), ("b", "i1")}
    assert len(train) == 7


def test_leave_one_out_keeps_a_user_with_few_choices_in_train() -> None:
    rows = [("a", f"i{n}", "view", n) for n in range(4)] + [("a", "i0", "like", 9), ("a", "i7", "skip", 10)]
    train, valid, test = parts_of(split_interactions(interactions(rows), SplitConfig(kind="leave_one_out")))
    assert (len(train), valid, test) == (6, [], [])
    cfg = SplitConfig(kind="leave_one_out", min_interactions=4)
    assert [row[:2] for row in rows_of(split_interactions(interactions(rows), cfg).test) if row[2] == "view"] == [
        ("a", "i3")
    ]


def test_leave_one_out_holds_out_what_came_with_or_after_a_held_out_choice() -> None:
    rows = [("a", f"i{n}", "view", n) for n in range(5)]
    rows += [("a", "i0", "like", 2), ("a", "i0", "like", 3), ("a", "i1", "share", 4), ("a", "i9", "skip", 7)]
    train, valid, test = parts_of(split_interactions(interactions(rows), SplitConfig(kind="leave_one_out")))
    assert ("a", "i0", "like", 2) in train
    assert set(valid) == {("a", "i3", "view", 3), ("a", "i0", "like", 3)}
    assert set(test) == {("a", "i4", "view", 4), ("a", "i1", "share", 4), ("a", "i9", "skip", 7)}


@given(logs)
@settings(max_examples=60, deadline=None)
def test_leave_one_out_asks_each_user_for_one_unseen_item(rows: list[Row]) -> None:
    split = split_interactions(interactions(rows), SplitConfig(kind="leave_one_out", min_interactions=3))
    train, valid, test = parts_of(split)
    assert sorted(train + valid + test) == sorted(rows)
    history = pa.concat_tables([split.train, split.valid])
    assert all(len(items) <= 1 for items in eval_targets(split.test, history).values())
    for user in {row[0] for row in test}:
        test_at = min(row[3] for row in test if row[0] == user)
        assert all(row[3] <= test_at for row in train + valid if row[0] == user)


@pytest.mark.parametrize("kind", [kind for kind in SPLITS if kind != "given"])
@given(rows=logs, order=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_split_does_not_depend_on_the_order_of_distinct_rows(kind: str, rows: list[Row], order: Random) -> None:
    rows = list({row[:2] + row[3:]: row for row in rows}.values())  # rows equal in user, item, time keep file order
    if not any(row[2] in ("view", "like") for row in rows):
        return
    shuffled = order.sample(rows, len(rows))
    cfg = settings_of(kind)
    left, right = (split_interactions(interactions(r), cfg) for r in (rows, shuffled))
    assert left.digests == right.digests
    assert left.boundaries == right.boundaries
    assert left.hidden == right.hidden


@pytest.mark.parametrize("kind", [kind for kind in SPLITS if kind != "given"])
@given(rows=logs, seed=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_split_puts_every_row_in_exactly_one_part(kind: str, rows: list[Row], seed: int) -> None:
    split = split_interactions(interactions(rows), settings_of(kind, seed=seed))
    train, valid, test = parts_of(split)
    assert sorted(train + valid + test + rows_of(split.context)) == sorted(rows)
    assert split.kind == kind
    assert kind == "hidden_users" or not split.context.num_rows
    assert split.history.num_rows == len(rows) - split.test.num_rows


def test_split_orders_rows_of_one_time_by_a_hash_and_not_by_item_id() -> None:
    rows = [("u", f"i{n:02d}", "view", 5) for n in range(20)] + [("u", f"j{n}", "view", 6) for n in range(20)]
    items = [row[1] for row in rows_of(split_interactions(interactions(rows), SplitConfig()).train)]
    expected = sorted((f"i{n:02d}" for n in range(20)), key=lambda i: hashlib.sha256(f"u|{i}".encode()).hexdigest())
    assert items == expected


def test_split_keeps_all_columns_and_adds_optional_ones() -> None:
    table = interactions([("u", f"i{n}", "view", n) for n in range(9)]).append_column("device", pa.array(["tv"] * 9))
    split = split_interactions(table, SplitConfig())
    assert split.train.column_names == [*INTERACTIONS.names, "device"]
    assert split.test.schema == split.train.schema


@pytest.mark.parametrize("rows", [[], [("u", "i", "skip", 1), ("u", "j", "impression", 2)]])
def test_split_without_a_choice_is_refused(rows: list[Row]) -> None:
    with pytest.raises(TableError, match="no positive event; expected one of"):
        split_interactions(interactions(rows), SplitConfig())


def test_split_of_a_table_without_time_names_the_column() -> None:
    with pytest.raises(TableError, match="'at' is missing"):
        split_interactions(interactions([("u", "i", "view", 1)]).drop_columns("at"), SplitConfig())


def test_first_choices_marks_one_positive_event_a_user_and_item() -> None:
    rows = [("u", "i", "impression", 1), ("u", "i", "view", 2), ("u", "i", "like", 3), ("v", "i", "like", 4)]
    assert first_choices(interactions(rows)).tolist() == [False, True, False, True]


def test_tie_codes_are_the_first_52_bits_of_the_hash() -> None:
    digest = hashlib.sha256(b"7|42").hexdigest()
    assert tie_codes(["7"], ["42"]).tolist() == [int(digest[:13], 16)]


def test_eval_targets_leave_out_seen_items_and_users_without_history() -> None:
    history = interactions(
        [("a", "i0", "view", 1), ("a", "i1", "skip", 2), ("a", "i2", "impression", 2), ("d", "i0", "impression", 1)]
    )
    test = interactions(
        [
            ("a", "i0", "like", 5),
            ("a", "i1", "view", 6),
            ("a", "i2", "view", 7),
            ("a", "i3", "skip", 8),
            ("a", "i4", "view", 9),
            ("a", "i4", "like", 10),
            ("new", "i3", "view", 11),
            ("d", "i3", "view", 12),
        ]
    )
    assert eval_targets(test, history) == {"a": ["i2", "i4"]}


def test_digest_sees_content_and_order_but_not_chunks() -> None:
    table = interactions([("u", "i", "view", 1), ("u", "j", "view", 2)])
    in_chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert table_digest(table) == table_digest(in_chunks)
    assert table_digest(table) != table_digest(table.take([1, 0]))
    assert table_digest(table) != table_digest(interactions([("u", "i", "view", 1), ("u", "j", "view", 3)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "random"}, r"evaluation.split.kind='random' is not one of \['cold_items', 'given', 'hidden_users', "),
        ({"test_fraction": 0.6, "valid_fraction": 0.4}, "leave nothing to train on"),
        ({"test_fraction": -0.1}, "evaluation.split.test_fraction=-0.1 is outside"),
        ({"min_interactions": 2}, "evaluation.split.min_interactions=2 is outside"),
        ({"seed": -1}, "evaluation.split.seed=-1 is outside"),
        ({"context_fraction": 1.2}, "evaluation.split.context_fraction=1.2 is outside"),
        ({"rank_among": "cold"}, r"evaluation.split.rank_among='cold' is not one of \['all', 'hidden'\]"),
        ({"rank_among": "hidden"}, "rank_among='hidden' with kind='temporal'; only cold_items hides items"),
    ],
)
def test_config_out_of_range_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(SplitConfig, settings)


@cache
def movielens(folder: Path) -> pa.Table:
    lines = (folder / "interactions" / "ml-100k" / "ml-100k.inter").read_text().splitlines()[1:]
    ratings = [line.split("\t") for line in lines]
    return interactions([(r[0], r[1], "view", int(float(r[3]))) for r in ratings])


def pairs_digest(table: pa.Table) -> str:
    pairs = sorted(f"{row[0]}\t{row[1]}" for row in rows_of(table))
    return hashlib.sha256(("\n".join(pairs) + "\n").encode()).hexdigest()


def test_leave_one_out_of_movielens_is_the_published_test_set(shared_data: Path) -> None:
    split = split_interactions(movielens(shared_data), SplitConfig(kind="leave_one_out"))
    assert pairs_digest(split.test) == "0e4528ed7e675a5deaad4e66bbbefa4af5b2de0511a43f79dac6879f45088656"
    assert (split.train.num_rows, split.valid.num_rows) == (98_114, 943)


def test_temporal_of_movielens_cuts_where_the_published_split_does(shared_data: Path) -> None:
    split = split_interactions(movielens(shared_data), SplitConfig())
    assert split.boundaries == {"valid_at_seconds": 889_237_269.0, "test_at_seconds": 891_382_309.0}
    assert len(eval_targets(split.test, pa.concat_tables([split.train, split.valid]))) == 90
