"""A decoder whose import starts a process, before any confinement."""

import os
import time

from tests.media.hostile_decoders import by_content

if os.fork() == 0:
    time.sleep(600)

__all__ = ["by_content"]
