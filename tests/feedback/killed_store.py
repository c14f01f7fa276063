"""A writer that is killed (SIGKILL) as it appends, its database server with it, and what must hold afterwards."""

import os
import random
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Event
from tests.feedback.postgres_server import PostgresServer

NUM_THREADS = 3
EVENTS_PER_REQUEST = 3


@dataclass
class Evidence:
    """Ids of events that a writer was about to send, and of those whose append returned."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    exported: list[str] = field(default_factory=list)
    """By chained watermarks, in between the kills."""
    watermark: int = 0


@contextmanager
def writer(url: str, name: str, evidence: Evidence) -> Iterator["Writer"]:
    """A process that appends from several threads until it is killed, at the latest at the end of the block."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(readable)
            _write_for_ever(url, name, writable)
        finally:
            os._exit(1)
    os.close(writable)
    process = Writer(pid, readable, evidence)
    try:
        yield process
    finally:
        process.kill()


class Writer:
    """The harness's end of the pipe."""

    def __init__(self, pid: int, readable: int, evidence: Evidence) -> None:
        self._pid = pid
        self._readable = readable
        self._evidence = evidence
        self._rest = b""

    def read(self, until_acknowledged: int, patience_seconds: float = 120.0) -> None:
        """Take note of lines until that many more events are acknowledged."""
        goal = len(self._evidence.acknowledged) + until_acknowledged
        give_up_at = time.monotonic() + patience_seconds
        while len(self._evidence.acknowledged) < goal:
            assert time.monotonic() < give_up_at, f"no acknowledgement within {patience_seconds:.0f} s"
            if select.select([self._readable], [], [], 1.0)[0]:
                assert self._take(), "the writer ended by itself"

    def kill(self) -> None:
        """SIGKILL, and take note of what it had said before."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            while self._take():
                pass
            os.close(self._readable)
            self._pid = 0

    def _take(self) -> bool:
        data = os.read(self._readable, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")  # a line cut by the kill is left out
        for line in lines:
            word, *ids = line.decode().split()
            (self._evidence.sent if word == "sent" else self._evidence.acknowledged).update(ids)
        return bool(data)


def _write_for_ever(url: str, name: str, writable: int) -> None:
    store = _open(url)

    def write(thread: int) -> None:
        for number in range(1_000_000):
            ids = [f"{name}-{thread}-{number}-{i}" for i in range(EVENTS_PER_REQUEST)]
            os.write(writable, f"sent {' '.join(ids)}\n".encode())  # short enough to arrive in one piece
            while True:
                try:
                    got = store.append([Event(f"u{thread}", i, "like", float(number), event_id=i) for i in ids], 0.0)
                except FeedbackError:  # the server is gone; what became of these events nobody knows: send them again
                    time.sleep(0.02)
                    continue
                break
            if got.rejected or got.accepted + got.duplicates != len(ids):
                os._exit(2)
            os.write(writable, f"acknowledged {' '.join(ids)}\n".encode())

    threads = [threading.Thread(target=write, args=(n,)) for n in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _open(url: str) -> EventStore:
    while True:
        try:
            return EventStore(url)
        except FeedbackError:
            time.sleep(0.05)


def kill_over_and_over(
    url: str, num_kills: int, rng: random.Random, server: PostgresServer | None = None
) -> tuple[Evidence, dict[str, int]]:
    """Kill the writer, the server or both by turns, at random moments; returns the evidence and kills by target."""
    evidence, kills = Evidence(), {"writer": 0, "server": 0}
    while sum(kills.values()) < num_kills:
        target = rng.choice(["writer", "server", "both"]) if server else "writer"
        with writer(url, f"w{sum(kills.values())}", evidence) as process:
            process.read(until_acknowledged=rng.randrange(1, 60))
            time.sleep(rng.uniform(0.0, 0.1))
            if server and target != "writer":
                server.kill()
                kills["server"] += 1
                time.sleep(rng.uniform(0.0, 0.2))
            if target != "server":
                process.kill()
                kills["writer"] += 1
            if server and target != "writer":
                server.start()
            if target == "server":
                process.read(until_acknowledged=10)  # it goes on by itself
        _export(url, evidence)
    return evidence, kills


def _export(url: str, evidence: Evidence) -> None:
    store = _open(url)
    table, evidence.watermark = store.export_interactions(evidence.watermark)
    evidence.exported += table["event_id"].to_pylist()
    store.close()


def check(url: str, evidence: Evidence) -> None:
    """Raise AssertionError unless all that was acknowledged is stored, only what was sent is, and nothing twice."""
    store = _open(url)
    table, _ = store.export_interactions()
    stored = table["event_id"].to_pylist()
    with store._engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalars().all() == ["ok"]
    store.close()
    assert evidence.acknowledged <= set(stored), "acknowledged events are lost"
    assert set(stored) <= evidence.sent, "events are stored that nobody sent"
    assert len(stored) == len(set(stored)), "events are stored twice"
    assert table["item_id"].to_pylist() == stored, "events are stored with another body"
    assert evidence.exported == stored, "chained exports do not give every event once"
