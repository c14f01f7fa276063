"""The log of changes of the catalogue, read: what replicas follow, and what the next bundle is made of."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from avrec_ray.feedback.tables import item_changes, new_items
from avrec_ray.new_items.submission import Submission, submission_from_json
from avrec_ray.types import ITEMS


@dataclass(frozen=True)
class Change:
    """One row of the log: kind "put" (with vectors of one version of the towers) or "delete"."""

    seq: int
    item_id: str
    kind: str
    body: str
    vectors: bytes
    is_superseded: bool = False
    """A delete after which the item was put again."""

    @property
    def facts(self) -> Submission:
        """Of a put."""
        return submission_from_json(self.body)


def changes(engine: sa.Engine, after: int, towers_version: str, limit: int) -> list[Change]:
    """See NewItemStore.changes."""
    later = item_changes.alias()
    put_again = sa.exists().where(
        later.c.item_id == item_changes.c.item_id, later.c.seq > item_changes.c.seq, later.c.kind == "put"
    )
    mine = sa.or_(item_changes.c.kind == "delete", item_changes.c.towers_version == towers_version)
    query = (
        sa.select(item_changes, put_again.label("put_again"))
        .where(item_changes.c.seq > after, mine)
        .order_by(item_changes.c.seq)
        .limit(limit)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return [
        Change(r.seq, r.item_id, r.kind, r.body, bytes(r.vectors), r.kind == "delete" and bool(r.put_again))
        for r in rows
    ]


def accepted_items(engine: sa.Engine, after: int, uploads: str) -> tuple[pa.Table, int]:
    """Items accepted after a watermark as an items table, and the new watermark; chained, no change is missed.

    An item that was embedded again, by other towers, comes again: merge by item_id.

    Args:
        uploads: folder of the uploads, which media_uri of uploaded items leads to.
    """
    query = (
        sa.select(item_changes.c.seq, item_changes.c.body, item_changes.c.media_file)
        .where(item_changes.c.seq > after, item_changes.c.kind == "put", item_changes.c.seq.in_(_newest()))
        .order_by(item_changes.c.seq)
    )
    last_seq = sa.select(sa.func.max(item_changes.c.seq))
    with engine.connect() as connection:
        last = connection.execute(last_seq).scalar() or 0  # first: what comes meanwhile comes again next time
        rows = connection.execute(query.where(item_changes.c.seq <= last)).all()
    items = [
        _items_row(submission_from_json(row.body), f"{uploads}/{row.media_file}" if row.media_file else None)
        for row in rows
    ]
    return pa.Table.from_pylist(items, ITEMS), max(after, last)


def deleted_items(engine: sa.Engine) -> set[str]:
    """See NewItemStore.deleted_items."""
    query = sa.select(item_changes.c.item_id).where(item_changes.c.kind == "delete", item_changes.c.seq.in_(_newest()))
    with engine.connect() as connection:
        return set(connection.execute(query).scalars())


def was_deleted(engine: sa.Engine, item_id: str) -> bool:
    """See NewItemStore.was_deleted."""
    query = sa.select(item_changes.c.seq).where(item_changes.c.item_id == item_id, item_changes.c.kind == "delete")
    with engine.connect() as connection:
        return connection.execute(query.limit(1)).first() is not None


def media_files(engine: sa.Engine) -> set[str]:
    """See NewItemStore.media_files."""
    names: set[str] = set()
    with engine.connect() as connection:
        for table in (new_items, item_changes):
            found = sa.select(table.c.media_file).where(table.c.media_file.is_not(None))
            names |= set(connection.execute(found).scalars())
    return names


def _newest() -> sa.Select[Any]:
    """Number of the last change of each item."""
    return sa.select(sa.func.max(item_changes.c.seq)).group_by(item_changes.c.item_id)


def _items_row(item: Submission, uploaded: str | None) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "media_uri": uploaded or item.media_uri,
        "title": item.title,
        "description": item.description,
        "tags": list(item.tags),
        "category": item.category,
        "creator_id": item.creator_id,
        "language": item.language,
        "published_at": item.published_at,
    }
