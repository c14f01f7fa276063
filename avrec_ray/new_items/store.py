"""The queue of submitted items and the log of what became of them, beside the events in one database.

A submitted item is queued, decoding (a worker holds a lease), servable, refused or deleted. The log `item_changes` is
what replicas follow: its numbers rise in the order of commits, a change is one row, and what it replaces is removed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from avrec_ray.feedback.database import ITEMS_LOCK, write
from avrec_ray.feedback.schema import open_engine
from avrec_ray.feedback.tables import item_changes, new_items
from avrec_ray.new_items import log
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.submission import Submission, submission_from_json

__all__ = ["Change", "Claim", "NewItemStore", "Queue", "Status", "Submitted"]

OPEN = ("queued", "decoding")
"""States in which a worker has yet to finish."""
MAX_DETAIL_CHARS = 500


@dataclass(frozen=True)
class Submitted:
    """What a submission met. `is_new`: it was queued now; else the same body is known, and in `state`."""

    state: str
    is_new: bool


@dataclass(frozen=True)
class Status:
    """Where an item is. `reason` is a key of QUARANTINE_REASONS where it is refused."""

    state: str
    reason: str
    detail: str
    revision: int
    submitted_at_seconds: float


@dataclass(frozen=True)
class Queue:
    """Items by state, those that are served or deleted left out, and when the oldest of those queued was submitted."""

    counts: dict[str, int]
    oldest_at_seconds: float | None


@dataclass(frozen=True)
class Claim:
    """An item that one worker has until its lease ends."""

    item_id: str
    revision: int
    owner: str
    facts: Submission
    media_file: str | None
    """Name of the upload, if it came as one."""
    attempts: int


class NewItemStore:
    """Safe for threads; many processes may open one store."""

    def __init__(self, url: str, busy_timeout_seconds: float = 10.0) -> None:
        """Raises as `EventStore` does."""
        self._engine = open_engine(url, busy_timeout_seconds)

    def submit(
        self,
        item: Submission,
        media_file: str | None = None,
        media_sha256: str = "",
        max_waiting: int = 10**9,
        now_seconds: float | None = None,
    ) -> Submitted | None:
        """Queue an item, durably when this returns; None: `max_waiting` items wait already.

        The body that is known under the id changes nothing, unless it was refused or deleted: then it is tried again.
        Another body replaces it; what was served until then stays until the new one is ready, also if it is refused.

        Raises:
            StoreUnavailableError: nothing was kept.
        """
        now_us = _us(now_seconds)
        fingerprint = item.fingerprint(media_sha256)
        with write(self._engine, ITEMS_LOCK) as connection:
            known = connection.execute(sa.select(new_items).where(new_items.c.item_id == item.item_id)).one_or_none()
            is_same = known is not None and bytes(known.fingerprint) == fingerprint
            if known is not None and is_same and known.state not in ("refused", "deleted"):
                return Submitted(known.state, False)
            if _num_waiting(connection) >= max_waiting:
                return None
            values = {
                "revision": 1 if known is None else known.revision + 1,
                "body": item.to_json(),
                "media_file": media_file,
                "fingerprint": fingerprint,
                "submitted_us": now_us,
                "attempts": 0,
                **_state("queued"),
            }
            if known is None:
                connection.execute(sa.insert(new_items), {"item_id": item.item_id, **values})
            else:
                connection.execute(sa.update(new_items).where(new_items.c.item_id == item.item_id), values)
        return Submitted("queued", True)

    def status(self, item_id: str) -> Status | None:
        """Of a submitted or deleted item; None: this store never heard of it."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(new_items).where(new_items.c.item_id == item_id)).one_or_none()
            if row is not None:
                return Status(row.state, row.reason, row.detail, row.revision, row.submitted_us / 1e6)
            deleted = sa.select(item_changes.c.at_us).where(item_changes.c.item_id == item_id)
            at_us = connection.execute(deleted.limit(1)).scalar_one_or_none()
        return None if at_us is None else Status("deleted", "", "", 0, at_us / 1e6)

    def queue(self) -> Queue:
        """How many items wait, are worked on and were refused. One read of an index."""
        states = new_items.c.state
        query = (
            sa.select(states, sa.func.count(), sa.func.min(new_items.c.submitted_us))
            .where(states.in_((*OPEN, "refused")))
            .group_by(states)
        )
        with self._engine.connect() as connection:
            rows = {state: (int(count), oldest_us / 1e6) for state, count, oldest_us in connection.execute(query)}
        counts = {state: rows.get(state, (0, 0.0))[0] for state in (*OPEN, "refused")}
        return Queue(counts, rows["queued"][1] if "queued" in rows else None)

    def claim(self, owner: str, lease_seconds: float, now_seconds: float | None = None) -> Claim | None:
        """The item that has waited longest, if any: queued, or of a worker whose lease has ended."""
        now_us = _us(now_seconds)
        waits = sa.or_(
            new_items.c.state == "queued",
            sa.and_(new_items.c.state == "decoding", new_items.c.lease_until_us < now_us),
        )
        first = sa.select(new_items).where(waits).order_by(new_items.c.submitted_us, new_items.c.seq).limit(1)
        with self._engine.connect() as connection:
            if connection.execute(first).one_or_none() is None:
                return None  # without the lock, which whoever finds work has to take
        with write(self._engine, ITEMS_LOCK) as connection:
            row = connection.execute(first).one_or_none()
            return None if row is None else _taken(connection, row, owner, now_us + round(lease_seconds * 1e6))

    def claim_missing(
        self, towers_version: str, owner: str, lease_seconds: float, served: Sequence[str], watermark: int
    ) -> Claim | None:
        """An accepted item that has no vectors of these towers, because they came after it.

        Args:
            served: items that the bundle holds itself; those changed after `watermark` are wanted all the same.
        """
        mine, put = item_changes.alias(), item_changes.c.kind == "put"
        has_mine = sa.exists().where(
            mine.c.item_id == item_changes.c.item_id,
            mine.c.towers_version == towers_version,
            mine.c.revision >= item_changes.c.revision,
        )
        query = sa.select(item_changes.c.item_id, item_changes.c.seq).where(put, ~has_mine).order_by(item_changes.c.seq)
        in_bundle = set(served)
        with self._engine.connect() as connection:
            found = connection.execute(query).all()
        wanted = [row.item_id for row in found if row.seq > watermark or row.item_id not in in_bundle]
        for item_id in dict.fromkeys(wanted):
            with write(self._engine, ITEMS_LOCK) as connection:
                one = sa.select(new_items).where(new_items.c.item_id == item_id, new_items.c.state == "servable")
                row = connection.execute(one).one_or_none()
                if row is not None:
                    return _taken(connection, row, owner, _us(None) + round(lease_seconds * 1e6))
        return None

    def renew(self, claim: Claim, lease_seconds: float) -> bool:
        """Hold on to an item; False: it is not this worker's any more."""
        until = {"lease_until_us": _us(None) + round(lease_seconds * 1e6)}
        with write(self._engine, ITEMS_LOCK) as connection:
            return connection.execute(sa.update(new_items).where(_held(claim)), until).rowcount == 1

    def give_back(self, claim: Claim, counts: bool = True) -> bool:
        """Let the item wait for another attempt; False as `finish`. Without `counts` this one was none."""
        values = {**_state("queued"), "attempts": claim.attempts - (not counts)}
        with write(self._engine, ITEMS_LOCK) as connection:
            return connection.execute(sa.update(new_items).where(_held(claim)), values).rowcount == 1

    def finish(self, claim: Claim, towers_version: str, vectors: bytes) -> bool:
        """Log an item's vectors, durably; False: it was replaced, deleted or given away, and nothing is kept."""
        with write(self._engine, ITEMS_LOCK) as connection:
            update = sa.update(new_items).where(_held(claim))
            if connection.execute(update, {"attempts": 0, **_state("servable")}).rowcount != 1:
                return False
            older = (
                item_changes.c.item_id == claim.item_id,
                item_changes.c.kind == "put",
                sa.or_(item_changes.c.towers_version == towers_version, item_changes.c.revision < claim.revision),
            )
            connection.execute(sa.delete(item_changes).where(*older))
            values = {
                "item_id": claim.item_id, "kind": "put", "revision": claim.revision, "towers_version": towers_version,
                "body": claim.facts.to_json(), "media_file": claim.media_file, "vectors": vectors, "at_us": _us(None),
            }  # fmt: skip
            connection.execute(sa.insert(item_changes), values)
        return True

    def refuse(self, claim: Claim, reason: str, detail: str) -> bool:
        """Set an item aside for a reason of QUARANTINE_REASONS; False as `finish`. What is served of it stays."""
        state = _state("refused", reason, detail[:MAX_DETAIL_CHARS])
        with write(self._engine, ITEMS_LOCK) as connection:
            return connection.execute(sa.update(new_items).where(_held(claim)), state).rowcount == 1

    def delete(self, item_id: str, is_served: bool) -> bool:
        """Take an item down, durably: submitted, served by a bundle (`is_served`), or both. False: neither is so.

        Vectors and body are removed with it; the id stays, so that no later bundle serves the item.
        """
        with write(self._engine, ITEMS_LOCK) as connection:
            known = connection.execute(sa.select(new_items).where(new_items.c.item_id == item_id)).one_or_none()
            if not is_served and (known is None or known.state == "deleted"):
                return False
            body = Submission(item_id).to_json()
            gone = {"body": body, "media_file": None, "fingerprint": bytes(16), **_state("deleted")}
            update = sa.update(new_items).where(new_items.c.item_id == item_id)
            connection.execute(update.values(revision=new_items.c.revision + 1), gone)
            connection.execute(sa.delete(item_changes).where(item_changes.c.item_id == item_id))
            values = {
                "item_id": item_id, "kind": "delete", "revision": 0, "towers_version": "", "body": "",
                "media_file": None, "vectors": b"", "at_us": _us(None),
            }  # fmt: skip
            connection.execute(sa.insert(item_changes), values)
        return True

    def changes(self, after: int, towers_version: str, limit: int = 1000) -> list[Change]:
        """The next rows of the log, oldest first: deletes, and puts with vectors of these towers. One indexed read."""
        return log.changes(self._engine, after, towers_version, limit)

    def accepted_items(self, after: int = 0, uploads: str = "") -> tuple[pa.Table, int]:
        """Items accepted after a watermark as an items table, and the new watermark; see `log.accepted_items`."""
        return log.accepted_items(self._engine, after, uploads)

    def deleted_items(self) -> set[str]:
        """Items that were taken down and not submitted again; no bundle should hold them."""
        return log.deleted_items(self._engine)

    def was_deleted(self, item_id: str) -> bool:
        """Whether the log holds a delete of the item, put again or not."""
        return log.was_deleted(self._engine, item_id)

    def media_files(self) -> set[str]:
        """Names of all uploads that are queued, served or refused; others may be removed."""
        return log.media_files(self._engine)

    def ping(self) -> None:
        """Raise if the database cannot be read."""
        with self._engine.connect() as connection:
            connection.execute(sa.select(item_changes.c.seq).limit(1))

    def close(self) -> None:
        """Close every connection; the store may be used again."""
        self._engine.dispose()


def _taken(connection: sa.Connection, row: sa.Row[Any], owner: str, until_us: int) -> Claim:
    values = {
        "state": "decoding", "lease_owner": owner, "lease_until_us": until_us, "attempts": row.attempts + 1
    }  # fmt: skip
    connection.execute(sa.update(new_items).where(new_items.c.item_id == row.item_id), values)
    return Claim(
        row.item_id, row.revision, owner, submission_from_json(row.body), row.media_file, row.attempts + 1
    )  # fmt: skip


def _held(claim: Claim) -> sa.ColumnElement[bool]:
    return sa.and_(
        new_items.c.item_id == claim.item_id,
        new_items.c.revision == claim.revision,
        new_items.c.lease_owner == claim.owner,
        new_items.c.state == "decoding",
    )


def _state(state: str, reason: str = "", detail: str = "") -> dict[str, Any]:
    return {"state": state, "reason": reason, "detail": detail, "lease_owner": "", "lease_until_us": 0}


def _num_waiting(connection: sa.Connection) -> int:
    query = sa.select(sa.func.count()).select_from(new_items).where(new_items.c.state.in_(OPEN))
    return int(connection.execute(query).scalar_one())


def _us(now_seconds: float | None) -> int:
    return round((time.time() if now_seconds is None else now_seconds) * 1e6)
