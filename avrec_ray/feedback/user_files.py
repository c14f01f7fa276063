"""Users taken out of the files under a storage path, or given other names there: tables, bundles, lists, JSON.

Each file is replaced whole or left as it was. Killed anywhere, the next run finds what is still to do by looking again.
"""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.durable import crash_point, sync
from avrec_ray.feedback.arrow_names import may_hold_names, names_any, rows_naming, without_listed
from avrec_ray.feedback.profile_files import is_profiles, recover_bundle, replace_in_bundle, without_users
from avrec_ray.feedback.pseudonyms import USER_COLUMNS, Pseudonyms

STAGED = ".erasing"
"""End of the name of a file that is being written."""
MAX_TEXT_BYTES = 256 << 20
"""Larger texts are left to the scan, which says so if a user is in them."""
_ROWS_PER_BATCH = 100_000
_PSEUDONYM = re.compile(r"\bv[1-9][0-9]{0,5}:[0-9a-f]{32}\b")
_PARTS = re.compile(r"[0-9a-f]{16}")


def erase_from_files(root: Path, names: Sequence[str]) -> dict[str, int]:
    """Remove users from every file that is known to hold some; returns rows, or places, removed by file.

    Args:
        root: the storage path. Backups, folders with a backup.json, stay as they are: they expire.
        names: all names of the users, their ids among them where those were stored.
    """
    wanted, removed = pa.array(sorted(set(names)), pa.string()), {}
    _recover(root)
    for path in sorted(user_files(root)):
        if path.is_file() and (count := _erase_from(path, wanted)):
            removed[str(path.relative_to(root))] = count
            crash_point("files.one")
    return removed


def rename_in_files(root: Path, pseudonyms: Pseudonyms) -> int:
    """Names of users under another key, or ids in columns of users, under the key that writes; returns files changed.

    A resumable part of a batch recommendation is removed, since its manifest is of the old names.
    """
    _recover(root)
    changed = 0
    for path in sorted(user_files(root)):
        if path.is_file() and _rename_in(path, pseudonyms):
            changed += 1
            crash_point("files.renamed")
    return changed


def user_files(root: Path) -> Iterator[Path]:
    """Files in which users may be named, outside of backups and of the event store itself."""
    for folder, folders, files in os.walk(root):
        if "backup.json" in files:
            folders.clear()
            continue
        yield from (
            Path(folder, name)
            for name in files
            if Path(name).suffix in _ERASERS and not Path(folder, name).is_symlink()
        )


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """`write(staged)` fills a file beside, which takes the name of `path` when it is on disk."""
    staged = path.with_name(path.name + STAGED)
    write(staged)
    sync(staged)
    staged.replace(path)
    sync(path.parent)


def _recover(root: Path) -> None:
    """What a killed run left: a bundle between two of its files, and files that were not yet whole."""
    for staged in sorted(root.rglob(f"*{STAGED}")):
        if staged.name.startswith("metadata.json"):
            recover_bundle(staged)
    for staged in sorted(root.rglob(f"*{STAGED}")):
        staged.unlink()


def _erase_from(path: Path, names: pa.Array) -> int:
    return _ERASERS[path.suffix](path, names)


def _erase_from_parquet(path: Path, names: pa.Array) -> int:
    file = _open_parquet(path)
    if file is None or not _holds(file, names):
        return 0
    if is_profiles(file.schema_arrow):
        table = file.read()
        kept = without_users(table, set(names.to_pylist()))
        replace_in_bundle(path, kept, STAGED)
        return int(table.num_rows - kept.num_rows)
    removed = 0

    def write(staged: Path) -> None:
        nonlocal removed
        with pq.ParquetWriter(staged, file.schema_arrow) as writer:
            for batch in file.iter_batches(_ROWS_PER_BATCH):
                table = pa.Table.from_batches([batch])
                kept = table.filter(pc.invert(rows_naming(table, names)))
                removed += table.num_rows - kept.num_rows
                cleared = without_listed(kept, names)
                removed += sum(cleared[c] != kept[c] for c in kept.column_names if pa.types.is_list(kept[c].type))
                writer.write_table(cleared)

    replace_file(path, write)
    return removed


def _open_parquet(path: Path) -> pq.ParquetFile | None:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError):  # no table after all: the scan looks at its bytes
        return None


def _holds(file: pq.ParquetFile, names: pa.Array) -> bool:
    columns = [field.name for field in file.schema_arrow if may_hold_names(field)]
    if not columns:
        return False
    batches = file.iter_batches(_ROWS_PER_BATCH, columns=columns)
    return any(names_any(column, names) for batch in batches for column in batch.columns)


def _erase_parts(path: Path, names: pa.Array) -> int:
    """Of a batch recommendation that was killed: it begins anew, with the users that are left."""
    if not _PARTS.fullmatch(path.parent.name):
        return 0
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            return 0
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        if not any(names_any(column, names) for batch in batches for column in batch.columns):
            return 0
    shutil.rmtree(path.parent)
    return 1


def _erase_from_json(path: Path, names: pa.Array) -> int:
    try:
        values = json.loads(path.read_text())
    except (ValueError, OSError):
        return 0
    removed = 0

    def cleared(value: Any) -> Any:
        nonlocal removed
        if isinstance(value, list):
            kept = [cleared(v) for v in value if not (isinstance(v, str) and v in wanted)]
            removed += len(value) - len(kept)
            return kept
        if isinstance(value, dict):
            pairs = {k: v for k, v in value.items() if k not in wanted and not (isinstance(v, str) and v in wanted)}
            removed += len(value) - len(pairs)
            return {k: cleared(v) for k, v in pairs.items()}
        return value

    wanted = set(names.to_pylist())
    values = cleared(values)
    if removed:
        replace_file(path, lambda staged: _write_text(staged, json.dumps(values, indent=1)))
    return removed


def _erase_json_lines(path: Path, names: pa.Array) -> int:
    wanted = {json.dumps(name, ensure_ascii=escaped) for name in names.to_pylist() for escaped in (True, False)}
    return _erase_lines(path, lambda line: any(name in line for name in wanted))


def _erase_rows(path: Path, names: pa.Array) -> int:
    wanted = set(names.to_pylist())
    delimiter = "\t" if path.suffix == ".tsv" else ","
    return _erase_lines(
        path, lambda line: not wanted.isdisjoint(next(csv.reader(io.StringIO(line), delimiter=delimiter), []))
    )


def _erase_lines(path: Path, is_of_user: Callable[[str], bool]) -> int:
    text = _read_text(path)
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not is_of_user(line)]
    if len(kept) < len(lines):
        replace_file(path, lambda staged: _write_text(staged, "".join(kept)))
    return len(lines) - len(kept)


def _erase_words(path: Path, names: pa.Array) -> int:
    """From a report or a log: the name alone. Short ids are words of their own right, and stay."""
    long = [name for name in names.to_pylist() if len(name) >= MIN_WORD_CHARS]
    if not long:
        return 0
    pattern = re.compile(r"(?<![\w])(?:" + "|".join(map(re.escape, long)) + r")(?![\w])")
    text, removed = pattern.subn("(erased)", _read_text(path))
    if removed:
        replace_file(path, lambda staged: _write_text(staged, text))
    return removed


MIN_WORD_CHARS = 8
"""In free text a shorter name is not looked for: it would be found everywhere."""

_ERASERS: dict[str, Callable[[Path, pa.Array], int]] = {
    ".parquet": _erase_from_parquet,
    ".arrow": _erase_parts,
    ".json": _erase_from_json,
    ".jsonl": _erase_json_lines,
    ".csv": _erase_rows,
    ".tsv": _erase_rows,
    ".txt": _erase_words,
    ".html": _erase_words,
    ".log": _erase_words,
}


def _rename_in(path: Path, pseudonyms: Pseudonyms) -> bool:
    if path.suffix == ".parquet":
        return _rename_in_parquet(path, pseudonyms)
    if path.suffix == ".arrow":
        if is_parts := _PARTS.fullmatch(path.parent.name) is not None:
            shutil.rmtree(path.parent)
        return is_parts
    text = _read_text(path)
    renamed = _PSEUDONYM.sub(lambda found: pseudonyms.stored(found[0]), text)
    if renamed != text:
        replace_file(path, lambda staged: _write_text(staged, renamed))
    return renamed != text


def _rename_in_parquet(path: Path, pseudonyms: Pseudonyms) -> bool:
    file = _open_parquet(path)
    columns = [name for name in USER_COLUMNS if file is not None and name in file.schema_arrow.names]
    if file is None or not columns:
        return False
    batches = file.iter_batches(_ROWS_PER_BATCH, columns=columns)
    if all(pseudonyms.table(table) == table for table in (pa.Table.from_batches([batch]) for batch in batches)):
        return False
    if is_profiles(file.schema_arrow):
        replace_in_bundle(path, pseudonyms.table(file.read()), STAGED)
        return True

    def write(staged: Path) -> None:
        with pq.ParquetWriter(staged, file.schema_arrow) as writer:
            for batch in file.iter_batches(_ROWS_PER_BATCH):
                writer.write_table(pseudonyms.table(pa.Table.from_batches([batch])))

    replace_file(path, write)
    return True


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT_BYTES:
        return ""
    return path.read_text(errors="surrogateescape")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, errors="surrogateescape")
