"""Erasing a user: gone for the next reader, nothing comes back, everybody else as before; on both databases."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback import erasure
from avrec_ray.feedback.database import write
from avrec_ray.feedback.erased import SENT_AGAIN
from avrec_ray.feedback.impressions import Impression, Watermark
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.receipts import from_json, to_json
from avrec_ray.feedback.store import EventStore
from avrec_ray.types import Event

NOW = time.time() - 3600
KEYS = Pseudonyms([(1, b"1" * 32)])


@pytest.fixture(params=["keys", "no_keys"])
def keyed(request: pytest.FixtureRequest) -> Pseudonyms:
    return KEYS if request.param == "keys" else Pseudonyms()


@pytest.fixture
def kept(url: str, keyed: Pseudonyms) -> Iterator[EventStore]:
    """A store in which alice, bob and carol have events of all kinds and impressions."""
    opened = EventStore(url, pseudonyms=keyed)
    for user in ("alice", "bob", "carol"):
        fill(opened, user)
    yield opened
    opened.close()


def fill(store: EventStore, user: str, num_events: int = 6) -> None:
    name = store.pseudonyms.of(user)
    events = [
        Event(name, f"i{n}", "impression" if n % 3 == 0 else "like", NOW + n, 1.5, None, f"{user}-{n}", f"r-{user}")
        for n in range(num_events)
    ]
    undated = Event(name, "i9", "view", math.nan, event_id=f"{user}-undated")
    assert store.append([*events, undated], NOW + 10).accepted == num_events + 1
    shown = [Impression(f"r-{user}", name, f"i{n}", n, 0.5, "v1", "", "", NOW) for n in range(4)]
    assert store.record_impressions(shown) == 4


def rows_of_others(store: EventStore, user: str) -> list[pa.Table]:
    name = store.pseudonyms.of(user)
    tables = [store.export_interactions()[0], store.export_impressions()[0], store.export_joined()[0]]
    return [table.filter(pc.not_equal(table["user_id"], name)) for table in tables]


def test_erased_user_is_unknown_and_others_are_untouched(kept: EventStore, url: str) -> None:
    alice, bob = kept.pseudonyms.of("alice"), kept.pseudonyms.of("bob")
    before, of_bob = rows_of_others(kept, "alice"), kept.history(bob, 100)
    replica = EventStore(url, pseudonyms=kept.pseudonyms)
    assert len(replica.history(alice, 100)) == 5
    receipt = kept.erase(alice)
    assert receipt.removed == {"events": 7, "impressions": 4}
    for store in (kept, replica):
        assert store.history(alice, 100) == ()
        assert store.histories([alice, bob], 100) == {alice: (), bob: of_bob}
        assert store.user_data(alice)["events"] == store.user_data(alice)["impressions"] == []
        assert store.is_erased(alice)
        assert not store.is_erased(bob)
    assert rows_of_others(kept, "alice") == before
    assert [t.num_rows for t in rows_of_others(kept, "nobody")] == [t.num_rows for t in before]
    replica.close()


def test_erased_rows_are_hidden_from_the_tombstone_on(kept: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(label: str) -> None:
        if label == "erase.tombstone":
            raise Killed

    alice, bob = kept.pseudonyms.of("alice"), kept.pseudonyms.of("bob")
    before = rows_of_others(kept, "alice")
    monkeypatch.setattr(erasure, "crash_point", die)
    with pytest.raises(Killed):
        kept.erase(alice)
    monkeypatch.undo()
    assert kept.count() == 21
    assert kept.history(alice, 100) == kept.histories([alice, bob], 100)[alice] == ()
    assert kept.user_data(alice)["events"] == []
    assert rows_of_others(kept, "nobody") == before == rows_of_others(kept, "alice")
    assert kept.append([Event(alice, "i1", "like", NOW + 5, event_id="alice-1")], NOW).accepted == 0
    later = Event(alice, "new", "like", time.time() + 1, event_id="later")
    assert kept.append([later], time.time()).accepted == 1
    assert [e.item_id for e in kept.history(alice, 100)] == ["new"]
    assert kept.resume_erasures() == 1
    assert kept.count() == 15
    assert [e.item_id for e in kept.history(alice, 100)] == ["new"]


def test_erase_again_gives_the_same_receipt_and_after_new_events_another(kept: EventStore) -> None:
    alice = kept.pseudonyms.of("alice")
    first = kept.erase(alice)
    assert kept.erase(alice) == first
    kept.append([Event(alice, "i1", "like", math.nan, event_id="back")], time.time())
    second = kept.erase(alice)
    assert (second.removed["events"], second.erased_at > first.erased_at) == (1, True)
    assert len(kept.tombstones()) == 1
    assert kept.erase(kept.pseudonyms.of("never seen")).removed == {"events": 0, "impressions": 0}


def test_events_of_before_do_not_come_back(kept: EventStore) -> None:
    """A client that sends again, one that was offline, and a table that is imported again."""
    alice = kept.pseudonyms.of("alice")
    kept.erase(alice)
    sent_again = [
        Event(alice, "i1", "like", NOW + 1, 1.5, None, "alice-1", "r-alice"),
        Event(alice, "i9", "view", math.nan, event_id="alice-undated"),
    ]
    offline = Event(alice, "i8", "like", NOW + 5, event_id="was-offline")
    got = kept.append([*sent_again, offline], time.time())
    assert (got.accepted, got.duplicates, [r.index for r in got.rejected]) == (0, 0, [0, 1, 2])
    assert all("was before is not taken again" in r.reason for r in got.rejected)
    at = pa.array([round((NOW + 2) * 1e6)] * 2).cast(pa.timestamp("us", tz="UTC"))
    rows = {"user_id": ["alice", "dave"], "item_id": ["i1", "i1"], "event": ["like", "like"], "at": at}
    assert kept.import_interactions(pa.table(rows)) == 1
    shown = Impression("r-late", alice, "i1", 0, None, "v1", "", "", NOW)
    assert kept.record_impressions([shown]) == 0
    assert kept.user_data(alice)["events"] == kept.user_data(alice)["impressions"] == []


def test_an_erased_user_may_begin_anew(kept: EventStore) -> None:
    alice = kept.pseudonyms.of("alice")
    kept.erase(alice)
    fresh = [
        Event(alice, "a", "like", math.nan, event_id="new-1"),
        Event(alice, "b", "like", time.time() + 1, event_id="new-2"),
    ]
    assert kept.append(fresh, time.time()).accepted == 2
    assert kept.append(fresh, time.time()).duplicates == 2
    assert [e.item_id for e in kept.history(alice, 10)] == ["a", "b"]
    assert kept.user_data(alice)["erased_at"] is not None
    assert kept.record_impressions([Impression("r2", alice, "a", 0, None, "v1", "", "", time.time() + 1)]) == 1


def test_an_erased_event_id_stays_taken_for_everybody(kept: EventStore) -> None:
    """As it was while the event was there. Whose it was is not told."""
    alice, bob = kept.pseudonyms.of("alice"), kept.pseudonyms.of("bob")
    kept.erase(alice)
    got = kept.append([Event(bob, "i1", "like", math.nan, event_id=i) for i in ("alice-1", "bob-new")], time.time())
    assert (got.accepted, [(r.index, r.reason) for r in got.rejected]) == (1, [(0, SENT_AGAIN)])
    assert kept.erase(bob).removed["events"] == 8


def test_erase_removes_more_rows_than_a_transaction_holds(kept: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "ROWS_PER_TRANSACTION", 2)
    assert kept.erase(kept.pseudonyms.of("alice")).removed == {"events": 7, "impressions": 4}
    assert kept.count() == 14


def test_receipt_is_signed_and_tells_whose_it_is_to_nobody_else(kept: EventStore) -> None:
    alice, bob = kept.pseudonyms.of("alice"), kept.pseudonyms.of("bob")
    receipt = kept.erase(alice)
    kept.verify_receipt(from_json(to_json(receipt)), alice)
    assert alice not in to_json(receipt)
    with pytest.raises(FeedbackError, match="of another user"):
        kept.verify_receipt(receipt, bob)
    changed = from_json(to_json(receipt).replace('"events": 7', '"events": 8'))
    with pytest.raises(FeedbackError, match="it was changed"):
        kept.verify_receipt(changed)
    with pytest.raises(FeedbackError, match="receipt: "):
        from_json('{"subject": "x"}')
    more = kept.note_erased_files(alice, {"tables/interactions.parquet": 3})
    kept.verify_receipt(more, alice)
    assert more.removed == {"events": 7, "impressions": 4, "tables/interactions.parquet": 3}
    assert len(more.pending) == len(receipt.pending) - 1
    assert kept.erase(alice) == more


def test_receipt_key_of_the_environment(kept: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVREC_RECEIPT_KEY", "ab" * 32)
    receipt = kept.erase(kept.pseudonyms.of("alice"))
    assert receipt.key_id.startswith("env:")
    monkeypatch.setenv("AVREC_RECEIPT_KEY", "cd" * 32)
    with pytest.raises(FeedbackError, match="signed with key 'env:"):
        kept.verify_receipt(receipt)


def test_erased_users_are_left_out_of_tables(kept: EventStore) -> None:
    assert len(kept.erased_users()) == 0
    kept.erase(kept.pseudonyms.of("alice"))
    erased = kept.erased_users()
    later = round((time.time() + 60) * 1e6)
    at = pa.array([round(NOW * 1e6), later, later, None]).cast(pa.timestamp("us", tz="UTC"))
    users = ["alice", "alice", "bob", "alice"]
    assert erased.without(pa.table({"user_id": users, "at": at}))["user_id"].to_pylist() == ["alice", "bob", "alice"]
    edges = pa.table({"user_id": ["alice", "bob", "bob"], "friend_id": ["bob", "alice", "carol"]})
    assert erased.without(edges).to_pylist() == [{"user_id": "bob", "friend_id": "carol"}]
    names = kept.pseudonyms.table(edges)
    assert erased.without(names).num_rows == 1
    assert erased.without(edges.slice(0, 0)).num_rows == 0
    digest = erased.digest()
    assert digest == kept.erased_users().digest()
    kept.erase(kept.pseudonyms.of("bob"))
    assert digest != kept.erased_users().digest()


def test_bytes_are_gone_from_the_sqlite_file(tmp_path: Path, keyed: Pseudonyms) -> None:
    path, log = tmp_path / "events.db", tmp_path / "events.db-wal"
    store = EventStore(f"sqlite:///{path}", pseudonyms=keyed)
    for user in ("alice-of-wonderland", "bob"):
        fill(store, user, 400)
    name = store.pseudonyms.of("alice-of-wonderland").encode()
    store.erase(store.pseudonyms.of("alice-of-wonderland"))
    assert log.stat().st_size == 0
    store.compact()
    content = path.read_bytes() + log.read_bytes()
    assert name not in content
    assert b"alice-of-wonderland" not in content
    assert store.pseudonyms.of("bob").encode() in content
    store.close()


def test_a_restored_backup_forgets_again(
    kept: EventStore, new_url: Callable[[], str], tmp_path: Path, keyed: Pseudonyms
) -> None:
    folder = tmp_path / "backup"
    kept.backup(folder)
    alice = kept.pseudonyms.of("alice")
    kept.erase(alice)
    restored = EventStore(new_url(), pseudonyms=keyed)
    restored.restore(folder)
    assert restored.history(alice, 10) != ()
    assert restored.resume_erasures(kept.tombstones()) == 1
    assert restored.history(alice, 10) == ()
    assert restored.user_data(alice)["impressions"] == []
    assert restored.count() == 14
    assert restored.resume_erasures(kept.tombstones()) == 0
    restored.append([Event(alice, "new", "like", math.nan, event_id="n")], time.time())
    assert len(restored.history(alice, 10)) == 1
    restored.close()
    kept.backup(tmp_path / "later")
    again = EventStore(new_url(), pseudonyms=keyed)
    again.restore(tmp_path / "later")
    assert again.tombstones() == kept.tombstones()
    assert again.append([Event(alice, "i9", "view", math.nan, event_id="alice-undated")], time.time()).accepted == 0
    again.close()


def test_retention_forgets_ids_of_erased_events(kept: EventStore) -> None:
    kept.erase(kept.pseudonyms.of("alice"))
    kept.retain(1.0, Watermark())
    with write(kept._engine) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM erased_events").scalar_one() == 7
        connection.exec_driver_sql("UPDATE erased_events SET erased_us = 0")
    kept.retain(1.0, Watermark())
    with kept._engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM erased_events").scalar_one() == 0
