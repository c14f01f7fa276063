"""Behaviour as arrays: the one encoding of a history that training, batch scoring and serving share.

Dimension key: E events, B histories, L history length, N catalogue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from avrec_ray.towers.two_tower import HistoryBatch
from avrec_ray.types import EVENTS, POSITIVE_EVENTS, Event

EVENT_CODES = {name: 1 + index for index, name in enumerate(EVENTS)}
"""Code of each event in arrays; 0 is padding."""
POSITIVE_CODES = np.array([EVENT_CODES[name] for name in POSITIVE_EVENTS])


@dataclass(eq=False)
class EventColumns:
    """Events of all users, grouped by user and in order of time."""

    item_idx: npt.NDArray[np.int64]
    event: npt.NDArray[np.int64]
    watch_ratio: npt.NDArray[np.float32]
    at_seconds: npt.NDArray[np.float64]
    user_ids: list[str]
    starts: npt.NDArray[np.int64]
    """int64 [users + 1]: user u owns rows starts[u] : starts[u + 1]."""

    def rows(self, user: int) -> slice:
        """Rows of a user's events."""
        return slice(int(self.starts[user]), int(self.starts[user + 1]))


def columns_from_table(
    interactions: pa.Table, item_index: Mapping[str, int], durations: npt.NDArray[np.float32]
) -> EventColumns:
    """Group a checked interactions table by user. Impressions and items outside the catalogue are left out.

    Rows with the same user and time keep the order of the table.
    """
    keep = pc.and_(
        pc.is_in(interactions["item_id"], value_set=pa.array(list(item_index), pa.string())),
        pc.not_equal(interactions["event"], "impression"),
    )
    table = interactions.filter(keep)
    users, inverse = np.unique(np.asarray(table["user_id"].to_pylist(), dtype=str), return_inverse=True)
    at_seconds = table["at"].cast(pa.int64()).to_numpy() / 1e6
    order = np.lexsort((np.arange(len(at_seconds)), at_seconds, inverse))
    item_idx = np.array([item_index[i] for i in table["item_id"].to_pylist()], dtype=np.int64)[order]
    event = np.array([EVENT_CODES[e] for e in table["event"].to_pylist()], dtype=np.int64)[order]
    watch = table["watch_seconds"].to_numpy().astype(np.float32)[order]
    counts = np.bincount(inverse, minlength=len(users))
    return EventColumns(
        item_idx=item_idx,
        event=event,
        watch_ratio=_watch_ratio(watch, durations[item_idx]),
        at_seconds=at_seconds[order],
        user_ids=[str(u) for u in users],
        starts=np.concatenate([[0], np.cumsum(counts)]),
    )


def columns_from_events(
    histories: Sequence[Sequence[Event]], item_index: Mapping[str, int], durations: npt.NDArray[np.float32]
) -> EventColumns:
    """The same arrays from events, one history a query, each oldest first."""
    kept = [[e for e in h if e.event != "impression" and e.item_id in item_index] for h in histories]
    events = [e for history in kept for e in history]
    item_idx = np.array([item_index[e.item_id] for e in events], dtype=np.int64)
    watch = np.array([np.nan if e.watch_seconds is None else e.watch_seconds for e in events], dtype=np.float32)
    return EventColumns(
        item_idx=item_idx,
        event=np.array([EVENT_CODES[e.event] for e in events], dtype=np.int64),
        watch_ratio=_watch_ratio(watch, durations[item_idx]),
        at_seconds=np.array([e.at_seconds for e in events], dtype=np.float64),
        user_ids=[str(index) for index in range(len(kept))],
        starts=np.concatenate([[0], np.cumsum([len(h) for h in kept], dtype=np.int64)]).astype(np.int64),
    )


def _watch_ratio(watch: npt.NDArray[np.float32], durations: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Watched share; NaN where the watch time is unknown, or the duration is unknown or zero (an image)."""
    known = np.where(durations > 0, durations, np.float32(np.nan))
    return np.asarray(watch / known, np.float32)


def pad_histories(columns: EventColumns, spans: Sequence[tuple[int, int]], length: int) -> HistoryBatch:
    """Histories at row spans [start, stop) as left-padded tensors [B, L]; only the newest `length` rows are read."""
    shape = (len(spans), length)
    item_idx, event = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    watch, gap, mask = np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    at_seconds = np.zeros(shape, np.float64)
    for row, (start, stop) in enumerate(spans):
        first = max(start, stop - length)
        count = stop - first
        if count <= 0:
            continue
        item_idx[row, -count:] = columns.item_idx[first:stop]
        event[row, -count:] = columns.event[first:stop]
        watch[row, -count:] = columns.watch_ratio[first:stop]
        gap[row, length - count + 1 :] = np.diff(columns.at_seconds[first:stop])
        mask[row, -count:] = True
        at_seconds[row, -count:] = columns.at_seconds[first:stop]
    tensors = [torch.from_numpy(a) for a in (item_idx, event, watch, gap, mask, at_seconds)]
    return HistoryBatch(*tensors)
