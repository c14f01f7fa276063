"""What the service bears, and what a request costs: Ray Serve in its presets against the same objects in one process.

Run: PYTHONPATH=. python -m benchmarks.serve STORAGE [--modes process,defaults,production] [--seconds 8]

STORAGE is that of a finished loop: its newest bundle, its users, and a copy of its event store for each variant. One
variant after the other, each in a process of its own: `process` is FastAPI and uvicorn around the same matcher,
reranker, flow and store; `defaults` is the three deployments with Ray Serve's own options and environment; `laptop` and
`production` are the presets that are shipped. Each is asked by 1, 8 and 32 clients in turn, then at a fixed rate of
half of what it bore, then on Gorse's route, then at three times what it bore.

CPU is that of the variant's whole tree of processes, Ray's daemons with it, less what they take while nobody asks; the
generator is not in it, but shares the machine. `--set` and `--env` change a variant, for steps of tuning.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.load import Outcome, closed_loop, open_loop
from benchmarks.parity import is_ready
from benchmarks.processes import Family, pss_mb
from benchmarks.served import VARIANTS, newest_bundle, preset_environment

K = 10
CLIENTS = (1, 8, 32)
OVERLOAD = 3.0
READY_SECONDS = 300


@dataclass
class Measured:
    """An outcome, and what it cost the server."""

    outcome: Outcome
    cpu_ms: float
    """Of each answer, whatever its status."""
    grown_mb: float = 0.0
    """How much more memory the server's processes hold after it than before."""


class Server:
    """A running variant, watched from outside."""

    def __init__(self, pid: int, port: int) -> None:
        self.family = Family(pid)
        self.port = port
        self.idle_cpu = 0.0
        """Cores that it takes while nobody asks."""

    def rest(self, seconds: float) -> None:
        began, before = time.perf_counter(), self._cpu_seconds()
        time.sleep(seconds)
        self.idle_cpu = (self._cpu_seconds() - before) / (time.perf_counter() - began)

    def under(self, load: Callable[[], Coroutine[Any, Any, Outcome]]) -> Measured:
        began, before = time.perf_counter(), self._cpu_seconds()
        outcome = asyncio.run(load())
        used = self._cpu_seconds() - before - self.idle_cpu * (time.perf_counter() - began)
        return Measured(outcome, 1e3 * used / max(1, sum(outcome.statuses.values())))

    def memory_mb(self) -> float:
        return sum(map(pss_mb, self.family.look()))

    def _cpu_seconds(self) -> float:
        self.family.look()
        return self.family.cpu_seconds


@contextmanager
def running(
    mode: str, storage: Path, port: int, settings: Sequence[str], environment: dict[str, str]
) -> Iterator[Server]:
    """The variant in a process of its own, ready."""
    given = VARIANTS[mode][2]
    variables = {"OMP_NUM_THREADS": "1", **(preset_environment(given) if given else {}), **environment}
    folder = Path(tempfile.mkdtemp(prefix="avrec-"))  # short: sockets have their place in it
    shutil.copy(storage / "events.db", folder)
    if "RAY_SERVE_ENABLE_HA_PROXY" in variables:
        variables |= haproxy_files(folder)
    command = [sys.executable, "-m", "benchmarks.served", mode, str(newest_bundle(storage)), str(folder), str(port)]
    command += ["--set", *settings] if settings else []
    process = subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_SECONDS
        while not is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{mode}: nothing is ready at {url}")
            time.sleep(0.5)
        yield Server(process.pid, port)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def haproxy_files(folder: Path) -> dict[str, str]:
    """Environment that gives HAProxy files of its own: two services of a machine would share those in /tmp."""
    place = folder / "haproxy"
    place.mkdir(mode=0o700)
    names = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
    }
    return {f"RAY_SERVE_HAPROXY_{name}": str(place / file) for name, file in names.items()}


def requests_of(storage: Path, gorse: bool) -> list[bytes]:
    """A request of each of some users, in any order."""
    column = pq.read_table(storage / "tables" / "interactions.parquet", columns=["user_id"])["user_id"]
    users = sorted(pc.unique(column).to_pylist())
    random.Random(0).shuffle(users)
    made = []
    for user_id in users[:1000]:
        if gorse:
            made.append(f"GET /api/recommend/{user_id}?n={K} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            continue
        body = json.dumps({"user_id": user_id, "k": K})
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        made.append(f"POST /v1/recommend HTTP/1.1\r\n{head}{body}".encode())
    return made


def measure(server: Server, storage: Path, seconds: float, legs: Sequence[str]) -> dict[str, Measured]:
    """Each leg by its name; "overload" also says what memory it left behind."""
    asked, port = requests_of(storage, gorse=False), server.port
    asyncio.run(closed_loop(port, asked, 4, min(4.0, seconds)))  # pages, kernels and connections
    server.rest(min(5.0, seconds))
    found = {f"c={c}": server.under(lambda c=c: closed_loop(port, asked, c, seconds)) for c in CLIENTS}
    peak = max(found.values(), key=lambda m: m.outcome.good_per_second).outcome.good_per_second
    if "open" in legs:
        found["open, half"] = server.under(lambda: open_loop(port, asked, peak / 2, seconds))
    if "gorse" in legs:
        gorse = requests_of(storage, gorse=True)
        found["gorse c=8"] = server.under(lambda: closed_loop(port, gorse, 8, seconds))
    if "overload" in legs:
        before = server.memory_mb()
        found["overload"] = server.under(lambda: open_loop(port, asked, OVERLOAD * peak, 2 * seconds))
        found["overload"].grown_mb = server.memory_mb() - before
    return found


def report(mode: str, idle: float, found: dict[str, Measured]) -> None:
    """One line a leg."""
    print(f"\n{mode}: {idle:.3f} cores while nobody asks")
    print(f"{'':12}{'good/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>9}{'whole':>8}  other answers")
    for leg, measured in found.items():
        told = measured.outcome
        other = ", ".join(f"{n} x {status}" for status, n in sorted(told.statuses.items()) if status != 200)
        if told.statuses.get(429):
            other += f" ({told.num_told_to_wait} with Retry-After)"
        if measured.grown_mb:
            other += f"; memory {measured.grown_mb:+.0f} MB"
        whole = "" if leg.startswith("gorse") else f"{told.num_whole / max(1, told.num_good):8.2f}"
        print(
            f"{leg:12}{told.good_per_second:9.1f}{told.quantile_ms(0.5):9.1f}{told.quantile_ms(0.99):9.1f}"
            f"{measured.cpu_ms:9.2f}{whole:>8}  {other}",
            flush=True,
        )


def compare(results: dict[str, dict[str, Measured]]) -> None:
    """The ratios that are promised, of all variants against two of them."""
    print(f"\n{'':12}{'':12}{'CPU of process':>16}{'good/s of defaults':>20}")
    for mode, found in results.items():
        for leg in (f"c={c}" for c in CLIENTS):
            cpu = found[leg].cpu_ms / results["process"][leg].cpu_ms if "process" in results else float("nan")
            rate = float("nan")
            if "defaults" in results:
                rate = found[leg].outcome.good_per_second / results["defaults"][leg].outcome.good_per_second
            print(f"{mode:12}{leg:12}{cpu:16.2f}{rate:20.2f}")
        if "overload" in found:
            peak = max(found[f"c={c}"].outcome.good_per_second for c in CLIENTS)
            share = found["overload"].outcome.good_per_second / peak
            print(f"{mode:12}goodput at {OVERLOAD:g} times the peak: {share:.2f} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", type=Path)
    parser.add_argument("--modes", default="process,defaults,production", help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--legs", default="open,gorse,overload", help="beside the closed loops")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each leg; of the overload twice as many")
    parser.add_argument("--port", type=int, default=18650)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the presets")
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME=VALUE", help="environment of all variants")
    args = parser.parse_args()
    environment = dict(given.split("=", 1) for given in args.env)
    results = {}
    for number, mode in enumerate(args.modes.split(",")):
        settings = args.set if VARIANTS[mode][1] else []
        with running(mode, args.storage.resolve(), args.port + number, settings, environment) as server:
            results[mode] = measure(server, args.storage.resolve(), args.seconds, args.legs.split(","))
            report(mode, server.idle_cpu, results[mode])
    compare(results)


if __name__ == "__main__":
    main()
