"""Fair exposure of groups of items, amortised over requests: groups behind their share get a boost in the next list.

One list cannot be fair, it has one first place; many lists can (Biega, Gummadi and Weikum, "Equity of Attention",
SIGIR 2018). They solve an integer program a list; here a controller adds to the scores of a group in proportion to what
it is behind in the sum of all lists, so that what one list owes the next ones pay.

State is a value: a request takes one and gives the next, in the same way on every machine. Who keeps it decides over
which requests fairness is counted: a replica over its own, batch scoring over a shard of users.

Dimension key: K candidates, N catalogue, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.errors import ConfigError

GROUP_COLUMNS = ("creator", "category", "warm")
"""Columns of the catalogue whose values are groups; `warm` makes two, "warm" and "cold"."""
EVERY_OTHER = "*"
"""Key of the target of groups that are not named."""
TARGETS = ("merit", "equal")
"""Targets that are no number."""


@dataclass(frozen=True, eq=False)
class ItemGroups:
    """Which group each item of a catalogue belongs to."""

    names: tuple[str, ...]
    """[G], sorted."""
    codes: npt.NDArray[np.int64]
    """[N] index into names; -1 where the item has no value."""


@dataclass(frozen=True, eq=False)
class ExposureState:
    """What the lists so far gave to each group."""

    exposure: npt.NDArray[np.float64]
    """[G] sum of 1 / log2(1 + rank) over the places that the group had."""
    merit: npt.NDArray[np.float64]
    """[G] sum over requests of the share of relevance in the group, see `merit_of`."""
    num_requests: int = 0


class ExposureLedger:
    """Where a replica, or a batch, keeps the state between its requests."""

    def __init__(self, state: ExposureState) -> None:
        self.state = state


def item_groups(items: Catalogue, column: str) -> ItemGroups:
    """The groups of a catalogue by one of GROUP_COLUMNS.

    Raises:
        ConfigError: another column.
    """
    if column == "warm":
        return ItemGroups(("cold", "warm"), items.warm.astype(np.int64))
    columns = {"creator": items.creator_ids, "category": items.categories}
    if column not in columns:
        raise ConfigError(f"policy.exposure_groups={column!r} is not one of {sorted(GROUP_COLUMNS)}")
    values = columns[column]
    names = tuple(sorted({value for value in values if value is not None}))
    number = {name: code for code, name in enumerate(names)}
    return ItemGroups(names, np.array([-1 if v is None else number[v] for v in values], np.int64))


def with_rows(groups: ItemGroups, items: Catalogue, column: str, rows: Sequence[int]) -> ItemGroups:
    """The same groups, with some rows of the catalogue read anew; those that are new lie behind the others.

    A value that is none of the groups' counts for none: the state has a number a group.
    """
    of_rows = item_groups(items.take(rows), column)
    number = {name: code for code, name in enumerate(groups.names)}
    codes = np.append(groups.codes, np.full(len(items) - len(groups.codes), -1))
    codes[list(rows)] = [number.get(of_rows.names[code], -1) if code >= 0 else -1 for code in of_rows.codes.tolist()]
    return ItemGroups(groups.names, codes)


def no_exposure(num_groups: int) -> ExposureState:
    """The state before the first request."""
    return ExposureState(np.zeros(num_groups), np.zeros(num_groups))


def check_targets(targets: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
    """Refuse targets that are no share, "merit" or "equal", or whose shares exceed 1.

    Args:
        targets: group or "*" to a share in [0, 1], "merit" or "equal".
        names: the groups that there are; None: not known yet.

    Raises:
        ConfigError: naming the group.
    """
    for group, target in targets.items():
        is_share = isinstance(target, (int, float)) and not isinstance(target, bool) and 0 <= target <= 1
        if not (target in TARGETS if isinstance(target, str) else is_share):
            raise ConfigError(f"policy.exposure_targets.{group}={target!r}; expected a share in [0, 1], merit or equal")
        if group == EVERY_OTHER and not isinstance(target, str):
            raise ConfigError(f"policy.exposure_targets.*={target!r}; expected merit or equal: give shares by group")
        if names is not None and group not in (*names, EVERY_OTHER):
            raise ConfigError(f"policy.exposure_targets.{group}: no item has this group; expected one of {names[:20]}")
    shares = [target for target in targets.values() if not isinstance(target, str)]
    if sum(shares) > 1 + 1e-9:
        raise ConfigError(f"policy.exposure_targets: shares sum to {sum(shares):g}; expected at most 1")
    if names is not None and len(shares) == len(names) and abs(sum(shares) - 1) > 1e-9:
        raise ConfigError(f"policy.exposure_targets: shares of all groups sum to {sum(shares):g}; expected 1")


def target_shares(names: Sequence[str], targets: Mapping[str, Any], state: ExposureState) -> npt.NDArray[np.float64]:
    """[G], sums to 1: given shares as they are, and what is left among the others by merit so far or equally.

    Groups without a target have that of "*", by default merit.

    >>> state = ExposureState(np.zeros(3), np.array([1.0, 3.0, 4.0]), 8)
    >>> target_shares(["a", "b", "c"], {"c": 0.2}, state).tolist()
    [0.2, 0.6000000000000001, 0.2]
    """
    wanted = [targets.get(name, targets.get(EVERY_OTHER, "merit")) for name in names]
    total_merit = state.merit.sum()
    by_merit = state.merit / total_merit if total_merit > 0 else np.full(len(names), 1 / max(len(names), 1))
    given = np.array([0.0 if isinstance(w, str) else float(w) for w in wanted])
    open_ = np.array([isinstance(w, str) for w in wanted], bool)
    parts = np.where([w == "merit" for w in wanted], by_merit, 1 / max(len(names), 1)) * open_
    if parts.sum() <= 0:  # groups that nobody found relevant yet share alike
        parts = open_.astype(np.float64)
    return given + (1 - given.sum()) * parts / max(parts.sum(), 1e-12)


def boosts(
    state: ExposureState, shares: npt.NDArray[np.float64], codes: npt.NDArray[np.int64], k: int
) -> npt.NDArray[np.float64]:
    """[K] in [0, 1]: what each candidate's group is behind its target, in lists of `k` places; 1 from one list on.

    Args:
        shares: [G] of `target_shares`.
        codes: [K] group of each candidate, -1: none.
    """
    behind = shares * state.exposure.sum() - state.exposure
    by_group = np.clip(behind / position_weights(k).sum(), 0, 1)
    boost: npt.NDArray[np.float64] = np.append(by_group, 0.0)[codes]  # the last one is that of code -1
    return boost


def record(
    state: ExposureState,
    shown: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
    merits: npt.NDArray[np.float64],
) -> ExposureState:
    """The state after a list.

    Args:
        shown: [k] group of each shown item, by rank; -1: none.
        codes: [K] group of each candidate.
        merits: [K] of `merit_of`.
    """
    num_groups = len(state.exposure)
    exposure, merit = position_weights(len(shown)), merits
    given = np.bincount(shown[shown >= 0], exposure[shown >= 0], num_groups)
    earned = np.bincount(codes[codes >= 0], merit[codes >= 0], num_groups)
    return ExposureState(state.exposure + given, state.merit + earned, state.num_requests + 1)


def merit_of(standard_scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[K], sums to 1: the softmax of scores in their standard deviations within the request.

    That is the chance to come first in a Plackett-Luce model, so exposure by merit gives a group the attention that its
    items would draw if users chose by the scores.
    """
    if not len(standard_scores):
        return np.zeros(0)
    weights = np.exp(standard_scores - standard_scores.max())
    merit: npt.NDArray[np.float64] = weights / weights.sum()
    return merit


def position_weights(k: int) -> npt.NDArray[np.float64]:
    """[k]: exposure of rank 1, 2, ...: 1 / log2(1 + rank), the discount of DCG."""
    return 1 / np.log2(np.arange(2, k + 2))
