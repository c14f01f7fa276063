"""The store against a dict, and the store against kill -9."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avrec_ray.feedback.store import EventStore
from avrec_ray.types import EVENTS, Event

sent_events = st.builds(
    Event,
    user_id=st.sampled_from(["u1", "u2", "u3"]),
    item_id=st.sampled_from(["i1", "i2"]),
    event=st.sampled_from(EVENTS),
    at_seconds=st.integers(0, 5).map(float),
    watch_seconds=st.none() | st.floats(0, 1e6, width=32),
    event_id=st.sampled_from([f"e{i}" for i in range(12)]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(st.lists(sent_events, max_size=8), max_size=8), limit=st.integers(1, 20))
def test_store_behaves_as_a_dict_by_event_id(requests: list[list[Event]], limit: int, tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path / f'{time.monotonic_ns()}.db'}")
    model: dict[str, Event] = {}
    for request in requests:
        outcomes = [_apply(model, event) for event in request]
        got = store.append(request, 100.0)
        assert got.accepted == outcomes.count("accepted")
        assert got.duplicates == outcomes.count("duplicate")
        assert [r.index for r in got.rejected] == [i for i, o in enumerate(outcomes) if o == "conflict"]
    for user_id in ("u1", "u2", "u3"):
        assert store.history(user_id, limit) == _model_history(model, user_id, limit)
    table, _ = store.export_interactions()
    assert table["event_id"].to_pylist() == list(model)
    store.close()


def _apply(model: dict[str, Event], event: Event) -> str:
    assert event.event_id is not None
    if event.event_id not in model:
        model[event.event_id] = event
        return "accepted"
    return "duplicate" if model[event.event_id] == event else "conflict"


def _model_history(model: dict[str, Event], user_id: str, limit: int) -> tuple[Event, ...]:
    mine = [e for e in model.values() if e.user_id == user_id and e.event != "impression"]
    return tuple(sorted(mine, key=lambda e: e.at_seconds)[-limit:])


WRITER = """
import sys
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Event
store = EventStore(sys.argv[1])
for n in range(1_000_000):
    ids = [f"{sys.argv[2]}-{n}-{i}" for i in range(3)]
    print("sent", *ids, flush=True)
    got = store.append([Event("u", "i", "like", float(n), event_id=e) for e in ids], float(n))
    assert got.accepted == 3
    print("acked", *ids, flush=True)
"""


def test_store_killed_at_any_time_has_every_acknowledged_event_once(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    sent: set[str] = set()
    acked: set[str] = set()
    for run in range(8):
        lines = _run_and_kill(f"sqlite:///{path}", f"run{run}", kill_after_acks=run * 3, then_seconds=0.004 * run)
        for line in lines:
            word, *ids = line.split()
            (sent if word == "sent" else acked).update(ids)
    store = EventStore(f"sqlite:///{path}")
    stored = store.export_interactions()[0]["event_id"].to_pylist()
    store.close()
    assert len(acked) >= 3 * sum(3 * run for run in range(8))
    assert acked <= set(stored) <= sent
    assert len(stored) == len(set(stored))
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def _run_and_kill(url: str, run: str, kill_after_acks: int, then_seconds: float) -> list[str]:
    """Lines of a writer that got SIGKILL in the middle of its work; a line cut by the kill is left out."""
    command = [sys.executable, "-c", WRITER, url, run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]  # it is in the first transaction, or about to be
        while sum(line.startswith("acked") for line in lines) < kill_after_acks:
            lines.append(writer.stdout.readline())
        time.sleep(then_seconds)
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
    assert writer.returncode == -signal.SIGKILL
    return [line for line in lines if line.endswith("\n")]
