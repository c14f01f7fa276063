"""Where candidates come from: each source names rows of the catalogue for one query, the best first.

A source is a function (stock, asked, count) -> at most `count` distinct rows, unseen and allowed, with the user tower's
score of each, so that this number means the same to the reranker wherever an item comes from. A source reads one query:
an answer does not depend on which others are in the batch. Serving asks them by `Matcher`, the reranker's training by
`pipelines/train_reranker.py`.

Dimension key: N catalogue, D embedding, K rows named.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.index import PreparedFilter, VectorIndex
from avrec_ray.retrieval.interests import medoids
from avrec_ray.retrieval.neighbours import ItemNeighbours
from avrec_ray.training.friends import Friendships

Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Named = tuple[Rows, Vectors]
"""Rows [K], best first, and the user tower's score of each, float32 [K]."""

MAX_CLUSTERED = 50
"""Newest distinct choices that are taken apart into interests: clustering compares all pairs of them."""
_NO_ROWS = np.zeros(0, np.int64)


@dataclass(eq=False)
class Stock:
    """What sources choose from; the same for all queries."""

    items: Catalogue
    embeddings: Vectors
    """[N, D]."""
    index: VectorIndex
    cfg: MatcherConfig
    session: ItemNeighbours | None = None
    """None: `neighbours` names nothing."""
    friends: Friendships | None = None
    """None: `friends` names nothing."""

    def scores(self, vector: Vectors, rows: Rows) -> Vectors:
        """The user tower's score of rows [K]. One product a row: that of a matrix rounds by what else is in it."""
        return np.array([vector @ self.embeddings[row] for row in rows.tolist()], np.float32)

    @cached_property
    def by_category(self) -> dict[str, Rows]:
        """Rows of each category, the most popular first."""
        return self._grouped(self.items.categories)

    @cached_property
    def by_language(self) -> dict[str, Rows]:
        """Rows of each language, the most popular first."""
        return self._grouped(self.items.languages)

    @cached_property
    def by_creator(self) -> dict[str, Rows]:
        """Rows of each creator, the most popular first."""
        return self._grouped(self.items.creator_ids)

    @cached_property
    def place(self) -> Rows:
        """[N]: how many items are more popular than each; means nothing of those that were taken down."""
        place = np.zeros(len(self.items), np.int64)
        place[self.items.popular_order] = np.arange(len(self.items.popular_order))
        return place

    def add(self, rows: Sequence[int], embeddings: Vectors) -> None:
        """Rows that joined behind the others; nobody chose them yet, so they are the last of their groups."""
        self.embeddings = embeddings
        groups = {
            "by_category": self.items.categories,
            "by_language": self.items.languages,
            "by_creator": self.items.creator_ids,
        }
        for name, group_of in groups.items():
            if name in self.__dict__:
                known: dict[str, Rows] = getattr(self, name)
                for row in rows:
                    if (group := group_of[row]) is not None:
                        known[group] = np.append(known.get(group, _NO_ROWS), row)
        if "place" in self.__dict__:
            self.__dict__["place"] = np.append(self.place, rows)

    def forget_groups(self) -> None:
        """Find groups anew when they are next asked for: facts of an item have changed."""
        for name in ("by_category", "by_language", "by_creator"):
            self.__dict__.pop(name, None)

    def _grouped(self, group_of: Sequence[str | None]) -> dict[str, Rows]:
        groups: dict[str, list[int]] = {}
        for row in self.items.popular_order.tolist():
            if (group := group_of[row]) is not None:
                groups.setdefault(group, []).append(row)
        return {group: np.array(rows, np.int64) for group, rows in groups.items()}


@dataclass(eq=False)
class Asked:
    """What sources read of one query."""

    vector: Vectors
    """float32 [D]: the user tower's, scaled."""
    chosen: Rows
    """Items of positive events, oldest first, with repeats."""
    followed: Rows
    """Items on which the user followed the creator."""
    seen: Rows
    """Items that are in no list, in any order; `chosen` is among them."""
    allowed: Mask | None = None
    """bool [N]: what the filters allow; None is everything."""
    prepared: PreparedFilter | None = None
    """The same for the index, where it was made ready before."""
    profile_row: int = -1
    """Row of the user in the profiles, -1 where nothing is known."""
    newest_at: float = np.inf
    """Time of the newest event, seconds: of friends' choices only earlier ones are read, as the towers do."""
    removed: Rows = field(default_factory=lambda: _NO_ROWS)
    """Rows of items that were taken down; the index knows them itself."""

    @property
    def searched(self) -> Mask | PreparedFilter | None:
        """What the filters allow, as the index takes it fastest."""
        return self.allowed if self.prepared is None else self.prepared

    def newest(self, count: int) -> Rows:
        """The newest distinct choices, newest first."""
        return _distinct(self.chosen[::-1])[:count]

    def open(self, rows: Rows) -> Mask:
        """bool [K]: whether each of `rows` may be named, that is unseen and allowed."""
        unseen = ~np.isin(rows, self.seen)
        if len(self.removed):
            unseen &= ~np.isin(rows, self.removed)
        return unseen if self.allowed is None else unseen & self.allowed[rows]

    def keep(self, rows: Rows) -> Rows:
        """Those of `rows` that may be named, in their order."""
        return rows[self.open(rows)]


Source = Callable[[Stock, Asked, int], Named]


def gather(stock: Stock, asked: Asked, quotas: Mapping[str, int]) -> dict[int, tuple[float, str]]:
    """What the sources name, in the order of `quotas`: row to score and source. The first source to name a row has it.

    Raises:
        KeyError: a quota of something that is none of SOURCES.
    """
    found: dict[int, tuple[float, str]] = {}
    for name, count in quotas.items():
        source = SOURCES[name]
        if count:
            rows, scores = source(stock, asked, count)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True):  # NumPy's own numbers are slow
                found.setdefault(row, (score, name))
    return found


def from_user_tower(stock: Stock, asked: Asked, count: int) -> Named:
    """The items nearest to the query."""
    return _nearest(stock, asked, count, asked.searched)


def from_neighbours(stock: Stock, asked: Asked, count: int) -> Named:
    """What the newest choices speak for most, by the table of what is chosen together."""
    if stock.session is None:
        return _scored(stock, asked, _NO_ROWS)
    spoken_for = stock.session.scores(asked.chosen)
    rows = asked.keep(np.flatnonzero(spoken_for > 0))  # few, whatever the size of the catalogue
    return _scored(stock, asked, rows[np.argsort(-spoken_for[rows], kind="stable")][:count])


def from_item_to_item(stock: Stock, asked: Asked, count: int) -> Named:
    """The items whose embeddings are nearest to those of the newest choices, in turns."""
    return _near_items(stock, asked, asked.newest(stock.cfg.item_to_item_last), count)


def from_interests(stock: Stock, asked: Asked, count: int) -> Named:
    """The items nearest to the medoid of each interest, in turns."""
    newest = asked.newest(MAX_CLUSTERED)
    if not len(newest):
        return _scored(stock, asked, _NO_ROWS)
    return _near_items(stock, asked, newest[medoids(stock.embeddings[newest], stock.cfg.multi_interest_queries)], count)


def from_popular(stock: Stock, asked: Asked, count: int) -> Named:
    """The most popular items in the categories of the newest choices, else in their languages, else of all."""
    return _scored(stock, asked, popular_rows(stock, asked, count))


def popular_rows(stock: Stock, asked: Asked, count: int) -> Rows:
    """As `from_popular`, for users of whom the towers know nothing."""
    newest = asked.newest(stock.cfg.item_to_item_last).tolist()
    of_items = ((stock.items.categories, stock.by_category), (stock.items.languages, stock.by_language))
    for group_of, rows_of in of_items if newest else ():
        segment = {group_of[row] for row in newest} - {None}
        if segment:
            rows = np.concatenate([asked.keep(rows_of[group])[:count] for group in segment if group is not None])
            return rows[np.argsort(stock.place[rows])][:count]
    return asked.keep(stock.items.popular_order)[:count]


def from_followed(stock: Stock, asked: Asked, count: int) -> Named:
    """Items of creators that the user follows: the most popular, and the nearest of those nobody chose, in turns."""
    creators = {stock.items.creator_ids[row] for row in asked.followed.tolist()} - {None}
    rows = np.concatenate([_NO_ROWS, *(asked.keep(stock.by_creator[c]) for c in creators if c is not None)])
    rows = rows[np.argsort(stock.place[rows])]
    new = rows[~stock.items.warm[rows]]
    new = new[np.lexsort((new, -stock.scores(asked.vector, new)))]
    return _scored(stock, asked, _in_turns([rows[stock.items.warm[rows]], new], count))


def from_friends(stock: Stock, asked: Asked, count: int) -> Named:
    """What friends chose: the heavier the friendships that chose it the better, then the nearer to the query.

    Of each friend the newest choices that the towers read count (`towers.friend_items`).
    """
    if stock.friends is None or asked.profile_row < 0:
        return _scored(stock, asked, _NO_ROWS)
    pool, log_weights, reads = stock.friends.pool(asked.profile_row, np.array([asked.newest_at]))
    rows, place = np.unique(pool[reads[0]], return_inverse=True)
    weights = np.bincount(place, np.exp(log_weights[reads[0]].astype(np.float64)), len(rows))
    rows, weights = asked.keep(rows), weights[asked.open(rows)]
    return _scored(stock, asked, rows[np.lexsort((rows, -stock.scores(asked.vector, rows), -weights))][:count])


def from_fresh(stock: Stock, asked: Asked, count: int) -> Named:
    """The nearest items without behaviour."""
    fresh = ~stock.items.warm if asked.allowed is None else ~stock.items.warm & asked.allowed
    return _nearest(stock, asked, count, fresh) if fresh.any() else _scored(stock, asked, _NO_ROWS)


SOURCES: dict[str, Source] = {
    "user_tower": from_user_tower,
    "neighbours": from_neighbours,
    "item_to_item": from_item_to_item,
    "interests": from_interests,
    "popular": from_popular,
    "followed": from_followed,
    "friends": from_friends,
    "fresh": from_fresh,
}
"""Each source by the name that candidates carry, in the order in which they are asked, see `MatcherConfig.quotas`."""


def _nearest(stock: Stock, asked: Asked, count: int, allowed: Mask | PreparedFilter | None) -> Named:
    scores, rows = stock.index.search(asked.vector[None], count, allowed=allowed, exclude=[asked.seen])
    return rows[0][rows[0] >= 0], scores[0][rows[0] >= 0]


def _near_items(stock: Stock, asked: Asked, items: Rows, count: int) -> Named:
    if not len(items):
        return _scored(stock, asked, _NO_ROWS)
    _, rows = stock.index.search(
        stock.embeddings[items], count, allowed=asked.searched, exclude=[asked.seen] * len(items)
    )
    return _scored(stock, asked, _in_turns([near[near >= 0] for near in rows], count))


def _scored(stock: Stock, asked: Asked, rows: Rows) -> Named:
    return rows, stock.scores(asked.vector, rows)


def _in_turns(lists: Sequence[Rows], count: int) -> Rows:
    """The first of each list, then the second of each, and so on: each row once, `count` at most."""
    place = np.concatenate([np.arange(len(rows)) for rows in lists])
    number = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    return _distinct(np.concatenate(lists)[np.lexsort((number, place))])[:count]


def _distinct(rows: Rows) -> Rows:
    """Each row once, where it is first."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]
