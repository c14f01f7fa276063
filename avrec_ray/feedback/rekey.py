"""Users of a store given names under another key, row by row, while others read and write.

Readers look under every key that is there, writers use the first. So the order for a running service is: deploy both
keys with the old one first, deploy them with the new one first, run this, deploy the new one alone, destroy the old.
Killed at any moment, the next run goes on: what is renamed is seen by its name.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from avrec_ray.durable import crash_point
from avrec_ray.errors import ConfigError, FeedbackError
from avrec_ray.feedback.bulk import CONTENT_ID_PREFIX, content_id
from avrec_ray.feedback.database import EVENTS_LOCK, IMPRESSIONS_LOCK, both_locks, write
from avrec_ray.feedback.events import fingerprint_of
from avrec_ray.feedback.pseudonyms import KEYS_VARIABLE, Pseudonyms
from avrec_ray.feedback.tables import erased_events, erasures, events, impressions
from avrec_ray.feedback.user_keys import ACTIVE, RETIRED, read_keys, set_state
from avrec_ray.types import Event

ROWS_PER_TRANSACTION = 2_000
"""Rows renamed while writers wait: some tens of milliseconds."""
_MAX_EQUAL_ROWS = 100_000


@dataclass(frozen=True)
class Rekeyed:
    """How many rows were renamed, and the keys that nothing in the store needs any more."""

    events: int
    impressions: int
    digests: int
    retired: tuple[int, ...]


def rekey(engine: sa.Engine, pseudonyms: Pseudonyms) -> Rekeyed:
    """See EventStore.rekey."""
    if not pseudonyms.is_keyed:
        raise ConfigError(f"{KEYS_VARIABLE} is not set; give the new key first, then the old: 2:<hex>,1:<hex>")
    counts = _rename_all(engine, pseudonyms, ROWS_PER_TRANSACTION)
    crash_point("rekey.renamed")
    with both_locks(engine) as connection:
        # From this commit on nobody writes under an older key, or under none: the second pass finds the last rows.
        set_state(connection, pseudonyms, pseudonyms.newest, ACTIVE)
        older = tuple(version for version in read_keys(connection) if version != pseudonyms.newest)
        for version in older:
            if version in pseudonyms.versions:
                set_state(connection, pseudonyms, version, RETIRED)
    crash_point("rekey.retired")
    late = _rename_all(engine, pseudonyms, ROWS_PER_TRANSACTION)
    with both_locks(engine) as connection:
        if left := _rows_left(connection, pseudonyms):
            raise FeedbackError(f"rekey: {left} rows are under another key still; run it again")
    return Rekeyed(counts[0] + late[0], counts[1] + late[1], counts[2] + late[2], older)


def _rename_all(engine: sa.Engine, pseudonyms: Pseudonyms, size: int) -> tuple[int, int, int]:
    digests = sum(_renew_digests(engine, pseudonyms, table, size) for table in (erasures, erased_events))
    crash_point("rekey.digests")
    num_events = 0
    for start, end in _ranges(engine, events, pseudonyms, size):
        with write(engine, EVENTS_LOCK) as connection:
            num_events += _rename_events(connection, pseudonyms, start, end)
        crash_point("rekey.events")
    num_impressions = 0
    for start, end in _ranges(engine, impressions, pseudonyms, size):
        with write(engine, IMPRESSIONS_LOCK) as connection:
            num_impressions += _rename_impressions(connection, pseudonyms, start, end)
        crash_point("rekey.impressions")
    return num_events, num_impressions, digests


def _ranges(engine: sa.Engine, table: sa.Table, pseudonyms: Pseudonyms, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of `seq`, both ends in, that hold at most `size` rows under other keys; found without a lock."""
    start = 0
    while True:
        with engine.connect() as connection:
            query = sa.select(table.c.seq).where(table.c.seq > start, _is_other(table, pseudonyms))
            found = connection.execute(query.order_by(table.c.seq).limit(size)).scalars().all()
        if not found:
            return
        yield found[0], found[-1]
        start = found[-1]


def _is_other(table: sa.Table, pseudonyms: Pseudonyms) -> sa.ColumnElement[bool]:
    return table.c.user_id.not_like(f"v{pseudonyms.newest}:%")


def _rename_events(connection: sa.Connection, pseudonyms: Pseudonyms, start: int, end: int) -> int:
    in_range = (events.c.seq >= start) & (events.c.seq <= end)
    rows = connection.execute(sa.select(events).where(in_range, _is_other(events, pseudonyms))).all()
    names = pseudonyms.stored_many([row.user_id for row in rows])
    values = [_renamed(row, name) for row, name in zip(rows, names, strict=True)]
    if values:
        update = sa.update(events).where(events.c.seq == sa.bindparam("row_seq"))
        changed: dict[str, Any] = {c: sa.bindparam(f"new_{c}") for c in ("user_id", "event_id", "fingerprint")}
        connection.execute(update.values(changed), values)
    return len(values)


def _renamed(row: Any, name: str) -> dict[str, Any]:
    """A row's new name, and what was made from the name: the fingerprint, and the id of an imported row."""
    event = Event(
        row.user_id, row.item_id, row.event, row.at_us / 1e6, row.watch_seconds, row.value, row.event_id,
        row.request_id, row.position,
    )  # fmt: skip
    undated = dataclasses.replace(event, at_seconds=float("nan"))
    is_undated = fingerprint_of(undated) == bytes(row.fingerprint)
    fingerprint = fingerprint_of(dataclasses.replace(undated if is_undated else event, user_id=name))
    event_id = row.event_id
    if event_id.startswith(CONTENT_ID_PREFIX):
        event_id = _renamed_id(event_id, bytes(row.fingerprint), fingerprint)
    return {"row_seq": row.seq, "new_user_id": name, "new_event_id": event_id, "new_fingerprint": fingerprint}


def _renamed_id(event_id: str, old: bytes, new: bytes) -> str:
    """So that importing the same table again still adds nothing. An id that only looks like ours stays."""
    for nth in range(_MAX_EQUAL_ROWS):
        if content_id(old, nth) == event_id:
            return content_id(new, nth)
        if nth == 100 and len(event_id) != len(content_id(old, 0)):
            break
    return event_id


def _rename_impressions(connection: sa.Connection, pseudonyms: Pseudonyms, start: int, end: int) -> int:
    in_range = (impressions.c.seq >= start) & (impressions.c.seq <= end)
    query = sa.select(impressions.c.seq, impressions.c.user_id).where(in_range, _is_other(impressions, pseudonyms))
    rows = connection.execute(query).all()
    names = pseudonyms.stored_many([row.user_id for row in rows])
    if rows:
        update = sa.update(impressions).where(impressions.c.seq == sa.bindparam("row_seq"))
        values = [{"row_seq": row.seq, "new_name": name} for row, name in zip(rows, names, strict=True)]
        connection.execute(update.values(user_id=sa.bindparam("new_name")), values)
    return len(rows)


def _renew_digests(engine: sa.Engine, pseudonyms: Pseudonyms, table: sa.Table, size: int) -> int:
    column = table.c.tombstone if table is erasures else table.c.digest
    is_other = column.not_like(f"_{pseudonyms.newest}:%")
    renewed = 0
    while True:
        with both_locks(engine) as connection:
            rows = connection.execute(sa.select(table.c.seq, column.label("digest")).where(is_other).limit(size)).all()
            for row in rows:
                _renew(connection, table, column, row.seq, pseudonyms.renewed_digest(row.digest))
        if not rows:
            return renewed
        renewed += len(rows)


def _renew(connection: sa.Connection, table: sa.Table, column: sa.Column[Any], seq: int, digest: str) -> None:
    """A user may have been erased under both keys: the later row has the further marks and stays."""
    other = connection.execute(sa.select(table.c.seq).where(column == digest)).scalar()
    if other is not None:
        connection.execute(sa.delete(table).where(table.c.seq == min(seq, other)))
    if other is None or seq > other:
        connection.execute(sa.update(table).where(table.c.seq == seq).values({column.name: digest}))


def _rows_left(connection: sa.Connection, pseudonyms: Pseudonyms) -> int:
    counts = (sa.select(sa.func.count()).select_from(t).where(_is_other(t, pseudonyms)) for t in (events, impressions))
    return sum(connection.execute(count).scalar_one() for count in counts)
