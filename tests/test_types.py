"""Tables at the door: every way to break one is refused with the column and the row named."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import TableError
from avrec_ray.types import (
    EDGES,
    EVENTS,
    INTERACTIONS,
    ITEMS,
    NEGATIVE_EVENTS,
    OPTIONAL_COLUMNS,
    POSITIVE_EVENTS,
    USERS,
    check_interactions,
    check_items,
    check_table,
)

AT = datetime(2024, 5, 1, 12, tzinfo=UTC)


def items(**columns: list[Any] | pa.Array) -> pa.Table:
    return pa.table(
        {"item_id": ["a", "b", "c"], "media_uri": ["1.mp4", None, "3.wav"], "title": ["A", "B", "C"], **columns}
    )


def interactions(**columns: list[Any] | pa.Array) -> pa.Table:
    return pa.table(
        {"user_id": ["u", "u"], "item_id": ["a", "b"], "event": ["view", "like"], "at": [AT, AT], **columns}
    )


def test_events_are_split_into_positive_negative_and_impression() -> None:
    assert {*POSITIVE_EVENTS, *NEGATIVE_EVENTS, "impression"} == set(EVENTS)
    assert not set(POSITIVE_EVENTS) & set(NEGATIVE_EVENTS)
    assert len(set(EVENTS)) == len(EVENTS)


@pytest.mark.parametrize(
    ("name", "schema"), [("items", ITEMS), ("interactions", INTERACTIONS), ("users", USERS), ("edges", EDGES)]
)
def test_optional_columns_are_nullable_columns_of_their_schema(name: str, schema: pa.Schema) -> None:
    assert all(schema.field(column).nullable for column in OPTIONAL_COLUMNS[name])


def test_check_items_fills_optional_columns_with_nulls_in_schema_order() -> None:
    checked = check_items(items().select(["title", "media_uri", "item_id"]))
    assert checked.schema.equals(ITEMS)
    assert checked["item_id"].to_pylist() == ["a", "b", "c"]
    assert checked["duration_seconds"].null_count == 3


def test_check_items_keeps_extra_columns_behind() -> None:
    checked = check_items(items(face_vector=[[1.0], [2.0], [3.0]]))
    assert checked.column_names == [*ITEMS.names, "face_vector"]
    assert checked["face_vector"].to_pylist() == [[1.0], [2.0], [3.0]]


def test_check_items_casts_compatible_types() -> None:
    checked = check_items(
        items(duration_seconds=[1, 2, None], tags=pa.array([["x"], [], None], pa.large_list(pa.string())))
    )
    assert checked["duration_seconds"].to_pylist() == [1.0, 2.0, None]
    assert checked["tags"].to_pylist() == [["x"], [], None]


def test_check_items_without_a_required_column_names_it() -> None:
    with pytest.raises(TableError, match=r"items: column 'title' is missing; got \['item_id', 'media_uri'\]"):
        check_items(items().select(["item_id", "media_uri"]))


def test_check_items_with_a_null_names_column_and_row() -> None:
    with pytest.raises(TableError, match="items: column 'title' is null in row 1"):
        check_items(items(title=["A", None, "C"]))


def test_check_items_with_a_null_in_a_later_chunk_names_the_row_of_the_table() -> None:
    good, bad = items(), items(title=["A", "B", None])
    with pytest.raises(TableError, match="column 'title' is null in row 5"):
        check_items(pa.concat_tables([good, bad]))


def test_check_items_with_a_repeated_id_names_value_and_second_row() -> None:
    with pytest.raises(TableError, match="items: column 'item_id' repeats 'a' in row 2"):
        check_items(items(item_id=["a", "b", "a"]))


def test_check_items_with_a_malformed_value_names_column_row_and_value() -> None:
    with pytest.raises(
        TableError, match=r"column 'duration_seconds' has type string, expected float; row 1 holds 'long'"
    ):
        check_items(items(duration_seconds=["1.5", "long", "2"]))


def test_check_items_with_an_impossible_type_says_what_was_expected() -> None:
    with pytest.raises(
        TableError, match=r"column 'duration_seconds' has type list<item: int64>, expected float; row 0"
    ):
        check_items(items(duration_seconds=[[1], [2], [3]]))


@pytest.mark.parametrize("at", [[1_714_564_800, 1_714_564_801], [1.7e9, 1.7e9]])
def test_check_interactions_with_times_as_bare_numbers_is_refused(at: list[float]) -> None:
    with pytest.raises(
        TableError, match=r"column 'at' has type (int64|double), expected timestamp.*a number without a unit"
    ):
        check_interactions(interactions(at=at))


def test_check_interactions_with_times_in_other_units_and_zones_is_converted() -> None:
    seconds = pa.array([AT, AT], pa.timestamp("s", tz="Europe/Berlin"))
    assert check_interactions(interactions(at=seconds))["at"].to_pylist() == [AT, AT]
    assert check_interactions(interactions(at=["2024-05-01T12:00:00Z"] * 2))["at"].to_pylist() == [AT, AT]


def test_check_interactions_with_an_unknown_event_names_row_and_choices() -> None:
    with pytest.raises(
        TableError, match=r"column 'event' holds 'click' in row 1; expected one of \['impression', 'view'"
    ):
        check_interactions(interactions(event=["view", "click"]))


def test_check_interactions_with_a_repeated_event_id_is_refused_and_nulls_may_repeat() -> None:
    with pytest.raises(TableError, match="column 'event_id' repeats 'e1' in row 1"):
        check_interactions(interactions(event_id=["e1", "e1"]))
    assert check_interactions(interactions(event_id=pa.nulls(2, pa.string()))).num_rows == 2


def test_check_interactions_of_no_rows_is_an_empty_table() -> None:
    assert check_interactions(interactions().slice(0, 0)).schema.equals(INTERACTIONS)


def test_check_table_without_optional_columns_of_its_own_needs_every_column() -> None:
    with pytest.raises(TableError, match="truth: column 'attributes' is missing"):
        check_table(pa.table({"user_id": ["u"]}), USERS, "truth")


@given(st.permutations(ITEMS.names), st.integers(1, 3))
def test_check_items_is_idempotent_and_ignores_order_and_chunks(order: list[str], chunks: int) -> None:
    table = check_items(items(tags=[["x"], None, []], duration_seconds=[1.0, None, 3.0]))
    parts = pa.concat_tables([*(table.slice(row, 1) for row in range(chunks)), table.slice(chunks)])
    assert check_items(parts.select(order)).equals(table)
