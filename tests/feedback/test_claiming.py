"""A visitor's events become a user's: all of them, once, and nothing that was erased."""

import pytest
import sqlalchemy as sa

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.claiming import check_anonymous
from avrec_ray.feedback.erased import SENT_AGAIN
from avrec_ray.feedback.impressions import Impression
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.tables import events
from avrec_ray.types import Event

OLD, NEW = (1, b"1" * 32), (2, b"2" * 32)
VISITOR = "anonymous:9f86"


def like(user: str, event_id: str, at_seconds: float = 1e9) -> Event:
    return Event(user, f"item-{event_id}", "like", at_seconds, event_id=event_id)


def shown(user: str, request_id: str) -> Impression:
    return Impression(request_id, user, "item", 1, None, "v1", "champion", "popular", 1e9)


def ids(store: EventStore, user: str) -> list[str | None]:
    return [event.event_id for event in store.history(user, 100)]


def test_claim_moves_events_and_lists_once(store: EventStore) -> None:
    store.append([like("u", "mine"), like(VISITOR, "a"), like(VISITOR, "b"), like("other", "c")], 1e9)
    store.record_impressions([shown(VISITOR, "r1"), shown("other", "r2")])
    assert store.claim(VISITOR, "u") == 2
    assert (sorted(ids(store, "u")), ids(store, VISITOR), ids(store, "other")) == (["a", "b", "mine"], [], ["c"])
    owners = {row["request_id"]: row["user_id"] for row in store.export_impressions()[0].to_pylist()}
    assert owners == {"r1": "u", "r2": "other"}
    assert store.claim(VISITOR, "u") == 0
    store.append([like(VISITOR, "late")], 1e9)
    assert store.claim(VISITOR, "u") == 1
    assert "late" in ids(store, "u")


def test_an_event_sent_again_after_the_claim_is_a_duplicate(store: EventStore) -> None:
    store.append([like(VISITOR, "a")], 1e9)
    store.claim(VISITOR, "u")
    again = store.append([like(VISITOR, "a")], 1e9)
    assert (again.accepted, again.duplicates, again.rejected) == (0, 1, [])
    assert ids(store, "u") == ["a"]


def test_who_claims_first_has_it(store: EventStore) -> None:
    store.append([like(VISITOR, "a")], 1e9)
    assert (store.claim(VISITOR, "u"), store.claim(VISITOR, "thief")) == (1, 0)
    assert ids(store, "thief") == []


def test_claim_brings_nothing_erased_back(store: EventStore) -> None:
    store.append([like(VISITOR, "before", 10.0)], 20.0)
    store.erase("u")  # of whom nothing else is kept
    assert store.claim(VISITOR, "u") == 0
    assert ids(store, "u") == []
    store.append([like("gone", "x", 10.0), like(VISITOR, "y", 1e10)], 20.0)
    store.erase(VISITOR)
    assert store.claim(VISITOR, "gone") == 0
    assert ids(store, "gone") == ["x"]


def test_a_claimed_past_is_erased_with_the_user_and_does_not_come_back(store: EventStore) -> None:
    """A client that never heard the answer sends again, under the visitor's id: nothing links the two any more."""
    store.append([like(VISITOR, "a")], 1e9)
    store.claim(VISITOR, "u")
    assert store.erase("u").removed["events"] == 1
    again = store.append([like(VISITOR, "a"), like(VISITOR, "b")], 1e9)
    assert [(rejection.index, rejection.reason) for rejection in again.rejected] == [(0, SENT_AGAIN)]
    assert "u" not in SENT_AGAIN.split()
    assert (again.accepted, ids(store, VISITOR), ids(store, "u")) == (1, ["b"], [])
    assert store.import_interactions(store.export_interactions()[0]) == 0


def test_an_erased_past_stays_known_after_a_change_of_keys(url: str) -> None:
    old = EventStore(url, pseudonyms=Pseudonyms([OLD]))
    name = old.pseudonyms.of
    old.append([like(name(VISITOR), "a")], 1e9)
    old.claim(name(VISITOR), name("u"))
    old.erase(name("u"))
    old.close()
    store = EventStore(url, pseudonyms=Pseudonyms([NEW, OLD]))
    again = store.append([like(store.pseudonyms.of(VISITOR), "a")], 1e9)
    assert (again.accepted, [rejection.reason for rejection in again.rejected]) == (0, [SENT_AGAIN])
    store.close()


def test_claim_during_a_change_of_keys_finds_names_under_both(url: str) -> None:
    old = EventStore(url, pseudonyms=Pseudonyms([OLD]))
    old.append([like(old.pseudonyms.of(VISITOR), "a")], 1e9)
    old.close()
    store = EventStore(url, pseudonyms=Pseudonyms([NEW, OLD]))
    name = store.pseudonyms.of
    store.append([like(name(VISITOR), "b")], 1e9)
    assert store.claim(name(VISITOR), name("u")) == 2
    assert sorted(ids(store, name("u"))) == ["a", "b"]
    with store._engine.connect() as connection:
        assert connection.execute(sa.select(events.c.user_id).distinct()).scalars().all() == [name("u")]
    with pytest.raises(FeedbackError, match="user"):
        store.claim(name(VISITOR), "a raw id")
    store.close()


@pytest.mark.parametrize(
    ("anonymous_id", "user_id", "message"),
    [
        ("somebody", "u", "anonymous_id: expected an id that begins with 'anonymous:'"),
        ("anonymous:", "u", "and goes on"),
        (VISITOR, "anonymous:2", "user_id: expected a user's id"),
    ],
)
def test_only_visitors_are_claimed_and_only_by_users(anonymous_id: str, user_id: str, message: str) -> None:
    with pytest.raises(FeedbackError, match=message):
        check_anonymous(anonymous_id, user_id)
