"""Items that the same users chose: the classical item-to-item signal, which the reranker blends with its own.

Dimension key: N catalogue, E pairs of neighbours.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from avrec_ray.errors import BundleError
from avrec_ray.retrieval.config import NeighbourConfig
from avrec_ray.retrieval.ease import ease_weights

Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
_NAMES = {"starts", "items", "weights", "recency"}
_NEGLIGIBLE = 0.01
"""Closeness, or share of a history, below which a choice is left out."""
_ROWS_A_SORT = 8
"""Sorting a number costs about as much as passing over so many."""


class ItemNeighbours:
    """For each item that can be watched, the items it speaks for, and how strongly."""

    def __init__(self, starts: Rows, items: Rows, weights: npt.NDArray[np.float32], recency: float = 1.0) -> None:
        """`starts` int64 [N + 1]: what item i speaks for is at starts[i] : starts[i + 1] of `items` and `weights`."""
        self.starts, self.items, self.weights, self.recency = starts, items, weights, recency
        self._joined: dict[int, dict[int, float]] = {}
        """Watched item to what it says of items that joined after the table was fitted."""

    def speak_for(self, item: int, watched: Rows, weights: npt.NDArray[np.float32]) -> None:
        """Let items `watched` of the table speak for `item`, which joined after it was fitted, or for it anew.

        What is said of the others stays as it is. The item itself says nothing: nobody chose it with others yet.
        """
        for said in self._joined.values():
            said.pop(item, None)
        for row, weight in zip(watched.tolist(), weights.tolist(), strict=True):
            self._joined.setdefault(row, {})[item] = weight

    def __len__(self) -> int:
        return len(self.starts) - 1

    def scores(self, chosen: Rows) -> npt.NDArray[np.float32]:
        """float32 [N], longer where an item that joined is spoken for: the sum of what the distinct items of `chosen`,
        oldest first, say for each item, each weighed by recency to the power of its place from the end; 0 without
        neighbours.
        """
        items, weights = self._said(chosen)
        return np.bincount(items, weights, len(self)).astype(np.float32)

    def relative_scores(self, chosen: Rows, rows: Rows) -> npt.NDArray[np.float32]:
        """float32 [K]: `scores` of some rows in units of their root mean square over the catalogue; 0 without
        neighbours. The cost does not grow with a large catalogue; in a small one all rows are summed, without sorting.
        """
        spoken_for, weights = self._said(chosen)
        if len(self) <= _ROWS_A_SORT * len(spoken_for):
            sums = np.bincount(spoken_for, weights, max(len(self), int(rows.max(initial=-1)) + 1))
            size = np.sqrt((sums[: len(self)] ** 2).sum() / len(self))
            return (sums[rows] / size if size else np.zeros(len(rows))).astype(np.float32)
        items, place = np.unique(spoken_for, return_inverse=True)
        sums = np.bincount(place, weights, len(items))
        size = np.sqrt((sums[items < len(self)] ** 2).sum() / len(self))
        if not size:
            return np.zeros(len(rows), np.float32)
        found = np.minimum(np.searchsorted(items, rows), len(items) - 1)
        return np.where(items[found] == rows, sums[found] / size, 0.0).astype(np.float32)

    def _said(self, chosen: Rows) -> tuple[Rows, Values]:
        """Which items the distinct items of `chosen` speak for, and how strongly; once for each that does."""
        newest, place = np.unique(chosen[::-1], return_index=True)
        newest = newest[np.argsort(place)]
        share = self.recency ** np.arange(len(newest), dtype=np.float64)
        newest, share = newest[share >= _NEGLIGIBLE], share[share >= _NEGLIGIBLE]
        fitted = newest < len(self)
        spans = [slice(self.starts[item], self.starts[item + 1]) for item in newest[fitted]]
        items = [np.zeros(0, np.int64), *(self.items[span] for span in spans)]
        parts = [np.zeros(0), *(self.weights[span] * part for span, part in zip(spans, share[fitted], strict=True))]
        for item, part in zip(newest.tolist(), share.tolist(), strict=True) if self._joined else ():
            if said := self._joined.get(item):
                items.append(np.fromiter(said, np.int64, len(said)))
                parts.append(part * np.fromiter(said.values(), np.float64, len(said)))
        return np.concatenate(items), np.concatenate(parts)

    def save(self, path: Path) -> None:
        """As one safetensors file."""
        recency = np.array([self.recency])
        save_file({"starts": self.starts, "items": self.items, "weights": self.weights, "recency": recency}, str(path))


def load_neighbours(path: Path, num_items: int) -> ItemNeighbours:
    """Read what `save` wrote.

    Raises:
        BundleError: the file is torn, or of another catalogue.
    """
    try:
        arrays = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read ({error}); rebuild the bundle") from error
    if set(arrays) != _NAMES or len(arrays["starts"]) != num_items + 1:
        raise BundleError(f"{path} is not of a catalogue of {num_items} items; rebuild the bundle")
    starts, items, weights = arrays["starts"], arrays["items"], arrays["weights"]
    inside = len(items) == 0 or (items.min() >= 0 and items.max() < num_items)
    if starts[0] != 0 or starts[-1] != len(items) or (np.diff(starts) < 0).any() or not inside:
        raise BundleError(f"{path} holds neighbours outside the catalogue of {num_items} items; rebuild the bundle")
    return ItemNeighbours(starts, items, weights, float(arrays["recency"][0]))


def fit_neighbours(
    user_idx: Rows, item_idx: Rows, num_users: int, num_items: int, cfg: NeighbourConfig
) -> ItemNeighbours:
    """How alike items are by who chose both, and how near to each other, see `NeighbourConfig`.

    Of each scored item the `num_neighbours` nearest count (keeping those of the watched item is worse). Memory
    N x num_neighbours; time the sum over users of their choices times the choices that are near enough to count, all
    of them where step_decay is 1.

    Args:
        user_idx, item_idx: parallel arrays of choices, each user's oldest first; repeats count once, where they were
            first.
    """
    _, first = np.unique(user_idx.astype(np.int64) * num_items + item_idx, return_index=True)
    first = first[np.lexsort((first, user_idx[first]))]
    users, items = user_idx[first], item_idx[first]
    if cfg.similarity == "ease":
        return _fit_ease(users, items, num_users, num_items, cfg)
    counts = np.bincount(items, minlength=num_items)
    rows_of_item = np.split(np.argsort(items, kind="stable"), np.cumsum(counts)[:-1])
    pairs = _Pairs(users, num_users, cfg)
    columns: list[tuple[Rows, int, Values]] = []
    for item in np.flatnonzero(counts).tolist():
        near, closeness = pairs.near(rows_of_item[item])
        both: Values = np.bincount(items[near], closeness, num_items).astype(np.float64)
        both[item] = 0
        found = np.flatnonzero(both)
        values = both[found] / (_norms(cfg, counts[item], counts[found], both[found]) + cfg.shrinkage)
        nearest = np.argsort(-values, kind="stable")[: cfg.num_neighbours]
        columns.append((found[nearest], item, values[nearest]))
    return by_watched(columns, num_items, cfg.recency)


def _fit_ease(users: Rows, items: Rows, num_users: int, num_items: int, cfg: NeighbourConfig) -> ItemNeighbours:
    """EASE's weights, of each scored item the largest, whichever their sign."""
    chosen = sparse.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=(num_users, num_items))
    weights_NN = ease_weights(chosen, cfg.regularization, cfg.max_bytes)
    known = np.flatnonzero(np.bincount(items, minlength=num_items)).tolist()
    return by_watched(
        [largest(weights_NN[:, item], item, cfg.num_neighbours) for item in known], num_items, cfg.recency
    )


def largest(said_N: npt.NDArray[np.floating], item: int, count: int) -> tuple[Rows, int, Values]:
    """A column of `by_watched` with the `count` items that say most of `item`, for or against."""
    watched = np.argsort(-np.abs(said_N), kind="stable")[:count]
    watched = watched[said_N[watched] != 0]
    return watched, item, said_N[watched].astype(np.float64)


def by_watched(columns: Sequence[tuple[Rows, int, Values]], num_items: int, recency: float) -> ItemNeighbours:
    """Turn what is known of each scored item (who speaks for it, which it is, how strongly) into lists of each watched
    item.
    """
    watched = np.concatenate([np.zeros(0, np.int64), *(column[0] for column in columns)])
    scored = np.repeat([column[1] for column in columns], [len(column[0]) for column in columns]).astype(np.int64)
    weights = np.concatenate([np.zeros(0), *(column[2] for column in columns)])
    order = np.argsort(watched, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(watched, minlength=num_items))]).astype(np.int64)
    return ItemNeighbours(starts, scored[order], weights[order].astype(np.float32), recency)


class _Pairs:
    """Which rows of a table of choices, sorted by user and time, are near a row of the same user, and how near."""

    def __init__(self, users: Rows, num_users: int, cfg: NeighbourConfig) -> None:
        lengths = np.bincount(users, minlength=num_users)
        stops = np.cumsum(lengths)
        longest = int(lengths.max(initial=1))
        reach = longest if cfg.step_decay == 1 else 1 + int(np.log(_NEGLIGIBLE) / np.log(cfg.step_decay))
        row = np.arange(len(users))
        self.low = np.maximum((stops - lengths)[users], row - reach)
        self.high = np.minimum(stops[users], row + reach + 1)
        self.by_steps = np.concatenate([[0.0], cfg.step_decay ** np.arange(max(reach, longest), dtype=np.float64)])
        self.of_user = (np.maximum(lengths, 1.0) ** -cfg.user_power)[users]

    def near(self, rows: Rows) -> tuple[Rows, Values]:
        """Rows near any of `rows`, once for each that they are near, and how much each counts."""
        lengths = self.high[rows] - self.low[rows]
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        near = np.repeat(self.low[rows], lengths) + offsets
        steps = np.abs(near - np.repeat(rows, lengths))
        return near, self.by_steps[steps] * np.repeat(self.of_user[rows], lengths)


def _norms(cfg: NeighbourConfig, of_item: np.int64, of_others: Rows, of_both: Values) -> Values:
    if cfg.similarity == "jaccard":
        return np.asarray(of_item + of_others - of_both, np.float64)
    return np.asarray(float(of_item) ** cfg.scored_power * of_others.astype(np.float64) ** cfg.watched_power)
