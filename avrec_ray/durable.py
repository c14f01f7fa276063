"""What must outlive a power cut."""

import os
from pathlib import Path


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
