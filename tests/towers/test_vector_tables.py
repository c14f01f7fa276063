"""Vectors through Parquet: what is read is what was written, and a bad row is named."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avrec_ray.errors import BundleError
from avrec_ray.towers.vector_tables import moment_arrays, vectors_of, write_embeddings, write_moments
from tests.tiny_models import tiny_towers

CFG = tiny_towers(embedding_dim=4)
IDS = ["a", "b", "c"]
SPANS = np.array([[[0, 4], [6, 10]], [[0, 2], [0, 0]], [[0, 0], [0, 0]]], np.float32)


def moments_of(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    moments = np.random.default_rng(0).normal(size=(*mask.shape, 4)).astype(np.float32)
    return np.where(mask[..., None], moments, np.float32(0))


def moments_table(**changed: Any) -> pa.Table:
    columns = {
        "item_id": ["a"],
        "moment_idx": [0],
        "start_seconds": [0.0],
        "end_seconds": [1.0],
        "embedding": [[1.0] * 4],
    }
    return pa.table({**columns, **changed})


def test_write_embeddings_round_trips_with_its_version(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    write_embeddings(tmp_path / "e.parquet", IDS, vectors, "v-1")
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.schema.metadata[b"model_version"] == b"v-1"
    assert table["item_id"].to_pylist() == IDS
    np.testing.assert_array_equal(vectors_of(table, "embedding", 4), vectors)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=3, max_size=3))
def test_write_moments_and_moment_arrays_are_inverse(tmp_path: Path, present: list[list[bool]]) -> None:
    mask = np.array(present)
    moments = moments_of(mask)
    assert write_moments(tmp_path / "m.parquet", IDS, moments, mask, SPANS, "v-1") == mask.sum()
    vectors, read_mask, spans = moment_arrays(pq.read_table(tmp_path / "m.parquet"), IDS, CFG)
    np.testing.assert_array_equal(vectors, moments)
    np.testing.assert_array_equal(read_mask, mask)
    expected = np.stack([SPANS[:, 0], SPANS[:, 1], SPANS[:, 0], SPANS[:, 1], np.array([[0, 10], [0, 2], [0, 0]])], 1)
    np.testing.assert_array_equal(spans, np.where(mask[..., None], expected, 0))


def test_write_moments_names_modality_and_version(tmp_path: Path) -> None:
    mask = np.ones((3, 5), bool)
    write_moments(tmp_path / "m.parquet", IDS, moments_of(mask), mask, SPANS, "v-9")
    table = pq.read_table(tmp_path / "m.parquet")
    assert table["modality"].to_pylist() == ["video", "video", "audio", "audio", "text"] * 3
    assert table.schema.metadata[b"model_version"] == b"v-9"


def test_moment_arrays_follow_the_order_asked_for(tmp_path: Path) -> None:
    mask = np.ones((3, 5), bool)
    moments = moments_of(mask)
    write_moments(tmp_path / "m.parquet", IDS, moments, mask, SPANS, "v-1")
    vectors, _, _ = moment_arrays(pq.read_table(tmp_path / "m.parquet"), ["c", "a", "b"], CFG)
    np.testing.assert_array_equal(vectors, moments[[2, 0, 1]])


def test_vectors_of_no_rows_is_empty() -> None:
    table = pa.table({"embedding": pa.array([], pa.list_(pa.float32()))})
    assert vectors_of(table, "embedding", 4).shape == (0, 4)


@pytest.mark.parametrize("dtype", [pa.list_(pa.float32(), 2), pa.list_(pa.float64()), pa.large_list(pa.float16())])
def test_vectors_of_any_list_type_is_float32(dtype: pa.DataType) -> None:
    values = np.array([[0.5, 1.0], [2.0, 4.0]])
    typed = pa.array(values.astype(np.float16).tolist() if dtype == pa.large_list(pa.float16()) else values.tolist())
    vectors = vectors_of(pa.table({"embedding": typed.cast(dtype)}), "embedding", 2)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, values)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [1.0, 2.0, 3.0], [1.0]], "holds 3 values in row 1, expected 2"),  # the total would fit
        ([[1.0, 2.0], None], "holds 0 values in row 1, expected 2"),
        ([[1.0, 2.0], [1.0, float("nan")]], "not finite in row 1"),
        ([[float("inf"), 2.0]], "not finite in row 0"),
        ([[1.0, None]], "not finite in row 0"),
    ],
)
def test_vectors_of_a_bad_row_names_it(rows: list[Any], message: str) -> None:
    table = pa.table({"embedding": pa.array(rows, pa.list_(pa.float32()))})
    with pytest.raises(BundleError, match=f"column 'embedding' .*{message}"):
        vectors_of(table, "embedding", 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"item_id": ["zz"]}, "'zz' is not among the embedded items"),
        ({"moment_idx": [5]}, r"moment_idx 5 is outside \[0, 5\)"),
        ({"moment_idx": [-1]}, r"moment_idx -1 is outside \[0, 5\)"),
        ({"embedding": [[1.0] * 3]}, "holds 3 values in row 0, expected 4"),
    ],
)
def test_moment_arrays_with_a_bad_row_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        moment_arrays(moments_table(**changed), IDS, CFG)


def test_moment_arrays_with_a_repeated_moment_are_refused() -> None:
    twice = pa.concat_tables([moments_table(), moments_table()])
    with pytest.raises(BundleError, match="1 rows repeat"):
        moment_arrays(twice, IDS, CFG)
