"""Uploaded media on their way to disk: written as they come, never held in memory, and whole or not there."""

import hashlib
import os
import secrets
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from avrec_ray.durable import sync
from avrec_ray.errors import MediaError

_PART = ".part"
_PART_SECONDS = 3600.0
"""Nothing came for so long: whoever sent it is gone."""
_UNNAMED_SECONDS = 120.0
"""A file that no item names: the queueing that it was for failed."""


class Upload:
    """One file being received. Leave the `with` without `keep`, and it is gone."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises OSError: the folder cannot be made or written."""
        folder.mkdir(parents=True, exist_ok=True)
        self.name = secrets.token_hex(16)
        self._path, self._part = folder / self.name, folder / (self.name + _PART)
        self._max_bytes, self.num_bytes = max_bytes, 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = self._part.open("xb", buffering=0)

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Of what came so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """The next bytes.

        Raises:
            MediaError: too_large.
            OSError: the disk is full.
        """
        self.num_bytes += len(chunk)
        if self.num_bytes > self._max_bytes:
            raise MediaError("too_large", f"over new_items.max_upload_bytes={self._max_bytes}")
        self._digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) :]

    def keep(self) -> None:
        """Give the file its name, when its bytes are on disk."""
        os.fsync(self._file.fileno())
        os.rename(self._part, self._path)
        sync(self._path.parent)

    def discard(self) -> None:
        """Remove a file that was kept, and is not needed after all."""
        self._path.unlink(missing_ok=True)


def sweep(folder: Path, named: Collection[str], now_seconds: float | None = None) -> int:
    """Remove what interrupted uploads, replaced and deleted items left; returns how many files went.

    Args:
        named: names that items have, read before this call.
    """
    now = time.time() if now_seconds is None else now_seconds
    removed = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            age_seconds = now - path.stat().st_ctime
        except FileNotFoundError:
            continue
        patience = _PART_SECONDS if path.suffix == _PART else _UNNAMED_SECONDS
        if path.name not in named and age_seconds > patience:
            path.unlink(missing_ok=True)
            removed += 1
    return removed
