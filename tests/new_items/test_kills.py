"""What was acknowledged is queued, whatever is killed when."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from avrec_ray.new_items.store import NewItemStore

ROUNDS = 5


@pytest.mark.slow
def test_acknowledged_items_outlive_the_process_that_took_them(new_url: Callable[[], str]) -> None:
    url, rng = new_url(), random.Random(0)
    NewItemStore(url).close()
    acknowledged: list[int] = []
    for round_ in range(ROUNDS):
        command = [sys.executable, "-m", "tests.new_items.submitting", url, str(round_ * 10**6)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged.append(int(process.stdout.readline()))
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    store = NewItemStore(url)
    claimed = set()
    while (claim := store.claim("w", 600)) is not None:
        claimed.add(int(claim.item_id[1:]))
        assert store.finish(claim, "t", b"v")
    store.close()
    assert set(acknowledged) <= claimed
    assert len(claimed) <= len(acknowledged) + ROUNDS  # at most one of each was kept and not said
