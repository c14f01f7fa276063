"""A decoder for the child process that takes its time, apart from what imports Ray: a child has room for little."""

import time
from typing import Any, BinaryIO

from avrec_ray.media.config import MediaConfig
from avrec_ray.media.extract import Extract
from tests.media.hostile_decoders import by_content

SECONDS = 0.1


def slowly(file: BinaryIO, cfg: MediaConfig, *draw: Any) -> Extract:
    """A moment an item, then what the word in the file says."""
    time.sleep(SECONDS)
    return by_content(file, cfg, *draw)
