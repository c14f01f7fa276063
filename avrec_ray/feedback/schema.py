"""The store's tables brought to the version this code reads, whatever version wrote them."""

import threading
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.database import StoreUnavailableError, connect, reason_of, write
from avrec_ray.feedback.tables import SCHEMA_VERSION, store_info

VERSION_TABLE = "store_revision"
"""Alembic's table. Not its usual name: MLflow, which has that one, may live in the same database."""


_alembic_lock = threading.Lock()  # alembic keeps what it migrates in its modules: one store at a time in a process


def open_engine(url: str, busy_timeout_seconds: float) -> sa.Engine:
    """An engine on a store that exists or is made now, migrated if it is older.

    Raises:
        ConfigError: see `database.connect`.
        StoreUnavailableError: the database cannot be reached, or another process held its lock for too long.
        FeedbackError: a newer version of avrec_ray wrote the store.
    """
    engine = connect(url, busy_timeout_seconds)
    try:
        migrate(engine)
    except DBAPIError as error:
        engine.dispose()
        raise StoreUnavailableError(f"event store cannot be opened: {reason_of(error)}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def migrate(engine: sa.Engine) -> None:
    """Bring the tables to SCHEMA_VERSION. A store that is there already is only read.

    Of several processes one migrates, in one transaction, and the others wait; killed in between, nothing happened.
    """
    with engine.connect() as connection:
        if version_of(connection) == SCHEMA_VERSION:
            return
    with write(engine) as connection:
        found = version_of(connection)  # again: another process may have been first
        if found < SCHEMA_VERSION:
            _upgrade(connection, found)


def version_of(connection: sa.Connection) -> int:
    """Version of the store's tables; 0: there are none.

    Raises:
        FeedbackError: the version is newer than this code's.
    """
    if not sa.inspect(connection).has_table(store_info.name):
        return 0
    query = sa.select(store_info.c.value).where(store_info.c.name == "schema_version")
    found = int(connection.execute(query).scalar_one_or_none() or 0)
    if found > SCHEMA_VERSION:
        raise FeedbackError(
            f"event store has schema version {found}, this code reads up to {SCHEMA_VERSION}; "
            "upgrade avrec_ray, or restore a backup that this version made into a new store"
        )
    return found


def _upgrade(connection: sa.Connection, found: int) -> None:
    from alembic import command  # a store that needs no migration is opened without the time this takes
    from alembic.config import Config

    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    with _alembic_lock:
        if found == 1 and not sa.inspect(connection).has_table(VERSION_TABLE):
            command.stamp(config, "1")  # made before there were migrations
        command.upgrade(config, "head")
