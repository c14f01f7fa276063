"""What models may learn from, and what they are asked about later.

`temporal` cuts everybody's log at two points of time, as a service lives it; take it for claims about a service. The
others take a question apart, and let a model see what others did after the choice it is asked about:

- `leave_one_out` holds out the last choice of each user, as most papers do: for comparing with them.
- `cold_items` hides items whole: who will like what nobody met yet? The history at test is the user's log of all other
  items, of any time.
- `given` keeps the split that a dataset was published with, as the interactions' column `part` says.
- `hidden_users` hides users whole: does a model serve somebody it was not fitted on? The history at test is the earlier
  log of the user, in `Split.context`, which nobody may learn from.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError, TableError
from avrec_ray.evaluation.split_kinds import (
    CONTEXT,
    PART_COLUMN,
    PART_NAMES,
    SPLITS,
    TEST,
    TRAIN,
    VALID,
    Log,
    Parts,
    id_order,
)
from avrec_ray.types import POSITIVE_EVENTS, check_interactions

RANK_AMONG = ("all", "hidden")


@dataclass(kw_only=True)
class SplitConfig:
    """How interactions are divided."""

    kind: str = "temporal"
    """Key of SPLITS."""
    test_fraction: float = 0.1
    """Share for test of what the kind divides; leave_one_out and given do not read it. temporal: of the choices, the
    newest. A choice is the first positive event of a user and item. cold_items: of the items in the log. hidden_users:
    of the users with `min_interactions` choices."""
    valid_fraction: float = 0.1
    """Share for valid, likewise; temporal: of the choices just before test."""
    min_interactions: int = 5
    """leave_one_out, hidden_users: users with fewer choices stay in train whole, and are not asked about."""
    seed: int = 0
    """cold_items, hidden_users: what draws them, from the ids alone."""
    context_fraction: float = 0.8
    """hidden_users: share of a test user's choices, the oldest, that a model sees as history. At least one choice is
    seen and one asked for."""
    refit: bool = True
    """Valid joins train before test is asked: models learn from it, and it is part of histories. false for protocols
    that know train alone, as the published splits of `given` mostly do."""
    rank_among: str = "all"
    """cold_items: what a ranking at test chooses from. all: the catalogue; hidden: the items hidden for test."""

    def __post_init__(self) -> None:
        check_choice("evaluation.split.kind", self.kind, SPLITS)
        check_choice("evaluation.split.rank_among", self.rank_among, RANK_AMONG)
        check_range("evaluation.split.test_fraction", self.test_fraction, 0, 1)
        check_range("evaluation.split.valid_fraction", self.valid_fraction, 0, 1)
        check_range("evaluation.split.context_fraction", self.context_fraction, 0, 1)
        check_range("evaluation.split.min_interactions", self.min_interactions, 3)
        check_range("evaluation.split.seed", self.seed, 0)
        if self.test_fraction + self.valid_fraction >= 1:
            raise ConfigError(
                f"evaluation.split: test_fraction={self.test_fraction} and valid_fraction={self.valid_fraction} "
                "leave nothing to train on; expected a sum below 1"
            )
        if self.rank_among == "hidden" and self.kind != "cold_items":
            raise ConfigError(
                f"evaluation.split.rank_among='hidden' with kind={self.kind!r}; only cold_items hides items"
            )


@dataclass(eq=False)
class Split:
    """Interactions tables (columns of types.INTERACTIONS, then any extra ones) that together hold each row once.

    Rows are in order of time. Rows of one time stand in an order that says nothing (see `tie_codes`): exported logs
    list them by item id, from which a model could guess the next item.
    """

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    context: pa.Table
    """hidden_users: what the test users did before their test. Read as history at test, never fitted on. Else empty."""
    kind: str
    boundaries: dict[str, float] = field(default_factory=dict)
    """temporal: POSIX seconds `valid_at_seconds` and `test_at_seconds`, where valid and test begin. Else empty."""
    hidden: dict[str, list[str]] = field(default_factory=dict)
    """Ids in `id_order` under "valid" and "test": cold_items the items hidden, hidden_users the users. Else empty."""
    candidates: list[str] | None = None
    """Items that a ranking at test chooses from. None: the catalogue."""

    @property
    def history(self) -> pa.Table:
        """What is known of users when they are asked about test: train, valid and context."""
        return pa.concat_tables([self.train, self.valid, self.context])

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of the content of each part, order included; of the context where there is one."""
        names = ["train", "valid", "test"] + ["context"] * bool(self.context.num_rows)
        return {name: table_digest(getattr(self, name)) for name in names}


def split_interactions(table: pa.Table, cfg: SplitConfig) -> Split:
    """Divide an interactions table.

    Raises:
        TableError: the table breaks its schema, or nobody chose anything.
    """
    table = check_interactions(table)
    at_us = table["at"].cast(pa.int64()).to_numpy()
    users, items = table["user_id"].to_pylist(), table["item_id"].to_pylist()
    order = np.lexsort((tie_codes(users, items), at_us))
    table = table.take(pa.array(order))
    is_choice = first_choices(table)
    if not is_choice.any():
        raise TableError(
            f"interactions: {table.num_rows} rows and no positive event; expected one of {POSITIVE_EVENTS}"
        )
    (user, user_ids), (item, item_ids) = (_ordered_codes(table, name) for name in ("user_id", "item_id"))
    own = _given_parts(table) if cfg.kind == "given" and PART_COLUMN in table.column_names else None
    log = Log(user, item, at_us[order], is_choice, user_ids, item_ids, own)
    assigned = SPLITS[cfg.kind](log, cfg)
    train, valid, test, context = (
        table.filter(pa.array(assigned.parts == part)) for part in (TRAIN, VALID, TEST, CONTEXT)
    )
    candidates = assigned.hidden["test"] if cfg.rank_among == "hidden" else None
    return Split(train, valid, test, context, cfg.kind, assigned.boundaries, assigned.hidden, candidates)


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


def _given_parts(table: pa.Table) -> Parts:
    names = table[PART_COLUMN].to_pylist()
    for row, name in enumerate(names):
        if name not in PART_NAMES:
            raise TableError(
                f"interactions: column {PART_COLUMN!r} holds {name!r} at {table['user_id'][row]}, "
                f"{table['item_id'][row]}; expected one of {sorted(PART_NAMES)}"
            )
    return np.array([PART_NAMES[name] for name in names], np.int8)


def _is_positive(table: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(table["event"], value_set=pa.array(POSITIVE_EVENTS))


def _codes(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """A column of ids as numbers from 0."""
    encoded = table[name].combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64)


def _ordered_codes(table: pa.Table, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """A column of ids as rows in the list of distinct ids, which does not depend on the order of the table."""
    encoded = table[name].combine_chunks().dictionary_encode()
    ids = encoded.dictionary.to_pylist()
    order = sorted(range(len(ids)), key=lambda code: id_order(ids[code]))
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    return rank[encoded.indices.to_numpy()], [ids[code] for code in order]


def _pairs(table: pa.Table) -> dict[tuple[str, str], None]:
    """Distinct (user_id, item_id), in order of first appearance."""
    return dict.fromkeys(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
