"""Vector columns of the items table, `<kind>_vector`: features that a team already has, for the encoder `precomputed`.

A column holds one vector an item, of any one width, or null where the item lacks the modality. The check turns it into
a list of float32 and writes the width into the field's metadata. (Arrow's own fixed-size lists would say it too, but
with nulls among them they cannot be read back from Parquet.)

Dimension key: N items, W width.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.errors import ConfigError, TableError

VECTOR_COLUMNS = {
    "video": ("video_vector", "image_vector"),
    "audio": ("audio_vector",),
    "text": ("text_vector",),
}
"""Columns that a modality is read from; the first that the table has."""
_WIDTH = b"width"
ALL_VECTOR_COLUMNS = tuple(name for names in VECTOR_COLUMNS.values() for name in names)


def check_vectors(items: pa.Table) -> pa.Table:
    """The table with each vector column as a list of float32 whose field says the width.

    Raises:
        TableError: a column is no list of numbers, null in every row, of mixed widths, or holds a value that is missing
            or not finite; the message names the row.
    """
    for name in ALL_VECTOR_COLUMNS:
        if name in items.column_names and items.num_rows:
            place = items.column_names.index(name)
            field, lists = vectors_column(name, _matrix(items[name], name))
            items = items.set_column(place, field, lists)
    return items


def vector_column(schema: pa.Schema, modality: str) -> str:
    """Name of the column that holds a modality's vectors.

    Raises:
        ConfigError: the items table has none.
    """
    found = next((name for name in VECTOR_COLUMNS[modality] if name in schema.names), None)
    if found is None:
        expected = " or ".join(VECTOR_COLUMNS[modality])
        raise ConfigError(
            f"towers.{modality}_encoder='precomputed', but the items table has no column {expected}; got "
            f"{schema.names}. Add the column, or choose another encoder"
        )
    return found


def vector_width(schema: pa.Schema, modality: str) -> int:
    """Width of a modality's vectors in a checked items table. Raises as `vector_column` does."""
    name = vector_column(schema, modality)
    width = (schema.field(name).metadata or {}).get(_WIDTH)
    if width is None:
        raise TableError(f"items: column {name!r} was not checked, its width is not known; run jobs.prepare")
    return int(width)


def vectors_with_gaps(items: pa.Table, modality: str) -> npt.NDArray[np.float32]:
    """A modality's column of a checked table as [N, W]; NaN in the rows that are null."""
    lists = items[vector_column(items.schema, modality)].combine_chunks()
    vectors = np.full((len(lists), vector_width(items.schema, modality)), np.nan, np.float32)
    present = lists.is_valid().to_numpy(zero_copy_only=False)
    vectors[present] = lists.drop_null().flatten().to_numpy().reshape(-1, vectors.shape[1])
    return vectors


def vectors_column(name: str, vectors: npt.NDArray[np.float32]) -> tuple[pa.Field, pa.Array]:
    """[N, W] as a column that needs no check; a row that begins with NaN is null."""
    present = ~np.isnan(vectors[:, 0])
    offsets = pa.array(np.concatenate([[0], np.cumsum(present) * vectors.shape[1]]), pa.int64())
    values = pa.array(vectors[present].reshape(-1), pa.float32())
    lists = pa.LargeListArray.from_arrays(offsets, values, mask=pa.array(~present))
    return pa.field(name, lists.type, metadata={_WIDTH: str(vectors.shape[1])}), lists


def _matrix(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float32]:
    """[N, W] of a column as given, NaN where it is null."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ExtensionArray):  # Arrow's fixed-shape tensors
        lists = lists.storage
    if not _is_list(lists.type) or not _is_number(lists.type.value_type):
        raise TableError(f"items: column {name!r} has type {lists.type}, expected a list of numbers")
    present = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
    if not len(present):
        raise TableError(f"items: column {name!r} is null in every row; fill it, or drop the column")
    kept = lists.drop_null()
    sizes = pc.list_value_length(kept).to_numpy()
    width = int(sizes[0])
    for row in np.flatnonzero(sizes != width)[:1]:
        raise TableError(
            f"items: column {name!r} holds {sizes[row]} values in row {present[row]} and {width} in row {present[0]}; "
            "expected one width"
        )
    if not width:
        raise TableError(f"items: column {name!r} holds vectors without values; expected at least one, or null")
    values = kept.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        rows = values.astype(np.float32).reshape(-1, width)
    for row in np.flatnonzero(~np.isfinite(rows).all(1))[:1]:
        raise TableError(
            f"items: column {name!r} holds a value that is missing, not finite or too large for float32 in row "
            f"{present[row]}; expected finite numbers, or null for the whole vector"
        )
    vectors = np.full((len(lists), width), np.nan, np.float32)
    vectors[present] = rows
    return vectors


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
