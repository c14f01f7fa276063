"""Files that are there whole or not at all, whenever the process is killed."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write(staged)` fills a file beside `path`, which then takes its name. On an error `path` stays as it was.

    The staged name is drawn: a process that outlived its job may write the same file at the same time.
    """
    staged = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        write(staged)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """A text file, whole or not at all."""

    def write(staged: Path) -> None:
        staged.write_text(text)

    write_atomically(path, write)
