"""Callers that come at once share a commit, and none is harmed by its neighbours."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from avrec_ray.feedback import appending
from avrec_ray.feedback.appending import Appended, append_requests
from avrec_ray.feedback.database import StoreUnavailableError
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Event
from tests.feedback.postgres_server import PostgresServer

NOW = 1_700_000_000.0


def event(event_id: str, item_id: str = "i1") -> Event:
    return Event("u1", item_id, "like", NOW, event_id=event_id)


class Gate:
    """Holds the first commit back until all callers wait; notes how many requests each commit had."""

    def __init__(self, num_callers: int, fail: Callable[[Sequence[Any]], None] = lambda _: None) -> None:
        self.sizes: list[int] = []
        self._open = threading.Event()
        self._num_callers = num_callers
        self._fail = fail

    def __call__(self, engine: sa.Engine, pseudonyms: Pseudonyms, requests: Sequence[Any]) -> list[Appended]:
        self.sizes.append(len(requests))
        assert self._open.wait(60)
        self._fail(requests)
        return append_requests(engine, pseudonyms, requests)

    def run(self, store: EventStore, requests: Sequence[list[Event]]) -> list[Appended | Exception]:
        """Append each request in a thread of its own, the first alone and the rest while it is held back."""
        outcomes: dict[int, Appended | Exception] = {}

        def append(number: int) -> None:
            try:
                outcomes[number] = store.append(requests[number], NOW)
            except Exception as error:
                outcomes[number] = error

        threads = [threading.Thread(target=append, args=(n,)) for n in range(len(requests))]
        for number, thread in enumerate(threads):
            thread.start()
            while len(store._appender._waiting) < number or not self.sizes:
                time.sleep(0.001)
        self._open.set()
        for thread in threads:
            thread.join()
        return [outcomes[number] for number in range(len(requests))]


def test_callers_that_come_during_a_commit_share_the_next(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(5)
    monkeypatch.setattr(appending, "append_requests", gate)
    requests = [[event("a")], [event("b"), event("a")], [event("c")], [event("c"), event("c", "i2")], [event("d")]]
    outcomes = gate.run(store, requests)
    assert gate.sizes == [1, 4]
    assert [(o.accepted, o.duplicates, len(o.rejected)) for o in outcomes if isinstance(o, Appended)] == [
        (1, 0, 0), (1, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 0),
    ]  # fmt: skip
    assert store.count() == 4


def test_group_is_bounded_but_a_request_is_never_cut(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(4)
    monkeypatch.setattr(appending, "append_requests", gate)
    monkeypatch.setattr(appending, "MAX_EVENTS_PER_COMMIT", 3)
    requests = [[event("a")], [event(f"b{n}") for n in range(5)], [event("c"), event("d")], [event("e")]]
    outcomes = gate.run(store, requests)
    assert gate.sizes == [1, 1, 2]
    assert [o.accepted for o in outcomes if isinstance(o, Appended)] == [1, 5, 2, 1]


def test_request_that_breaks_its_commit_does_not_break_its_neighbours(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(requests: Sequence[Any]) -> None:
        if any(e.event_id == "bad" for events, _ in requests for e in events):
            raise ValueError("a value that no column takes")

    gate = Gate(3, fail)
    monkeypatch.setattr(appending, "append_requests", gate)
    outcomes = gate.run(store, [[event("a")], [event("bad")], [event("b")]])
    assert gate.sizes == [1, 2, 1, 1]
    assert [type(o) for o in outcomes] == [Appended, ValueError, Appended]
    assert store.count() == 2


def test_outage_fails_all_callers_of_a_commit_at_once(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(requests: Sequence[Any]) -> None:
        if len(requests) > 1:
            raise StoreUnavailableError("disk full")

    gate = Gate(3, fail)
    monkeypatch.setattr(appending, "append_requests", gate)
    outcomes = gate.run(store, [[event("a")], [event("b")], [event("c")]])
    assert gate.sizes == [1, 2]
    assert [type(o) for o in outcomes] == [Appended, StoreUnavailableError, StoreUnavailableError]
    monkeypatch.undo()
    assert store.append([event("b"), event("c")], NOW) == Appended(2, 0, [])


def test_value_that_the_database_refuses_is_no_outage(postgres_server: PostgresServer) -> None:
    store = EventStore(postgres_server.new_url())
    with pytest.raises(sa.exc.DBAPIError, match="NUL"):
        store.append([event("a", "i\x001")], NOW)
    store.close()


def test_more_events_than_a_statement_has_parameters(store: EventStore) -> None:
    many = [event(f"e{n}") for n in range(2_500)]
    assert store.append(many, NOW).accepted == 2_500
    assert store.append(many, NOW) == Appended(0, 2_500, [])
