"""Bad input on the command line: one line says what was got and what was expected, and what was there stays."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
AT = datetime(2026, 1, 1, tzinfo=UTC)
ITEMS: dict[str, Any] = {"item_id": ["a", "b"], "media_uri": pa.nulls(2, pa.string()), "title": ["a song", "a dance"]}
EVENTS: dict[str, Any] = {"user_id": ["u", "v"], "item_id": ["a", "b"], "event": ["view", "like"], "at": [AT, AT]}


def run_job(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A job as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *overrides],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def write(path: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with good tables and, under run/, what jobs.prepare made of them; unchanged when the tests are over."""
    folder = tmp_path_factory.mktemp("bad_input")
    tables = [f"data.items={write(folder / 'items.parquet', ITEMS)}"]
    tables.append(f"data.interactions={write(folder / 'events.parquet', EVENTS)}")
    done = run_job("prepare", f"storage_path={folder / 'run'}", *tables)
    assert done.returncode == 0, done.stderr
    before = digests(folder / "run")
    assert len(before) == 2
    yield folder
    assert digests(folder / "run") == before


BAD_TABLES = {
    "malformed": ("items", None, "items.*not a readable Parquet file"),
    "missing_column": ("interactions", {k: v for k, v in EVENTS.items() if k != "at"}, "'at' is missing.*expected"),
    "unknown_event": ("interactions", {**EVENTS, "event": ["view", "wink"]}, "'wink' in row 1; expected one of"),
    "duplicate_id": ("items", {**ITEMS, "item_id": ["a", "a"]}, "'item_id' repeats 'a' in row 1.*unique"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_refused_in_one_line(case: str, good_run: Path) -> None:
    kind, columns, message = BAD_TABLES[case]
    path = good_run / f"{case}.parquet"
    if columns is None:
        path.write_bytes(os.urandom(400))
    else:
        write(path, columns)
    paths = {"items": good_run / "items.parquet", "interactions": good_run / "events.parquet"} | {kind: path}
    failed = run_job(
        "prepare", f"storage_path={good_run / 'run'}", *(f"data.{name}={value}" for name, value in paths.items())
    )
    assert_refused(failed, message)


BAD_SETTINGS = {
    "relative_storage_path": (["storage_path=runs/x"], "storage_path='runs/x' is not absolute"),
    "unknown_key": (["data.itemz=/x"], "'itemz' not in 'DataConfig'"),
    "wrong_type": (["seed=abc"], "Value 'abc' of type 'str' could not be converted to Integer"),
    "out_of_range": (["training.finetune.epochs=-1"], "epochs=-1"),
    "unknown_choice": (["index.backend=hnsw"], "index.backend='hnsw' is not one of"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_refused_before_anything_runs(case: str, good_run: Path) -> None:
    overrides, message = BAD_SETTINGS[case]
    assert_refused(run_job("prepare", f"storage_path={good_run / 'run'}", *overrides), message)


@pytest.mark.slow
def test_a_catalogue_without_anything_usable_is_refused(good_run: Path) -> None:
    columns = {"item_id": ["a", "b"], "media_uri": ["/nowhere/a.mp4", "/nowhere/b.mp4"], "title": ["", ""]}
    items = write(good_run / "nothing.parquet", columns)
    failed = run_job("decode_media", f"storage_path={good_run / 'other'}", f"data.items={items}")
    assert_refused(failed, "none of the 2 items is usable: missing 2")


def test_a_job_without_the_stage_before_it_says_what_to_run(good_run: Path) -> None:
    failed = run_job("embed_items", f"storage_path={good_run / 'run'}")
    assert_refused(failed, "stage 'refresh' has not finished.*run: python -m jobs")


def assert_refused(failed: subprocess.CompletedProcess[str], message: str) -> None:
    output = failed.stdout + failed.stderr
    assert failed.returncode != 0
    assert "Traceback" not in output
    assert re.search(message, output, re.DOTALL), output
