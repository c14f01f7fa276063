"""Stores of every version come to the newest, on both databases, whoever opens them and however often."""

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback import migrations, schema
from avrec_ray.feedback.appending import Appended
from avrec_ray.feedback.database import connect, write
from avrec_ray.feedback.events import fingerprint_of
from avrec_ray.feedback.schema import VERSION_TABLE
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.tables import SCHEMA_VERSION, metadata
from avrec_ray.types import Event

SCHEMA_1 = {
    "sqlite": """
CREATE TABLE store_info (name VARCHAR(64) NOT NULL, value VARCHAR(256) NOT NULL, PRIMARY KEY (name));
CREATE TABLE events (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL, user_id TEXT NOT NULL,
    item_id TEXT NOT NULL, event VARCHAR(16) NOT NULL, at_us BIGINT NOT NULL, received_us BIGINT NOT NULL,
    watch_seconds DOUBLE, value DOUBLE, request_id TEXT, position INTEGER, fingerprint BLOB NOT NULL,
    UNIQUE (event_id)
);
CREATE INDEX events_history ON events (user_id, at_us, seq) WHERE event != 'impression';
INSERT INTO store_info VALUES ('schema_version', '1')""",
    "postgresql": """
CREATE TABLE store_info (name VARCHAR(64) NOT NULL, value VARCHAR(256) NOT NULL, PRIMARY KEY (name));
CREATE TABLE events (
    seq BIGSERIAL NOT NULL, event_id TEXT NOT NULL, user_id TEXT NOT NULL,
    item_id TEXT NOT NULL, event VARCHAR(16) NOT NULL, at_us BIGINT NOT NULL, received_us BIGINT NOT NULL,
    watch_seconds DOUBLE PRECISION, value DOUBLE PRECISION, request_id TEXT, position INTEGER,
    fingerprint BYTEA NOT NULL, PRIMARY KEY (seq), UNIQUE (event_id)
);
CREATE INDEX events_history ON events (user_id, at_us, seq) WHERE event != 'impression';
INSERT INTO store_info VALUES ('schema_version', '1')""",
}
"""What the code of schema 1 sent, before there were migrations."""

OLD = Event("u1", "i1", "view", 5.25, 1.5, None, "e1", "r1", 3)


@pytest.fixture
def old_url(url: str) -> str:
    """A store of schema 1 with rows in it."""
    engine = connect(url, 10)
    with write(engine) as connection:
        for statement in SCHEMA_1[engine.dialect.name].split(";\n"):
            connection.exec_driver_sql(statement)
        row = "event_id, user_id, item_id, event, at_us, received_us, watch_seconds, request_id, position, fingerprint"
        values = "'e1', 'u1', 'i1', 'view', 5250000, 6000000, 1.5, 'r1', 3, :fingerprint"
        insert = sa.text(f"INSERT INTO events ({row}) VALUES ({values})")
        connection.execute(insert, {"fingerprint": fingerprint_of(OLD)})
    engine.dispose()
    return url


def structure(engine: sa.Engine) -> list[tuple[str, str]]:
    """Tables and indexes in the database's own words, partial conditions with them."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            found = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
            rows = [(name, "".join(sql.split())) for name, sql in found]
        else:
            place = "current_schema()"
            columns = connection.exec_driver_sql(
                "SELECT table_name || '.' || column_name, "
                "concat_ws(' ', data_type, character_maximum_length, is_nullable) "
                f"FROM information_schema.columns WHERE table_schema = {place}"
            )
            rows = [(name, kind) for name, kind in columns]
            indexes = connection.exec_driver_sql(
                f"SELECT indexname, replace(indexdef, {place} || '.', '') FROM pg_indexes WHERE schemaname = {place}"
            )
            rows += [(name, sql) for name, sql in indexes]
    return sorted(row for row in rows if VERSION_TABLE not in row[0])


def test_migrated_store_has_its_rows_and_takes_new_ones(old_url: str) -> None:
    store = EventStore(old_url)
    assert store.history("u1", 5) == (OLD,)
    assert store.append([OLD, Event("u1", "i2", "like", 7.0, event_id="e2")], 7.0) == Appended(1, 1, [])
    table, watermark = store.export_interactions()
    assert table["event_id"].to_pylist() == ["e1", "e2"]
    assert watermark >= 2  # a duplicate may leave a gap
    assert store.export_impressions()[1] == 0
    store.close()


def test_migrated_and_new_store_are_what_the_metadata_says(old_url: str, new_url: Callable[[], str]) -> None:
    from_metadata = connect(new_url(), 10)
    with write(from_metadata) as connection:
        metadata.create_all(connection)
    for url in (old_url, new_url()):
        engine = schema.open_engine(url, 10)
        with engine.connect() as connection:
            options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
            assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        assert structure(engine) == structure(from_metadata)
        engine.dispose()
    from_metadata.dispose()


def test_newest_revision_is_the_schema_version() -> None:
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    assert ScriptDirectory.from_config(config).get_current_head() == str(SCHEMA_VERSION)


def test_store_of_a_newer_version_is_refused(store: EventStore, url: str) -> None:
    with write(store._engine) as connection:
        connection.exec_driver_sql("UPDATE store_info SET value = '99' WHERE name = 'schema_version'")
    with pytest.raises(
        FeedbackError, match=rf"schema version 99, this code reads up to {SCHEMA_VERSION}; upgrade avrec_ray"
    ):
        EventStore(url)


def test_store_that_is_there_is_opened_without_the_write_lock(store: EventStore, url: str) -> None:
    with write(store._engine):
        EventStore(url, busy_timeout_seconds=0.05).close()


def test_migration_that_fails_leaves_the_old_store(old_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    engine = connect(old_url, 10)
    before = structure(engine)
    monkeypatch.setattr("alembic.op.create_index", fail)
    with pytest.raises(KeyboardInterrupt):
        EventStore(old_url)
    assert structure(engine) == before
    engine.dispose()
    monkeypatch.undo()
    store = EventStore(old_url)
    assert store.count() == 1
    store.close()


def test_new_stores_opened_by_many_threads_at_once(new_url: Callable[[], str]) -> None:
    urls = [new_url(), new_url()] * 3
    together, counts = threading.Barrier(len(urls)), []

    def open_one(url: str) -> None:
        together.wait()
        store = EventStore(url)
        counts.append(store.count())
        store.close()

    threads = [threading.Thread(target=open_one, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [0] * len(urls)


@pytest.mark.slow
def test_several_processes_open_an_old_store_at_once(old_url: str) -> None:
    code = "import sys; from avrec_ray.feedback.store import EventStore; print(EventStore(sys.argv[1]).count())"
    opening = [subprocess.Popen([sys.executable, "-c", code, old_url], stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[0] for process in opening] == [b"1\n"] * 3
    assert [process.returncode for process in opening] == [0] * 3
