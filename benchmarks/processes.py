"""A variant of a benchmark in a process of its own: wall clock, CPU seconds and memory of it and all it starts."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


class Family:
    """CPU and memory of a process and its descendants, from Linux's /proc, looked at now and then."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak_mb = 0.0
        self._cpu: dict[tuple[int, str], float] = {}

    def watch(self) -> None:
        """Until the process ends: its CPU every second, its memory every fifth after ten.

        Looking costs CPU that the watched processes would have: .05 of a core for Ray's two dozen, twice as often.
        """
        looks = 0
        while Path(f"/proc/{self.pid}/stat").exists():
            pids = self.look()
            if looks < 10 or looks % 5 == 0:  # a short run is looked at, too
                self.peak_mb = max(self.peak_mb, sum(map(pss_mb, pids)))
            looks += 1
            time.sleep(1.0)

    def look(self) -> set[int]:
        """Note the CPU of all that live now; returns their pids."""
        stats = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
        found, new = {self.pid}, {self.pid}
        while new := {pid for pid, stat in stats.items() if int(stat[1]) in new} - found:
            found |= new
        for pid in found & set(stats):
            user, system, started = stats[pid][11], stats[pid][12], stats[pid][19]
            self._cpu[pid, started] = (int(user) + int(system)) / _TICKS
        return found

    @property
    def cpu_seconds(self) -> float:
        """Of all that were seen, the ended ones too as last seen."""
        return sum(self._cpu.values())


def pss_mb(pid: int) -> float:
    """Proportional set size: a page shared by n processes counts 1 / n."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e3
    return 0.0


def measure(command: Sequence[str]) -> dict[str, Any]:
    """Run a program that prints a JSON object last; adds wall_seconds, tree_cpu_seconds and peak_mb to it."""
    began = time.time()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    family = Family(child.pid)
    watcher = threading.Thread(target=family.watch, daemon=True)
    watcher.start()
    told, _ = child.communicate()
    if child.returncode:
        raise SystemExit(child.returncode)
    watcher.join()
    costs = {"wall_seconds": time.time() - began, "tree_cpu_seconds": family.cpu_seconds, "peak_mb": family.peak_mb}
    return {**json.loads(told.splitlines()[-1]), **costs}
