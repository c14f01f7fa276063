"""The embeddings and moments tables: how vectors are written to Parquet, and read back with every row checked.

Dimension key: N items, C clips, M moments, D embedding.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.errors import BundleError
from avrec_ray.towers.config import TowersConfig, moment_layout

MomentArrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.float32]]
"""Vectors [N, M, D] (zero where absent), presence [N, M], spans [N, M, 2] in seconds."""


def write_embeddings(path: Path, item_ids: Sequence[str], embeddings: npt.NDArray[np.float32], version: str) -> None:
    """The embeddings table: one row an item, `embeddings` [N, D], `model_version` in the file metadata."""
    table = pa.table({"item_id": pa.array(item_ids, pa.string()), "embedding": _list_column(embeddings)})
    pq.write_table(table.replace_schema_metadata({"model_version": version}), path)


def write_moments(
    path: Path,
    item_ids: Sequence[str],
    moments: npt.NDArray[np.float32],
    moment_mask: npt.NDArray[np.bool_],
    clip_spans: npt.NDArray[np.float32],
    version: str,
) -> int:
    """The moments table: one row a moment that exists, in the order of `moment_layout`. Returns the number of rows.

    Args:
        path: Parquet file to write.
        item_ids: N ids.
        moments: unit vectors [N, M, D].
        moment_mask: [N, M], true where the moment exists.
        clip_spans: [N, C, 2], start and end of each clip in seconds; a text moment spans all clips from 0.
        version: `model_version` of the file metadata.
    """
    layout = moment_layout(clip_spans.shape[1])
    whole_items = np.stack([np.zeros(len(clip_spans)), clip_spans[..., 1].max(1)], 1)
    spans = np.stack([clip_spans[:, clip] if clip >= 0 else whole_items for _, clip in layout], 1)
    rows, columns = np.nonzero(moment_mask)
    names = np.array(item_ids, dtype=object)
    table = pa.table(
        {
            "item_id": pa.array(names[rows], pa.string()),
            "moment_idx": pa.array(columns, pa.int32()),
            "start_seconds": pa.array(spans[rows, columns, 0], pa.float32()),
            "end_seconds": pa.array(spans[rows, columns, 1], pa.float32()),
            "modality": pa.array([layout[column][0] for column in columns], pa.string()),
            "embedding": _list_column(moments[rows, columns]),
        }
    )
    pq.write_table(table.replace_schema_metadata({"model_version": version}), path)
    return len(rows)


def vectors_of(table: pa.Table, column: str, dim: int) -> npt.NDArray[np.float32]:
    """A list column as float32 [rows, dim]; BundleError names the first row of another size or not finite."""
    lists = table[column].combine_chunks()
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(sizes != dim)[:1]:
        raise BundleError(f"column {column!r} holds {sizes[row]} values in row {row}, expected {dim}; embed again")
    vectors = np.array(lists.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(lists), dim)
    for row in np.flatnonzero(~np.isfinite(vectors).all(1))[:1]:
        raise BundleError(f"column {column!r} holds a value that is not finite in row {row}; train and embed again")
    return vectors


def moment_arrays(table: pa.Table, item_ids: Sequence[str], towers: TowersConfig) -> MomentArrays:
    """The moments table as arrays in the order of `item_ids`.

    Raises:
        BundleError: a row is of an unknown item, outside the layout, a repeat, or not a finite vector.
    """
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    shape = (len(item_ids), len(moment_layout(towers.max_clips)))
    ids = table["item_id"].to_pylist()
    if unknown := set(ids) - index.keys():
        raise BundleError(f"moments: {min(unknown)!r} is not among the embedded items; embed again")
    rows, columns = np.array([index[i] for i in ids], np.int64), table["moment_idx"].to_numpy()
    for bad in columns[(columns < 0) | (columns >= shape[1])][:1]:
        raise BundleError(f"moments: moment_idx {bad} is outside [0, {shape[1]}); embed again with these towers")
    moments = np.zeros((*shape, towers.embedding_dim), np.float32)
    mask, spans = np.zeros(shape, bool), np.zeros((*shape, 2), np.float32)
    moments[rows, columns] = vectors_of(table, "embedding", towers.embedding_dim)
    mask[rows, columns] = True
    if mask.sum() != len(rows):
        raise BundleError(f"moments: {len(rows) - int(mask.sum())} rows repeat an (item_id, moment_idx); embed again")
    spans[rows, columns, 0] = table["start_seconds"].to_numpy()
    spans[rows, columns, 1] = table["end_seconds"].to_numpy()
    return moments, mask, spans


def _list_column(vectors: npt.NDArray[np.float32]) -> pa.Array:
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1), pa.float32()))
