"""Fixtures for the whole suite: one local Ray cluster, and the folder of real data."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is no failure: pytest-timeout ends what hangs.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Ray reads these when it is first imported, which collecting the tests does. The token is of this session alone, and
# nothing is written to the home folder.
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """No test leaves this process at real-time priority, as some encoders do: its threads would starve the machine."""
    yield
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        pytest.fail("this test left the process at real-time priority; use another encoder or a process of its own")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for the session; starting one takes ten seconds. Mark the tests that use it `ray`."""
    from avrec_ray.pipelines.session import ClusterConfig, session

    with session(ClusterConfig(num_cpus=4, object_store_bytes=500_000_000)):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data, from AVREC_SHARED_DATA. Without it a test is skipped, in CI it fails."""
    folder = os.environ.get("AVREC_SHARED_DATA", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    message = f"AVREC_SHARED_DATA={folder!r} is no folder; give the folder of real data"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(message)
    pytest.skip(message)
