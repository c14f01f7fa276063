"""What batch recommendation has done so far: one Parquet file a shard, beside the output, kept until it is whole.

    <output>.parts/<fingerprint>/manifest.json   what the lists are of; written last, without it nothing counts
                                 users.arrow events.arrow
                                 part-00000.parquet ...
    <output>                                     the parts in one table

The fingerprint is in the path: a worker that outlived a killed job can only write what the next one would.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.pipelines.atomic import write_atomically
from avrec_ray.pipelines.recommend_inputs import Echo, Wanted
from avrec_ray.pipelines.recommend_shards import shard_size, write_shards
from avrec_ray.types import RECOMMENDATIONS

ROW_GROUP_ROWS = 1_000_000
"""Rows of the output held in memory at once."""


@dataclass(frozen=True)
class Parts:
    """The lists of `num_users` users, shard by shard."""

    folder: Path
    num_users: int
    shard_users: int

    @property
    def shards(self) -> range:
        """Numbers of all shards."""
        return range(-(-self.num_users // self.shard_users))

    def users_of(self, shard: int) -> int:
        """How many users a shard has."""
        return min(self.shard_users, self.num_users - shard * self.shard_users)

    def missing(self) -> list[int]:
        """Shards without a readable part, in order."""
        return [shard for shard in self.shards if not _is_parquet(part_path(self.folder, shard))]

    def tables(self) -> Iterator[pa.Table]:
        """The parts in order of users, then ranks: a sorted table, read a part at a time."""
        for shard in self.shards:
            yield pq.ParquetFile(part_path(self.folder, shard)).read()

    def num_rows(self) -> int:
        """List places in all parts."""
        return sum(pq.read_metadata(part_path(self.folder, shard)).num_rows for shard in self.shards)

    def merge(self, output: Path, named: Mapping[str, str] | None = None) -> None:
        """Write the parts as one table; what was at `output` stays until it is whole.

        `named`: what each user of the parts is to be called; None: as there.
        """

        def write(staged: Path) -> None:
            with pq.ParquetWriter(staged, RECOMMENDATIONS) as writer:
                for table in _in_groups(self.tables()):
                    writer.write_table(table if named is None else _renamed(table, named))

        write_atomically(output, write)

    def remove(self) -> None:
        """Delete the parts: the output holds them."""
        remove_parts(self.folder.parent)


def open_parts(folder: Path, wanted: Wanted, echo: Echo) -> Parts:
    """The parts under `folder` if they are of these very lists; others are removed and the shards are cut anew."""
    mine = folder / wanted.fingerprint[:16]
    parts = Parts(mine, len(wanted.users), shard_size(len(wanted.users)))
    if (mine / "manifest.json").is_file():
        done = len(parts.shards) - len(parts.missing())
        echo(f"resumed: {done} of {len(parts.shards)} shards were done before and are kept")
        return parts
    if any(folder.glob("*/manifest.json")):
        echo(f"{folder} holds lists of other settings or inputs: started anew")
    remove_parts(folder)
    mine.mkdir(parents=True)
    write_shards(mine, wanted.users, wanted.interactions, wanted.names)
    about = {"fingerprint": wanted.fingerprint, "bundle": wanted.bundle.name, "num_users": len(wanted.users)}
    text = json.dumps({**about, **wanted.settings}, indent=1)
    write_atomically(mine / "manifest.json", lambda staged: _write_text(staged, text))
    return parts


def parts_folder(output: Path) -> Path:
    """Where the parts of an output lie."""
    return output.with_name(output.name + ".parts")


def part_path(folder: Path, shard: int) -> Path:
    """File of a shard's lists."""
    return folder / f"part-{shard:05d}.parquet"


def remove_parts(folder: Path) -> None:
    """Remove what `open_parts` made; anything else that lies in `folder` stays."""
    for path in folder.glob("*"):
        if path.is_dir() and re.fullmatch(r"[0-9a-f]{16}", path.name):
            shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _in_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Small tables put together to ROW_GROUP_ROWS or a little more."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(t.num_rows for t in pending) >= ROW_GROUP_ROWS:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)


def _renamed(table: pa.Table, named: Mapping[str, str]) -> pa.Table:
    users = table["user_id"].combine_chunks().dictionary_encode()
    ids = pa.array([named[user] for user in users.dictionary.to_pylist()], pa.string())
    column = pa.DictionaryArray.from_arrays(users.indices, ids).dictionary_decode()
    return table.set_column(0, table.schema.field(0), pa.chunked_array([column]))


def _is_parquet(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
