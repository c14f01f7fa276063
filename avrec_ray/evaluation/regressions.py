"""What one model found and another does not: the items and the users that lose most by the change.

Dimension key: U users, K list length, N catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.hits import Floats, Ranked, find_hits


@dataclass(frozen=True)
class LostItem:
    """An item that fewer of those who chose it find among their first k."""

    item_idx: int
    num_choices: int
    found_before: int
    found_after: int

    @property
    def recall_before(self) -> float:
        """Share of the choices that were found."""
        return self.found_before / self.num_choices

    @property
    def recall_after(self) -> float:
        """Share of the choices that are found."""
        return self.found_after / self.num_choices


def lost_items(
    before: Ranked, after: Ranked, targets: Sequence[npt.NDArray[np.int64]], k: int = 10, num: int = 15
) -> list[LostItem]:
    """Up to `num` items, those first that lost most finds; of as many lost, those that had been found more surely.

    By finds rather than by recall: an item chosen once falls from 1 to 0 by a single user's list.

    >>> lost_items(np.array([[0], [1]]), np.array([[1], [1]]), [np.array([0]), np.array([1])], k=1)
    [LostItem(item_idx=0, num_choices=1, found_before=1, found_after=0)]
    """
    owned = [np.unique(target) for target in targets]
    num_items = 1 + max((int(target.max()) for target in owned if len(target)), default=-1)
    chosen = np.bincount(np.concatenate([np.zeros(0, np.int64), *owned]), minlength=num_items)
    found = [
        np.bincount(lists[:, :k][find_hits(lists[:, :k], owned)], minlength=num_items) for lists in (before, after)
    ]
    lost = found[0] - found[1]
    order = np.lexsort((np.arange(num_items), -lost / np.maximum(chosen, 1), -lost))
    return [
        LostItem(int(item), int(chosen[item]), int(found[0][item]), int(found[1][item]))
        for item in order[:num]
        if lost[item] > 0
    ]


def lost_users(before: Floats, after: Floats, num: int = 10) -> npt.NDArray[np.int64]:
    """Rows of up to `num` users whose value [U] fell most, the largest fall first; only users who lost.

    >>> lost_users(np.array([0.5, 1.0, 0.0]), np.array([0.4, 0.0, 1.0])).tolist()
    [1, 0]
    """
    fall = before - after
    order = np.argsort(-fall, kind="stable")[:num]
    return order[fall[order] > 0]
