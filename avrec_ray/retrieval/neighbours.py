"""Items that the same users chose: the classical item-to-item signal, which the reranker blends with its own.

Dimension key: N catalogue, E pairs of neighbours.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from avrec_ray.errors import BundleError

Rows = npt.NDArray[np.int64]
_NAMES = {"starts", "items", "cosines"}
SIMILARITIES = ("cosine", "jaccard")


class ItemNeighbours:
    """For each item that can be watched, the items it speaks for, and how strongly."""

    def __init__(self, starts: Rows, items: Rows, cosines: npt.NDArray[np.float32]) -> None:
        """`starts` int64 [N + 1]: what item i speaks for is at starts[i] : starts[i + 1] of `items` and `cosines`."""
        self.starts, self.items, self.cosines = starts, items, cosines

    def __len__(self) -> int:
        return len(self.starts) - 1

    def scores(self, chosen: Rows) -> npt.NDArray[np.float32]:
        """float32 [N]: the sum of each item's cosines with the distinct items of `chosen`; 0 without neighbours."""
        spans = [slice(self.starts[item], self.starts[item + 1]) for item in np.unique(chosen)]
        if not spans:
            return np.zeros(len(self), np.float32)
        items = np.concatenate([self.items[span] for span in spans])
        cosines = np.concatenate([self.cosines[span] for span in spans])
        return np.bincount(items, cosines, len(self)).astype(np.float32)

    def save(self, path: Path) -> None:
        """As one safetensors file."""
        save_file({"starts": self.starts, "items": self.items, "cosines": self.cosines}, str(path))


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
    starts, items, cosines = arrays["starts"], arrays["items"], arrays["cosines"]
    inside = len(items) == 0 or (items.min() >= 0 and items.max() < num_items)
    if starts[0] != 0 or starts[-1] != len(items) or (np.diff(starts) < 0).any() or not inside:
        raise BundleError(f"{path} holds neighbours outside the catalogue of {num_items} items; rebuild the bundle")
    return ItemNeighbours(starts, items, cosines)


def fit_neighbours(
    user_idx: Rows,
    item_idx: Rows,
    num_users: int,
    num_items: int,
    num_neighbours: int = 100,
    shrinkage: float = 0.0,
    similarity: str = "cosine",
) -> ItemNeighbours:
    """How alike items are by who chose them: users of both / (norm + shrinkage).

    The norm of "cosine" is sqrt(users of i * users of j), that of "jaccard" the users of either.

    Of each scored item the `num_neighbours` nearest count (keeping those of the watched item is worse). Memory
    N x num_neighbours; time the sum over users of their squared number of choices.

    Args:
        user_idx, item_idx: parallel arrays of choices; repeats count once.
    """
    codes = np.unique(user_idx.astype(np.int64) * num_items + item_idx)
    users, items = codes // num_items, codes % num_items
    items_of_user = np.split(items, np.cumsum(np.bincount(users, minlength=num_users))[:-1])
    counts = np.bincount(items, minlength=num_items)
    users_of_item = np.split(users[np.argsort(items, kind="stable")], np.cumsum(counts)[:-1])
    watched, scored, cosines = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for item in np.flatnonzero(counts).tolist():
        both = np.bincount(np.concatenate([items_of_user[user] for user in users_of_item[item]]), minlength=num_items)
        both[item] = 0
        found = np.flatnonzero(both)
        values = both[found] / (_norms(similarity, counts[item], counts[found], both[found]) + shrinkage)
        nearest = np.argsort(-values, kind="stable")[:num_neighbours]
        watched.append(found[nearest])
        scored.append(np.full(len(nearest), item))
        cosines.append(values[nearest])
    return _by_watched(np.concatenate(watched), np.concatenate(scored), np.concatenate(cosines), num_items)


def _norms(similarity: str, of_item: np.int64, of_others: Rows, of_both: Rows) -> npt.NDArray[np.float64]:
    if similarity == "jaccard":
        return np.asarray(of_item + of_others - of_both, np.float64)
    return np.sqrt(of_item * of_others)


def _by_watched(watched: Rows, scored: Rows, cosines: npt.NDArray[np.float64], num_items: int) -> ItemNeighbours:
    """Lists of each scored item's neighbours turned into lists, for each watched item, of those it speaks for."""
    order = np.argsort(watched, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(watched, minlength=num_items))]).astype(np.int64)
    return ItemNeighbours(starts, scored[order].astype(np.int64), cosines[order].astype(np.float32))
