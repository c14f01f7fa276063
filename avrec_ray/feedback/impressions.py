"""What was shown: each item of a served list with its place and its chance, joined to what the user did with it.

A label is an event joined to its impression by request and item; an impression without events is a label too. Inverse
propensity scoring divides by `propensity`, so it is kept as it was when the list was made, not as a later model has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.database import IMPRESSIONS_LOCK, snapshot, write
from avrec_ray.feedback.erased import marks, not_erased
from avrec_ray.feedback.events import MAX_ID_CHARS, is_clean_text
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.tables import events, impressions
from avrec_ray.feedback.user_keys import require_writable

ROWS_PER_PART = 50_000
_TIME = pa.timestamp("us", tz="UTC")
_MAX_POSITION = 2**31 - 1

IMPRESSIONS = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("propensity", pa.float64()),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("at", _TIME, nullable=False),
    ]
)

JOINED = pa.schema(
    [
        *[IMPRESSIONS.field(name) for name in ("request_id", "item_id", "position", "propensity")],
        *[IMPRESSIONS.field(name) for name in ("model_version", "variant", "source")],
        pa.field("shown_at", _TIME, nullable=False),
        pa.field("shown_to", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("event", pa.string(), nullable=False),
        pa.field("at", _TIME, nullable=False),
        pa.field("watch_seconds", pa.float32()),
        pa.field("value", pa.float32()),
    ]
)
"""Columns up to `shown_to` are the impression's, as served; those after it are the event's, as the client sent it."""


@dataclass(frozen=True)
class Impression:
    """One item of one served list. `at_seconds` is a POSIX time, UTC, by the server's clock."""

    request_id: str
    user_id: str
    item_id: str
    position: int
    """Place in the list, counted as the events' `position` is."""
    propensity: float | None
    """Chance, above 0 and up to 1, that the item came to this place; None: not known, of no use for IPS."""
    model_version: str
    variant: str
    """Arm of an experiment; may be empty."""
    source: str
    """What put it there, e.g. "user_tower", "fresh", "explore"; may be empty."""
    at_seconds: float

    def __post_init__(self) -> None:
        for name in ("request_id", "user_id", "item_id"):
            value = getattr(self, name)
            if not 1 <= len(value) <= MAX_ID_CHARS or not is_clean_text(value):
                raise FeedbackError(f"impression: {name} must be 1 to {MAX_ID_CHARS} characters of clean text")
        if not 0 <= self.position <= _MAX_POSITION:
            raise FeedbackError(f"impression: got position {self.position}, expected a whole number of at least 0")
        if self.propensity is not None and not 0 < self.propensity <= 1:
            raise FeedbackError(f"impression: got propensity {self.propensity}, expected above 0 and up to 1, or None")


@dataclass(frozen=True)
class Watermark:
    """How far an export has read: the highest `seq` of events and of impressions."""

    events: int = 0
    impressions: int = 0


START = Watermark()


def record(engine: sa.Engine, pseudonyms: Pseudonyms, shown: Sequence[Impression]) -> int:
    """See EventStore.record_impressions."""
    rows = {(i.request_id, i.item_id): _row(i) for i in shown}
    if len(rows) < len(shown):
        raise FeedbackError("impressions: an item comes twice in one request; a list holds an item once")
    for impression in shown:
        pseudonyms.check_name(impression.user_id)
    if not rows:
        return 0
    with write(engine, IMPRESSIONS_LOCK) as connection:
        require_writable(connection, pseudonyms)
        erased = marks(connection, pseudonyms, (i.user_id for i in shown))
        # A list that was made before its user was erased, and is kept after: it would be of nobody's history.
        rows = {
            k: r for k, r in rows.items() if r["user_id"] not in erased or r["at_us"] > erased[r["user_id"]].erased_us
        }
        if not rows:
            return 0
        make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        insert = make(impressions).on_conflict_do_nothing(index_elements=["request_id", "item_id"])
        returning = insert.returning(impressions.c.request_id, impressions.c.item_id)
        added = {(r.request_id, r.item_id) for r in connection.execute(returning, list(rows.values()))}
        _check_same(connection, pseudonyms, {key: row for key, row in rows.items() if key not in added})
    return len(added)


def _check_same(
    connection: sa.Connection, pseudonyms: Pseudonyms, known: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """Within the transaction, which an error rolls back: a changed list keeps nothing of itself."""
    for request_id in {request_id for request_id, _ in known}:
        query = sa.select(impressions).where(impressions.c.request_id == request_id)
        for found in connection.execute(query).mappings():
            row = known.get((request_id, found["item_id"]))
            if row is None:
                continue
            row = (
                {**row, "user_id": found["user_id"]} if found["user_id"] in pseudonyms.aliases(row["user_id"]) else row
            )
            changed = [name for name in row if row[name] != found[name] and name != "at_us"]
            if changed:
                raise FeedbackError(
                    f"impressions: request {request_id!r} is kept with another {changed[0]} of {found['item_id']!r}; "
                    "a request_id belongs to one served list: make a new one for each"
                )


def _row(shown: Impression) -> dict[str, Any]:
    return {
        "request_id": shown.request_id,
        "item_id": shown.item_id,
        "user_id": shown.user_id,
        "position": shown.position,
        "propensity": shown.propensity,
        "model_version": shown.model_version,
        "variant": shown.variant,
        "source": shown.source,
        "at_us": round(shown.at_seconds * 1e6),
    }


def export(
    engine: sa.Engine, pseudonyms: Pseudonyms, after_watermark: int, upto: int | None = None
) -> tuple[pa.Table, int]:
    """See EventStore.export_impressions."""
    columns = [impressions.c.at_us.label("at") if f.name == "at" else impressions.c[f.name] for f in IMPRESSIONS]
    wanted = [impressions.c.seq > after_watermark] + ([] if upto is None else [impressions.c.seq <= upto])
    query = sa.select(*columns, impressions.c.seq).where(*wanted)
    parts, watermark = [], after_watermark
    with snapshot(engine) as connection:
        found = connection.execution_options(stream_results=True).execute(query.order_by(impressions.c.seq))
        for rows in found.partitions(ROWS_PER_PART):
            watermark = rows[-1].seq
            if kept := not_erased(connection, pseudonyms, rows, "impression_seq"):
                parts.append(pseudonyms.table(_table(kept, IMPRESSIONS)))
    return pa.concat_tables(parts) if parts else IMPRESSIONS.empty_table(), watermark


def newest(engine: sa.Engine) -> Watermark:
    """See EventStore.watermark."""
    with engine.connect() as connection:
        found = (connection.execute(sa.select(sa.func.max(t.c.seq))).scalar() or 0 for t in (events, impressions))
        return Watermark(*found)


def export_joined(engine: sa.Engine, pseudonyms: Pseudonyms, after: Watermark) -> tuple[pa.Table, Watermark]:
    """See EventStore.export_joined."""
    e, i = events.c.seq, impressions.c.seq
    with snapshot(engine) as connection:
        last_event, last_impression = (connection.execute(sa.select(sa.func.max(seq))).scalar() or 0 for seq in (e, i))
        upto = Watermark(max(last_event, after.events), max(last_impression, after.impressions))
        # Either side may be the later one. New events meet all impressions, new impressions the events of before.
        new_events = (e > after.events) & (e <= upto.events) & (i <= upto.impressions)
        late_impressions = (e <= after.events) & (i > after.impressions) & (i <= upto.impressions)
        parts = []
        for condition in (new_events, late_impressions):
            query = _PAIRS.where(condition).order_by(e, i)
            found = connection.execution_options(stream_results=True).execute(query)
            for rows in found.partitions(ROWS_PER_PART):
                if kept := not_erased(connection, pseudonyms, rows):
                    parts.append(pseudonyms.table(_table(kept, JOINED)))
    return pa.concat_tables(parts) if parts else JOINED.empty_table(), upto


_PAIRS = sa.select(
    *[impressions.c[name] for name in JOINED.names[: JOINED.names.index("shown_at")]],
    impressions.c.at_us.label("shown_at"),
    impressions.c.user_id.label("shown_to"),
    events.c.event_id,
    events.c.user_id,
    events.c.event,
    events.c.at_us.label("at"),
    events.c.watch_seconds,
    events.c.value,
    events.c.seq,
).select_from(
    # That request_id is not null follows, but a partial index wants to be told.
    events.join(
        impressions,
        (events.c.request_id == impressions.c.request_id)
        & (events.c.item_id == impressions.c.item_id)
        & events.c.request_id.is_not(None),
    )
)


def _table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True))  # a column of the query after the schema's is left
    arrays = [
        pa.array(np.array(values, np.int64)).cast(f.type) if f.type == _TIME else pa.array(values, f.type)
        for f, values in zip(schema, columns, strict=False)
    ]
    return pa.table(arrays, schema=schema)
