"""The whole store as Parquet files, the same from SQLite and PostgreSQL: `seq`, ids and fingerprints as they are."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from avrec_ray.durable import sync
from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.database import IMPRESSIONS_LOCK, ITEMS_LOCK, snapshot, write
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.tables import (
    SCHEMA_VERSION,
    erased_events,
    erasures,
    events,
    impressions,
    item_changes,
    new_items,
)
from avrec_ray.feedback.user_keys import ACTIVE, RETIRED, KeyState, check_keys, read_keys, set_state

MANIFEST = "backup.json"
TABLES = (events, impressions, erasures, erased_events, new_items, item_changes)
ROWS_PER_GROUP = 50_000
_ARROW_TYPES: dict[type[Any], pa.DataType] = {
    sa.BigInteger: pa.int64(),
    sa.Integer: pa.int32(),
    sa.Double: pa.float64(),
    sa.String: pa.string(),
    sa.Text: pa.string(),
    sa.LargeBinary: pa.binary(),
}


def backup(engine: sa.Engine, folder: Path) -> None:
    """See EventStore.backup."""
    if folder.exists():
        raise FeedbackError(f"{folder} exists; a backup overwrites nothing: give a new folder")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a backup that was interrupted
    part.mkdir(parents=True)
    manifest: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "tables": {}}
    try:
        with snapshot(engine) as connection:
            manifest["user_keys"] = {str(v): [k.is_active, k.check_value] for v, k in read_keys(connection).items()}
            for table in TABLES:
                num_rows = _dump(connection, table, part / f"{table.name}.parquet")
                manifest["tables"][table.name] = {"num_rows": num_rows, "last_seq": _last_seq(connection, table)}
        for table in TABLES:
            manifest["tables"][table.name]["sha256"] = _digest(part / f"{table.name}.parquet")
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in (*part.iterdir(), part):
            sync(path)
        os.rename(part, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def restore(engine: sa.Engine, pseudonyms: Pseudonyms, folder: Path) -> int:
    """See EventStore.restore."""
    manifest, user_keys = _read_manifest(folder)
    check_keys(user_keys, pseudonyms)
    if pseudonyms.is_keyed and not user_keys and manifest["events"]["num_rows"] + manifest["impressions"]["num_rows"]:
        raise FeedbackError(f"{folder} holds users under their own ids; restore it without keys, then rotate to them")
    with write(engine) as connection:
        if connection.dialect.name == "postgresql":
            for lock in (IMPRESSIONS_LOCK, ITEMS_LOCK):
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
        for table in TABLES:
            if connection.execute(sa.select(table.c.seq).limit(1)).first():
                raise FeedbackError(f"the store has {table.name} already; restore into a new store")
        for table in TABLES:
            _load(connection, table, folder / f"{table.name}.parquet")
            _set_last_seq(connection, table, manifest[table.name]["last_seq"])
        for version, key in user_keys.items():
            if version not in read_keys(connection):
                set_state(connection, pseudonyms, version, ACTIVE if key.is_active else RETIRED)
    return int(manifest["events"]["num_rows"])


def _read_manifest(folder: Path) -> tuple[dict[str, Any], dict[int, KeyState]]:
    """What it says of each table, and the keys of the users in it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version, tables = manifest["schema_version"], manifest["tables"]
        user_keys = {int(v): KeyState(*values) for v, values in manifest.get("user_keys", {}).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeedbackError(f"{folder} holds no backup of an event store: {MANIFEST} is missing or torn") from error
    if version != SCHEMA_VERSION:
        raise FeedbackError(
            f"{folder} has schema version {version}, this code reads {SCHEMA_VERSION}; restore it with the version of "
            "avrec_ray that wrote it, and open that store with this one"
        )
    for table in TABLES:
        path = folder / f"{table.name}.parquet"
        if not path.is_file() or _digest(path) != tables[table.name]["sha256"]:
            raise FeedbackError(f"{path} is missing or not what was backed up; take another backup")
    return dict(tables), user_keys


def _dump(connection: sa.Connection, table: sa.Table, path: Path) -> int:
    schema, num_rows = _schema(table), 0
    found = connection.execution_options(stream_results=True).execute(sa.select(table).order_by(table.c.seq))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in found.partitions(ROWS_PER_GROUP):
            columns = zip(schema, zip(*rows, strict=True), strict=True)
            writer.write_table(pa.table([pa.array(values, f.type) for f, values in columns], schema=schema))
            num_rows += len(rows)
    return num_rows


def _load(connection: sa.Connection, table: sa.Table, path: Path) -> None:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP):
            if batch.num_rows:
                connection.execute(sa.insert(table), batch.to_pylist())


def _schema(table: sa.Table) -> pa.Schema:
    return pa.schema([pa.field(c.name, _ARROW_TYPES[type(c.type)], nullable=bool(c.nullable)) for c in table.columns])


def _last_seq(connection: sa.Connection, table: sa.Table) -> int:
    """The highest `seq` that was ever given out: above that of the last row if rows were removed."""
    if connection.dialect.name == "sqlite":
        query, values = sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table.name}
    else:
        sequence = connection.execute(_SEQUENCE, {"name": table.name}).scalar_one()
        query, values = sa.text(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"), {}
    return int(connection.execute(query, values).scalar() or 0)


_SEQUENCE = sa.text("SELECT pg_get_serial_sequence(:name, 'seq')")


def _set_last_seq(connection: sa.Connection, table: sa.Table, last_seq: int) -> None:
    values = {"name": table.name, "seq": last_seq}
    if connection.dialect.name == "sqlite":
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
        connection.execute(sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"), values)
    elif last_seq:
        connection.execute(sa.text("SELECT setval(pg_get_serial_sequence(:name, 'seq'), :seq)"), values)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
