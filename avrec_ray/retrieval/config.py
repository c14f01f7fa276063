"""Settings of the vector index and of the matcher; importing them loads no model and no faiss."""

from dataclasses import dataclass

from avrec_ray.dataclass_io import check_choice, check_range

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
    """How many candidates a query gets."""

    num_candidates: int = 100
    num_neighbours: int = 0
    """So many of the items that the history speaks for most, by the table of what is chosen together, come on top."""
    num_fresh: int = 0
    """So many of the nearest items that nobody has chosen yet come on top, if they are not among the candidates."""

    def __post_init__(self) -> None:
        check_range("matcher.num_candidates", self.num_candidates, 1)
        check_range("matcher.num_neighbours", self.num_neighbours, 0)
        check_range("matcher.num_fresh", self.num_fresh, 0)
