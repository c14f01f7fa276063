"""How alike a candidate is to what the user chose, by content alone: it needs no behaviour of the candidate.

Dimension key: N catalogue, V kinds of content, S sampled users, K candidates, D vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse.linalg import svds

from avrec_ray.errors import BundleError
from avrec_ray.new_items.growing import Growing
from avrec_ray.new_items.vectors import NewItem
from avrec_ray.ranking.conditional_logit import fit_weights
from avrec_ray.retrieval.cold_items import ContentView
from avrec_ray.retrieval.neighbours import Rows

MAX_USERS = 2048
"""Users by whose choices the kinds of content are weighed."""
MAX_HISTORY = 100
NUM_OTHERS = 255
"""Choices of other users that a choice has to stand out from."""


class ContentLikeness:
    """A vector an item, whose dot product with another item's is the weighted mean of their cosines in each kind."""

    def __init__(self, vectors: npt.NDArray[np.float16]) -> None:
        """`vectors` float16 [N, D]; D is 0 where content says nothing."""
        self._rows = Growing(vectors)

    @property
    def vectors(self) -> npt.NDArray[np.float16]:
        """float16 [N, D]."""
        return np.asarray(self._rows.rows, np.float16)

    def cover(self, living: Mapping[int, NewItem], added: Sequence[int], model_version: str) -> None:
        """Vectors of items that joined behind the others, or changed: as predicted for this bundle, else zeros."""
        if added:
            self._rows.append(np.zeros((len(added), self.vectors.shape[1]), np.float16))
        for row, item in living.items():
            told = item.predicted
            if told is not None and told.model_version == model_version and len(told.content) == self.vectors.shape[1]:
                self.vectors[row] = told.content
            else:
                self.vectors[row] = 0

    def scores(self, chosen: Rows, rows: Rows) -> npt.NDArray[np.float32]:
        """float32 [K] in -1..1: mean likeness of each item of `rows` to the distinct items of `chosen`; 0 without."""
        if not len(chosen):
            return np.zeros(len(rows), np.float32)
        mean_D = self.vectors[np.unique(chosen)].astype(np.float32).mean(0)
        return np.asarray(self.vectors[rows].astype(np.float32) @ mean_D)

    def save(self, path: Path) -> None:
        """As one safetensors file."""
        save_file({"vectors": np.ascontiguousarray(self.vectors)}, str(path))  # it writes memory as it lies


def load_likeness(path: Path, num_items: int) -> ContentLikeness:
    """Read what `save` wrote.

    Raises:
        BundleError: the file is torn, not finite, or of another catalogue.
    """
    try:
        arrays = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read ({error}); rebuild the bundle") from error
    vectors = arrays.get("vectors")
    if vectors is None or vectors.ndim != 2 or len(vectors) != num_items or vectors.dtype != np.float16:
        raise BundleError(f"{path} is not of a catalogue of {num_items} items; rebuild the bundle")
    if not np.isfinite(vectors).all():
        raise BundleError(f"{path} holds vectors that are not finite; rebuild the bundle")
    return ContentLikeness(vectors)


@dataclass(frozen=True, eq=False)
class LikenessMap:
    """From the directions of an item in each kind of content to its vector."""

    shares: dict[str, float]
    """Of each kind that counts, by name, in the order of the vector's parts; they sum to 1, or there are none."""
    projection: npt.NDArray[np.float32] | None = None
    """[sum of widths, D]; None: the parts as they are."""

    def vector(self, directions: Mapping[str, npt.NDArray[np.floating]]) -> npt.NDArray[np.float16]:
        """float16 [D] of one item, from a unit vector (or zeros) a kind."""
        parts = [np.sqrt(share) * np.asarray(directions[name], np.float32) for name, share in self.shares.items()]
        if not parts:
            return np.zeros(0, np.float16)
        whole = np.concatenate(parts)
        return np.asarray(whole if self.projection is None else whole @ self.projection, np.float16)


def fit_likeness(
    views: Sequence[ContentView], histories: Sequence[Rows], num_items: int, dim: int, seed: int = 0
) -> ContentLikeness:
    """`fit_likeness_map` for who needs no map."""
    return fit_likeness_map(views, histories, num_items, dim, seed)[0]


def fit_likeness_map(
    views: Sequence[ContentView], histories: Sequence[Rows], num_items: int, dim: int, seed: int = 0
) -> tuple[ContentLikeness, LikenessMap]:
    """Weigh the kinds of content by how well likeness to a user's other choices tells a choice from those of others.

    Args:
        views: kinds of content; times take no part, they have no direction.
        histories: rows of the catalogue that each user chose.
        dim: at most so many numbers an item; wider vectors are projected to those that keep the likenesses best.

    Returns:
        The vectors of all items, and how another item gets one.
    """
    told = [view for view in views if view.kind != "time"]
    directions = [view.directions().astype(np.float32) for view in told]
    weights_V = _weigh(directions, histories, seed) if directions else np.zeros(0)
    if not weights_V.any():
        return ContentLikeness(np.zeros((num_items, 0), np.float16)), LikenessMap({})
    share_V = weights_V / weights_V.sum()
    parts = [np.sqrt(share) * part for share, part in zip(share_V, directions, strict=True) if share]
    vectors, projection = _narrowed(np.concatenate(parts, 1), dim, seed)
    shares = {view.name: float(share) for view, share in zip(told, share_V, strict=True) if share}
    return ContentLikeness(vectors.astype(np.float16)), LikenessMap(shares, projection)


def _weigh(
    directions: Sequence[npt.NDArray[np.float32]], histories: Sequence[Rows], seed: int
) -> npt.NDArray[np.float64]:
    """[V]: weights of least loss, none below 0; all 0 where no user chose two items that others did not."""
    rng = np.random.default_rng([seed, 4])
    distinct = [np.unique(history) for history in histories]
    several = [history for history in distinct if len(history) > 1]
    if not several:
        return np.zeros(len(directions))
    every_choice = np.concatenate(distinct)
    features_SKV = []
    for user in rng.permutation(len(several))[:MAX_USERS]:
        history = rng.permutation(several[user])[: MAX_HISTORY + 1]
        others = rng.choice(every_choice, NUM_OTHERS)
        others = others[~np.isin(others, several[user])]
        if len(others):
            candidates = np.concatenate([history[:1], np.resize(others, NUM_OTHERS)])
            features_SKV.append(np.stack([part[candidates] @ part[history[1:]].mean(0) for part in directions], 1))
    if not features_SKV:
        return np.zeros(len(directions))
    target_SK = np.zeros((len(features_SKV), 1 + NUM_OTHERS))
    target_SK[:, 0] = 1.0
    return fit_weights(np.stack(features_SKV), target_SK, np.zeros(len(directions), np.bool_))


def _narrowed(
    vectors: npt.NDArray[np.float32], dim: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """[N, at most dim] whose dot products are nearest to those of `vectors` (Eckart and Young, 1936), and the
    projection that makes them; None where nothing is projected.
    """
    if vectors.shape[1] <= dim:
        return vectors, None
    if dim >= min(vectors.shape):
        left, size, right = np.linalg.svd(vectors, full_matrices=False)
    else:
        left, size, right = svds(vectors, dim, random_state=seed)
    return np.asarray(left * size), np.ascontiguousarray(right.T)
