"""Changing the users' key: nothing lost, nothing twice, the old names nowhere; while others write; killed anywhere."""

import dataclasses
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pytest
import sqlalchemy as sa

from avrec_ray.errors import ConfigError, FeedbackError
from avrec_ray.feedback import rekey
from avrec_ray.feedback.database import StoreUnavailableError, connect
from avrec_ray.feedback.impressions import Impression
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.store import EventStore
from avrec_ray.feedback.tables import metadata
from avrec_ray.types import Event

NOW = time.time() - 3600
KEY_1, KEY_2 = b"1" * 32, b"2" * 32
NONE, OLD, NEW = Pseudonyms(), Pseudonyms([(1, KEY_1)]), Pseudonyms([(2, KEY_2)])
OLD_FIRST, NEW_FIRST = Pseudonyms([(1, KEY_1), (2, KEY_2)]), Pseudonyms([(2, KEY_2), (1, KEY_1)])
USERS = [f"user-{number}" for number in range(8)]


def events_of(names: Pseudonyms, user: str, num_events: int = 5) -> list[Event]:
    dated = [
        Event(names.of(user), f"i{n}", "view", NOW + n, 1.25 * n, None, f"{user}-{n}", f"r-{user}", n)
        for n in range(num_events)
    ]
    return [*dated, Event(names.of(user), "i0", "impression", math.nan, event_id=f"{user}-undated")]


def imported() -> pa.Table:
    """Rows without ids of their own, some of them equal."""
    users = [user for user in USERS for _ in range(3)]
    at = pa.array([round(NOW * 1e6)] * len(users)).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({"user_id": users, "item_id": ["old"] * len(users), "event": ["like"] * len(users), "at": at})


def fill(url: str, names: Pseudonyms) -> None:
    store = EventStore(url, pseudonyms=names)
    for user in USERS:
        store.append(events_of(names, user), NOW)
        store.record_impressions([Impression(f"r-{user}", names.of(user), "i1", 1, 0.5, "v", "", "", NOW)])
    store.import_interactions(imported())
    store.erase(names.of("user-0"))
    store.close()


def items(store: EventStore, user: str) -> list[tuple[str, float]]:
    return [(event.item_id, event.at_seconds) for event in store.history(store.pseudonyms.of(user), 1000)]


def values_in(url: str) -> set[str]:
    """Every text and every blob of every table, in the store's own words."""
    engine = connect(url, 10)
    found = set()
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(sa.select(table)):
                found |= {value.hex() if isinstance(value, bytes) else str(value) for value in row}
    engine.dispose()
    return found


def assert_nothing_of(url: str, names: Pseudonyms) -> None:
    old = {alias for user in USERS for alias in (names.of(user), *names.tombstones(names.of(user)))}
    assert not old & values_in(url)


def assert_complete(url: str, erased: str = "user-0") -> None:
    """All is as before, read with the new key alone; and what is sent or imported again adds nothing."""
    store = EventStore(url, pseudonyms=NEW)
    for user in USERS:
        expected = [] if user == erased else sorted([("old", NOW)] * 3 + [(f"i{n}", NOW + n) for n in range(5)])
        assert sorted((i, round(at, 3)) for i, at in items(store, user)) == [(i, round(at, 3)) for i, at in expected]
    assert store.export_joined()[0].num_rows == len(USERS) - 1
    before = store.count()
    for user in USERS:
        got = store.append(events_of(NEW, user), time.time())
        assert (got.accepted, got.duplicates) == (0, 0 if user == erased else 6)
        shown = Impression(f"r-{user}", NEW.of(user), "i1", 1, 0.5, "v", "", "", NOW)
        assert store.record_impressions([shown]) == 0
    assert store.import_interactions(imported()) == 0
    assert store.count() == before
    store.close()


@pytest.mark.parametrize("before", [OLD, NONE], ids=["another_key", "no_key"])
def test_rekey_keeps_everything_and_leaves_no_old_name(
    url: str, before: Pseudonyms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rekey, "ROWS_PER_TRANSACTION", 7)
    fill(url, before)
    keys = NEW_FIRST if before is OLD else NEW
    store = EventStore(url, pseudonyms=keys, rotating=True)
    rekeyed = store.rekey()
    assert rekeyed.events == 7 * 6 + 7 * 3
    assert rekeyed.impressions == 7
    assert rekeyed.retired == ((1,) if before is OLD else ())
    assert store.rekey().events == 0
    store.close()
    assert_nothing_of(url, before)
    assert_complete(url)


def test_both_keys_read_what_either_wrote(url: str) -> None:
    """During the change: histories merged, in order, without a second copy of what is sent or imported again."""
    fill(url, OLD)
    store = EventStore(url, pseudonyms=NEW_FIRST)
    new = Event(NEW.of("user-1"), "newest", "like", NOW + 99, event_id="n")
    assert store.append([new, *events_of(NEW, "user-1")], NOW).accepted == 1
    assert store.import_interactions(imported()) == 0
    assert store.record_impressions([Impression("r-user-1", NEW.of("user-1"), "i1", 1, 0.5, "v", "", "", NOW)]) == 0
    with pytest.raises(FeedbackError, match="is kept with another position"):
        store.record_impressions([Impression("r-user-1", NEW.of("user-1"), "i1", 2, 0.5, "v", "", "", NOW)])
    history = store.history(NEW.of("user-1"), 3)
    assert [event.item_id for event in history] == ["i3", "i4", "newest"]
    assert {event.user_id for event in history} == {NEW.of("user-1")}
    assert store.histories([NEW.of("user-1"), NEW.of("user-0")], 3) == {NEW.of("user-1"): history, NEW.of("user-0"): ()}
    assert set(store.export_interactions()[0]["user_id"].to_pylist()) == {NEW.of(user) for user in USERS[1:]}
    assert set(store.export_joined()[0]["shown_to"].to_pylist()) == {NEW.of(user) for user in USERS[1:]}
    assert store.append(events_of(NEW, "user-0"), NOW).accepted == 0
    assert len(store.user_data(NEW.of("user-1"))["events"]) == 10
    assert store.erase(NEW.of("user-1")).removed == {"events": 10, "impressions": 1}
    store.close()


def test_a_store_is_refused_with_other_keys_or_none(url: str, new_url: Callable[[], str]) -> None:
    fill(url, OLD)
    for names, problem in (
        (NONE, r"pseudonyms of key versions \[1\], and AVREC_USER_KEYS is not set"),
        (NEW, r"key version 1, and AVREC_USER_KEYS has \[2\]; add it"),
        (Pseudonyms([(1, KEY_2)]), "key 1 is another one than that of the event store"),
    ):
        with pytest.raises(ConfigError, match=problem):
            EventStore(url, pseudonyms=names)
    plain = new_url()
    fill(plain, NONE)
    with pytest.raises(ConfigError, match="under their own ids, and AVREC_USER_KEYS is set; give them pseudonyms"):
        EventStore(plain, pseudonyms=OLD)
    store = EventStore(plain, pseudonyms=NONE)
    with pytest.raises(ConfigError, match="AVREC_USER_KEYS is not set; give the new key first"):
        store.rekey()
    store.close()


def test_writers_of_a_retired_key_are_told_to_restart(url: str, new_url: Callable[[], str]) -> None:
    fill(url, OLD)
    late, store = EventStore(url, pseudonyms=OLD_FIRST), EventStore(url, pseudonyms=NEW_FIRST)
    event = Event(OLD.of("user-1"), "late", "like", NOW, event_id="late")
    assert late.append([event], NOW).accepted == 1
    store.rekey()
    for write in (
        lambda: late.append([dataclasses.replace(event, event_id="later")], NOW),
        lambda: late.import_interactions(imported()),
        lambda: late.record_impressions([Impression("r", OLD.of("a"), "i", 1, None, "v", "", "", NOW)]),
        lambda: late.erase(OLD.of("user-1")),
    ):
        with pytest.raises(StoreUnavailableError, match="key version 1 is not in use any more; restart"):
            write()
    assert items(store, "user-1")[-1][0] in {f"i{n}" for n in range(5)}
    assert_nothing_of(url, OLD)
    with pytest.raises(ConfigError, match="key 1 is retired and comes first"):
        EventStore(url, pseudonyms=OLD_FIRST)
    late.close()
    store.close()
    plain = new_url()
    fill(plain, NONE)
    unkeyed, keyed = EventStore(plain, pseudonyms=NONE), EventStore(plain, pseudonyms=NEW, rotating=True)
    keyed.rekey()
    with pytest.raises(StoreUnavailableError, match="it has user keys now; restart"):
        unkeyed.append([Event("user-1", "late", "like", NOW, event_id="late")], NOW)
    unkeyed.close()
    keyed.close()


def test_ids_do_not_get_into_a_store_with_keys(url: str) -> None:
    store = EventStore(url, pseudonyms=OLD)
    with pytest.raises(FeedbackError, match="expected a pseudonym of key 1; this is a bug"):
        store.append([Event("alice", "i", "like", NOW, event_id="e")], NOW)
    with pytest.raises(FeedbackError, match="expected a pseudonym"):
        store.record_impressions([Impression("r", "alice", "i", 1, None, "v", "", "", NOW)])
    assert store.count() == 0
    store.close()


@pytest.mark.parametrize("num_writers", [3])
def test_rekey_while_others_append_loses_no_event(url: str, num_writers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some still write under the old key when it begins; every event acknowledged to anybody is in the history."""
    monkeypatch.setattr(rekey, "ROWS_PER_TRANSACTION", 10)
    fill(url, OLD)
    stop, acknowledged, problems = threading.Event(), [set() for _ in range(num_writers)], []

    def write(number: int) -> None:
        names = OLD_FIRST if number == 0 else NEW_FIRST  # the first was deployed before the others
        store = EventStore(url, pseudonyms=names, busy_timeout_seconds=30)
        for count in range(1_000_000):
            event_id, user = f"w{number}-{count}", USERS[1 + count % 7]
            try:
                if stop.is_set():
                    break
                store.append([Event(names.of(user), event_id, "like", NOW + 500, event_id=event_id)], time.time())
            except StoreUnavailableError:
                store.close()
                names = NEW_FIRST  # restarted with today's keys
                store = EventStore(url, pseudonyms=names, busy_timeout_seconds=30)
                continue
            acknowledged[number].add(event_id)
            found = {event.item_id for event in store.history(names.of(user), 2000)}
            if event_id not in found or not {f"i{n}" for n in range(5)} <= found:
                problems.append((number, count))
        store.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(num_writers)]
    for thread in threads:
        thread.start()
    wait_for(lambda: all(len(ids) >= 5 for ids in acknowledged))
    store = EventStore(url, pseudonyms=NEW_FIRST, busy_timeout_seconds=30)
    store.rekey()
    done = sum(map(len, acknowledged))
    wait_for(lambda: sum(map(len, acknowledged)) >= done + 10)
    stop.set()
    for thread in threads:
        thread.join()
    store.close()
    assert problems == []
    assert_nothing_of(url, OLD)
    with_new = EventStore(url, pseudonyms=NEW)
    kept = {item for user in USERS for item, _ in items(with_new, user) if item.startswith("w")}
    assert kept == set().union(*acknowledged)
    with_new.close()


def wait_for(condition: Callable[[], bool], patience_seconds: float = 120.0) -> None:
    give_up_at = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


REKEY = """
import sys
from avrec_ray.feedback import rekey
from avrec_ray.feedback.store import EventStore
rekey.ROWS_PER_TRANSACTION = 10
print(EventStore(sys.argv[1], rotating=True).rekey())
"""
LABELS = ["rekey.digests", "rekey.events", "rekey.impressions", "rekey.renamed", "rekey.retired"]


@pytest.mark.slow
@pytest.mark.parametrize("before", [OLD, NONE], ids=["another_key", "no_key"])
@pytest.mark.parametrize("label", LABELS)
def test_rekey_that_dies_anywhere_is_completed_by_the_next(
    url: str, label: str, before: Pseudonyms, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(url, before)
    keys = f"2:{KEY_2.hex()},1:{KEY_1.hex()}" if before is OLD else f"2:{KEY_2.hex()}"
    monkeypatch.setenv("AVREC_USER_KEYS", keys)
    monkeypatch.setenv("AVREC_CRASH_AT", label)
    died = subprocess.run([sys.executable, "-c", REKEY, url], capture_output=True, text=True, check=False)
    assert died.returncode == 137, died.stderr
    if before is OLD:  # the service goes on in the middle of it
        store = EventStore(url, pseudonyms=NEW_FIRST)
        assert len(items(store, "user-1")) == 8
        assert store.append(events_of(NEW, "user-0"), NOW).accepted == 0
        store.close()
    monkeypatch.delenv("AVREC_CRASH_AT")
    ended = subprocess.run([sys.executable, "-c", REKEY, url], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert_nothing_of(url, before)
    monkeypatch.delenv("AVREC_USER_KEYS")
    assert_complete(url)
