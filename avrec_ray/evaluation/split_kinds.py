"""Kinds of split: which part each row of a log falls into. Rows are given in order of time, ties by a hash."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from avrec_ray.errors import TableError

if TYPE_CHECKING:
    from avrec_ray.evaluation.split import SplitConfig

TRAIN, VALID, TEST, CONTEXT = 0, 1, 2, 3
PART_COLUMN = "part"
"""Column of the interactions table that the kind `given` reads."""
PART_NAMES = {"train": TRAIN, "valid": VALID, "test": TEST}
Parts = npt.NDArray[np.int8]
"""TRAIN, VALID, TEST or CONTEXT for each row."""
Flags = npt.NDArray[np.bool_]


@dataclass(eq=False)
class Log:
    """Columns of interactions in order of time, [E]."""

    user: npt.NDArray[np.int64]
    """Row in `user_ids`."""
    item: npt.NDArray[np.int64]
    """Row in `item_ids`."""
    at_us: npt.NDArray[np.int64]
    """Microseconds since 1970, UTC."""
    is_choice: Flags
    """First positive event of a user and item."""
    user_ids: list[str]
    """Distinct, in the order of `id_order`."""
    item_ids: list[str]
    given: Parts | None = None
    """What the table's own column says; see `given`."""


@dataclass(eq=False)
class Assignment:
    """What a kind of split decided."""

    parts: Parts
    boundaries: dict[str, float] = field(default_factory=dict)
    """See Split."""
    hidden: dict[str, list[str]] = field(default_factory=dict)
    """See Split."""


def temporal(log: Log, cfg: "SplitConfig") -> Assignment:
    """Cut all rows at the times that hold back the wanted shares of the choices."""
    choice_times = log.at_us[log.is_choice]
    test_share = 1 - cfg.test_fraction
    cuts = [int(share * len(choice_times)) for share in (test_share - cfg.valid_fraction, test_share)]
    after_all = int(log.at_us[-1]) + 1
    valid_at, test_at = (int(choice_times[cut]) if cut < len(choice_times) else after_all for cut in cuts)
    parts = (log.at_us >= valid_at).astype(np.int8) + (log.at_us >= test_at)
    return Assignment(parts.astype(np.int8), {"valid_at_seconds": valid_at / 1e6, "test_at_seconds": test_at / 1e6})


def leave_one_out(log: Log, cfg: "SplitConfig") -> Assignment:
    """Each user's last choice to test, the second last to valid. Other rows go by the times of these two.

    A repeat, skip or impression at or after the time of a held-out choice is held out with it: it may tell of it.
    """
    choices, left = _choices_left(log)
    num_choices = _choices_of_user(log)
    asked = num_choices[log.user[choices]] >= cfg.min_interactions
    parts = np.zeros(len(log.user), np.int8)
    for part, place in ((VALID, 1), (TEST, 0)):
        held_out = choices[asked & (left == place)]
        part_at = _time_of_each_user(log, held_out)
        parts[~log.is_choice & (log.at_us >= part_at[log.user])] = part
        parts[held_out] = part
    return Assignment(parts)


def cold_items(log: Log, cfg: "SplitConfig") -> Assignment:
    """Every row of a drawn share of the items to test, of another share to valid."""
    drawn = _draw(np.unique(log.item), cfg)
    part_of_item = np.zeros(len(log.item_ids), np.int8)
    for part, items in drawn.items():
        part_of_item[items] = part
    return Assignment(part_of_item[log.item], hidden=_named(drawn, log.item_ids))


def hidden_users(log: Log, cfg: "SplitConfig") -> Assignment:
    """The log of a drawn share of the users to valid whole; that of another share to context, then to test.

    A user's test begins with the first of the newest 1 - `context_fraction` of the choices. What has its time goes to
    test too, so that nothing in the context is as new as a target; a user whose choices all have one time has no
    context, and is not asked about.
    """
    num_choices = _choices_of_user(log)
    drawn = _draw(np.flatnonzero(num_choices >= cfg.min_interactions), cfg)
    part_of_user = np.zeros(len(log.user_ids), np.int8)
    for part, users in drawn.items():
        part_of_user[users] = part
    parts = part_of_user[log.user]
    choices, left = _choices_left(log)
    num_asked = np.rint((1 - cfg.context_fraction) * num_choices).astype(np.int64)
    num_asked = np.clip(num_asked, 1, np.maximum(num_choices - 1, 1))
    begins = _time_of_each_user(log, choices[left == num_asked[log.user[choices]] - 1])
    parts[(parts == TEST) & (log.at_us < begins[log.user])] = CONTEXT
    return Assignment(parts, hidden=_named(drawn, log.user_ids))


def given(log: Log, cfg: "SplitConfig") -> Assignment:
    """The parts that the interactions name themselves: a published split, kept as it is."""
    if log.given is None:
        raise TableError(
            f"interactions: column {PART_COLUMN!r} is missing; evaluation.split.kind=given needs one that holds "
            f"{sorted(PART_NAMES)}"
        )
    return Assignment(log.given)


SPLITS = {
    "temporal": temporal,
    "leave_one_out": leave_one_out,
    "cold_items": cold_items,
    "hidden_users": hidden_users,
    "given": given,
}
"""How each kind of split assigns rows to parts."""


def id_order(identifier: str) -> tuple[int, int, str, str]:
    """Sort key of ids: numbers by value, then the others as text.

    >>> sorted(["b", "10", "9"], key=id_order)
    ['9', '10', 'b']
    """
    if identifier.isascii() and identifier.isdigit():
        digits = identifier.lstrip("0")
        return 0, len(digits), digits, identifier
    return 1, 0, "", identifier


def _draw(codes: npt.NDArray[np.int64], cfg: "SplitConfig") -> dict[int, npt.NDArray[np.int64]]:
    """Shares of `codes` for test and for valid, sorted; drawn from the seed and their number alone."""
    order = np.random.default_rng(cfg.seed).permutation(len(codes))
    num_test, num_valid = (round(share * len(codes)) for share in (cfg.test_fraction, cfg.valid_fraction))
    return {
        TEST: np.sort(codes[order[:num_test]]),
        VALID: np.sort(codes[order[num_test : num_test + num_valid]]),
    }


def _named(drawn: dict[int, npt.NDArray[np.int64]], ids: list[str]) -> dict[str, list[str]]:
    return {name: [ids[code] for code in drawn[part]] for name, part in (("valid", VALID), ("test", TEST))}


def _choices_of_user(log: Log) -> npt.NDArray[np.int64]:
    return np.bincount(log.user[log.is_choice], minlength=len(log.user_ids))


def _choices_left(log: Log) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of choices, grouped by user and in order of time, and how many choices of the user come after each."""
    choices = np.flatnonzero(log.is_choice)
    choices = choices[np.argsort(log.user[choices], kind="stable")]
    return choices, np.cumsum(_choices_of_user(log))[log.user[choices]] - 1 - np.arange(len(choices))


def _time_of_each_user(log: Log, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Time of the one row given for a user, [users]; after all times where there is none."""
    times = np.full(len(log.user_ids), np.iinfo(np.int64).max)
    times[log.user[rows]] = log.at_us[rows]
    return times
