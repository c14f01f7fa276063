"""An interactions table as arrays of numbers: what labels and suspicions are worked out from.

Dimension key: E events.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.types import NEGATIVE_EVENTS, POSITIVE_EVENTS

Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
DAY_US = 86_400_000_000


@dataclass(frozen=True, eq=False)
class EventLog:
    """Columns of an interactions table, in its order."""

    user: Codes
    """int64 [E], rows of `user_ids`."""
    item: Codes
    """int64 [E], rows of `item_ids`."""
    at_us: Codes
    """int64 [E], POSIX microseconds."""
    is_positive: Flags
    is_acted: Flags
    """False for impressions alone."""
    user_ids: list[str]
    item_ids: list[str]

    @property
    def pair(self) -> Codes:
        """int64 [E], one number for each user and item."""
        return self.user * max(len(self.item_ids), 1) + self.item

    def first_at_us(self) -> Codes:
        """int64 [users]: when each user's first event was."""
        first = np.full(len(self.user_ids), np.iinfo(np.int64).max)
        np.minimum.at(first, self.user, self.at_us)
        return first


def read_log(interactions: pa.Table) -> EventLog:
    """Arrays of a checked interactions table."""
    (user, user_ids), (item, item_ids) = (codes_of(interactions[name]) for name in ("user_id", "item_id"))
    return EventLog(
        user=user,
        item=item,
        at_us=interactions["at"].cast(pa.int64()).to_numpy().astype(np.int64),
        is_positive=is_one_of(interactions["event"], POSITIVE_EVENTS),
        is_acted=is_one_of(interactions["event"], (*POSITIVE_EVENTS, *NEGATIVE_EVENTS)),
        user_ids=user_ids,
        item_ids=item_ids,
    )


def codes_of(column: pa.ChunkedArray) -> tuple[Codes, list[str]]:
    """Ids as numbers from 0, and the id of each number; -1 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):  # combine_chunks of a column without chunks
        encoded = encoded.combine_chunks()
    indices = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return indices.astype(np.int64), encoded.dictionary.to_pylist()


def is_one_of(column: pa.ChunkedArray, values: Sequence[str]) -> Flags:
    """Bool [E]."""
    found = pc.is_in(column, value_set=pa.array(list(values), pa.string()))
    return np.asarray(found.to_numpy(), bool) if isinstance(found, pa.ChunkedArray) else np.asarray(found, bool)
