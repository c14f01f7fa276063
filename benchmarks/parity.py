"""Lists served over HTTP against lists of the batch job: same bundle, same history, for many users.

Run: PYTHONPATH=. python -m benchmarks.parity STORAGE [experiment=demo] [--users 1000]

STORAGE is that of a finished loop. Its champion is served with the storage's event store; `jobs.recommend` reads the
storage's table of interactions, which that store was filled from. Asked for are the users of the table and, where they
are fewer than wanted, users that nobody knows. Two lists are equal if the items are, in their order; scores may differ
by rounding.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

K = 10
THREADS = 8
DEADLINE_MS = 30_000
"""Nobody waits: a list that is cut short by a busy machine says nothing of equality."""

Lists = dict[str, list[tuple[str, float]]]


def main() -> None:
    """Both lists of each user, then how many are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("overrides", nargs="*", help="settings of the loop that made the storage, e.g. experiment=demo")
    args = parser.parse_args()
    storage = args.storage.resolve()
    users = some_users(storage, args.users)
    offline = batch_lists(storage, users, args.overrides)
    with service(storage, args.overrides) as url, ThreadPoolExecutor(THREADS) as pool:
        served = dict(zip(users, pool.map(partial(served_list, url), users), strict=True))
    report(users, offline, served)


def some_users(storage: Path, count: int) -> list[str]:
    """Users of the storage's interactions, drawn evenly, and unknown ones where they are too few."""
    known = sorted(pc.unique(pq.read_table(storage / "tables" / "interactions.parquet")["user_id"]).to_pylist())
    known = known[:: max(1, len(known) // count)][:count]
    print(f"{len(known)} users of the table, {count - len(known)} unknown ones")
    return known + [f"unknown-{number}" for number in range(count - len(known))]


def batch_lists(storage: Path, users: Sequence[str], overrides: Sequence[str]) -> Lists:
    """Lists of `jobs.recommend`."""
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"user_id": users}), f"{folder}/users.parquet")
        output = f"{folder}/lists.parquet"
        run_job("recommend", storage, [*overrides, f"users={folder}/users.parquet", f"k={K}", f"output={output}"])
        lists: Lists = {user_id: [] for user_id in users}
        for row in pq.read_table(output).sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist():
            lists[row["user_id"]].append((row["item_id"], row["score"]))
    return lists


def run_job(name: str, storage: Path, overrides: Sequence[str]) -> None:
    """A job of the project, to its end."""
    subprocess.run([sys.executable, "-m", f"jobs.{name}", *overrides, f"storage_path={storage}"], check=True)


@contextmanager
def service(storage: Path, overrides: Sequence[str]) -> Iterator[str]:
    """The storage's champion on Ray Serve; its URL once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [*overrides, f"storage_path={storage}", f"serve.port={port}", f"serve.deadline_ms={DEADLINE_MS}"]
    process = subprocess.Popen([sys.executable, "-m", "jobs.serve", *settings], start_new_session=True)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while not is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the service at {url} did not become ready")
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def is_ready(url: str) -> bool:
    """Whether /health/ready says so."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as response:
            return bool(json.load(response)["status"] == "ready")
    except (OSError, ValueError):
        return False


def served_list(url: str, user_id: str) -> dict[str, Any]:
    """The answer of /v1/recommend; asked again where the service is busy."""
    body = json.dumps({"user_id": user_id, "k": K, "deadline_ms": DEADLINE_MS}).encode()
    request = urllib.request.Request(f"{url}/v1/recommend", body, {"Content-Type": "application/json"})
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise
            time.sleep(0.2)
    raise SystemExit(f"{url} was busy for too long")


def report(users: Sequence[str], offline: Lists, served: dict[str, dict[str, Any]]) -> None:
    """How many lists are equal, and the first that are not."""
    unequal, largest, degraded = [], 0.0, 0
    for user_id in users:
        answer = served[user_id]
        degraded += bool(set(answer["degraded"]) - {"unknown_user"})
        got = [(item["item_id"], item["score"]) for item in answer["items"]]
        if [item_id for item_id, _ in got] != [item_id for item_id, _ in offline[user_id]]:
            unequal.append(user_id)
        else:
            largest = max([largest, *(abs(a - b) for (_, a), (_, b) in zip(got, offline[user_id], strict=True))])
    print(f"{len(users) - len(unequal)} of {len(users)} lists are equal; largest difference of scores {largest:.1e}")
    print(f"{degraded} answers were degraded for other reasons than an unknown user")
    for user_id in unequal[:5]:
        print(f"unequal: {user_id}\n  batch  {offline[user_id]}\n  served {served[user_id]['items']}")
    if unequal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
