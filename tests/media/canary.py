"""A listener on loopback that nobody may ever connect to."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


class Canary:
    """Where it listens, and who came."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.port: int = server.getsockname()[1]

    def num_connections(self) -> int:
        """Connections since the last call."""
        count = 0
        while True:
            try:
                self._server.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@contextmanager
def canary() -> Iterator[Canary]:
    """A listener; connections wait in its queue until they are counted."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        server.setblocking(False)
        yield Canary(server)
