import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback import backup
from avrec_ray.feedback.appending import Appended
from avrec_ray.feedback.backup import TABLES
from avrec_ray.feedback.database import write
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.tables import SCHEMA_VERSION, events
from avrec_ray.types import Event
from tests.feedback.postgres_server import PostgresServer
from tests.feedback.test_impressions import shown

NOW = 1_700_000_000.0
FULL = Event("u1", "i1", "view", NOW + 0.123456, 12.5, 4.0, "a", "r1", 3)
BARE = Event("u\N{PILE OF POO}", "i2", "skip", NOW, event_id="b")


@pytest.fixture
def folder(store: EventStore, tmp_path: Path) -> Path:
    """A backup of three events, the last of which was removed, and two impressions."""
    store.append([FULL, BARE], NOW)
    store.append([Event("u1", "i3", "like", NOW, event_id="removed")], NOW)
    store.record_impressions([shown("r1", "i1"), shown("r1", "i2", 1, propensity=None)])
    with write(store._engine) as connection:
        connection.execute(events.delete().where(events.c.event_id == "removed"))
    store.backup(tmp_path / "backup")
    return tmp_path / "backup"


@pytest.fixture
def empty(new_url: Callable[[], str]) -> Iterator[EventStore]:
    opened = EventStore(new_url())
    yield opened
    opened.close()


def rows(store: EventStore) -> list[object]:
    with store._engine.connect() as connection:
        return [tuple(r) for table in backup.TABLES for r in connection.execute(sa.select(table).order_by(table.c.seq))]


def test_restored_store_is_the_one_backed_up(store: EventStore, folder: Path, empty: EventStore) -> None:
    assert empty.restore(folder) == 2
    assert rows(empty) == rows(store)
    assert empty.history("u1", 5) == (FULL,)
    assert empty.append([FULL, BARE], NOW) == Appended(0, 2, [])
    assert empty.record_impressions([shown("r1", "i1"), shown("r1", "i2", 1, propensity=None)]) == 0


def test_restored_store_gives_no_seq_out_again(store: EventStore, folder: Path, empty: EventStore) -> None:
    empty.restore(folder)
    event = Event("u1", "i4", "like", NOW, event_id="next")
    for each in (store, empty):
        each.append([event], NOW)
        _, watermark = each.export_interactions()
        assert watermark > 3  # 3 was the event that was removed, which an export may have read


def test_backup_of_one_database_restores_into_the_other(
    store: EventStore, folder: Path, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    is_sqlite = store._engine.dialect.name == "sqlite"
    other = EventStore(postgres_server.new_url() if is_sqlite else f"sqlite:///{tmp_path / 'other.db'}")
    other.restore(folder)
    assert rows(other) == rows(store)
    other.backup(tmp_path / "again")
    for name in ("events", "impressions"):
        assert pq.read_table(tmp_path / "again" / f"{name}.parquet").equals(pq.read_table(folder / f"{name}.parquet"))
    other.close()


def test_backup_of_an_empty_store_restores(store: EventStore, empty: EventStore, tmp_path: Path) -> None:
    store.backup(tmp_path / "backup")
    assert empty.restore(tmp_path / "backup") == 0
    assert empty.append([FULL], NOW).accepted == 1


def test_restore_into_a_store_with_rows_is_refused(store: EventStore, folder: Path) -> None:
    before = rows(store)
    with pytest.raises(FeedbackError, match="the store has events already; restore into a new store"):
        store.restore(folder)
    assert rows(store) == before


def test_backup_overwrites_nothing_and_leaves_no_part(store: EventStore, folder: Path) -> None:
    with pytest.raises(FeedbackError, match="exists; a backup overwrites nothing"):
        store.backup(folder)
    assert not list(folder.parent.glob("*.part"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "backup.json",
        *sorted(f"{t.name}.parquet" for t in TABLES),
    ]


def test_backup_cut_short_by_an_earlier_run_is_made_anew(store: EventStore, tmp_path: Path) -> None:
    (tmp_path / "backup.part").mkdir()
    (tmp_path / "backup.part" / "events.parquet").write_bytes(b"PAR1")
    store.backup(tmp_path / "backup")
    assert (tmp_path / "backup" / "backup.json").is_file()


def test_restore_of_a_damaged_backup_loads_nothing(folder: Path, empty: EventStore) -> None:
    path = folder / "impressions.parquet"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(FeedbackError, match=r"impressions.parquet is missing or not what was backed up"):
        empty.restore(folder)
    path.unlink()
    with pytest.raises(FeedbackError, match=r"impressions.parquet is missing"):
        empty.restore(folder)
    assert rows(empty) == []


def test_restore_of_no_backup_or_another_version_is_refused(folder: Path, empty: EventStore, tmp_path: Path) -> None:
    with pytest.raises(FeedbackError, match=r"holds no backup of an event store: backup.json is missing or torn"):
        empty.restore(tmp_path / "nowhere")
    manifest = json.loads((folder / "backup.json").read_text())
    (folder / "backup.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(
        FeedbackError, match=f"has schema version 99, this code reads {SCHEMA_VERSION}; restore it with the version"
    ):
        empty.restore(folder)
