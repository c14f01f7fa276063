"""Kinds of users: each user is of one of a few classes, and a class has a taste of its own in what items are like.

A latent class logit (Kamakura & Russell, A Probabilistic Choice Model for Market Segmentation and Elasticity Structure,
1989): a user of class k chooses an item with probability proportional to exp(taste of k . vector of the item) times how
often all users choose it. What such a user watches, chosen or skipped, is watched the longer the better it meets the
taste: the log odds of the share are a line in the log odds of the choice, with normal noise. A class is few numbers,
so that some hundred users are enough to learn it from, and it says as much of an item that nobody chose yet as of any
other.

Dimension key: N items, K classes, D numbers an item, H items chosen, W items watched, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax, logit

from avrec_ray.errors import BundleError
from avrec_ray.new_items.growing import Growing
from avrec_ray.retrieval.neighbours import Rows
from avrec_ray.training.histories import POSITIVE_CODES, EventColumns

Floats = npt.NDArray[np.float64]

UNWATCHED_WEIGHT, WATCHED_WEIGHT = 0.4, 1.2
"""A choice that was not watched at all counts the former, and the latter more if it was watched to the end."""
LEAST_SHARE = 0.02
"""Watched shares are taken to be at least this and at most one less it: the log odds of none and all are infinite."""
MAX_LIFT = 30.0
"""Far beyond what data say; its exponential, and one over it, are numbers that float32 can add up."""


@dataclass(frozen=True, eq=False)
class History:
    """What a user did, as far as it tells the class. Oldest first; each item once, by its newest event."""

    chosen: Rows
    """[H]: items with a positive event."""
    weights: Floats
    """[H]: what each of them counts."""
    watched: Rows
    """[W]: items of which it is known how much was watched, skipped ones too."""
    watch_logits: Floats
    """[W]: log odds of the watched share."""


@dataclass(frozen=True, eq=False)
class WatchLines:
    """How long each class watches: normal around intercept + slope x log of how much more often it chooses the item."""

    intercepts: npt.NDArray[np.float32]
    """[K]: log odds of the watched share."""
    slopes: npt.NDArray[np.float32]
    """[K]: 0 or more."""
    deviation: float
    """Of the noise, above 0."""
    evidence: float
    """What a watched item counts in telling the class; 0: nothing."""

    def log_likelihood(self, lift_WK: npt.NDArray[np.floating], logits_W: Floats, ages_W: Floats) -> Floats:
        """[K]: how likely shares of these log odds are in each class, up to what is the same for all."""
        off_WK = (logits_W[:, None] - self.intercepts - self.slopes * lift_WK) / self.deviation
        return np.asarray(-0.5 * self.evidence * ages_W @ off_WK**2)


@dataclass(frozen=True, eq=False)
class ClassTastes:
    """What was learned of each class."""

    tastes: npt.NDArray[np.float32]
    """[K, D]: log odds that a number of an item's vector adds. K may be 0: nothing was learned."""
    offsets: npt.NDArray[np.float32]
    """[K]: taken off, which makes of log odds how much more often the class chooses an item than all users do."""
    shares: npt.NDArray[np.float32]
    """[K]: share of the users; they sum to 1."""
    evidence: float
    """What a choice counts in telling the class; below 1, since choices of one session go together."""
    recency: float
    """What each choice or watched item counts of what the one after it does."""
    lines: WatchLines

    def lift(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
        """[N, K]: log of how much more often each class chooses the items of `vectors` [N, D] than all users do."""
        lift_NK = vectors @ self.tastes.T - self.offsets
        return np.clip(lift_NK, -MAX_LIFT, MAX_LIFT).astype(np.float16)

    def log_membership(self, lift_NK: npt.NDArray[np.floating], history: History) -> Floats:
        """[K]: log probability of each class for a user with this history, given the lifts of all items."""
        counted_H = self.evidence * history.weights * self._ages(len(history.chosen))
        told_K = counted_H @ lift_NK[history.chosen].astype(np.float64)
        lift_WK = lift_NK[history.watched].astype(np.float64)
        told_K += self.lines.log_likelihood(lift_WK, history.watch_logits, self._ages(len(lift_WK)))
        return np.asarray(log_softmax(np.log(self.shares) + told_K))

    def _ages(self, count: int) -> Floats:
        return np.asarray(self.recency ** np.arange(count)[::-1])

    def save(self, path: Path) -> None:
        """As one safetensors file."""
        arrays = {"tastes": self.tastes, "offsets": self.offsets, "shares": self.shares}
        arrays |= {"watch_intercepts": self.lines.intercepts, "watch_slopes": self.lines.slopes}
        arrays["counted"] = np.array([self.evidence, self.recency, self.lines.evidence, self.lines.deviation])
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(path))


class UserClasses:
    """Classes and the items of a catalogue."""

    def __init__(
        self, tastes: ClassTastes, embeddings: npt.NDArray[np.floating], content: npt.NDArray[np.floating]
    ) -> None:
        """Of the catalogue, `embeddings` [N, D'] and vectors of `content` [N, D - D'], as `item_vectors` joins them."""
        self.tastes = tastes
        self._lift = Growing(tastes.lift(item_vectors(embeddings, content)))
        """[N, K]; at 2 bytes a number, for it is kept of each item."""

    def cover(
        self,
        embeddings: npt.NDArray[np.floating],
        content: npt.NDArray[np.floating],
        changed: Sequence[int],
        added: Sequence[int],
    ) -> None:
        """Items joined behind the others, at rows `added`, or have other vectors than before, at `changed`."""
        if added:
            self._lift.append(np.zeros((len(added), len(self.tastes.shares)), np.float16))
        rows = sorted({*changed, *added})
        self._lift.rows[rows] = self.tastes.lift(item_vectors(embeddings[rows], content[rows]))

    def scores(self, history: History, rows: Rows) -> npt.NDArray[np.float32]:
        """float32 [C]: log of how much more often a user of this history chooses each of `rows` than all users do."""
        if not len(self.tastes.shares):
            return np.zeros(len(rows), np.float32)
        membership_K = np.exp(self.tastes.log_membership(self._lift.rows, history)).astype(np.float32)
        return np.asarray(np.log(np.exp(self._lift.rows[rows].astype(np.float32)) @ membership_K))


def item_vectors(embeddings: npt.NDArray[np.floating], content: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """float32 [N, D]: what an item is like, to the towers and by content. Both are of about length 1."""
    return np.concatenate([embeddings.astype(np.float32), content.astype(np.float32)], 1)


def history_of(columns: EventColumns, span: tuple[int, int]) -> History:
    """Of the events in rows [start, stop)."""
    return History(*weighted_choices(columns, span), *watched_items(columns, span))


def watched_items(columns: EventColumns, span: tuple[int, int]) -> tuple[Rows, Floats]:
    """The distinct items whose watched share is known, by the newest event that tells it, oldest first, and its log
    odds.
    """
    part = slice(*span)
    newest_first = np.flatnonzero(~np.isnan(columns.watch_ratio[part]))[::-1]
    watched, first = np.unique(columns.item_idx[part][newest_first], return_index=True)
    order = np.argsort(-first)
    return watched[order], watch_logits(columns.watch_ratio[part][newest_first][first[order]])


def watch_logits(watch_ratio: npt.NDArray[np.float32]) -> Floats:
    """Log odds of watched shares [E], which may be above 1: watched again.

    >>> watch_logits(np.array([0.5, 2.0], np.float32)).round(3).tolist()
    [0.0, 3.892]
    """
    return np.asarray(logit(np.clip(watch_ratio.astype(np.float64), LEAST_SHARE, 1 - LEAST_SHARE)))


def weighted_choices(columns: EventColumns, span: tuple[int, int]) -> tuple[Rows, Floats]:
    """The distinct items of the positive events in rows [start, stop), by their newest one, oldest first, and what each
    counts: the longer watched the more, 1 where that is unknown; of several events of an item what counts most.
    """
    part = slice(*span)
    newest_first = np.flatnonzero(np.isin(columns.event[part], POSITIVE_CODES))[::-1]
    items = columns.item_idx[part][newest_first]
    chosen, first, place = np.unique(items, return_index=True, return_inverse=True)
    weights = np.zeros(len(chosen))
    np.maximum.at(weights, place, choice_weights(columns.watch_ratio[part][newest_first]))
    order = np.argsort(-first)
    return chosen[order], weights[order]


def choice_weights(watch_ratio: npt.NDArray[np.float32]) -> Floats:
    """What choices count by the watched share [E], which is NaN where unknown.

    >>> choice_weights(np.array([0.0, 1.0, 2.0, np.nan], np.float32)).tolist()
    [0.4, 1.6, 1.6, 1.0]
    """
    watched = UNWATCHED_WEIGHT + WATCHED_WEIGHT * np.clip(watch_ratio.astype(np.float64), 0.0, 1.0)
    return np.where(np.isnan(watch_ratio), 1.0, watched)


def load_tastes(path: Path, dim: int) -> ClassTastes:
    """Read what `ClassTastes.save` wrote, for vectors of `dim` numbers.

    Raises:
        BundleError: the file is torn, not finite, or of other vectors.
    """
    try:
        arrays = load_file(str(path))
        evidence, recency, watch_evidence, deviation = arrays["counted"].tolist()
        lines = WatchLines(arrays["watch_intercepts"], arrays["watch_slopes"], deviation, watch_evidence)
        found = ClassTastes(arrays["tastes"], arrays["offsets"], arrays["shares"], evidence, recency, lines)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); rebuild the bundle") from error
    num_classes = len(found.shares)
    vectors = (found.offsets, lines.intercepts, lines.slopes)
    if found.tastes.shape != (num_classes, dim) or any(vector.shape != (num_classes,) for vector in vectors):
        raise BundleError(f"{path} is not of vectors of {dim} numbers; rebuild the bundle")
    if not all(np.isfinite(array).all() for array in arrays.values()) or (found.shares <= 0).any() or deviation <= 0:
        raise BundleError(f"{path} holds numbers out of range, or classes of nobody; rebuild the bundle")
    return found
