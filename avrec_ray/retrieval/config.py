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
    """Lists that ivf_flat compares for a query without a filter; one that keeps 1 in n items probes n times more."""
    seed: int = 0
    """Of the clustering of ivf_flat."""

    def __post_init__(self) -> None:
        check_choice("index.backend", self.backend, BACKENDS)
        check_range("index.flat_max_items", self.flat_max_items, 0)
        check_range("index.num_lists", self.num_lists, 0)
        check_range("index.num_probes", self.num_probes, 1)
        check_range("index.seed", self.seed, 0, 2**31 - 1)


@dataclass(kw_only=True)
class MatcherConfig:
    """How many candidates a query gets."""

    num_candidates: int = 100
    num_fresh: int = 0
    """So many of the nearest items that nobody has chosen yet come on top, if they are not among the candidates."""

    def __post_init__(self) -> None:
        check_range("matcher.num_candidates", self.num_candidates, 1)
        check_range("matcher.num_fresh", self.num_fresh, 0)
