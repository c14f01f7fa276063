"""Interactions, impressions and items tables by hand, for the tests of labels and of suspicion."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from avrec_ray.feedback.impressions import IMPRESSIONS
from avrec_ray.types import INTERACTIONS, ITEMS

START_US = 1_700_000_000_000_000
MINUTE_US = 60_000_000
DAY_US = 86_400_000_000


def acted(*rows: tuple[Any, ...]) -> pa.Table:
    """Rows of user, item, event, minutes after the start, and optionally a dict of further columns."""
    filled = []
    for number, (user, item, event, minutes, *more) in enumerate(rows):
        row = {"user_id": user, "item_id": item, "event": event, "at": START_US + round(minutes * MINUTE_US)}
        filled.append({**row, "event_id": f"e{number}", **(more[0] if more else {})})
    return pa.Table.from_pylist(filled, INTERACTIONS)


def listed(request_id: str, user: str, items: Sequence[str], propensity: float | None = None) -> pa.Table:
    """A served list; places count from 1."""
    rows = [
        {
            "request_id": request_id, "user_id": user, "item_id": item, "position": place, "propensity": propensity,
            "model_version": "m", "variant": "", "source": "", "at": START_US,
        }
        for place, item in enumerate(items, 1)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, IMPRESSIONS)


NOTHING_SHOWN = IMPRESSIONS.empty_table()


def catalogue(*item_ids: str, seconds: float = 60.0, creators: Sequence[str | None] | None = None) -> pa.Table:
    """Items of one duration."""
    made = creators or [f"by-{item}" for item in item_ids]
    rows = [
        {"item_id": item, "title": item, "duration_seconds": seconds, "creator_id": creator}
        for item, creator in zip(item_ids, made, strict=True)
    ]
    return pa.Table.from_pylist(rows, ITEMS)
