"""The planted truth as Parquet, beside the tables: item_factors.parquet and user_preferences.parquet."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.datasets.synthetic.factors import FACTORS, PlantedItems
from avrec_ray.datasets.synthetic.users import PlantedUsers
from avrec_ray.datasets.table_files import write_parquet
from avrec_ray.errors import TableError

T = TypeVar("T", PlantedItems, PlantedUsers)

ITEM_FACTORS = "item_factors.parquet"
USER_PREFERENCES = "user_preferences.parquet"

_COLUMNS = {
    "item_ids": "item_id", "user_ids": "user_id", "kinds": "kind", "creators": "creator", "archetypes": "archetype",
    "factor_idx_NF": "factor_idx", "shown_NF": "shown", "start_UV": "start_taste", "end_UV": "end_taste",
}  # fmt: skip
"""Field -> column, where they differ: a row is about one item or user, and has no dimensions to name."""


def write_truth(folder: Path, items: PlantedItems, users: PlantedUsers) -> None:
    """Write both files; item_factors also names each item's value of every factor, for people and for evaluation."""
    table = _to_table(items)
    for f, (name, values) in enumerate(FACTORS.items()):
        table = table.append_column(name, pa.array([values[v] for v in items.factor_idx_NF[:, f]]))
    write_parquet(table, folder / ITEM_FACTORS)
    write_parquet(_to_table(users), folder / USER_PREFERENCES)


def read_truth(folder: Path) -> tuple[PlantedItems, PlantedUsers]:
    """Read what `write_truth` wrote.

    Raises:
        TableError: a file is not there: only synthetic data has a truth.
    """
    return _read(PlantedItems, folder / ITEM_FACTORS), _read(PlantedUsers, folder / USER_PREFERENCES)


def _to_table(planted: PlantedItems | PlantedUsers) -> pa.Table:
    columns = {_COLUMNS.get(f.name, f.name): getattr(planted, f.name) for f in dataclasses.fields(planted)}
    return pa.table({name: pa.array(c.tolist() if _is_matrix(c) else c) for name, c in columns.items()})


def _is_matrix(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.ndim == 2


def _read(cls: type[T], path: Path) -> T:
    if not path.is_file():
        raise TableError(f"{path} does not exist; only a synthetic dataset has a truth, written by jobs.prepare")
    table = pq.read_table(path)
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        column = table[_COLUMNS.get(f.name, f.name)]
        if f.type == list[str]:
            values[f.name] = column.to_pylist()
        elif pa.types.is_list(column.type):
            dtype = np.float32 if pa.types.is_floating(column.type.value_type) else np.int64
            values[f.name] = np.array(column.to_pylist(), dtype)
        else:
            values[f.name] = column.to_numpy()
    return cls(**values)
