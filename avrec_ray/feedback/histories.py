"""The newest events of users, whatever key their names are under, without what was erased."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from avrec_ray.feedback.erased import marks
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.tables import ACTED, erasures, events
from avrec_ray.types import Event

HISTORY_COLUMNS = (
    events.c.user_id, events.c.item_id, events.c.event, events.c.at_us, events.c.watch_seconds, events.c.value,
    events.c.event_id, events.c.request_id, events.c.position,
)  # fmt: skip
"""In the order of Event's fields."""
_USERS_PER_QUERY = 500
_EVENTS_PER_USER = 50


class Histories:
    """Reads histories from one store."""

    def __init__(self, engine: sa.Engine, pseudonyms: Pseudonyms) -> None:
        self._engine = engine
        self._pseudonyms = pseudonyms
        # Built once: to build it takes as long as to run it.
        self._query = _history_query(max(1, len(pseudonyms.versions)))

    def read(self, name: str, limit: int) -> tuple[Event, ...]:
        """See EventStore.history."""
        values: dict[str, Any] = {"limit": limit}
        for number, alias in enumerate(self._pseudonyms.aliases(name)):
            values[f"user_{number}"] = alias
        for number, tombstone in enumerate(self._pseudonyms.tombstones(name)):
            values[f"tombstone_{number}"] = tombstone
        with self._engine.connect() as connection:
            rows = connection.execute(self._query, values).all()
        return tuple(_event(name, row) for row in reversed(rows))

    def read_many(self, names: Sequence[str], limit: int) -> dict[str, tuple[Event, ...]]:
        """See EventStore.histories."""
        found: dict[str, list[Event]] = {name: [] for name in names}
        users = list(found)
        for start in range(0, len(users), _USERS_PER_QUERY):
            self._read_some(users[start : start + _USERS_PER_QUERY], limit, found)
        return {name: tuple(history[-limit:] if limit else ()) for name, history in found.items()}

    def recent_users(self, limit: int) -> list[str]:
        """See EventStore.recent_users."""
        newest = sa.select(events.c.user_id).where(ACTED).order_by(events.c.seq.desc()).limit(_EVENTS_PER_USER * limit)
        with self._engine.connect() as connection:
            found = connection.execute(newest).scalars().all()
        return list(dict.fromkeys(found))[:limit]

    def _read_some(self, users: list[str], limit: int, found: dict[str, list[Event]]) -> None:
        with self._engine.connect() as connection:
            erased = marks(connection, self._pseudonyms, users)
        for name in erased:  # few, and each with a place of its own to begin
            found[name] = list(self.read(name, limit))
        owner = {alias: name for name in users if name not in erased for alias in self._pseudonyms.aliases(name)}
        newest = sa.func.row_number().over(
            partition_by=events.c.user_id, order_by=(events.c.at_us.desc(), events.c.seq.desc())
        )
        mine = (
            sa.select(*HISTORY_COLUMNS, events.c.seq, newest.label("age"))
            .where(events.c.user_id.in_(owner), ACTED)
            .subquery()
        )
        query = sa.select(mine).where(mine.c.age <= limit).order_by(mine.c.at_us, mine.c.seq)
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                name = owner[row.user_id]
                found[name].append(_event(name, row))


def _history_query(num_keys: int) -> sa.Select[Any]:
    """One indexed read a key. Rows that are erased and not removed yet lie below the user's mark in `erasures`."""
    tombstones: list[Any] = [sa.bindparam(f"tombstone_{number}") for number in range(num_keys)]
    mark = sa.select(sa.func.max(erasures.c.event_seq)).where(erasures.c.tombstone.in_(tombstones)).scalar_subquery()
    limit = sa.bindparam("limit", type_=sa.Integer)
    parts = [
        sa.select(*HISTORY_COLUMNS, events.c.seq)
        .where(events.c.user_id == sa.bindparam(f"user_{number}"), ACTED, events.c.seq > sa.func.coalesce(mark, 0))
        .order_by(events.c.at_us.desc(), events.c.seq.desc())
        .limit(limit)
        for number in range(num_keys)
    ]
    if num_keys == 1:
        return parts[0]
    together = sa.union_all(*[sa.select(part.subquery()) for part in parts]).subquery()
    return sa.select(together).order_by(together.c.at_us.desc(), together.c.seq.desc()).limit(limit)


def _event(name: str, row: Sequence[Any]) -> Event:
    """The user goes by the name that was asked for, not by the one of an older key."""
    _, item_id, event, at_us, watch_seconds, value, event_id, request_id, position, *_ = row
    return Event(name, item_id, event, at_us / 1e6, watch_seconds, value, event_id, request_id, position)
