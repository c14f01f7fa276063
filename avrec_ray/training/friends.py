"""Friends and what they chose: which of it a query may read, in training as at a request.

A query reads the newest choices of each friend that lie strictly before its time. Knows no torch.

Dimension key: U users, L positions of a history, P choices in the pool of a history.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from avrec_ray.training.histories import EventColumns

MAX_POOL = 4
"""A friend gives at most so many times `per_friend` choices to a history: early positions of a long one may lack some
that a request of that time would have read."""

Rows = npt.NDArray[np.int64]


@dataclass(eq=False)
class Friendships:
    """Who reads whom, the closest first, and the choices of those who are read, oldest first."""

    friend_row: Rows
    """Rows of friends, user by user."""
    log_weight: npt.NDArray[np.float32]
    """Parallel to `friend_row`."""
    friend_starts: Rows
    """[U + 1]: friends of user u are rows friend_starts[u] : friend_starts[u + 1]."""
    item_idx: Rows
    """Catalogue rows of choices, user by user."""
    at_seconds: npt.NDArray[np.float64]
    """Parallel to `item_idx`; minus infinity where the data has no times."""
    starts: Rows
    """[U + 1], of the choices."""
    per_friend: int
    """Newest choices of a friend that a query reads."""

    @classmethod
    def nobody(cls, num_users: int) -> "Friendships":
        """Users without friends."""
        none, starts = np.zeros(0, np.int64), np.zeros(num_users + 1, np.int64)
        return cls(none, np.zeros(0, np.float32), starts, none, np.zeros(0), starts, 1)

    @property
    def telling(self) -> npt.NDArray[np.bool_]:
        """Bool [U]: whether any friend of a user chose anything."""
        chose = np.concatenate([[0], np.cumsum(np.diff(self.starts)[self.friend_row] > 0)])
        return np.asarray(np.diff(chose[self.friend_starts]) > 0)

    def pool(
        self, user: int, before_seconds: npt.NDArray[np.float64]
    ) -> tuple[Rows, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """What a history may read of friends.

        Args:
            user: row.
            before_seconds: [L], time of each position's query, in order.

        Returns:
            Items [P], log weight of the friend [P], and bool [L, P]: whether a position reads it, that is whether
            it is one of the friend's newest `per_friend` choices strictly before the position's time.
        """
        items, weights, reads = [], [], []
        for edge in range(self.friend_starts[user], self.friend_starts[user + 1]):
            friend = self.friend_row[edge]
            rows = slice(int(self.starts[friend]), int(self.starts[friend + 1]))
            known_L = np.searchsorted(self.at_seconds[rows], before_seconds, "left")
            last = int(known_L.max(initial=0))
            first = max(int(known_L.min(initial=last)) - self.per_friend, last - MAX_POOL * self.per_friend, 0)
            number_P = np.arange(first, last)
            items.append(self.item_idx[rows][first:last])
            weights.append(np.full(len(number_P), self.log_weight[edge], np.float32))
            reads.append((number_P < known_L[:, None]) & (number_P >= known_L[:, None] - self.per_friend))
        if not items:
            return np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((len(before_seconds), 0), bool)
        return np.concatenate(items), np.concatenate(weights), np.concatenate(reads, 1)


def weighted_pairs(edges: pa.Table) -> dict[tuple[str, str], float]:
    """(user_id, friend_id) to weight, of a checked edges table.

    A missing weight is 1; of several rows of one pair the heaviest counts; nobody is their own friend; a weight of 0
    or less is no friendship.
    """
    weight_of: dict[tuple[str, str], float] = {}
    for row in edges.select(["user_id", "friend_id", "weight"]).to_pylist():
        weight = 1.0 if row["weight"] is None else row["weight"]
        pair = (row["user_id"], row["friend_id"])
        if 0 < weight < np.inf and pair[0] != pair[1]:
            weight_of[pair] = max(weight, weight_of.get(pair, 0.0))
    return weight_of


def friendships(
    user_ids: Sequence[str],
    weight_of: Mapping[tuple[str, str], float],
    columns: "EventColumns",
    chosen: npt.NDArray[np.bool_],
    num_friends: int,
    per_friend: int,
) -> Friendships:
    """Friendships of `weighted_pairs` between `user_ids`, with the choices in `columns`.

    Of equal weights the friend whose row comes first is kept. Where all events have one time, the data has none:
    then every choice may be read, the last ones in the order of the table.

    Args:
        chosen: bool [events of `columns`]: whether an event is a choice.
        num_friends: friends kept of each user.
    """
    row_of = {user_id: row for row, user_id in enumerate(user_ids)}
    kept: list[list[tuple[float, int]]] = [[] for _ in user_ids]
    for (user, friend), weight in weight_of.items():
        kept[row_of[user]].append((-weight, row_of[friend]))
    kept = [sorted(friends)[:num_friends] for friends in kept]
    item_idx, at_seconds, starts = _choices(columns, chosen, user_ids, {row for f in kept for _, row in f})
    return Friendships(
        friend_row=np.array([row for friends in kept for _, row in friends], np.int64),
        log_weight=np.log(np.array([-w for friends in kept for w, _ in friends], np.float64)).astype(np.float32),
        friend_starts=_starts([len(friends) for friends in kept]),
        item_idx=item_idx,
        at_seconds=at_seconds,
        starts=starts,
        per_friend=per_friend,
    )


def _choices(
    columns: "EventColumns", chosen: npt.NDArray[np.bool_], user_ids: Sequence[str], read: set[int]
) -> tuple[Rows, npt.NDArray[np.float64], Rows]:
    """Items, times and starts of the choices of the rows in `read`; nothing of the others."""
    own = {user_id: columns.rows(row) for row, user_id in enumerate(columns.user_ids)}
    kept = []
    for row, user_id in enumerate(user_ids):
        rows = own.get(user_id) if row in read else None
        kept.append(np.zeros(0, np.int64) if rows is None else rows.start + np.flatnonzero(chosen[rows]))
    order = np.concatenate([np.zeros(0, np.int64), *kept])
    at_seconds = columns.at_seconds[order]
    if len(columns.at_seconds) and columns.at_seconds.min() == columns.at_seconds.max():
        at_seconds = np.full(len(order), -np.inf)
    return columns.item_idx[order], at_seconds, _starts([len(rows) for rows in kept])


def _starts(counts: Sequence[int]) -> Rows:
    return np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64)
