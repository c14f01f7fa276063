"""The clips table on disk, without Ray: Parquet files whose tensors are Arrow's own fixed-shape tensors.

Any Arrow reader gets the shapes back, Ray Data among them; none of Ray's extension types is stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.errors import TableError
from avrec_ray.types import Clip

ClipColumns = dict[str, npt.NDArray[Any]]
"""Column name to array, one row a clip: frames uint8 [n, T, 3, H, W], log_mel float32 [n, F, M'], strings as object."""

_PLAIN = {
    "item_id": pa.string(),
    "clip_idx": pa.int32(),
    "start_seconds": pa.float64(),
    "end_seconds": pa.float64(),
    "has_video": pa.bool_(),
    "has_audio": pa.bool_(),
    "decoder": pa.string(),
    "media_sha256": pa.string(),
}
_TENSORS = {"frames": pa.uint8(), "log_mel": pa.float32()}
COLUMNS = ("item_id", "clip_idx", "start_seconds", "end_seconds", "frames", "log_mel", "has_video", "has_audio",
           "decoder", "media_sha256")  # fmt: skip
"""Columns of the clips table, in order."""


def clips_table(columns: Mapping[str, Any]) -> pa.Table:
    """Arrow table of the clips table's schema from one array (or list) a column; further columns are left out."""
    arrays = [_tensor(columns[name], name) if name in _TENSORS else _plain(columns[name], name) for name in COLUMNS]
    fields = [pa.field(name, array.type, nullable=False) for name, array in zip(COLUMNS, arrays, strict=True)]
    return pa.table(arrays, schema=pa.schema(fields))


def clip_columns(clips: Sequence[Clip]) -> ClipColumns:
    """Clips as one array a column; at least one clip."""
    values = {name: [getattr(clip, name) for clip in clips] for name in COLUMNS}
    # As objects: numpy's own strings lose trailing NULs.
    return {n: np.array(v, object) if _PLAIN.get(n) == pa.string() else np.stack(v) for n, v in values.items()}


def write_clips(table: pa.Table, path: Path) -> None:
    """Write one part of a clips table, whole or not at all."""
    staged = path.with_name(path.name + ".tmp")
    # Raw pixels do not repeat: a dictionary would cost time and no byte less. Parquet stores a byte as four, of which
    # three are zero; split by place, they and the exponents of floats compress well: a seventh smaller, faster to read.
    pq.write_table(
        table,
        staged,
        compression="zstd",
        use_dictionary=["item_id", "decoder"],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in _TENSORS},
        write_statistics=[name for name in COLUMNS if name not in _TENSORS],
    )
    staged.rename(path)


def iter_clips(folder: str | Path, columns: Sequence[str] | None = None, batch_size: int = 64) -> Iterator[ClipColumns]:
    """Batches of at most `batch_size` clips in the order of the files; memory holds one batch.

    Raises:
        TableError: no Parquet file in the folder, or a column is missing or no tensor.
    """
    names = list(columns or COLUMNS)
    for path in _parts(folder):
        with pq.ParquetFile(path) as file:
            if missing := [name for name in names if name not in file.schema_arrow.names]:
                raise TableError(f"clips: column {missing[0]!r} is missing in {path}; got {file.schema_arrow.names}")
            for batch in file.iter_batches(batch_size=batch_size, columns=names):
                yield {name: _to_numpy(batch.column(name), name) for name in names}


def read_clips(folder: str | Path, columns: Sequence[str] | None = None) -> ClipColumns:
    """The whole table sorted by (item_id, clip_idx), so that its order does not depend on who decoded first.

    Raises:
        TableError: as `iter_clips`, or the table has no row.
    """
    names = list(columns or COLUMNS)
    batches = list(iter_clips(folder, list(dict.fromkeys([*names, "item_id", "clip_idx"])), batch_size=1024))
    if not batches:
        raise TableError(f"clips: {folder} holds no row; run jobs.decode_media")
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = sorted(range(len(whole["item_id"])), key=lambda row: (whole["item_id"][row], whole["clip_idx"][row]))
    return {name: whole[name][order] for name in names}


def _parts(folder: str | Path) -> list[Path]:
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise TableError(f"clips: no *.parquet under {folder}; run jobs.decode_media")
    return paths


def _plain(values: Any, name: str) -> pa.Array:
    return pa.array(np.asarray(values).tolist(), _PLAIN[name])


def _tensor(values: Any, name: str) -> pa.Array:
    array = np.ascontiguousarray(values)
    value_type = _TENSORS[name]
    if array.dtype != value_type.to_pandas_dtype() or array.ndim < 2:
        raise TableError(f"clips: column {name!r} is {array.dtype} {array.shape}, expected {value_type} of one shape")
    shape = array.shape[1:]
    storage = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(value_type, shape), storage)


def _to_numpy(array: pa.Array, name: str) -> npt.NDArray[Any]:
    if name not in _TENSORS:
        as_object = pa.types.is_string(array.type)
        return np.array(array.to_pylist(), object) if as_object else np.asarray(array.to_numpy(zero_copy_only=False))
    if not isinstance(array, pa.FixedShapeTensorArray):
        raise TableError(f"clips: column {name!r} is {array.type}, expected arrow.fixed_shape_tensor")
    return np.asarray(array.to_numpy_ndarray())
