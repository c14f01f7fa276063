"""The store against a dict."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avrec_ray.feedback.database import write
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.tables import events
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


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(st.lists(sent_events, max_size=8), max_size=8), limit=st.integers(1, 20))
def test_store_behaves_as_a_dict_by_event_id(requests: list[list[Event]], limit: int, store: EventStore) -> None:
    with write(store._engine) as connection:
        connection.execute(events.delete())
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


def _apply(model: dict[str, Event], event: Event) -> str:
    assert event.event_id is not None
    if event.event_id not in model:
        model[event.event_id] = event
        return "accepted"
    return "duplicate" if model[event.event_id] == event else "conflict"


def _model_history(model: dict[str, Event], user_id: str, limit: int) -> tuple[Event, ...]:
    mine = [e for e in model.values() if e.user_id == user_id and e.event != "impression"]
    return tuple(sorted(mine, key=lambda e: e.at_seconds)[-limit:])
