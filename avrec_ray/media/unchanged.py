"""Whether a file is the same after it was read: what was decoded and what was hashed must be one and the same."""

import hashlib
import os
import time
from dataclasses import dataclass
from typing import BinaryIO

from avrec_ray.errors import MediaError

_RECENT_SECONDS = 2.0
"""A file changed this recently may change again within one tick of the file system's clock."""


@dataclass(kw_only=True)
class Snapshot:
    """A file before it is read."""

    size: int
    modified_ns: int
    changed_ns: int
    """Time of the last change of content or attributes, which no program can set."""
    digest: str
    """SHA-256; "" for a file whose times are enough to tell."""


def snapshot(file: BinaryIO) -> Snapshot:
    """Note the state of an open file. Reads it as a whole only if it changed a moment ago."""
    status = os.fstat(file.fileno())
    is_recent = status.st_ctime > time.time() - _RECENT_SECONDS
    return Snapshot(
        size=status.st_size,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
        digest=sha256(file) if is_recent else "",
    )


def check_times(file: BinaryIO, before: Snapshot) -> None:
    """Raises MediaError(changed) when size or times differ from `before`."""
    status = os.fstat(file.fileno())
    if status.st_size != before.size:
        raise MediaError("changed", f"{before.size} bytes before it was decoded, {status.st_size} after")
    if (status.st_mtime_ns, status.st_ctime_ns) != (before.modified_ns, before.changed_ns):
        raise MediaError("changed", "written to while it was decoded; run again when it is complete")


def check_unchanged(file: BinaryIO, before: Snapshot) -> str:
    """SHA-256 of the file. Raises MediaError(changed) when size, times or content differ from `before`."""
    digest = sha256(file)
    check_times(file, before)
    if before.digest and digest != before.digest:
        raise MediaError("changed", "its content changed while it was decoded; run again when it is complete")
    return digest


def sha256(file: BinaryIO) -> str:
    """SHA-256 of an open file from its start, as hexadecimal digits."""
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()
