"""What a run ran in: versions, the machine, the commit of the code."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def environment() -> dict[str, str]:
    """Versions and the machine, as tags."""
    packages = {f"env.{name}": version(name) for name in ("torch", "ray", "numpy")}
    machine = {"env.python": platform.python_version(), "env.platform": platform.platform()}
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {**packages, **machine, "env.num_cpus": str(os.cpu_count()), "env.omp_num_threads": threads or "unset"}


def git_sha() -> str:
    """Commit of the code, or "unknown" outside a checkout (an installed package, an uploaded working dir)."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
