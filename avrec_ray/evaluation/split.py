"""What models may learn from, and what they are asked about later.

`temporal` cuts everybody's log at two points of time, as a service lives it. `leave_one_out` holds out the last choice
of each user, as most papers do; the past of one user is then the future of another, so use it to compare with them.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.types import POSITIVE_EVENTS, check_interactions

TRAIN, VALID, TEST = 0, 1, 2
Parts = npt.NDArray[np.int8]
"""TRAIN, VALID or TEST for each row."""
Times = npt.NDArray[np.int64]
"""Microseconds since 1970, UTC."""


@dataclass(kw_only=True)
class SplitConfig:
    """How interactions are divided."""

    kind: str = "temporal"
    """Key of SPLITS."""
    test_fraction: float = 0.1
    """Newest share of the choices, for test; temporal only. A choice is the first positive event of a user and item."""
    valid_fraction: float = 0.1
    """Share of the choices just before test; temporal only."""
    min_interactions: int = 5
    """leave_one_out: users with fewer choices stay in train whole, and are not asked about."""

    def __post_init__(self) -> None:
        check_choice("evaluation.split.kind", self.kind, SPLITS)
        check_range("evaluation.split.test_fraction", self.test_fraction, 0, 1)
        check_range("evaluation.split.valid_fraction", self.valid_fraction, 0, 1)
        check_range("evaluation.split.min_interactions", self.min_interactions, 3)
        if self.test_fraction + self.valid_fraction >= 1:
            raise ConfigError(
                f"evaluation.split: test_fraction={self.test_fraction} and valid_fraction={self.valid_fraction} "
                "leave nothing to train on; expected a sum below 1"
            )


@dataclass(eq=False)
class Split:
    """Three interactions tables (columns of types.INTERACTIONS, then any extra ones) that hold each row once.

    Rows are in order of time. Rows of one time stand in an order that says nothing (see `tie_codes`): exported logs
    list them by item id, from which a model could guess the next item.
    """

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    boundaries: dict[str, float] = field(default_factory=dict)
    """temporal: POSIX seconds `valid_at_seconds` and `test_at_seconds`, where valid and test begin. Else empty."""

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of the content of each part, order included."""
        return {name: table_digest(getattr(self, name)) for name in ("train", "valid", "test")}


def split_interactions(table: pa.Table, cfg: SplitConfig) -> Split:
    """Divide an interactions table.

    Raises:
        TableError: the table breaks its schema, or nobody chose anything.
    """
    table = check_interactions(table)
    at_us = table["at"].cast(pa.int64()).to_numpy()
    users, items = table["user_id"].to_pylist(), table["item_id"].to_pylist()
    order = np.lexsort((tie_codes(users, items), at_us))
    table, at_us = table.take(pa.array(order)), at_us[order]
    is_choice = first_choices(table)
    if not is_choice.any():
        raise TableError(
            f"interactions: {table.num_rows} rows and no positive event; expected one of {POSITIVE_EVENTS}"
        )
    parts, boundaries = SPLITS[cfg.kind](table, at_us, is_choice, cfg)
    train, valid, test = (table.filter(pa.array(parts == part)) for part in (TRAIN, VALID, TEST))
    return Split(train, valid, test, boundaries)


def eval_targets(test: pa.Table, history: pa.Table) -> dict[str, list[str]]:
    """What a ranking from `history` should find: for each user, the items first chosen in `test`, in order of time.

    Only users with a history are asked about. Items that a user already met (any event but an impression) are no
    targets, because no list contains them.
    """
    met = _pairs(history.filter(pc.not_equal(history["event"], "impression")))
    with_history = {user for user, _ in met}
    targets: dict[str, list[str]] = {}
    for user, item in dict.fromkeys(_pairs(test.filter(_is_positive(test)))):
        if user in with_history and (user, item) not in met:
            targets.setdefault(user, []).append(item)
    return targets


def first_choices(table: pa.Table) -> npt.NDArray[np.bool_]:
    """True for the first positive event of each user and item, in the order of the table."""
    positive = np.flatnonzero(_is_positive(table).to_numpy(zero_copy_only=False))
    first = np.zeros(table.num_rows, bool)
    if len(positive):
        codes = _codes(table, "user_id")[positive] * table.num_rows + _codes(table, "item_id")[positive]
        first[positive[np.unique(codes, return_index=True)[1]]] = True
    return first


def tie_codes(users: list[str], items: list[str]) -> npt.NDArray[np.int64]:
    """Order among rows of one time: the first 52 bits of sha256("user|item").

    >>> tie_codes(["1"], ["2"]).tolist()
    [598633120367714]
    """
    digests = (hashlib.sha256(f"{u}|{i}".encode()).hexdigest()[:13] for u, i in zip(users, items, strict=True))
    return np.fromiter((int(digest, 16) for digest in digests), np.int64, len(users))


def table_digest(table: pa.Table) -> str:
    """sha256 over column names and values, rows in order; the same for any chunking or file that holds them."""
    digest = hashlib.sha256()
    for name in sorted(table.column_names):
        column = table[name]
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())  # a time zone object prints differently from one library to the next
        digest.update(f"{name}\n{column.to_pylist()!r}\n".encode())
    return digest.hexdigest()


def _temporal(
    table: pa.Table, at_us: Times, is_choice: npt.NDArray[np.bool_], cfg: SplitConfig
) -> tuple[Parts, dict[str, float]]:
    """Cut all rows at the times that hold back the wanted shares of the choices."""
    choice_times = at_us[is_choice]
    test_share = 1 - cfg.test_fraction
    cuts = [int(share * len(choice_times)) for share in (test_share - cfg.valid_fraction, test_share)]
    after_all = int(at_us[-1]) + 1
    valid_at, test_at = (int(choice_times[cut]) if cut < len(choice_times) else after_all for cut in cuts)
    parts = (at_us >= valid_at).astype(np.int8) + (at_us >= test_at)
    return parts.astype(np.int8), {"valid_at_seconds": valid_at / 1e6, "test_at_seconds": test_at / 1e6}


def _leave_one_out(
    table: pa.Table, at_us: Times, is_choice: npt.NDArray[np.bool_], cfg: SplitConfig
) -> tuple[Parts, dict[str, float]]:
    """Each user's last choice to test, the second last to valid. Other rows go by the times of these two.

    A repeat, skip or impression at or after the time of a held-out choice is held out with it: it may tell of it.
    """
    user = _codes(table, "user_id")
    choices = np.flatnonzero(is_choice)
    choices = choices[np.argsort(user[choices], kind="stable")]
    num_choices = np.bincount(user[choices], minlength=int(user.max()) + 1)
    left = np.cumsum(num_choices)[user[choices]] - 1 - np.arange(len(choices))
    asked = num_choices[user[choices]] >= cfg.min_interactions
    never = np.iinfo(np.int64).max
    parts = np.zeros(table.num_rows, np.int8)
    for part, place in ((VALID, 1), (TEST, 0)):
        held_out = choices[asked & (left == place)]
        part_at = np.full(len(num_choices), never)
        part_at[user[held_out]] = at_us[held_out]
        parts[~is_choice & (at_us >= part_at[user])] = part
        parts[held_out] = part
    return parts, {}


SPLITS = {"temporal": _temporal, "leave_one_out": _leave_one_out}
"""How each kind of split assigns rows, given in order of time, to parts."""


def _is_positive(table: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(table["event"], value_set=pa.array(POSITIVE_EVENTS))


def _codes(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """A column of ids as numbers from 0."""
    encoded = table[name].combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64)


def _pairs(table: pa.Table) -> dict[tuple[str, str], None]:
    """Distinct (user_id, item_id), in order of first appearance."""
    return dict.fromkeys(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
