"""The event store's database: its tables, its engine, and who may write when.

Portable SQL: SQLite on one machine, PostgreSQL in production.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from avrec_ray.errors import ConfigError, FeedbackError

SCHEMA_VERSION = 1
"""Version of the tables below; a store of another version is refused."""

_WRITERS_LOCK = 0x617672656331  # a number of ours, for pg_advisory_xact_lock

_metadata = sa.MetaData()

store_info = sa.Table(
    "store_info",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(256), nullable=False),
)

events = sa.Table(
    "events",
    _metadata,
    # The server's order. Never reused, so that an export's watermark stays true after rows are erased.
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("received_us", sa.BigInteger, nullable=False),
    sa.Column("watch_seconds", sa.Double),
    sa.Column("value", sa.Double),
    sa.Column("request_id", sa.Text),
    sa.Column("position", sa.Integer),
    sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
    sqlite_autoincrement=True,
)

ACTED = events.c.event != sa.literal_column("'impression'")
"""Events that belong to a history. Written out, not bound: a partial index serves only a literal condition."""

sa.Index(
    "events_history", events.c.user_id, events.c.at_us, events.c.seq, sqlite_where=ACTED, postgresql_where=ACTED
)  # fmt: skip


def open_engine(url: str, busy_timeout_seconds: float) -> sa.Engine:
    """An engine on a store that exists or is made now.

    Raises:
        ConfigError: the URL is malformed, in memory, or of an unsupported database.
        FeedbackError: the store has another schema version.
    """
    parsed = _parse(url)
    engine = sa.create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, busy_timeout_seconds)
    with write(engine) as connection:
        _metadata.create_all(connection)
        _check_version(connection)
    return engine


@contextmanager
def write(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that holds the store's one write lock, so that the order of `seq` is the order of commits."""
    with engine.execution_options(avrec_writes=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS_LOCK)))
        yield connection


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("feedback.url is not a SQLAlchemy URL; expected e.g. sqlite:////data/events.db") from error
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(f"feedback.url is for {backend!r}; expected sqlite:///<file> or postgresql+psycopg://...")
    if backend == "sqlite" and (not parsed.database or ":memory:" in parsed.database):
        raise ConfigError("feedback.url keeps SQLite in memory and would lose every event; give sqlite:///<file>")
    return parsed


def _prepare_sqlite(engine: sa.Engine, busy_timeout_seconds: float) -> None:
    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # Python's driver would delay BEGIN; we send it ourselves
        connection.execute(f"PRAGMA busy_timeout = {int(busy_timeout_seconds * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL would lose the last commits when power fails

    @sa.event.listens_for(engine, "begin")
    def send_begin(connection: sa.Connection) -> None:
        # IMMEDIATE takes the write lock at once: a reader that turns writer fails instead of waiting.
        writes = connection.get_execution_options().get("avrec_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _check_version(connection: sa.Connection) -> None:
    query = sa.select(store_info.c.value).where(store_info.c.name == "schema_version")
    found = connection.execute(query).scalar_one_or_none()
    if found is None:
        connection.execute(store_info.insert().values(name="schema_version", value=str(SCHEMA_VERSION)))
    elif found != str(SCHEMA_VERSION):
        raise FeedbackError(
            f"event store has schema version {found}, this code reads {SCHEMA_VERSION}; "
            "export it with the version of avrec_ray that wrote it and import into a new file"
        )
