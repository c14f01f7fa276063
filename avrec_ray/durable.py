"""What must outlive a power cut."""

import os
from pathlib import Path

CRASH_AT = "AVREC_CRASH_AT"
"""Environment variable that names the crash point at which a process is to end, for tests of what survives."""


def crash_point(label: str) -> None:
    """End the process here, as SIGKILL would, if the environment says so; else nothing."""
    if os.environ.get(CRASH_AT) == label:
        os._exit(137)


def sync(path: Path) -> None:
    """To disk: a file's bytes, or a folder's names.

    Raises:
        OSError: the disk failed; what was written may be lost.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
