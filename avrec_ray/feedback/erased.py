"""Who was erased, as readers and writers of the store see it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from avrec_ray.feedback.pseudonyms import USER_COLUMNS, Pseudonyms
from avrec_ray.feedback.tables import erased_events, erasures

SENT_AGAIN = "erased: an event of this event_id was erased, and is not taken again"
"""What a client is told that sends an erased event again. It does not say whose it was: the name may be another one."""
_VALUES_PER_QUERY = 500
_ANY = sa.select(erasures.c.seq).limit(1)


@dataclass(frozen=True)
class Mark:
    """How far a user's rows are erased: what happened, and what was taken in, up to here is no more."""

    erased_us: int
    event_seq: int
    impression_seq: int
    is_purged: bool


def marks(connection: sa.Connection, pseudonyms: Pseudonyms, names: Iterable[str]) -> dict[str, Mark]:
    """Those of `names`, as stored, that were erased; empty without a further read where nobody was."""
    if connection.execute(_ANY).first() is None:
        return {}
    users = list(dict.fromkeys(names))
    owner = {t: name for parallel in pseudonyms.tombstones_many(users) for t, name in zip(parallel, users, strict=True)}
    found: dict[str, Mark] = {}
    for some in _chunks(list(owner)):
        for row in connection.execute(sa.select(erasures).where(erasures.c.tombstone.in_(some))):
            mark = Mark(row.erased_us, row.event_seq, row.impression_seq, row.purged_us is not None)
            name = owner[row.tombstone]
            # Two rows of one user, under two keys, are there while keys are changed: the later one counts.
            found[name] = max(mark, found.get(name, mark), key=lambda m: m.event_seq)
    return found


def refused_events(
    connection: sa.Connection, pseudonyms: Pseudonyms, rows: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """`event_id` of rows that would bring back what was erased, and what the client is told.

    That is what a user did before the erasure, and whatever was kept before and is sent again, dated or not, under
    whatever name: a user's past may have been that of a visitor without an account, who may send it again and is linked
    to nobody any more. What else an erased user does begins a new history.
    """
    if connection.execute(_ANY).first() is None:
        return {}
    erased = marks(connection, pseudonyms, (row["user_id"] for row in rows))
    ids = [row["event_id"] for row in rows]
    owner = {d: i for parallel in pseudonyms.event_digests(ids) for d, i in zip(parallel, ids, strict=True)}
    known: set[str] = set()
    for some in _chunks(list(owner)):
        query = sa.select(erased_events.c.digest).where(erased_events.c.digest.in_(some))
        known |= {owner[digest] for digest in connection.execute(query).scalars()}
    refused = {}
    for row in rows:
        mark = erased.get(row["user_id"])
        if row["event_id"] in known or (mark is not None and row["at_us"] <= mark.erased_us):
            refused[row["event_id"]] = SENT_AGAIN if mark is None else _of_user(mark.erased_us)
    return refused


def not_erased(
    connection: sa.Connection, pseudonyms: Pseudonyms, rows: Sequence[Any], mark_of: str = "event_seq"
) -> Sequence[Any]:
    """Rows of events or impressions, without those that are erased and still wait to be removed."""
    pending = sa.select(erasures.c.seq).where(erasures.c.purged_us.is_(None)).limit(1)
    if connection.execute(pending).first() is None:
        return rows
    erased = marks(connection, pseudonyms, (row.user_id for row in rows))
    return [row for row in rows if row.user_id not in erased or row.seq > getattr(erased[row.user_id], mark_of)]


class ErasedUsers:
    """All users that were erased, for what reads tables from elsewhere: imports, `prepare`, the next training."""

    def __init__(self, pseudonyms: Pseudonyms, erased_us: Mapping[str, int]) -> None:
        """`erased_us`: tombstone to time, POSIX microseconds."""
        self._pseudonyms = pseudonyms
        self._erased_us = dict(erased_us)

    def __len__(self) -> int:
        return len(self._erased_us)

    def digest(self) -> str:
        """What a stage's fingerprint takes: another one after each erasure, the same under another key."""
        times = ",".join(map(str, sorted(self._erased_us.values())))
        return hashlib.sha256(times.encode()).hexdigest()

    def without(self, table: pa.Table) -> pa.Table:
        """A table without rows that name an erased user; where rows have a time `at`, those after the erasure stay."""
        for name in USER_COLUMNS if self._erased_us else ():
            if name in table.column_names and table.num_rows:
                table = table.filter(pc.invert(self._is_erased(table, name)))
        return table

    def _is_erased(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        column = table[name].combine_chunks()
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        users = encoded.dictionary.to_pylist()
        times: list[int | None] = [None] * len(users)
        for parallel in self._pseudonyms.tombstones_many(users):
            for place, tombstone in enumerate(parallel):
                times[place] = self._erased_us.get(tombstone, times[place])
        erased_us = pa.array(times, pa.int64()).take(encoded.indices)
        if "at" not in table.column_names:
            return pc.is_valid(erased_us)
        at_us = table["at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        return pc.fill_null(pc.less_equal(at_us, erased_us), False)


def erased_users(connection: sa.Connection, pseudonyms: Pseudonyms) -> ErasedUsers:
    """See EventStore.erased_users."""
    rows = connection.execute(sa.select(erasures.c.tombstone, erasures.c.erased_us))
    return ErasedUsers(pseudonyms, {row.tombstone: row.erased_us for row in rows})


def _of_user(erased_us: int) -> str:
    when = datetime.fromtimestamp(erased_us / 1e6, UTC).isoformat(timespec="seconds")
    return f"erased: this user was erased at {when}; what was before is not taken again"


def _chunks(values: list[str]) -> Iterable[list[str]]:
    return (values[start : start + _VALUES_PER_QUERY] for start in range(0, len(values), _VALUES_PER_QUERY))
