"""Nothing is acknowledged that is not on disk: the store against kill -9, full disks and syncs that fail."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Event
from tests.feedback.killed_store import check, kill_over_and_over
from tests.feedback.postgres_server import PostgresServer

NOW = 1_700_000_000.0


def some(name: str, num_events: int = 3) -> list[Event]:
    return [Event("u" * 200, "i" * 200, "like", NOW, event_id=f"{name}-{n}") for n in range(num_events)]


@pytest.mark.slow
def test_writer_killed_at_any_time_loses_nothing_and_doubles_nothing(url: str) -> None:
    evidence, kills = kill_over_and_over(url, 6, random.Random(0))
    check(url, evidence)
    assert kills["writer"] == 6
    assert len(evidence.acknowledged) > 6


@pytest.mark.slow
def test_server_killed_at_any_time_loses_nothing_and_doubles_nothing() -> None:
    server = PostgresServer()  # not the session's: its connections would break under other tests
    try:
        url = server.new_url()
        evidence, kills = kill_over_and_over(url, 4, random.Random(1), server)
        check(url, evidence)
        assert kills["server"] >= 1
    finally:
        server.stop()


def test_database_that_may_not_grow_raises_and_acknowledges_nothing(tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path / 'events.db'}")
    store.append(some("before"), NOW)
    with store._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(FeedbackError, match="database or disk is full; nothing was acknowledged") as caught:
        store.append(some("full", 500), NOW)
    assert isinstance(caught.value, OSError)
    assert store.count() == 3
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert store.append(some("full", 500), NOW).accepted == 500
    store.close()


def faulty_disk(folder: Path) -> Path:
    if shutil.which("cc") is None and os.environ.get("CI", "").lower() != "true":
        pytest.skip("no C compiler: cc makes the disk fail")
    source = Path(__file__).with_name("faulty_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", folder / "faulty.so", source], check=True)
    return folder / "faulty.so"


FAULTY = """
import sys
from pathlib import Path
from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Event

def some(name):
    return [Event("u" * 200, "i" * 200, "like", 1.0, event_id=f"{name}-{n}") for n in range(300)]

store, fault = EventStore(sys.argv[1]), Path(sys.argv[2])
assert store.append(some("before"), 1.0).accepted == 300
for attempt in range(3):
    fault.write_text(sys.argv[3])
    try:
        store.append(some("during"), 1.0)
    except FeedbackError as error:
        print(f"{type(error).__name__}: {error}")
    assert store.count() == 300 + 300 * attempt, store.count()
    fault.unlink()
    assert store.append(some(f"after{attempt}"), 1.0).accepted == 300
assert store.append(some("during"), 1.0).accepted == 300
"""


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "reason"), [("fsync", "disk I/O error"), ("write", "database or disk is full")])
def test_disk_that_fails_is_an_error_and_the_store_goes_on_when_it_is_mended(
    fault: str, reason: str, tmp_path: Path
) -> None:
    shim = faulty_disk(tmp_path)
    arguments = [f"sqlite:///{tmp_path / 'events.db'}", str(tmp_path / "fault"), fault]
    environment = {"LD_PRELOAD": str(shim), "FAULT": str(tmp_path / "fault"), "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", FAULTY, *arguments], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    expected = f"StoreUnavailableError: event store: {reason}; nothing was acknowledged, send the same again"
    assert [line.startswith(expected) for line in ran.stdout.splitlines()] == [True] * 3
    check_is_whole(f"sqlite:///{tmp_path / 'events.db'}", 5 * 300)


def check_is_whole(url: str, num_events: int) -> None:
    store = EventStore(url)
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalars().all() == ["ok"]
    assert store.count() == num_events
    store.close()


@pytest.mark.slow
def test_postgresql_whose_disk_is_full_raises_and_acknowledges_nothing() -> None:
    server = PostgresServer(
        max_file_bytes=16 << 20
    )  # its log has files of just that size; a table's may not grow beyond
    try:
        store = EventStore(server.new_url())
        acknowledged = 0
        with pytest.raises(FeedbackError, match=r"could not extend file .*; nothing was acknowledged") as caught:  # noqa: PT012
            for number in range(200):
                acknowledged += store.append(some(f"e{number}", 500), NOW).accepted
        assert isinstance(caught.value, OSError)
        assert store.count() == acknowledged > 0
        store.close()
    finally:
        server.stop()


@pytest.mark.slow
def test_postgresql_whose_sync_fails_raises_and_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    shim, fault = faulty_disk(Path(tempfile.mkdtemp())), Path(tempfile.mkdtemp()) / "fault"
    for folder in (shim.parent, fault.parent):
        folder.chmod(0o755)  # the server may run as another user
    server = PostgresServer({"LD_PRELOAD": str(shim), "FAULT": str(fault)})
    try:
        store = EventStore(server.new_url())
        assert store.append(some("before"), NOW).accepted == 3
        fault.write_text("fsync")
        with pytest.raises(FeedbackError, match="nothing was acknowledged"):
            store.append(some("during"), NOW)
        fault.unlink()
        append_when_back(store, some("during"))  # the server restarted itself; what it kept of them is a duplicate
        assert store.count() == 6
        store.close()
    finally:
        server.stop()
        shutil.rmtree(shim.parent)
        shutil.rmtree(fault.parent)


def append_when_back(store: EventStore, events: list[Event]) -> None:
    give_up_at = time.monotonic() + 60
    while True:
        try:
            got = store.append(events, NOW)
        except FeedbackError:
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
            continue
        assert got.accepted + got.duplicates == len(events)
        return
