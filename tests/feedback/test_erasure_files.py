"""Files: users taken out, renamed and looked for, whatever the file is; the rest stays to the byte or to the row."""

import gzip
import json
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.bundle import load_bundle, load_bundle_profiles
from avrec_ray.feedback.erasure_scan import Names, scan_folder
from avrec_ray.feedback.profile_files import without_users
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.user_files import erase_from_files, rename_in_files
from avrec_ray.training.profiles import SCHEMA
from avrec_ray.types import Event
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import tiny_towers

GONE, STAYS = "planted-user-1", "planted-user-10"
OLD, BOTH, NEW = (Pseudonyms(k) for k in ([(1, b"1" * 32)], [(2, b"2" * 32), (1, b"1" * 32)], [(2, b"2" * 32)]))


def interactions(*users: str) -> pa.Table:
    return pa.table({"user_id": list(users), "item_id": ["i"] * len(users), "n": list(range(len(users)))})


def places(root: Path, *names: str) -> list[str]:
    return scan_folder(root, names or [GONE]).found


def test_tables_lose_the_users_rows_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    path = tmp_path / "tables" / "interactions.parquet"
    table = interactions(GONE, STAYS, GONE, "other").replace_schema_metadata({"model_version": "v1"})
    pq.write_table(table, path)
    edges = pa.table({"user_id": [GONE, STAYS, STAYS], "friend_id": [STAYS, GONE, "other"]})
    pq.write_table(edges, tmp_path / "tables" / "edges.parquet")
    coded = pa.table({"user_id": pa.array([GONE, STAYS]).dictionary_encode(), "item_id": [GONE, GONE]})
    pq.write_table(coded, tmp_path / "coded.parquet")
    pq.write_table(pa.table({"hidden": [[GONE, STAYS], None, []]}), tmp_path / "lists.parquet")
    pq.write_table(interactions("other"), tmp_path / "untouched.parquet")
    before = (tmp_path / "untouched.parquet").read_bytes()
    assert len(places(tmp_path)) == 5
    assert erase_from_files(tmp_path, [GONE]) == {
        "coded.parquet": 1, "lists.parquet": 1, "tables/edges.parquet": 2, "tables/interactions.parquet": 2,
    }  # fmt: skip
    kept = pq.read_table(path)
    assert kept.to_pylist() == table.slice(1, 1).to_pylist() + table.slice(3, 1).to_pylist()
    assert kept.schema.metadata[b"model_version"] == b"v1"
    assert pq.read_table(tmp_path / "tables" / "edges.parquet").to_pylist() == edges.slice(2).to_pylist()
    assert pq.read_table(tmp_path / "coded.parquet").to_pylist() == [{"user_id": STAYS, "item_id": GONE}]
    assert pq.read_table(tmp_path / "lists.parquet")["hidden"].to_pylist() == [[STAYS], None, []]
    assert (tmp_path / "untouched.parquet").read_bytes() == before
    assert places(tmp_path) == []
    assert erase_from_files(tmp_path, [GONE]) == {}


def test_texts_lose_lines_values_and_words(tmp_path: Path) -> None:
    texts = {
        "a.json": json.dumps({"hidden": [GONE, STAYS], GONE: 1, "x": {"user": GONE, "n": [1, {"u": STAYS}]}}),
        "b.jsonl": f'{{"u": "{GONE}"}}\n{{"u": "{STAYS}"}}\n',
        "c.csv": f'user_id,text\n{GONE},x\n{STAYS},"a,{GONE} b"\n',
        "d.html": f"<td>{GONE}</td><td>{STAYS}</td>",
        "not.json": "{",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert erase_from_files(tmp_path, [GONE]) == {"a.json": 3, "b.jsonl": 1, "c.csv": 1, "d.html": 1}
    assert json.loads((tmp_path / "a.json").read_text()) == {"hidden": [STAYS], "x": {"n": [1, {"u": STAYS}]}}
    assert (tmp_path / "b.jsonl").read_text() == f'{{"u": "{STAYS}"}}\n'
    assert (tmp_path / "c.csv").read_text() == f'user_id,text\n{STAYS},"a,{GONE} b"\n'
    assert (tmp_path / "d.html").read_text() == f"<td>(erased)</td><td>{STAYS}</td>"
    assert places(tmp_path) == ["c.csv, bytes"]  # in a text of somebody else: found, and left to a person


def test_scan_looks_into_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "log.bin").write_bytes(b"\0\1" + GONE.encode() + b"\0")
    with gzip.open(tmp_path / "old.log.gz", "wb") as file:
        file.write(b"x" * 10_000_000 + b" " + GONE.encode())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("inner", f"-{GONE}-")
    header = json.dumps({"__metadata__": {"user": GONE}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    pq.write_table(interactions("a").replace_schema_metadata({"who": GONE}), tmp_path / "meta.parquet")
    pq.write_table(
        pa.table({"m": pa.array([[("k", GONE)]], pa.map_(pa.string(), pa.string()))}), tmp_path / "map.parquet"
    )
    pq.write_table(pa.table({"request_id": [f"r-{GONE}"]}), tmp_path / "within.parquet")
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pa.ipc.new_file(sink, interactions(GONE).schema) as writer:
        writer.write_table(interactions(GONE))
    (tmp_path / f"{GONE}.txt").write_text("")
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("CREATE TABLE params (key TEXT, value TEXT)")
    connection.execute("INSERT INTO params VALUES ('user', ?)", [GONE])
    connection.commit()
    connection.close()
    found = places(tmp_path)
    assert found == [
        "a.npz, member inner", "log.bin, bytes", "map.parquet, column m", "meta.parquet, metadata",
        "mlflow.db, table params, column value", "old.log.gz, unpacked", f"{GONE}.txt, the name of the file",
        "s.arrow, column user_id", "w.safetensors, bytes", "within.parquet, column request_id",
    ]  # fmt: skip
    assert places(tmp_path, "somebody else") == []


def test_scan_sees_freed_pages_and_the_log_of_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute("CREATE TABLE t (u TEXT)")
    connection.executemany("INSERT INTO t VALUES (?)", [(GONE,)] * 50)
    connection.commit()
    connection.execute("DELETE FROM t")
    connection.commit()
    assert places(tmp_path) == ["notes.db, freed pages"]
    connection.execute("INSERT INTO t VALUES (?)", [STAYS])
    connection.commit()
    assert places(tmp_path) == []  # nobody can tell the one from a part of the other
    connection.execute("VACUUM")
    connection.execute("DELETE FROM t")
    connection.commit()
    connection.execute("VACUUM")
    assert places(tmp_path) == []
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("INSERT INTO t VALUES (?)", [GONE])
    connection.commit()
    connection.execute("DELETE FROM t")
    connection.commit()
    assert "notes.db-wal, bytes" in places(tmp_path)
    connection.close()


def test_short_ids_are_looked_for_in_tables_alone(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("recall 7 of 100")
    (tmp_path / "x.json").write_text('{"n": 7, "user": "7"}')
    pq.write_table(interactions("7", "8"), tmp_path / "t.parquet")
    scan = scan_folder(tmp_path, ["7"])
    assert scan.found == ["t.parquet, column user_id", "x.json, values"]
    assert "1 names of under 8 characters: only tables were searched" in scan.lines()
    assert erase_from_files(tmp_path, ["7"]) == {"t.parquet": 1, "x.json": 1}
    assert scan_folder(tmp_path, ["7"]).found == []


def test_backups_stay_and_are_told_apart(tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path / 'events.db'}", pseudonyms=Pseudonyms())
    store.append([Event(GONE, "i", "like", 1.0, event_id="e")], 1.0)
    store.backup(tmp_path / "backups" / "monday")
    store.erase(GONE)
    store.compact()
    store.close()
    assert erase_from_files(tmp_path, [GONE]) == {}
    scan = scan_folder(tmp_path, [GONE])
    assert (scan.found, scan.in_backups) == ([], ["backups/monday/events.parquet, column user_id"])


def test_resumable_parts_of_the_user_are_dropped(tmp_path: Path) -> None:
    for name, user in (("0123456789abcdef", GONE), ("fedcba9876543210", STAYS)):
        folder = tmp_path / "lists.parquet.parts" / name
        folder.mkdir(parents=True)
        table = pa.table({"user_id": [user]})
        with pa.OSFile(str(folder / "users.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    erase_from_files(tmp_path, [GONE])
    assert [path.name for path in (tmp_path / "lists.parquet.parts").iterdir()] == ["fedcba9876543210"]


@st.composite
def profile_rows(draw: st.DrawFn) -> list[dict[str, object]]:
    count = draw(st.integers(1, 8))
    rows = []
    for row in range(count):
        friends = draw(st.lists(st.integers(0, count - 1), unique=True, max_size=4))
        choices = draw(st.lists(st.integers(0, 9), max_size=3))
        rows.append(
            {
                "user_id": f"u{row}",
                "attribute_ids": [row + 1],
                "friend_rows": friends,
                "friend_log_weights": [float(f) for f in friends],
                "choice_item_rows": choices,
                "choice_at_seconds": [float(c) for c in choices],
            }
        )
    return rows


@given(profile_rows(), st.sets(st.integers(0, 7)))
def test_profiles_of_others_keep_their_friends_by_name(rows: list[dict[str, list[int]]], gone: set[int]) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA)
    names = {f"u{number}" for number in gone}
    kept = without_users(table, names).to_pylist()
    assert [row["user_id"] for row in kept] == [r["user_id"] for r in rows if r["user_id"] not in names]
    for row in kept:
        before = rows[int(row["user_id"][1:])]
        friends = [kept[friend]["user_id"] for friend in row["friend_rows"]]
        assert friends == [f"u{f}" for f in before["friend_rows"] if f not in gone]
        assert row["friend_log_weights"] == [float(f) for f in before["friend_rows"] if f not in gone]
        assert row["choice_item_rows"] == before["choice_item_rows"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """With profiles of ten users, u0 to u7 among them, beside a table."""
    pq.write_table(interactions("u3", "u4"), tmp_path / "interactions.parquet")
    towers = tiny_towers(num_attribute_buckets=16, num_friends=3)
    return build_tiny_bundle(tmp_path / "bundle" / "v-1", towers=towers)


def test_bundle_is_whole_without_the_user(bundle: Path, tmp_path: Path) -> None:
    before = load_bundle(bundle)
    assert erase_from_files(tmp_path, ["u3"]) == {"bundle/v-1/users.parquet": 1, "interactions.parquet": 1}
    after = load_bundle(bundle)
    assert after.profiles is not None
    assert before.profiles is not None
    assert after.profiles.user_ids == [user for user in before.profiles.user_ids if user != "u3"]
    np.testing.assert_array_equal(after.embeddings, before.embeddings)
    assert scan_folder(tmp_path, ["u3"]).found == []


ERASE = """
import sys
from pathlib import Path
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.user_files import *
"""


@pytest.mark.parametrize("label", ["files.bundle_staged", "files.bundle_half", "files.one"])
@pytest.mark.parametrize("call", ["erase_from_files(Path(sys.argv[1]), ['u3'])", "rename"])
def test_files_of_a_run_that_died_are_put_right_by_the_next(
    bundle: Path, tmp_path: Path, label: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVREC_CRASH_AT", label.replace("files.one", "files.renamed") if call == "rename" else label)
    if call == "rename":
        call = "rename_in_files(Path(sys.argv[1]), Pseudonyms([(1, b'1' * 32)]))"
    code = ERASE + call
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert died.returncode == 137, died.stderr
    monkeypatch.delenv("AVREC_CRASH_AT")
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    profiles = load_bundle_profiles(bundle)
    assert profiles is not None
    assert len(profiles.user_ids) == (9 if "erase" in call else 10)
    assert scan_folder(tmp_path, ["u3"]).found == []
    assert not list(tmp_path.rglob("*.erasing"))


def test_rename_gives_every_file_the_names_of_the_new_key(bundle: Path, tmp_path: Path) -> None:
    before = load_bundle_profiles(bundle)
    assert before is not None
    users = before.user_ids
    assert rename_in_files(tmp_path, OLD) == 2
    (tmp_path / "split.json").write_text(json.dumps({"hidden": [OLD.of("u3")], "n": 1}))
    assert rename_in_files(tmp_path, OLD) == 0
    assert rename_in_files(tmp_path, BOTH) == 3
    assert scan_folder(tmp_path, [*users, *map(OLD.of, users)]).found == []
    profiles = load_bundle_profiles(bundle)
    assert profiles is not None
    assert profiles.user_ids == [NEW.of(user) for user in users]
    assert pq.read_table(tmp_path / "interactions.parquet")["user_id"].to_pylist() == [NEW.of("u3"), NEW.of("u4")]
    assert json.loads((tmp_path / "split.json").read_text()) == {"hidden": [NEW.of("u3")], "n": 1}


@pytest.mark.parametrize(
    ("data", "is_packed", "found"),
    [(b"xplanted-user-1", False, False), (b"xplanted-user-1", True, True), (b" planted-user-10", False, False)],
)
def test_names_in_bytes_are_whole_words(data: bytes, is_packed: bool, found: bool) -> None:
    assert Names([GONE]).are_in(data, is_packed) is found
