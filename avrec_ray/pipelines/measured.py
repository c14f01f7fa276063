"""What evaluation found, as its parts hand it on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from avrec_ray.bundle import Bundle

Rankings = npt.NDArray[np.int64]
SERVED = "avrec_ray"
"""Row of the served ranking in metric tables."""
ORACLE = "oracle"
"""Row of the ranking by planted preferences, which synthetic data has: an upper bound, not a rival."""


@dataclass(eq=False)
class Measured:
    """Rankings of the same users by every model, and what they should have found."""

    users: list[str]
    targets: list[npt.NDArray[np.int64]]
    seen: list[npt.NDArray[np.int64]]
    """Catalogue rows of each user's history, in order of time."""
    bundle: Bundle
    choice_counts: npt.NDArray[np.int64]
    """[N] choices of each item before test."""
    recommendations: pa.Table
    rankings: dict[str, Rankings]
    results: dict[str, dict[str, float]]

    @property
    def history_lengths(self) -> npt.NDArray[np.int64]:
        """[U] items that each user had met."""
        return np.array([len(items) for items in self.seen], np.int64)


def rank_rows(table: pa.Table, users: list[str], bundle: Bundle) -> npt.NDArray[np.int64]:
    """A recommendations table as catalogue rows of `bundle`; -1 for an item that it does not have."""
    row_of = {user: row for row, user in enumerate(users)}
    depth = int(np.max(table["rank"].to_numpy(), initial=1))
    ranked = np.full((len(users), depth), -1, np.int64)
    for user, item, rank in zip(*(table[n].to_pylist() for n in ("user_id", "item_id", "rank")), strict=True):
        if user in row_of:
            ranked[row_of[user], rank - 1] = bundle.items.index_of.get(item, -1)
    return ranked
