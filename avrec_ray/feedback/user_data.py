"""Everything the store has of one user, as plain JSON values: what the user may ask for."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from avrec_ray.feedback.database import snapshot
from avrec_ray.feedback.erased import marks
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.tables import ACTED, SHOWN, events, impressions

_EVENT = ("event_id", "item_id", "event", "watch_seconds", "value", "request_id", "position")
_IMPRESSION = ("request_id", "item_id", "position", "propensity", "model_version", "variant", "source")


def user_data(engine: sa.Engine, pseudonyms: Pseudonyms, name: str) -> dict[str, Any]:
    """See EventStore.user_data."""
    aliases = pseudonyms.aliases(name)
    with snapshot(engine) as connection:
        mark = marks(connection, pseudonyms, [name]).get(name)
        event_seq, impression_seq = (mark.event_seq, mark.impression_seq) if mark else (0, 0)
        found: list[Any] = []
        for kind in (ACTED, SHOWN):
            mine = (events.c.user_id.in_(aliases), kind, events.c.seq > event_seq)
            found += connection.execute(sa.select(events).where(*mine)).mappings().all()
        shown = sa.select(impressions).where(impressions.c.user_id.in_(aliases), impressions.c.seq > impression_seq)
        lists = connection.execute(shown.order_by(impressions.c.seq)).mappings().all()
    return {
        "stored_as": name,
        "erased_at": _iso(mark.erased_us) if mark else None,
        "events": [
            {**{c: row[c] for c in _EVENT}, "at": _iso(row["at_us"]), "received_at": _iso(row["received_us"])}
            for row in sorted(found, key=lambda row: row["seq"])
        ],
        "impressions": [{**{c: row[c] for c in _IMPRESSION}, "at": _iso(row["at_us"])} for row in lists],
    }


def _iso(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat()
