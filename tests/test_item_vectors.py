"""Vector columns: any width and any list type comes out as one, and what cannot be a vector is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError, TableError
from avrec_ray.item_vectors import check_vectors, vector_column, vector_width, vectors_column, vectors_with_gaps
from avrec_ray.types import check_items


def table(vectors: list[Any], kind: pa.DataType | None = None, name: str = "video_vector") -> pa.Table:
    ids = [f"i{row}" for row in range(len(vectors))]
    nothing = pa.nulls(len(ids), pa.string())
    return pa.table({"item_id": ids, "title": ids, "media_uri": nothing, name: pa.array(vectors, kind)})


@given(st.integers(1, 9), st.lists(st.booleans(), min_size=1, max_size=6).filter(any), st.integers(0, 99))
def test_vectors_with_gaps_survive_their_column(width: int, present: list[bool], seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(len(present), width)).astype(np.float32)
    vectors[~np.array(present)] = np.nan
    field, lists = vectors_column("audio_vector", vectors)
    assert lists.null_count == present.count(False)
    column = pa.table([lists], schema=pa.schema([field]))
    np.testing.assert_array_equal(vectors_with_gaps(column, "audio"), vectors)
    assert check_vectors(column).equals(column, check_metadata=True)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float32(), 3),
        pa.list_(pa.int16()),
        pa.list_(pa.float16()),
    ],
    ids=str,
)
def test_every_list_of_numbers_becomes_one_kind_and_comes_back(kind: pa.DataType, tmp_path: Path) -> None:
    values = [None, [1, 2, 3], None, [4, 5, 6]]
    if pa.types.is_float16(kind.value_type):
        values = [None if v is None else [np.float16(x) for x in v] for v in values]
    checked = check_items(table(values, kind))
    assert checked.schema.field("video_vector").type == pa.large_list(pa.float32())
    pq.write_table(checked, tmp_path / "items.parquet")
    read = pq.read_table(tmp_path / "items.parquet")
    assert vector_width(read.schema, "video") == 3
    assert read["video_vector"].to_pylist() == [None, [1, 2, 3], None, [4, 5, 6]]
    assert check_items(read).equals(checked, check_metadata=True)
    np.testing.assert_array_equal(np.isnan(vectors_with_gaps(read.slice(0, 1), "video")), [[True] * 3])


def test_check_of_chunks_is_that_of_the_whole() -> None:
    whole = table([[1.0, 2.0], None, [3.0, 4.0]])
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert check_vectors(chunked)["video_vector"].to_pylist() == check_vectors(whole)["video_vector"].to_pylist()


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([None, [1.0, 2.0], [1.0]], "holds 1 values in row 2 and 2 in row 1; expected one width"),
        ([[1.0], None, [float("nan")]], "missing, not finite or too large for float32 in row 2"),
        ([[1.0], [float("-inf")]], "not finite or too large for float32 in row 1"),
        ([[1.0], [1e300]], "too large for float32 in row 1"),
        ([[1.0], [None]], "missing, not finite or too large for float32 in row 1"),
        ([None, None], "is null in every row|expected a list of numbers"),
        ([[], []], "vectors without values|expected a list of numbers"),
        ([["a"], ["b"]], "expected a list of numbers"),
        ([1.0, 2.0], "has type double, expected a list of numbers"),
    ],
)
def test_what_cannot_be_a_vector_is_named(vectors: list[Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        check_items(table(vectors))


def test_null_column_of_lists_is_refused() -> None:
    with pytest.raises(TableError, match="is null in every row; fill it, or drop the column"):
        check_items(table([None, None], pa.list_(pa.float32())))


def test_image_vectors_count_as_video_where_there_are_no_others() -> None:
    images = check_vectors(table([[1.0]], name="image_vector"))
    assert vector_column(images.schema, "video") == "image_vector"
    both = images.append_column(*vectors_column("video_vector", np.ones((1, 4), np.float32)))
    assert vector_column(both.schema, "video") == "video_vector"
    with pytest.raises(ConfigError, match="no column audio_vector; got "):
        vector_column(both.schema, "audio")
