import sqlite3
from pathlib import Path

import pytest

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback import upkeep
from avrec_ray.feedback.database import write
from avrec_ray.feedback.store import EventStore, Removed, Watermark
from avrec_ray.feedback.tables import events
from avrec_ray.types import Event
from tests.feedback.postgres_server import PostgresServer
from tests.feedback.test_impressions import shown

DAY = 86_400.0
NOW = 1_700_000_000.0


def append(store: EventStore, *ids_and_days: tuple[str, float]) -> None:
    for event_id, days_ago in ids_and_days:
        store.append([Event("u1", "i1", "like", NOW, event_id=event_id)], NOW - days_ago * DAY)


def retain(store: EventStore, days: float, exported: Watermark) -> Removed:
    return upkeep.retain(store._engine, days, exported, NOW)


def ids(store: EventStore) -> list[str]:
    return store.export_interactions()[0]["event_id"].to_pylist()


def test_retain_removes_what_is_old_and_exported(store: EventStore) -> None:
    append(store, ("old", 31), ("young", 29), ("old and exported", 40))
    _, watermark = store.export_interactions()
    append(store, ("old and not exported", 31))
    assert retain(store, 30, Watermark(watermark)) == Removed(2, 0)
    assert ids(store) == ["young", "old and not exported"]
    assert retain(store, 30, Watermark(watermark)) == Removed(0, 0)


def test_retain_zero_days_keeps_all_and_less_is_refused(store: EventStore) -> None:
    append(store, ("old", 5_000))
    assert store.retain(0, Watermark(10**9, 10**9)) == Removed(0, 0)
    with pytest.raises(FeedbackError, match="retention_days: got -1, expected 0 to keep all"):
        store.retain(-1, Watermark())


def test_retain_works_through_many_parts_and_gaps(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "ROWS_PER_TRANSACTION", 3)
    append(store, *((f"e{n}", 31 if n % 3 else 1) for n in range(14)))
    with write(store._engine) as connection:
        connection.execute(events.delete().where(events.c.event_id.in_(["e4", "e5", "e6"])))
    assert retain(store, 30, Watermark(10**9)).events == 9 - 2
    assert ids(store) == ["e0", "e3", "e9", "e12"]


def test_retain_removes_impressions_by_their_own_watermark(store: EventStore) -> None:
    store.record_impressions([shown("r1", "i1", at_seconds=NOW - 31 * DAY)])
    _, watermark = store.export_impressions()
    store.record_impressions([shown("r2", "i1", at_seconds=NOW - 31 * DAY), shown("r3", "i1", at_seconds=NOW)])
    assert retain(store, 30, Watermark(10**9, watermark)) == Removed(0, 1)
    assert store.export_impressions()[0]["request_id"].to_pylist() == ["r2", "r3"]


def test_watermark_stays_true_after_all_is_removed_and_compacted(store: EventStore) -> None:
    append(store, ("a", 31), ("b", 31))
    _, watermark = store.export_interactions()
    retain(store, 30, Watermark(watermark))
    store.compact()
    append(store, ("c", 0))
    table, later = store.export_interactions(watermark)
    assert table["event_id"].to_pylist() == ["c"]
    assert later > watermark


def test_compact_gives_room_back(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store = EventStore(f"sqlite:///{path}")
    store.append([Event("u1", "i" * 200, "like", NOW, event_id=f"e{n}") for n in range(3_000)], NOW - 2 * DAY)
    store.compact()
    full = path.stat().st_size
    retain(store, 1, Watermark(10**9))
    store.compact()
    empty = tmp_path / "empty.db"
    EventStore(f"sqlite:///{empty}").close()
    assert path.stat().st_size <= empty.stat().st_size + 8192 < full / 5
    store.close()


def test_copy_is_a_store_as_of_then(tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path / 'events.db'}")
    append(store, ("a", 0))
    store.copy(tmp_path / "copy.db")
    append(store, ("b", 0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.db", "events.db", "events.db-shm", "events.db-wal"]
    copy = EventStore(f"sqlite:///{tmp_path / 'copy.db'}")
    assert ids(copy) == ["a"]
    append(copy, ("c", 0))
    copy.close()
    with pytest.raises(FeedbackError, match=r"copy.db exists; a copy of the event store overwrites nothing"):
        store.copy(tmp_path / "copy.db")
    store.close()


def test_copy_of_a_damaged_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store = EventStore(f"sqlite:///{path}")
    store.append([Event("u1", "i" * 200, "like", NOW, event_id=f"e{n}") for n in range(500)], NOW)
    store.compact()
    store.close()
    with sqlite3.connect(path) as connection:
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with path.open("r+b") as file:
        file.seek(12 * page_size + 100)
        file.write(b"\xff" * page_size)
    store = EventStore(f"sqlite:///{path}")
    with pytest.raises(FeedbackError, match="damaged"):
        store.copy(tmp_path / "copy.db")
    assert not list(tmp_path.glob("copy.db*"))
    store.close()


def test_copy_of_postgresql_names_what_to_use(postgres_server: PostgresServer, tmp_path: Path) -> None:
    store = EventStore(postgres_server.new_url())
    with pytest.raises(FeedbackError, match="with `backup`, or with pg_dump"):
        store.copy(tmp_path / "copy.db")
    store.close()
