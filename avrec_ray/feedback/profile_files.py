"""users.parquet of a bundle with other rows, and the bundle's metadata with it: both, or the next run sees to it."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.durable import crash_point, sync
from avrec_ray.training.profiles import SCHEMA

METADATA = "metadata.json"


def is_profiles(schema: pa.Schema) -> bool:
    """Whether a table is users.parquet of a bundle, whose rows point at each other."""
    return bool(schema.names == SCHEMA.names)


def without_users(table: pa.Table, names: Collection[str]) -> pa.Table:
    """Profiles without some users, who are then nobody's friends any more."""
    user_ids = table["user_id"].to_pylist()
    keeps = np.array([user_id not in names for user_id in user_ids], bool)
    new_row = np.where(keeps, np.cumsum(keeps) - 1, -1)
    kept = table.filter(pa.array(keeps))
    friends: list[list[int]] = kept["friend_rows"].to_pylist()
    weights: list[list[float]] = kept["friend_log_weights"].to_pylist()
    pairs = [
        [(int(new_row[friend]), weight) for friend, weight in zip(*row, strict=True) if keeps[friend]]
        for row in zip(friends, weights, strict=True)
    ]
    changed: dict[str, Any] = {
        "friend_rows": [[friend for friend, _ in row] for row in pairs],
        "friend_log_weights": [[weight for _, weight in row] for row in pairs],
    }
    columns = [pa.array(changed[f.name], f.type) if f.name in changed else kept[f.name] for f in SCHEMA]
    return pa.table(columns, schema=SCHEMA)


def replace_in_bundle(path: Path, table: pa.Table, staged_end: str) -> None:
    """Write users.parquet and, where it lies in a bundle, its digest in metadata.json.

    A loader refuses the bundle between the two; after a kill there `recover_bundle` puts it right.
    """
    staged = path.with_name(path.name + staged_end)
    pq.write_table(table, staged)
    sync(staged)
    metadata = path.with_name(METADATA)
    if not metadata.is_file():
        staged.replace(path)
        return
    values = json.loads(metadata.read_text())
    values["files"][path.name] = _sha256(staged)
    staged_metadata = metadata.with_name(METADATA + staged_end)
    staged_metadata.write_text(json.dumps(values, indent=1, sort_keys=True))
    sync(staged_metadata)
    crash_point("files.bundle_staged")
    staged.replace(path)
    crash_point("files.bundle_half")
    staged_metadata.replace(metadata)
    sync(path.parent)


def recover_bundle(staged_metadata: Path) -> None:
    """Complete a bundle whose users.parquet was replaced and whose metadata was not; else nothing is changed."""
    folder = staged_metadata.parent
    try:
        files = json.loads(staged_metadata.read_text())["files"]
    except (ValueError, KeyError):  # torn: it was staged first, so nothing was replaced
        return
    users = folder / "users.parquet"
    if users.is_file() and _sha256(users) == files.get(users.name):
        staged_metadata.replace(folder / METADATA)
        sync(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
