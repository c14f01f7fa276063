"""Which places of ranked lists hold what users chose: the one thing that every ranking metric is made of.

Dimension key: U users, K list length, N catalogue.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ranked = npt.NDArray[np.int64]
"""Lists [U, K]: `item_idx` best first, -1 where the list is shorter; no item twice in a list."""
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Targets = Sequence[Collection[int] | npt.NDArray[np.int64]] | Bools
"""What each list should hold: one array, list or set of `item_idx` a user, or a bool matrix [U, N]."""


@dataclass(frozen=True)
class Hits:
    """Lists and targets matched once. Metrics take it in place of targets, with the same lists or their first places.

    `places` is bool [U, K], true where a place holds a target; `num_targets` is int64 [U], distinct targets of each
    user, listed or not.
    """

    places: Bools
    num_targets: npt.NDArray[np.int64]


def match_targets(ranked: Ranked, targets: Targets) -> Hits:
    """Match once what many metrics read.

    >>> match_targets(np.array([[3, 1, -1]]), [[1, 9]])
    Hits(places=array([[False,  True, False]]), num_targets=array([2]))
    """
    return Hits(find_hits(ranked, targets), count_targets(targets))


def find_hits(ranked: Ranked, targets: Targets | Hits) -> Bools:
    """Bool [U, K]: which places hold a target of that user. Never a place with -1."""
    if isinstance(targets, Hits):
        return targets.places[:, : ranked.shape[1]]
    if isinstance(targets, np.ndarray):
        hits: Bools = np.take_along_axis(targets, np.maximum(ranked, 0), 1) & (ranked >= 0)
        return hits
    users, items = flat_targets(targets)
    stride = 1 + max(int(items.max(initial=0)), int(ranked.max(initial=0)))
    codes = np.arange(len(ranked))[:, None] * stride + ranked
    return np.isin(codes, users * stride + items) & (ranked >= 0)


def count_targets(targets: Targets | Hits) -> npt.NDArray[np.int64]:
    """Int64 [U]: distinct targets of each user."""
    if isinstance(targets, Hits):
        return targets.num_targets
    if isinstance(targets, np.ndarray):
        return targets.sum(1)
    return np.array([len(np.unique(_as_array(t))) for t in targets], np.int64)


def flat_targets(targets: Targets) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row of the user and `item_idx` of every target, two parallel arrays in order of users, repeats kept."""
    if isinstance(targets, np.ndarray):
        users, items = np.nonzero(targets)
        return users, items
    arrays = [_as_array(target) for target in targets]
    users = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    return users, np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def target_lists(targets: Targets) -> list[npt.NDArray[np.int64]]:
    """Targets as one array of `item_idx` a user."""
    if isinstance(targets, np.ndarray):
        return [np.flatnonzero(row) for row in targets]
    return [_as_array(target) for target in targets]


def check_rankings(ranked: Ranked, targets: Targets, num_items: int | None = None) -> None:
    """Refuse what cannot be scored.

    Raises:
        ValueError: nobody to evaluate, a user without target, an item twice in a list or outside the catalogue.
    """
    if not len(ranked) or len(ranked) != len(targets):
        raise ValueError(f"got {len(ranked)} lists and {len(targets)} users' targets; expected as many, at least one")
    num_targets = count_targets(targets)
    if not num_targets.all():
        raise ValueError(
            f"user in row {np.argmin(num_targets)} has no target; leave out users without held-out choices"
        )
    if num_items is not None and ranked.size and ranked.max() >= num_items:
        raise ValueError(f"a list holds item_idx {ranked.max()}; the catalogue has {num_items} items")
    placed = np.sort(ranked, axis=1)
    repeated = ((placed[:, 1:] == placed[:, :-1]) & (placed[:, 1:] >= 0)).any(1)
    if repeated.any():
        raise ValueError(f"the list in row {np.argmax(repeated)} holds an item twice; expected distinct items")


def keep_items(ranked: Ranked, keep: Bools) -> Ranked:
    """Lists [U, K] with only the items of `keep` [N], moved up, -1 behind.

    >>> keep_items(np.array([[2, 0, 1]]), np.array([True, True, False])).tolist()
    [[0, 1, -1]]
    """
    dropped = (ranked < 0) | ~keep[np.maximum(ranked, 0)]
    order = np.argsort(dropped, axis=1, kind="stable")
    return np.take_along_axis(np.where(dropped, -1, ranked), order, 1)


def _as_array(targets: Collection[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.asarray(targets if isinstance(targets, np.ndarray) else list(targets), np.int64)
