"""Users cut into shards, and their histories on disk: sorted once by the driver, memory-mapped by the workers.

users.arrow and events.arrow hold one record batch a shard, so that a worker reads the events of its own users only.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.errors import TableError
from avrec_ray.feedback.bundle_names import BundleNames
from avrec_ray.pipelines.atomic import write_atomically
from avrec_ray.types import INTERACTIONS, Event, check_table

MAX_SHARD_USERS = 1_000
"""Users a shard: some seconds of work, which is what a killed worker loses."""
MIN_SHARD_USERS = 64
SHARDS_OF_FEW = 16
"""Few users are cut finer, so that every worker gets some."""

Histories = list[tuple[Event, ...]]
_HISTORY = ["user_id", "item_id", "event", "at", "watch_seconds", "value"]


def shard_size(num_users: int) -> int:
    """Users a shard. It depends on the number of users alone: more workers must not throw away what is done.

    >>> shard_size(10), shard_size(8_000), shard_size(100_000)
    (64, 500, 1000)
    """
    return max(MIN_SHARD_USERS, min(MAX_SHARD_USERS, -(-num_users // SHARDS_OF_FEW)))


def write_shards(
    folder: Path, users: Sequence[str], interactions: Sequence[Path], names: BundleNames | None = None
) -> None:
    """Write both files. The driver holds the events of `users` in memory, about 30 bytes each.

    Args:
        folder: exists.
        users: distinct; shard s is users[s * size : (s + 1) * size].
        interactions: Parquet files of interactions; events of one moment keep the order of the files and rows.
        names: how the users of these files are called in `users`; None: as they are there.

    Raises:
        TableError: an interactions table cannot be read or breaks its schema.
    """
    size = shard_size(len(users))
    ids = pa.array(users, pa.string())
    events, owners = _sorted_events(interactions, ids, names)
    bounds = [*range(0, len(users), size), len(users)]
    _write_batches(folder / "users.arrow", pa.table({"user_id": ids}), bounds)
    events = events.append_column("user_row", pa.array((owners % size).astype(np.int32)))
    _write_batches(folder / "events.arrow", events, np.searchsorted(owners, bounds).tolist())


def read_shard(folder: Path, shard: int) -> tuple[list[str], Histories]:
    """The users of a shard and the history of each, oldest first; empty for a user without events."""
    users = _read_batch(folder / "users.arrow", shard)["user_id"].to_pylist()
    batch = _read_batch(folder / "events.arrow", shard)
    rows = batch["user_row"].to_numpy()
    columns = (_plain(batch[name]) for name in ("item_id", "event", "at_seconds", "watch_seconds", "value"))
    events = [
        Event(users[row], item_id, event, at_seconds, watch_seconds, value)
        for row, item_id, event, at_seconds, watch_seconds, value in zip(rows.tolist(), *columns, strict=True)
    ]
    bounds = [0, *np.cumsum(np.bincount(rows, minlength=len(users))).tolist()]
    return users, [tuple(events[start:stop]) for start, stop in pairwise(bounds)]


def _sorted_events(
    paths: Sequence[Path], users: pa.Array, names: BundleNames | None
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Events of `users` by user, then time, then row; and the position in `users` of each event's user."""
    table = pa.concat_tables([_wanted_events(path, users, names) for path in paths]).unify_dictionaries()
    owners = pc.index_in(table["user_id"], value_set=users).cast(pa.int64()).to_numpy()
    at_us = table["at"].cast(pa.int64()).to_numpy()
    order = np.lexsort((at_us, owners))  # stable: rows of one user and moment stay in order
    columns = {name: table[name].take(pa.array(order)) for name in ("item_id", "event", "watch_seconds", "value")}
    return pa.table({**columns, "at_seconds": at_us[order] / 1e6}), owners[order]


def _wanted_events(path: Path, users: pa.Array, names: BundleNames | None) -> pa.Table:
    try:
        columns = [name for name in pq.read_schema(path).names if name in _HISTORY]
        table = check_table(pq.read_table(path, columns=columns), INTERACTIONS, "interactions").select(_HISTORY)
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"{path} cannot be read as Parquet ({error}); expected an interactions table") from error
    except TableError as error:
        raise TableError(f"{path}: {error}") from error
    if names is not None:
        table = table.set_column(0, table.schema.field(0), names.column(table["user_id"]))
    table = table.filter(pc.is_in(table["user_id"], value_set=users))
    for name in ("item_id", "event"):  # codes: strings would be copied, and above 2 GB cannot be sorted
        column = table.schema.get_field_index(name)
        table = table.set_column(column, name, table[name].dictionary_encode())
    return table


def _write_batches(path: Path, table: pa.Table, bounds: Sequence[int]) -> None:
    """One record batch for the rows between two bounds, also where there are none."""
    whole = table.combine_chunks()
    first = (whole.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)])[0]
    nothing = first.slice(0, 0)  # with the dictionaries of the others: a file may hold one of each column

    def write(staged: Path) -> None:
        with pa.OSFile(str(staged), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            for start, stop in pairwise(bounds):
                rows = whole.slice(start, stop - start).to_batches()
                writer.write_batch(rows[0] if rows else nothing)

    write_atomically(path, write)


def _read_batch(path: Path, number: int) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(number)


def _plain(column: pa.Array) -> list[object]:
    return (column.dictionary_decode() if pa.types.is_dictionary(column.type) else column).to_pylist()
