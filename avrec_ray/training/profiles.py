"""What is known of users besides their own behaviour: hashed attributes, and friends. Knows no torch: gateways read it.

Dimension key: U users, A attributes a user.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.errors import BundleError
from avrec_ray.training.friends import Friendships

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("attribute_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("friend_rows", pa.list_(pa.int32()), nullable=False),
        pa.field("friend_log_weights", pa.list_(pa.float32()), nullable=False),
        pa.field("choice_item_rows", pa.list_(pa.int32()), nullable=False),
        pa.field("choice_at_seconds", pa.list_(pa.float64()), nullable=False),
    ]
)
"""users.parquet of a bundle. A user's choices are stored if another user reads them as those of a friend."""


@dataclass(eq=False)
class UserProfiles:
    """Attributes and friends of the users that have any, and of their friends."""

    user_ids: list[str]
    attribute_ids: npt.NDArray[np.int64]
    """[U, A]: buckets from 1, 0 where a user has fewer attributes."""
    friends: Friendships | None = None
    """None where towers read no friends."""
    row_of: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.row_of = {user_id: row for row, user_id in enumerate(self.user_ids)}

    def rows(self, user_ids: Iterable[str | None]) -> npt.NDArray[np.int64]:
        """Row of each user, -1 where nothing is known."""
        return np.array([-1 if u is None else self.row_of.get(u, -1) for u in user_ids], np.int64)

    @cached_property
    def telling(self) -> npt.NDArray[np.bool_]:
        """Bool [U]: whether a profile says anything of a user without history."""
        told = np.asarray((self.attribute_ids > 0).any(1), bool)
        return told if self.friends is None else np.logical_or(told, self.friends.telling)


def attribute_bucket(key: str, value: str, num_buckets: int) -> int:
    """Bucket of an attribute, 1 .. num_buckets, by CRC-32: nothing is fitted, and no value is unknown.

    >>> attribute_bucket("gender", "F", 64) == attribute_bucket("gender", "F", 64)
    True
    """
    return 1 + zlib.crc32(f"{key}={value}".encode()) % num_buckets


def hash_attributes(
    attributes: Sequence[Mapping[str, str | None] | Iterable[tuple[str, str | None]] | None], num_buckets: int
) -> npt.NDArray[np.int64]:
    """[U, A]: buckets of each user's attributes in order of their keys; an empty value is no attribute."""
    named = [sorted((k, v) for k, v in dict(pairs or {}).items() if v) for pairs in attributes]
    ids = np.zeros((len(named), max(map(len, named), default=0)), np.int64)
    for row, pairs in enumerate(named):
        ids[row, : len(pairs)] = [attribute_bucket(key, str(value), num_buckets) for key, value in pairs]
    return ids


def save_profiles(path: Path, profiles: UserProfiles) -> None:
    """Write users.parquet."""
    friends = profiles.friends or Friendships.nobody(len(profiles.user_ids))
    attribute_ids = [[int(i) for i in row if i] for row in profiles.attribute_ids]
    columns = {
        "user_id": profiles.user_ids,
        "attribute_ids": attribute_ids,
        "friend_rows": _lists(friends.friend_row, friends.friend_starts),
        "friend_log_weights": _lists(friends.log_weight, friends.friend_starts),
        "choice_item_rows": _lists(friends.item_idx, friends.starts),
        "choice_at_seconds": _lists(friends.at_seconds, friends.starts),
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), path)


def load_profiles(
    path: Path, num_items: int, num_attribute_buckets: int, num_friends: int, friend_items: int
) -> UserProfiles:
    """Read users.parquet of a bundle, with the settings of its towers.

    Raises:
        BundleError: a column is missing, or a number points past its table.
    """
    table = pq.read_table(path)
    if table.schema.names != SCHEMA.names:
        raise BundleError(f"{path} has columns {table.schema.names}, expected {SCHEMA.names}; rebuild the bundle")
    user_ids = table["user_id"].to_pylist()
    attribute_ids = _padded(*_flat(table["attribute_ids"], np.int64))
    friend_row, friend_starts = _flat(table["friend_rows"], np.int64)
    item_idx, starts = _flat(table["choice_item_rows"], np.int64)
    for name, values, limit in (
        ("attribute_ids", attribute_ids, num_attribute_buckets + 1),
        ("friend_rows", friend_row, len(user_ids)),
        ("choice_item_rows", item_idx, num_items),
    ):
        if values.size and not 0 <= values.min() <= values.max() < max(limit, 1):
            raise BundleError(f"{path}: {name} holds {values.max()}, expected less than {limit}; rebuild the bundle")
    log_weight, weight_starts = _flat(table["friend_log_weights"], np.float32)
    at_seconds, at_starts = _flat(table["choice_at_seconds"], np.float64)
    if not (np.array_equal(weight_starts, friend_starts) and np.array_equal(at_starts, starts)):
        raise BundleError(f"{path}: lists of one user differ in length; rebuild the bundle")
    if np.isnan(at_seconds).any() or not np.isfinite(log_weight).all():
        raise BundleError(f"{path} holds a time or a weight that is no number; rebuild the bundle")
    friends = Friendships(friend_row, log_weight, friend_starts, item_idx, at_seconds, starts, friend_items)
    return UserProfiles(user_ids, attribute_ids, friends if num_friends else None)


def _lists(values: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> list[list[Any]]:
    return [values[start:stop].tolist() for start, stop in pairwise(starts.tolist())]


def _flat(column: pa.ChunkedArray, dtype: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Values of a list column behind each other, and where each row's begin."""
    lists = column.combine_chunks()
    starts = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))]).astype(np.int64)
    return np.array(lists.flatten().to_numpy(zero_copy_only=False), dtype), starts


def _padded(values: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    counts = np.diff(starts)
    rows = np.zeros((len(counts), int(counts.max(initial=0))), np.int64)
    rows[np.arange(rows.shape[1]) < counts[:, None]] = values
    return rows
