"""Metrics of parts: some users, or some targets of everybody, among the same lists of the whole catalogue.

Dimension key: U users, K list length, N catalogue, M modalities, C categories.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.hits import Bools, Floats, Hits, Ranked, Targets, check_rankings, find_hits, flat_targets
from avrec_ray.evaluation.rank_metrics import PER_USER, per_user_metrics
from avrec_ray.types import MODALITIES


@dataclass(frozen=True)
class Slice:
    """Which users are evaluated and which of their targets count; None means all.

    `users` is bool [U]; `items` is bool [N], or [U, N] where it depends on the user whether a target counts.
    """

    users: Bools | None = None
    items: Bools | None = None


Slices = dict[str, Slice]
"""Slices by name. They may overlap and need not cover everything."""


def slice_metrics(
    ranked: Ranked, targets: Targets, slices: Mapping[str, Slice], ks: Sequence[int] = (10, 20)
) -> dict[str, dict[str, float]]:
    """Means over the users of each slice of every metric of PER_USER, keys like "ndcg_at_10".

    A slice of items counts only its own targets, where they stand in the full list: what is not in the slice keeps its
    place and counts as a miss. Users without such a target are left out. "num_users" and "num_targets" say how many
    remain; a slice without users has these two alone.

    Args:
        ranked: int64 [U, K], as in metrics.py.
        targets: as in metrics.py; `item_idx` outside the catalogue are in no slice of items.

    Raises:
        ValueError: what `evaluate_rankings` refuses, or a mask of another number of users.
    """
    places, pairs = _matched(ranked, targets)
    found = {}
    for name, part in slices.items():
        rows, hits = _part_of(name, part, ranked, places, pairs)
        found[name] = {"num_users": float(len(rows)), "num_targets": float(hits.num_targets.sum())}
        if len(rows):
            metrics = per_user_metrics(ranked[rows], hits, ks)
            found[name] = {key: float(values.mean()) for key, values in metrics.items()} | found[name]
    return found


def slice_values(
    ranked: Ranked, targets: Targets, slices: Mapping[str, Slice], metric: str = "ndcg_at_10"
) -> dict[str, Floats]:
    """`metric` of each user of each slice, counted as in `slice_metrics`; float64, empty for a slice without users.

    Which users a slice keeps, and their order, does not depend on `ranked`: values of two models are pairs.

    >>> slices = {"cold_items": Slice(items=np.array([False, False, True]))}
    >>> slice_values(np.array([[0, 2], [1, 2]]), [[0, 2], [1]], slices, "mrr_at_2")["cold_items"].tolist()
    [0.5]
    """
    name, k = metric.rsplit("_at_", 1)
    places, pairs = _matched(ranked, targets)
    values = {}
    for slice_name, part in slices.items():
        rows, hits = _part_of(slice_name, part, ranked, places, pairs)
        values[slice_name] = PER_USER[name](ranked[rows], hits, int(k))
    return values


def warmth_slices(is_cold: Bools) -> Slices:
    """ "cold_items" of bool [N], which nobody chose in training, and "warm_items"."""
    return {"cold_items": Slice(items=is_cold), "warm_items": Slice(items=~is_cold)}


def history_slices(history_lengths: npt.NDArray[np.integer], below: int = 5) -> Slices:
    """ "new_users", whose history [U] is shorter than `below`, and "known_users"."""
    is_new = history_lengths < below
    return {"new_users": Slice(users=is_new), "known_users": Slice(users=~is_new)}


def popularity_slices(counts: npt.NDArray[np.integer], head: float = 0.5, mid: float = 0.8) -> Slices:
    """ "head_items", "mid_items" and "tail_items" by share of training choices [N], cumulated from the most popular.

    An item is head if the items more popular than it have less than `head` of all choices, else mid if they have less
    than `mid`, else tail. So equally popular ones stay together, and the head has at least half of the choices. What
    nobody chose is tail.

    >>> popularity_slices(np.array([1, 6, 0, 3]))["head_items"].items.tolist()
    [False, True, False, False]
    """
    if not 0 < head < mid < 1:
        raise ValueError(f"got head={head} and mid={mid}; expected 0 < head < mid < 1")
    ascending = np.sort(counts)
    cumulated = np.concatenate([[0], np.cumsum(ascending)])
    more_popular = cumulated[-1] - cumulated[np.searchsorted(ascending, counts, side="right")]
    share = more_popular / max(1, int(counts.sum()))
    is_head, is_tail = (share < head) & (counts > 0), (share >= mid) | (counts == 0)
    return {
        "head_items": Slice(items=is_head),
        "mid_items": Slice(items=~is_head & ~is_tail),
        "tail_items": Slice(items=is_tail),
    }


def modality_slices(has_modality: Bools, names: Sequence[str] = MODALITIES) -> Slices:
    """Items by what they have, one slice a pattern that occurs: "video_audio_text", "text", ..., "no_modality".

    Args:
        has_modality: bool [N, M], columns as `names`.
    """
    if has_modality.shape[1] != len(names):
        raise ValueError(f"got {has_modality.shape[1]} columns for {list(names)}; expected one a modality")
    parts = {}
    for pattern in np.unique(has_modality, axis=0)[::-1]:
        name = "_".join(name for name, has in zip(names, pattern, strict=True) if has)
        parts[name or "no_modality"] = Slice(items=(has_modality == pattern).all(1))
    return parts


def category_slices(categories: Bools, names: Sequence[str], attribute: str = "category") -> Slices:
    """One slice a category, "category_music"; an item of several is in each. Takes `category_matrix` of list_metrics.

    Args:
        categories: bool [N, C], columns as `names`.
    """
    if categories.shape[1] != len(names):
        raise ValueError(f"got {categories.shape[1]} columns for {len(names)} names; expected as many")
    return {f"{attribute}_{name}": Slice(items=categories[:, column]) for column, name in enumerate(names)}


def user_slices(values: Sequence[Hashable], attribute: str) -> Slices:
    """One slice a value of some attribute of users [U], "country_de"; None, an unknown value, is in no slice.

    >>> user_slices(["de", None, "fr", "de"], "country")["country_de"].users.tolist()
    [True, False, False, True]
    """
    known = sorted({value for value in values if value is not None}, key=str)
    return {f"{attribute}_{value}": Slice(users=np.array([v == value for v in values], bool)) for value in known}


def _matched(ranked: Ranked, targets: Targets) -> tuple[Bools, npt.NDArray[np.int64]]:
    """Places that hold a target [U, K]; row of the user and `item_idx` of each target [2, P], no pair twice."""
    check_rankings(ranked, targets)
    return find_hits(ranked, targets), np.unique(np.stack(flat_targets(targets)), axis=1)


def _part_of(
    name: str, part: Slice, ranked: Ranked, places: Bools, pairs: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Hits]:
    """Rows of the users with a target in the slice, and where their lists hold such targets."""
    num_users = len(ranked)
    users = np.ones(num_users, bool) if part.users is None else part.users
    if users.shape != (num_users,) or (
        part.items is not None and part.items.ndim == 2 and len(part.items) != num_users
    ):
        raise ValueError(f"slice {name!r}: a mask is for another number of users than the {num_users} lists")
    counted = pairs[:, _is_in(part.items, pairs[0], pairs[1])]
    num_targets = np.bincount(counted[0], minlength=num_users)
    rows = np.flatnonzero(users & (num_targets > 0))
    return rows, Hits(places[rows] & _is_in(part.items, rows[:, None], ranked[rows]), num_targets[rows])


def _is_in(items: Bools | None, users: npt.NDArray[np.int64], item_idx: npt.NDArray[np.int64]) -> Bools:
    """Whether each user's `item_idx` is in the slice; what is outside the catalogue is not."""
    if items is None:
        return np.ones(item_idx.shape, bool)
    is_known = (item_idx >= 0) & (item_idx < items.shape[-1])
    known = np.where(is_known, item_idx, 0)
    return is_known & (items[known] if items.ndim == 1 else items[users, known])
