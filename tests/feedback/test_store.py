import math
import sys
import threading
from pathlib import Path

import pytest

from avrec_ray.errors import ConfigError, FeedbackError
from avrec_ray.feedback.database import write
from avrec_ray.feedback.store import Appended, EventStore, Rejection
from avrec_ray.types import Event
from tests.feedback.postgres_server import PostgresServer

NOW = 1_700_000_000.0


def event(event_id: str | None, item_id: str = "i1", user_id: str = "u1", at: float = NOW, kind: str = "like") -> Event:
    return Event(user_id, item_id, kind, at, event_id=event_id)


def test_append_new_events_are_accepted(store: EventStore) -> None:
    assert store.append([event("a"), event("b")], NOW) == Appended(2, 0, [])
    assert store.count() == 2


def test_append_nothing_is_nothing(store: EventStore) -> None:
    assert store.append([], NOW) == Appended(0, 0, [])


def test_append_again_is_a_duplicate(store: EventStore) -> None:
    store.append([event("a")], NOW)
    assert store.append([event("a"), event("b")], NOW + 5) == Appended(1, 1, [])
    assert store.count() == 2


def test_append_twice_in_one_request_counts_once(store: EventStore) -> None:
    assert store.append([event("a"), event("a")], NOW) == Appended(1, 1, [])


def test_append_same_id_other_body_is_a_conflict_and_the_first_stays(store: EventStore) -> None:
    store.append([event("a", "i1")], NOW)
    got = store.append([event("b"), event("a", "i2")], NOW)
    assert got == Appended(1, 0, [Rejection(1, "conflict: event_id 'a' is kept with another body")])
    assert [e.item_id for e in store.history("u1", 10) if e.event_id == "a"] == ["i1"]


def test_append_conflict_within_one_request_keeps_the_first(store: EventStore) -> None:
    got = store.append([event("a", "i1"), event("a", "i2"), event("a", "i1")], NOW)
    assert (got.accepted, got.duplicates, [r.index for r in got.rejected]) == (1, 1, [1])


def test_append_without_event_id_is_rejected_by_index(store: EventStore) -> None:
    got = store.append([event("a"), event(None)], NOW)
    assert got == Appended(1, 0, [Rejection(1, "event_id is missing")])


def test_append_undated_takes_the_servers_time_and_repeats_as_duplicate(store: EventStore) -> None:
    store.append([event("a", at=math.nan)], NOW)
    assert store.append([event("a", at=math.nan)], NOW + 100) == Appended(0, 1, [])
    assert store.history("u1", 1)[0].at_seconds == NOW


def test_append_dated_and_undated_differ(store: EventStore) -> None:
    store.append([event("a", at=NOW)], NOW)
    assert len(store.append([event("a", at=math.nan)], NOW).rejected) == 1


def test_append_500_events_fit_one_transaction(store: EventStore) -> None:
    assert store.append([event(f"e{i}") for i in range(500)], NOW).accepted == 500


def test_history_is_oldest_first_and_ties_keep_the_order_of_arrival(store: EventStore) -> None:
    store.append([event("late", "i3", at=NOW + 1), event("b", "i1"), event("a", "i2")], NOW)
    assert [e.item_id for e in store.history("u1", 10)] == ["i1", "i2", "i3"]


def test_history_limit_keeps_the_newest(store: EventStore) -> None:
    store.append([event(f"e{i}", f"i{i}", at=NOW + i) for i in range(5)], NOW)
    assert [e.item_id for e in store.history("u1", 2)] == ["i3", "i4"]


def test_history_holds_skips_but_no_impressions(store: EventStore) -> None:
    store.append([event("a", "i1", kind="impression"), event("b", "i2", kind="skip")], NOW)
    assert [e.event for e in store.history("u1", 10)] == ["skip"]
    assert store.count() == 2


def test_history_unknown_user_is_empty(store: EventStore) -> None:
    assert store.history("nobody", 10) == ()


def test_history_gives_back_what_was_appended(store: EventStore) -> None:
    full = Event("u1", "i1", "view", NOW + 0.123456, 12.5, 4.0, "a", "r1", 3)
    store.append([full], NOW)
    assert store.history("u1", 1) == (full,)


def test_history_hostile_ids_are_data(store: EventStore) -> None:
    user_id = "'; DROP TABLE events; -- \N{PILE OF POO}"
    store.append([event("a", user_id=user_id)], NOW)
    assert store.history(user_id, 1)[0].user_id == user_id


def test_history_reads_by_index(store: EventStore) -> None:
    query = (
        "SELECT item_id FROM events WHERE user_id = 'u' AND event != 'impression' ORDER BY at_us DESC, seq DESC LIMIT 5"
    )
    assert "events_history" in plan(store, query)


def plan(store: EventStore, query: str) -> str:
    """What a database intends to do, on tables so small that it must be told not to read them whole."""
    with store._engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            for way in ("seqscan", "hashjoin", "mergejoin", "sort", "bitmapscan"):
                connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
            return "\n".join(connection.exec_driver_sql(f"EXPLAIN {query}").scalars())
        steps = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")]
    assert not any(step.startswith(("SCAN", "USE TEMP")) for step in steps)
    return "\n".join(steps)


def test_histories_equal_history_of_each_user(store: EventStore) -> None:
    users = [f"u{i}" for i in range(1200)]
    store.append([event(f"{u}-{i}", f"i{i}", u, NOW + i) for u in users[:3] for i in range(4)], NOW)
    got = store.histories([*users, "u1"], 3)
    assert list(got) == users
    assert all(got[u] == store.history(u, 3) for u in users[:5])


def test_sqlite_is_durable_wal_with_full_sync(tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path / 'events.db'}")
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000
    store.close()


def test_postgresql_commits_synchronously_whatever_the_role_says(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_url() + "%20-csynchronous_commit%3Doff"
    store = EventStore(url, busy_timeout_seconds=2)
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        assert connection.exec_driver_sql("SHOW fsync").scalar() == "on"
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "2s"
    store.close()


def test_store_two_opened_at_once_see_each_others_events(store: EventStore, url: str) -> None:
    other = EventStore(url)
    store.append([event("a")], NOW)
    assert other.append([event("a")], NOW) == Appended(0, 1, [])
    assert other.history("u1", 1)[0].event_id == "a"
    other.close()


def test_store_many_threads_writing_the_same_ids_count_each_once(url: str) -> None:
    results: list[Appended] = []

    def write_all() -> None:
        store = EventStore(url)
        results.extend(store.append([event(f"e{i}")], NOW) for i in range(15))
        store.close()

    threads = [threading.Thread(target=write_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(r.accepted for r in results) == 15
    assert sum(r.duplicates for r in results) == 45


def test_store_busy_beyond_the_timeout_raises_and_keeps_nothing(url: str) -> None:
    store, other = EventStore(url, busy_timeout_seconds=0.05), EventStore(url)
    with (
        write(other._engine),
        pytest.raises(FeedbackError, match=r"(database is locked|lock timeout); nothing was acknowledged") as caught,
    ):
        store.append([event("a")], NOW)
    assert isinstance(caught.value, OSError)  # what a caller takes for an outage
    assert store.append([event("a")], NOW).accepted == 1
    store.close()
    other.close()


def test_store_reopened_has_everything(store: EventStore, url: str) -> None:
    store.append([event("a")], NOW)
    store.close()
    again = EventStore(url)
    assert again.count() == 1
    again.close()


def test_store_driver_that_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"'psycopg' is not installed; run: pip install 'avrec_ray\[postgres\]'"):
        EventStore("postgresql+psycopg://root:hunter2@db/x")
    with pytest.raises(ConfigError, match="'postgresql\\+nosuch' is not installed") as caught:
        EventStore("postgresql+nosuch://root:hunter2@db/x")
    assert "hunter2" not in str(caught.value)


def test_store_that_cannot_be_reached_says_so_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(FeedbackError, match="event store cannot be opened: unable to open") as caught:
        EventStore(f"sqlite:///{tmp_path / 'no' / 'folder.db'}")
    with pytest.raises(FeedbackError, match="event store cannot be opened: connection") as caught:
        EventStore(f"postgresql+psycopg://root:hunter2@/x?host={tmp_path}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("unusable", "message"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("mysql://db/x", "is for 'mysql'; expected sqlite"),
        ("events.db", "is not a SQLAlchemy URL"),
    ],
)
def test_store_unusable_url_is_refused(unusable: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EventStore(unusable)


def test_store_url_error_tells_no_password() -> None:
    with pytest.raises(ConfigError) as caught:
        EventStore("mysql://root:hunter2@db/x")
    assert "hunter2" not in str(caught.value)
