"""Parquet files of tables: written atomically, and the user's own tables read and checked against each other."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.errors import StageError, TableError
from avrec_ray.item_vectors import ALL_VECTOR_COLUMNS
from avrec_ray.types import EDGES, USERS, check_interactions, check_items, check_table


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write `table` so that a reader sees the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        pq.write_table(table, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class Tables:
    """The checked tables of one dataset; `users` and `edges` are None where a dataset has none."""

    items: pa.Table
    interactions: pa.Table
    users: pa.Table | None = None
    edges: pa.Table | None = None

    def write(self, folder: Path) -> None:
        """Write each table as <folder>/<name>.parquet."""
        for name in ("items", "interactions", "users", "edges"):
            if (table := getattr(self, name)) is not None:
                write_parquet(table, folder / f"{name}.parquet")

    def digest(self) -> str:
        """sha256 of the content, the same however a Parquet file encodes it."""
        hasher = hashlib.sha256()
        for name in ("items", "interactions", "users", "edges"):
            if (table := getattr(self, name)) is not None:
                sink = pa.BufferOutputStream()
                pq.write_table(table.combine_chunks(), sink)
                hasher.update(sink.getvalue())
        return hasher.hexdigest()


def check_tables(
    items: pa.Table, interactions: pa.Table, users: pa.Table | None = None, edges: pa.Table | None = None
) -> Tables:
    """Check each table and that they fit together.

    Raises:
        TableError: a column, a value, or an interaction with an item that the items table lacks.
        StageError: no item has media or text, or there are no interactions.
    """
    tables = Tables(
        items=check_items(items),
        interactions=check_interactions(interactions),
        users=None if users is None else check_table(users, USERS, "users", unique=["user_id"]),
        edges=None if edges is None else check_table(edges, EDGES, "edges"),
    )
    _check_usable(tables.items)
    _check_watch(tables.interactions)
    _check_known(tables.interactions, tables.items)
    return tables


def read_tables(items: Path, interactions: Path, users: Path | None = None, edges: Path | None = None) -> Tables:
    """Read and check the user's own Parquet tables; see `check_tables`."""
    return check_tables(
        _read(items, "items"),
        _read(interactions, "interactions"),
        None if users is None else _read(users, "users"),
        None if edges is None else _read(edges, "edges"),
    )


def read_written(folder: Path) -> Tables:
    """Read back what `Tables.write` wrote."""
    paths = {name: folder / f"{name}.parquet" for name in ("items", "interactions", "users", "edges")}
    return Tables(**{name: pq.read_table(path) for name, path in paths.items() if path.is_file()})


def _read(path: Path, name: str) -> pa.Table:
    if not path.is_file():
        raise TableError(f"{name}: {path} does not exist; set data.{name} to the absolute path of a Parquet file")
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{name}: {path} is not a readable Parquet file ({error})") from error


def _check_usable(items: pa.Table) -> None:
    has_media = pc.fill_null(pc.greater(pc.utf8_length(items["media_uri"]), 0), False)
    has_title = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(items["title"])), 0)
    usable = pc.any(pc.or_(has_media, has_title)).as_py()
    with_vectors = (items[name] for name in ALL_VECTOR_COLUMNS if name in items.column_names)
    if not usable and not any(column.null_count < len(column) for column in with_vectors):
        raise StageError(
            f"items: none of {items.num_rows} rows is usable; an item needs a media_uri, a title that is not empty or "
            "a vector"
        )


def _check_watch(interactions: pa.Table) -> None:
    seconds = interactions["watch_seconds"]
    good = pc.fill_null(pc.and_(pc.is_finite(seconds), pc.greater_equal(seconds, 0)), True)
    if interactions.num_rows and not pc.all(good).as_py():
        row = pc.index(good, False).as_py()
        raise TableError(
            f"interactions: column 'watch_seconds' holds {seconds[row].as_py()!r} in row {row}; expected seconds >= 0"
        )


def _check_known(interactions: pa.Table, items: pa.Table) -> None:
    if not interactions.num_rows:
        raise StageError("interactions: the table has no rows; training needs what users did, expected at least one")
    known = pc.is_in(interactions["item_id"], value_set=items["item_id"].combine_chunks())
    if not pc.all(known).as_py():
        row = pc.index(known, False).as_py()
        raise TableError(
            f"interactions: column 'item_id' holds {interactions['item_id'][row].as_py()!r} in row {row}, which is not "
            f"in the items table of {items.num_rows} rows; add the item or drop the row"
        )
