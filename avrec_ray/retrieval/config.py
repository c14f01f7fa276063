"""Settings of the vector index and of the matcher; importing them loads no model and no faiss."""

from dataclasses import dataclass

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError

BACKENDS = {
    "auto": "flat up to index.flat_max_items vectors, ivf_flat above",
    "flat": "exact: every vector is compared",
    "ivf_flat": "approximate: only the lists nearest to the query are compared",
}
"""Choices of `index.backend`, and what each does."""


@dataclass(kw_only=True)
class IndexConfig:
    """The vector index over item embeddings. The metric is the inner product; embeddings are unit vectors."""

    backend: str = "auto"
    """Key of BACKENDS."""
    flat_max_items: int = 50_000
    """Largest catalogue that `auto` searches exactly; measured, Flat is fast enough up to about here."""
    num_lists: int = 0
    """Lists of ivf_flat; 0: 4 * sqrt(N), fewer where a list would have under 39 vectors to learn its centre from."""
    num_probes: int = 32
    """Lists that ivf_flat compares for a query without a filter; one that keeps 1 in n items compares as many of
    those, times up to 4."""
    min_recall: float = 0.95
    """An index that finds a smaller share of the true 100 nearest items, without a filter or under any filter that is
    measured, is not published."""
    seed: int = 0
    """Of the clustering of ivf_flat."""

    def __post_init__(self) -> None:
        check_choice("index.backend", self.backend, BACKENDS)
        check_range("index.flat_max_items", self.flat_max_items, 0)
        check_range("index.num_lists", self.num_lists, 0)
        check_range("index.num_probes", self.num_probes, 1)
        check_range("index.min_recall", self.min_recall, 0, 1)
        check_range("index.seed", self.seed, 0, 2**31 - 1)


SIMILARITIES = ("cosine", "jaccard", "ease")


@dataclass(kw_only=True)
class NeighbourConfig:
    """An item-to-item table: how much a choice of one item speaks for another, by the users who chose both.

    The defaults are the cosine of who chose what, in any order. `user_power` 1 and `scored_power` near 0 make the
    random walk of RP3beta (Paudel et al. 2017), for sparse data; `step_decay` and `recency` below 1 make a
    neighbourhood of what is chosen together now (Ludewig & Jannach 2018), for streams with a mood.
    """

    num_neighbours: int = 100
    """Items that speak for each item, those that say most."""
    shrinkage: float = 0.0
    """Added to the norm: chance neighbours of rare items count less."""
    similarity: str = "cosine"
    """Of SIMILARITIES. "jaccard" divides by the users of either item and takes no powers; "ease" solves for the weights
    of all items together (see ease.py) and takes neither powers nor steps."""
    regularization: float = 300.0
    """Of ease."""
    max_bytes: int = 2**30
    """Largest matrix of ease, 4 N^2 bytes for N items."""
    user_power: float = 0.0
    """A user with n choices counts n**-user_power."""
    watched_power: float = 0.5
    """Divide by the users of the watched item to this power."""
    scored_power: float = 0.5
    """Divide by the users of the scored item to this power; smaller favours popular items."""
    step_decay: float = 1.0
    """Two choices of a user that are k steps apart count step_decay**(k - 1)."""
    recency: float = 1.0
    """The choice k places before the newest one of a history counts recency**k."""

    def __post_init__(self) -> None:
        check_range("neighbours.num_neighbours", self.num_neighbours, 1)
        check_range("neighbours.shrinkage", self.shrinkage, 0)
        check_choice("neighbours.similarity", self.similarity, SIMILARITIES)
        check_range("neighbours.regularization", self.regularization, 1e-6)
        check_range("neighbours.max_bytes", self.max_bytes, 4)
        for name in ("user_power", "watched_power", "scored_power"):
            check_range(f"neighbours.{name}", getattr(self, name), 0, 2)
        for name in ("step_decay", "recency"):
            check_range(f"neighbours.{name}", getattr(self, name), 0.01, 1)


@dataclass(kw_only=True)
class MatcherConfig:
    """How many candidates a query gets from each source, see `retrieval/sources.py`; 0: the source is not asked.

    A source names at most its quota, all of it unseen and allowed; what an earlier source named already is not made up
    for, so a list is at most as long as the quotas together.
    """

    num_candidates: int = 100
    num_neighbours: int = 0
    """So many of the items that the history speaks for most, by the table of what is chosen together, come on top."""
    num_item_to_item: int = 0
    """Items whose embeddings are nearest to those of the newest choices, in turns from the newest choice on."""
    item_to_item_last: int = 5
    """Distinct choices that are the newest: where item_to_item begins, and whose categories make popular's segment."""
    num_multi_interest: int = 0
    """Items nearest to what stands for each interest of a history, in turns from the interest met last."""
    multi_interest_queries: int = 0
    """Most interests that a history is taken apart into; above 0 where num_multi_interest is."""
    num_popular: int = 0
    """The most popular items in the segment of the newest choices: their categories, else their languages, else all.
    A user of whom nothing is known gets the most popular of all in any case."""
    num_followed: int = 0
    """Items of creators that the user follows (an event `follow` on an item), popular and new ones in turns."""
    num_friends: int = 0
    """Items that friends chose; none where the bundle's towers read no friends."""
    num_fresh: int = 0
    """So many of the nearest items that nobody has chosen yet come on top, if they are not among the candidates."""

    def __post_init__(self) -> None:
        for name in ("candidates", "neighbours", "item_to_item", "multi_interest", "popular", "followed", "friends"):
            check_range(f"matcher.num_{name}", getattr(self, f"num_{name}"), int(name == "candidates"))
        check_range("matcher.num_fresh", self.num_fresh, 0)
        check_range("matcher.item_to_item_last", self.item_to_item_last, 1)
        check_range("matcher.multi_interest_queries", self.multi_interest_queries, 0)
        if bool(self.num_multi_interest) != bool(self.multi_interest_queries):
            raise ConfigError(
                f"matcher.num_multi_interest={self.num_multi_interest} with matcher.multi_interest_queries="
                f"{self.multi_interest_queries}; expected both 0 or both above: how many items, of how many interests"
            )

    @property
    def quotas(self) -> dict[str, int]:
        """Most items that each source names, in the order in which sources are asked."""
        return {
            "user_tower": self.num_candidates,
            "neighbours": self.num_neighbours,
            "item_to_item": self.num_item_to_item,
            "interests": self.num_multi_interest,
            "popular": self.num_popular,
            "followed": self.num_followed,
            "friends": self.num_friends,
            "fresh": self.num_fresh,
        }
