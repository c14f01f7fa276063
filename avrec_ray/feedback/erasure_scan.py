"""Looks for users in everything: every file under a folder, whatever it is, and every table of a database.

Tables (Parquet, Arrow, SQLite, CSV, JSON) are read, and a value that is a name counts. Beyond that bytes are searched:
freed pages of a database, logs, headers of weights, reports. There a name has to be long enough not to be there by
chance: all pseudonyms are; of ids that are shorter than MIN_WORD_CHARS the report says that only tables were searched.
"""

import csv
import gzip
import io
import json
import mmap
import os
import re
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from avrec_ray.feedback.arrow_names import OTHER_THINGS, may_hold_names, names_any, strings_in
from avrec_ray.feedback.user_files import MIN_WORD_CHARS

_ROWS = 50_000
_PSEUDONYM = re.compile(rb"v[1-9][0-9]{0,5}:[0-9a-f]{32}")
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_SIDE_FILES = ("-wal", "-journal", "-shm")


@dataclass
class Scan:
    """What was looked through, and where users were found."""

    found: list[str] = field(default_factory=list)
    """Places: a file and what in it; a table and its column."""
    in_backups: list[str] = field(default_factory=list)
    """Backups that hold users still: they expire, or their key is destroyed."""
    num_files: int = 0
    num_bytes: int = 0
    num_tables: int = 0
    short_names: int = 0
    """Names that were looked for in tables alone."""

    def lines(self) -> list[str]:
        """The report."""
        said = [f"looked through {self.num_files} files ({self.num_bytes / 1e6:.1f} MB), {self.num_tables} tables"]
        said += [f"FOUND in {place}" for place in self.found]
        said += [f"in a backup, until it expires: {place}" for place in self.in_backups]
        if self.short_names:
            said.append(f"{self.short_names} names of under {MIN_WORD_CHARS} characters: only tables were searched")
        return said


class Names:
    """The names that should be gone, as each search wants them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.all = frozenset(names)
        self.array = pa.array(sorted(self.all), pa.string())
        self.long = sorted(name.encode("utf-8", "surrogatepass") for name in self.all if len(name) >= MIN_WORD_CHARS)
        self.num_short = len(self.all) - len(self.long)
        self._pseudonyms = frozenset(name for name in self.long if _PSEUDONYM.fullmatch(name))
        self._others = [name for name in self.long if name not in self._pseudonyms]

    def are_in(self, data: Any, is_packed: bool = False) -> bool:
        """Whether bytes hold one of the long names, as a word; `is_packed`: also with a letter beside it."""
        # Pseudonyms are found in one pass, however many they are; they have one length, and none is part of another.
        if self._pseudonyms and any(found[0] in self._pseudonyms for found in _PSEUDONYM.finditer(data)):
            return True
        return any(
            is_packed or _is_word(data, start, len(name)) for name in self._others for start in _places(data, name)
        )

    def is_value(self, value: object) -> bool:
        """Whether a value of a table is one of the names, or a text or blob with a long one in it."""
        if isinstance(value, str):
            return value in self.all or bool(self.long and self.are_in(value.encode("utf-8", "surrogatepass")))
        return isinstance(value, bytes) and self.are_in(value)


def scan_folder(root: Path, names: Iterable[str]) -> Scan:
    """Look through every file under a folder for any of the names: ids and all their pseudonyms."""
    wanted, scan = Names(names), Scan()
    scan.short_names = wanted.num_short
    for folder, _, files in os.walk(root):
        is_backup = any((Path(folder, *up) / "backup.json").is_file() for up in ((), ("..",)))
        for name in sorted(files):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            scan.num_files += 1
            scan.num_bytes += path.stat().st_size
            if wanted.is_value(name):
                scan.found.append(f"{path.relative_to(root)}, the name of the file")
            places = [f"{path.relative_to(root)}{where}" for where in _scan_file(path, wanted, scan)]
            (scan.in_backups if is_backup else scan.found).extend(places)
    return scan


def scan_database(engine: sa.Engine, names: Iterable[str], scan: Scan) -> None:
    """Look through every row of every table in reach of a connection, and add to `scan`."""
    wanted = Names(names)
    inspector, tables = sa.inspect(engine), sa.MetaData()
    for name in inspector.get_table_names():
        table = sa.Table(name, tables, autoload_with=engine)
        columns = [c for c in table.columns if c.name not in OTHER_THINGS]
        with engine.connect() as connection:
            found = connection.execution_options(stream_results=True).execute(sa.select(*columns))
            hits = _columns_with(found.partitions(_ROWS), wanted)
        scan.num_tables += 1
        scan.found += [f"table {name}, column {columns[number].name}" for number in sorted(hits)]


def _columns_with(parts: Iterable[Sequence[Sequence[Any]]], names: Names) -> set[int]:
    hits: set[int] = set()
    for rows in parts:
        for number, values in enumerate(zip(*rows, strict=True)):
            # Equal values are looked at once.
            if number not in hits and any(
                names.is_value(v) for v in {v for v in values if isinstance(v, (str, bytes))}
            ):
                hits.add(number)
    return hits


def _scan_file(path: Path, names: Names, scan: Scan) -> Iterator[str]:
    """What of a file holds one of the names."""
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"PAR1" and (places := _scan_parquet(path, names)) is not None:
        yield from places
    elif start[:6] == b"ARROW1":
        yield from _scan_arrow(path, names)
    elif start == b"SQLite format 3\0":
        yield from _scan_sqlite(path, names, scan)
    elif any(path.name.endswith(end) for end in _SIDE_FILES):
        yield from [", bytes"] if _bytes_hold(path, names, is_packed=True) else []
    elif start[:2] == b"\x1f\x8b":
        yield from _scan_gzip(path, names)
    elif start[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        yield from _scan_zip(path, names)
    else:
        if _bytes_hold(path, names):
            yield ", bytes"
        elif _values_hold(path, names):
            yield ", values"


def _scan_parquet(path: Path, names: Names) -> list[str] | None:
    """Columns, statistics included, for those of rows that are there no more are not there either; and metadata."""
    try:
        file = pq.ParquetFile(path)
        columns = [field.name for field in file.schema_arrow if may_hold_names(field)]
        hits: dict[str, None] = {}
        for batch in file.iter_batches(_ROWS, columns=columns) if columns else ():
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if name not in hits and (names_any(column, names.array) or _text_holds(column, names)):
                    hits[name] = None
    except (pa.ArrowInvalid, OSError):
        return None
    metadata = b"\0".join(
        part for pair in (file.metadata.metadata or {}).items() for part in pair if pair[0] != b"ARROW:schema"
    )
    return [f", column {name}" for name in hits] + ([", metadata"] if names.are_in(metadata) else [])


def _text_holds(column: pa.Array, names: Names) -> bool:
    for strings in strings_in(column):
        plain = strings.cast(pa.large_string())
        buffer = plain.buffers()[2]
        if buffer is not None and names.are_in(memoryview(buffer).tobytes(), is_packed=True):
            return any(names.is_value(text) for text in strings.to_pylist() if text is not None)
    return False


def _scan_arrow(path: Path, names: Names) -> list[str]:
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            return [", bytes"] if _bytes_hold(path, names, is_packed=True) else []
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        hits = {n for b in batches for n, c in zip(b.schema.names, b.columns, strict=True) if names_any(c, names.array)}
    return [f", column {name}" for name in sorted(hits)]


def _scan_sqlite(path: Path, names: Names, scan: Scan) -> Iterator[str]:
    hits, longer = 0, False
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        tables = [r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
        for table in tables:
            cursor = connection.execute('SELECT * FROM "{}"'.format(table.replace('"', '""')))
            columns = [c[0] for c in cursor.description]
            hit = _columns_with(_parts(cursor), names)
            found = sorted(number for number in hit if columns[number] not in OTHER_THINGS)
            yield from (f", table {table}, column {columns[number]}" for number in found)
            hits += len(found)
            scan.num_tables += 1
        longer = not hits and any(_has_longer(connection, table, names) for table in tables)
    # Pages that were freed. Fields lie side by side in them: a name may seem part of a longer one that is there.
    if not hits and not longer and _bytes_hold(path, names, is_packed=True):
        yield ", freed pages"


def _parts(cursor: sqlite3.Cursor) -> Iterator[list[Any]]:
    while rows := cursor.fetchmany(_ROWS):
        yield rows


def _has_longer(connection: sqlite3.Connection, table: str, names: Names) -> bool:
    """Whether a value holds a long name with letters beside it, as "user-10" holds "user-1"."""
    rows = connection.execute('SELECT * FROM "{}"'.format(table.replace('"', '""')))
    texts = (value.encode("utf-8", "surrogatepass") for row in rows for value in row if isinstance(value, str))
    return any(names.are_in(text, is_packed=True) for text in texts)


def _scan_gzip(path: Path, names: Names) -> list[str]:
    try:
        with gzip.open(path) as file:
            return [", unpacked"] if _stream_holds(file, names) else []
    except (OSError, EOFError):
        return [", bytes"] if _bytes_hold(path, names) else []


def _scan_zip(path: Path, names: Names) -> list[str]:
    places = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                if _stream_holds(file, names):
                    places.append(f", member {member.filename}")
    return places


def _stream_holds(file: Any, names: Names) -> bool:
    before = b""
    while part := file.read(8 << 20):
        if names.are_in(before + part):
            return True
        before = part[-1024:]
    return False


def _bytes_hold(path: Path, names: Names, is_packed: bool = False) -> bool:
    if not names.long or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return names.are_in(data, is_packed)


def _values_hold(path: Path, names: Names) -> bool:
    """The values of JSON, JSON lines and CSV: names that are too short for bytes, or written there with escapes."""
    if path.suffix not in (".json", ".jsonl", ".csv", ".tsv"):
        return False
    text = path.read_text(errors="replace")
    if path.suffix in (".csv", ".tsv"):
        rows = csv.reader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
        return any(not names.all.isdisjoint(row) for row in rows)
    try:
        documents = (
            [json.loads(line) for line in text.splitlines() if line] if path.suffix == ".jsonl" else [json.loads(text)]
        )
    except ValueError:
        return False
    return any(value in names.all for document in documents for value in _texts(document))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _places(data: Any, name: bytes) -> Iterator[int]:
    start = data.find(name)
    while start >= 0:
        yield start
        start = data.find(name, start + 1)


def _is_word(data: Any, start: int, length: int) -> bool:
    before, after = data[max(0, start - 1) : start], data[start + length : start + length + 1]
    return not any(byte in _WORD for byte in (*before, *after))
