"""The event store's database: SQLite on one machine, PostgreSQL in production. Who may write when, and how durably."""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from avrec_ray.errors import ConfigError, FeedbackError

logger = logging.getLogger(__name__)

EVENTS_LOCK = 0x617672656331
"""A number of ours for pg_advisory_xact_lock: who holds it adds events, or changes the tables."""
IMPRESSIONS_LOCK = EVENTS_LOCK + 1
"""The same for impressions, so that served lists do not wait for feedback. SQLite has one lock for both."""
ITEMS_LOCK = EVENTS_LOCK + 2
"""The same for new items and changes of the catalogue."""


class StoreUnavailableError(FeedbackError, OSError):
    """The database failed: full, locked, gone. Nothing of the call counts as kept; the same call may be repeated."""


def connect(url: str, busy_timeout_seconds: float) -> sa.Engine:
    """An engine whose commits are on disk when they return. No table is looked at yet.

    Raises:
        ConfigError: the URL is malformed, in memory, of an unsupported database, or its driver is not installed.
    """
    parsed = _parse(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    try:
        # Values of failed statements, which are users' ids, do not belong into logs.
        engine = sa.create_engine(parsed, pool_pre_ping=not is_sqlite, hide_parameters=True)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        missing = getattr(error, "name", None) or parsed.drivername
        raise ConfigError(
            f"feedback.url is for {parsed.drivername!r} and {missing!r} is not installed; "
            "run: pip install 'avrec_ray[postgres]', and write postgresql+psycopg://..."
        ) from error
    (_prepare_sqlite if is_sqlite else _prepare_postgresql)(engine, round(busy_timeout_seconds * 1000))
    return engine


@contextmanager
def write(engine: sa.Engine, lock: int = EVENTS_LOCK) -> Iterator[sa.Connection]:
    """A transaction that holds a write lock, so that the order of `seq` is the order of commits.

    Raises:
        StoreUnavailableError: the database failed before the commit was known to be on disk.
    """
    try:
        with engine.execution_options(avrec_writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
            yield connection
    except (DBAPIError, PoolTimeoutError) as error:
        if not is_outage(error):
            raise
        raise StoreUnavailableError(
            f"event store: {reason_of(error)}; nothing was acknowledged, send the same again when it is mended"
        ) from error


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction whose reads all see the same moment."""
    level = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with engine.execution_options(**level).begin() as connection:
        yield connection


def is_outage(error: Exception) -> bool:
    """True where the database is to blame (full, locked, gone), false where the statement or a value is."""
    if isinstance(error, DBAPIError) and not error.connection_invalidated:
        return not isinstance(error, (DataError, IntegrityError, NotSupportedError, ProgrammingError))
    return isinstance(error, (DBAPIError, PoolTimeoutError))


def reason_of(error: Exception) -> str:
    """The driver's words in one line, without statement and values."""
    lines = str(getattr(error, "orig", error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


def _prepare_sqlite(engine: sa.Engine, busy_timeout_ms: int) -> None:
    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # Python's driver would delay BEGIN; we send it ourselves
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
        _turn_wal_on(connection, busy_timeout_ms)
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL would lose the last commits when power fails
        connection.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten, not only forgotten

    @sa.event.listens_for(engine, "begin")
    def send_begin(connection: sa.Connection) -> None:
        # IMMEDIATE takes the write lock at once: a reader that turns writer fails instead of waiting.
        writes = connection.get_execution_options().get("avrec_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _turn_wal_on(connection: Any, busy_timeout_ms: int) -> None:
    """SQLite does not wait by itself where two processes open a new file and both change its journal."""
    give_up_at = time.monotonic() + busy_timeout_ms / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.005)


def _prepare_postgresql(engine: sa.Engine, busy_timeout_ms: int) -> None:
    @sa.event.listens_for(engine, "connect")
    def set_session(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {max(1, busy_timeout_ms)}")  # 0 would wait for ever
            # Whoever turned it off for the role or the server did not mean feedback.
            off = "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name = 'synchronous_commit'"
            cursor.execute(f"{off} AND setting = 'off'")
            cursor.execute("SHOW fsync")
            if cursor.fetchone()[0] != "on":
                logger.warning("PostgreSQL runs with fsync=off: what it acknowledges is lost when its machine fails")
        connection.commit()


@contextmanager
def both_locks(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction in which neither events nor impressions are added."""
    with write(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(IMPRESSIONS_LOCK)))
        yield connection
