"""Durable events a second of the event store against the bare driver doing the same, and the time of a history.

Run: PYTHONPATH=. python benchmarks/store.py [--database sqlite|postgresql] [--seconds 20] [--events 1000000]

By turns, so that a noisy machine disturbs both alike: a request through `EventStore.append`, and the same rows by
sqlite3 (WAL, synchronous FULL) or psycopg into the same tables. Then eight threads through the store and eight raw
connections. At last `history(user, 50)` of random users among so many events.
"""

import argparse
import os
import platform
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from avrec_ray.feedback.events import fingerprint_of
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Event
from tests.feedback.postgres_server import PostgresServer

COLUMNS = (
    "event_id, user_id, item_id, event, at_us, received_us, watch_seconds, value, request_id, position, fingerprint"
)
THREADS = 8
BATCHES = (1, 100)
EVENTS_PER_USER = 50

Append = Callable[[list[Event]], object]


def main(database: str, seconds: float, num_events: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer() if database == "postgresql" else None

        def new_url() -> str:
            return server.new_url() if server else f"sqlite:///{folder}/{time.monotonic_ns()}.db"

        try:
            print(f"{database} on {os.cpu_count()} cores of {platform.machine()}, load {os.getloadavg()[0]:.1f}")
            for size in BATCHES:
                one_writer(new_url(), new_url(), size, seconds)
            several_writers(new_url(), new_url(), seconds)
            histories(new_url(), num_events)
        finally:
            if server:
                server.stop()


def one_writer(url: str, raw_url: str, size: int, seconds: float) -> None:
    store = EventStore(url)
    EventStore(raw_url).close()  # makes the tables
    ways: dict[str, Append] = {"store": lambda events: store.append(events, 1.0), "raw": raw_append(raw_url)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < end:
        events = request(f"{number}", size)
        number += 1
        for name, append in ways.items():
            started = time.perf_counter()
            append(events)
            if number > 5:  # the first ones compile statements
                took[name].append(time.perf_counter() - started)
    store.close()
    report(f"batches of {size}", {name: size * len(t) / sum(t) for name, t in took.items()})
    p50 = {name: 1e3 * statistics.median(t) for name, t in took.items()}
    print(
        f"  p50 of a request: store {p50['store']:.2f} ms, raw {p50['raw']:.2f} ms, "
        f"ratio {p50['store'] / p50['raw']:.2f}"
    )


def several_writers(url: str, raw_url: str, seconds: float) -> None:
    """Requests of one event from THREADS threads: the store commits those together that come together."""
    store = EventStore(url)
    EventStore(raw_url).close()
    counts: dict[str, int] = {"store": 0, "raw": 0}
    spent: dict[str, float] = {"store": 0.0, "raw": 0.0}
    for turn in range(4):
        for name in counts:
            done, started = [0] * THREADS, time.perf_counter()
            end = started + seconds / 8

            def work(thread: int, name: str = name, end: float = end, done: list[int] = done, turn: int = turn) -> None:
                append: Append = (lambda events: store.append(events, 1.0)) if name == "store" else raw_append(raw_url)
                while time.perf_counter() < end:
                    append(request(f"{turn}-{thread}-{done[thread]}", 1))
                    done[thread] += 1

            threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            counts[name] += sum(done)
            spent[name] += time.perf_counter() - started
    store.close()
    report(f"{THREADS} threads, one event each", {name: counts[name] / spent[name] for name in counts})


def report(what: str, per_second: dict[str, float]) -> None:
    ratio = per_second["store"] / per_second["raw"]
    print(
        f"{what}: store {per_second['store']:.0f} events/s, raw {per_second['raw']:.0f}, ratio {ratio:.2f}", flush=True
    )


def request(name: str, size: int) -> list[Event]:
    return [Event(f"u{i}", f"i{i}", "view", 1.0 + i, 2.5, None, f"{name}-{i}", name, i) for i in range(size)]


def raw_append(url: str) -> Append:
    """The bare driver on a connection of its own: no fingerprints compared, nobody told what was new."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000")
        insert = f"INSERT INTO events ({COLUMNS}) VALUES ({', '.join('?' * 11)}) ON CONFLICT (event_id) DO NOTHING"

        def append_sqlite(events: list[Event]) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, [row(e) for e in events])
            connection.execute("COMMIT")

        return append_sqlite
    import psycopg

    postgres = psycopg.connect(url.replace("+psycopg", ""))
    statement = f"INSERT INTO events ({COLUMNS}) VALUES ({', '.join(['%s'] * 11)}) ON CONFLICT (event_id) DO NOTHING"

    def append_postgres(events: list[Event]) -> None:
        with postgres.cursor() as cursor:
            cursor.executemany(statement, [row(e) for e in events])
        postgres.commit()

    return append_postgres


def row(event: Event) -> tuple[Any, ...]:
    e, at_us = event, round(event.at_seconds * 1e6)
    body = (e.watch_seconds, e.value, e.request_id, e.position, fingerprint_of(e))
    return (e.event_id, e.user_id, e.item_id, e.event, at_us, 1_000_000, *body)


def histories(url: str, num_events: int) -> None:
    store = EventStore(url)
    rng = np.random.default_rng(0)
    num_users = num_events // EVENTS_PER_USER
    started = time.perf_counter()
    for _ in range(0, num_events, 100_000):
        size = min(100_000, num_events)
        store.import_interactions(
            pa.table(
                {
                    "user_id": [f"u{i}" for i in rng.integers(0, num_users, size)],
                    "item_id": [f"i{i}" for i in rng.integers(0, 50_000, size)],
                    "event": ["view"] * size,
                    "at": pa.array(rng.integers(10**15, 2 * 10**15, size)).cast(pa.timestamp("us", tz="UTC")),
                }
            )
        )
    print(f"{store.count()} events loaded, {store.count() / (time.perf_counter() - started):.0f} a second", flush=True)
    took = []
    for user in rng.integers(0, num_users, 3_000):
        started = time.perf_counter()
        store.history(f"u{user}", 50)
        took.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.percentile(took, [50, 99])
    print(f"history of 50 among them: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    started = time.perf_counter()
    store.compact()
    print(f"compact: {time.perf_counter() - started:.1f} s")
    backed_up_at = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store.backup(Path(folder) / "backup")
        size_mb = sum(path.stat().st_size for path in (Path(folder) / "backup").iterdir()) / 1e6
    print(f"backup: {time.perf_counter() - backed_up_at:.1f} s, {size_mb:.0f} MB")
    store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    main(arguments.database, arguments.seconds, arguments.events)
