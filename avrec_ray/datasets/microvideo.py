"""Micro-videos known by their features alone into our tables: vectors as items, plays as views, the split as published.

The layout of the TikTok data of multimodal recommenders (MMSSL, DiffMM): users and videos are numbers, row i of each
feature file is video i. There is no title, no media and no time: every row has one and the same time, so that only
splits which need none make sense, first of all the given one (evaluation.split.kind=given, column `part`).
"""

from datetime import UTC, datetime
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from avrec_ray.datasets.config import MicroVideoConfig
from avrec_ray.datasets.table_files import Tables, check_tables
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.item_vectors import vectors_column
from avrec_ray.types import INTERACTIONS, ITEMS

PAIRS_FILE = "interactions.npz"
PART_OF = {"train": "train", "val": "valid", "test": "test"}
"""Array of PAIRS_FILE, int [n, 2] of user and video, to the part of the split."""
VECTOR_FILES = {"audio_vector": "audio_feat.npy", "image_vector": "image_feat.npy"}
TIMELESS_AT = datetime(2000, 1, 1, tzinfo=UTC)
"""The time of every row: none is published."""

Numbers = npt.NDArray[np.generic]


def write_tables(folder: Path, cfg: MicroVideoConfig) -> Tables:
    """Write items and interactions under `folder`, and return them. Every row of the features is an item.

    Raises:
        ConfigError: source is not set.
        TableError: a file is missing or not as published; the message says what was expected.
    """
    if not cfg.source:
        raise ConfigError("data.microvideo.source is empty; expected the absolute folder with interactions.npz")
    source = Path(cfg.source)
    vectors = {column: _read_vectors(source / name) for column, name in VECTOR_FILES.items()}
    counts = {name: len(vectors[column]) for column, name in VECTOR_FILES.items()}
    if len(set(counts.values())) != 1:
        raise TableError(f"microvideo: {source} has rows {counts}; expected the same videos in each")
    tables = check_tables(_items(vectors), _interactions(source / PAIRS_FILE, min(counts.values())))
    tables.write(folder)
    return tables


def _items(vectors: dict[str, npt.NDArray[np.float32]]) -> pa.Table:
    count = len(next(iter(vectors.values())))
    rows = pa.Table.from_pylist([{"item_id": str(video), "title": "", "tags": []} for video in range(count)], ITEMS)
    for column, values in vectors.items():
        rows = rows.append_column(*vectors_column(column, values))
    return rows


def _interactions(path: Path, num_videos: int) -> pa.Table:
    pairs = _read_pairs(path, num_videos)
    whole = np.concatenate(list(pairs.values()))
    parts = [PART_OF[name] for name, rows in pairs.items() for _ in rows]
    columns = {
        "user_id": pa.array(whole[:, 0].astype(str).tolist(), pa.string()),
        "item_id": pa.array(whole[:, 1].astype(str).tolist(), pa.string()),
        "event": pa.array(["view"] * len(whole), pa.string()),
        "at": pa.array([TIMELESS_AT] * len(whole), INTERACTIONS.field("at").type),
        "part": pa.array(parts, pa.string()),
    }
    return pa.table(columns)


def _read_pairs(path: Path, num_videos: int) -> dict[str, npt.NDArray[np.int64]]:
    arrays = _load(path)
    found = {}
    for name in PART_OF:
        rows = arrays.get(name)
        if rows is None or rows.ndim != 2 or rows.shape[1] != 2 or not np.issubdtype(rows.dtype, np.integer):
            got = {key: (value.dtype.name, value.shape) for key, value in arrays.items()}
            raise TableError(
                f"microvideo: {path} holds {got}; expected {name!r} as whole numbers [n, 2], user and video"
            )
        found[name] = rows.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows[:, 1].max() >= num_videos):
            raise TableError(f"microvideo: {path} {name!r} names a video outside the {num_videos} rows of the features")
    return found


def _read_vectors(path: Path) -> npt.NDArray[np.float32]:
    (vectors,) = _load(path).values()
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise TableError(f"microvideo: {path} is {vectors.dtype} {vectors.shape}; expected floats [videos, width]")
    rows = np.asarray(vectors, np.float32)
    for row in np.flatnonzero(~np.isfinite(rows).all(1))[:1]:
        raise TableError(f"microvideo: {path} row {row} holds a value that is not finite; expected finite features")
    return rows


def _load(path: Path) -> dict[str, Numbers]:
    """The arrays of a .npz file by name, or that of a .npy file; objects, which would be unpickled, are refused."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return {path.stem: loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
    except (OSError, ValueError, BadZipFile) as error:
        raise TableError(
            f"microvideo: {path} is no readable NumPy file ({error}); set data.microvideo.source to the folder with "
            f"{[PAIRS_FILE, *VECTOR_FILES.values()]}"
        ) from error
