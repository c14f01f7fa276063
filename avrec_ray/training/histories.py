"""Behaviour as arrays: the one encoding of a history that training, batch scoring and serving share.

Dimension key: E events, B histories, L history length, N catalogue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from avrec_ray.towers.two_tower import FriendBatch, HistoryBatch
from avrec_ray.training.profiles import UserProfiles
from avrec_ray.types import EVENTS, NEGATIVE_EVENTS, POSITIVE_EVENTS, Event

EVENT_CODES = {name: 1 + index for index, name in enumerate(EVENTS)}
"""Code of each event in arrays; 0 is padding."""
LABEL_WEIGHT = "label_weight"
"""Extra column of an interactions table that retraining writes: `EventColumns.label_weight`."""
POSITIVE_CODES = np.array([EVENT_CODES[name] for name in POSITIVE_EVENTS])
LIKE_CODES = np.array([EVENT_CODES[name] for name in ("like", "favorite", "share")])
SKIP_CODES = np.array([EVENT_CODES[name] for name in NEGATIVE_EVENTS])


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
    profiles: UserProfiles | None = None
    """What is known of users besides; None where towers read none of it."""
    profile_row: npt.NDArray[np.int64] | None = None
    """int64 [users]: row of each user in `profiles`, -1 where nothing is known."""
    position: npt.NDArray[np.int64] | None = None
    """int64 [E]: place from 1 in the list that an event came from, 0 where it came from none; None: not read."""
    label_weight: npt.NDArray[np.float32] | None = None
    """float32 [E]: how much each event counts as a target; None: all the same."""

    def rows(self, user: int) -> slice:
        """Rows of a user's events."""
        return slice(int(self.starts[user]), int(self.starts[user + 1]))


def columns_from_table(
    interactions: pa.Table, item_index: Mapping[str, int], durations: npt.NDArray[np.float32], first_by: str = ""
) -> EventColumns:
    """Group a checked interactions table by user. Impressions and items outside the catalogue are left out.

    Rows with the same user and time keep the order of the table. With `first_by`, a column of integers, rows of a user
    go by that before they go by time.
    """
    keep = pc.and_(
        pc.is_in(interactions["item_id"], value_set=pa.array(list(item_index), pa.string())),
        pc.not_equal(interactions["event"], "impression"),
    )
    table = interactions.filter(keep)
    users, inverse = np.unique(np.asarray(table["user_id"].to_pylist(), dtype=str), return_inverse=True)
    at_seconds = table["at"].cast(pa.int64()).to_numpy() / 1e6
    first = table[first_by].to_numpy() if first_by else np.zeros(len(at_seconds), np.int64)
    order = np.lexsort((np.arange(len(at_seconds)), at_seconds, first, inverse))
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
        position=pc.fill_null(table["position"], 0).to_numpy().astype(np.int64)[order],
        label_weight=table[LABEL_WEIGHT].to_numpy().astype(np.float32)[order]
        if LABEL_WEIGHT in table.column_names
        else None,
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


def with_profiles(
    columns: EventColumns, profiles: UserProfiles | None, user_ids: Sequence[str | None] | None = None
) -> EventColumns:
    """The same events with profiles beside; `user_ids` names the users where columns number them."""
    if profiles is None:
        return columns
    names = columns.user_ids if user_ids is None else user_ids
    return replace(columns, profiles=profiles, profile_row=profiles.rows(names))


def pad_histories(
    columns: EventColumns, spans: Sequence[tuple[int, int]], length: int, users: Sequence[int] | None = None
) -> HistoryBatch:
    """Histories at row spans [start, stop) as left-padded tensors [B, L]; only the newest `length` rows are read.

    Where columns have profiles, attributes and friends' choices come with them. The time of a position's query is
    that of its event; before the first one it is that of the first, and endless where there is none.

    Args:
        users: the user of each span; may be left out where no span is empty.
    """
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
    history = HistoryBatch(
        item_idx=torch.from_numpy(item_idx),
        event=torch.from_numpy(event),
        watch_ratio=torch.from_numpy(watch),
        gap_seconds=torch.from_numpy(gap),
        mask=torch.from_numpy(mask),
        at_seconds=torch.from_numpy(at_seconds),
    )
    if columns.profiles is None or columns.profile_row is None:
        return history
    rows = columns.profile_row[_owners(columns, spans) if users is None else np.array(users, np.int64)]
    first_at = np.where(mask, at_seconds, np.inf).min(1, initial=np.inf, keepdims=True)
    return replace(
        history,
        attributes=torch.from_numpy(_attributes(columns.profiles, rows)),
        friends=_friends(columns.profiles, rows, np.where(mask, at_seconds, first_at)),
    )


def _owners(columns: EventColumns, spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """The user of each span."""
    bounds = np.array(spans, np.int64).reshape(-1, 2)
    if (bounds[:, 0] >= bounds[:, 1]).any():
        raise ValueError("a span without events belongs to nobody; give `users` to pad_histories")
    return np.searchsorted(columns.starts, bounds[:, 0], "right") - 1


def _attributes(profiles: UserProfiles, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[B, A]; zeros where nothing is known (row -1)."""
    ids = np.zeros((len(rows), profiles.attribute_ids.shape[1]), np.int64)
    ids[rows >= 0] = profiles.attribute_ids[rows[rows >= 0]]
    return ids


def _friends(
    profiles: UserProfiles, rows: npt.NDArray[np.int64], before_seconds: npt.NDArray[np.float64]
) -> FriendBatch | None:
    """Friends' choices of each row, padded on the right to the longest; `before_seconds`: [B, L]."""
    if profiles.friends is None:
        return None
    nobody = (np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((before_seconds.shape[1], 0), bool))
    pools = [
        profiles.friends.pool(int(row), before) if row >= 0 else nobody
        for row, before in zip(rows, before_seconds, strict=True)
    ]
    longest = max((len(items) for items, _, _ in pools), default=0)
    item_idx, log_weight = np.zeros((len(pools), longest), np.int64), np.zeros((len(pools), longest), np.float32)
    reads = np.zeros((*before_seconds.shape, longest), bool)
    for number, (items, weights, read) in enumerate(pools):
        item_idx[number, : len(items)], log_weight[number, : len(items)] = items, weights
        reads[number, :, : len(items)] = read
    return FriendBatch(*(torch.from_numpy(array) for array in (item_idx, log_weight, reads)))
