"""The vector index: which items lie nearest to a query. Exact for small catalogues, inverted lists for large ones.

A search returns min(k, number of items that may be returned) items, always: where inverted lists or a filter left too
few, the query is searched again exactly. Answers do not depend on which other queries are in the call.

Dimension key: N catalogue, D embedding, Q queries.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from avrec_ray.errors import BundleError, ConfigError
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index_files import IndexMetadata, read_index_files, write_index_files

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MAX_NORM_ERROR = 1e-3
"""How far an embedding's length may be from 1."""
MIN_LIST_VECTORS = 39
"""faiss calls fewer training vectors a list too few."""
OVERFETCH = 512
"""A query that excludes at most this many items gets so many more and drops them; above, they are masked out."""
QUERIES_AT_ONCE = 16
"""faiss switches to BLAS at 20 queries, whose rounding differs: smaller chunks keep answers equal in any batch."""


class VectorIndex:
    """Item embeddings ready for search; row numbers are `item_idx`."""

    def __init__(self, index: Any, metadata: IndexMetadata) -> None:
        self._index = index
        self._metadata = metadata

    @property
    def num_items(self) -> int:
        """N."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._index.d)

    @property
    def backend(self) -> str:
        """What was built: "flat" or "ivf_flat"."""
        return self._metadata.backend

    def search(
        self, queries: Vectors, k: int, allowed: Mask | None = None, exclude: Sequence[Rows] | None = None
    ) -> tuple[Vectors, Rows]:
        """The `k` items of highest inner product with each query, best first; equal scores by `item_idx`.

        Args:
            queries: float32 [Q, D], finite; need not be unit vectors.
            k: at least 1; may exceed N.
            allowed: bool [N], the same for all queries; None allows every item.
            exclude: for each query the `item_idx` to leave out, in any order; None leaves out nothing.

        Returns:
            scores float32 [Q, k] and item_idx int64 [Q, k], padded with -inf and -1 where no further item may be
            returned.

        Raises:
            ValueError: naming the argument of wrong shape, type or range.
        """
        excluded = self._checked(queries, k, allowed, exclude)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        light = [q for q in range(len(queries)) if len(excluded[q]) <= OVERFETCH]
        chunks = [light[start : start + QUERIES_AT_ONCE] for start in range(0, len(light), QUERIES_AT_ONCE)]
        for chunk in chunks:
            found = self._search_overfetched(queries[chunk], k, allowed, [excluded[q] for q in chunk])
            scores[chunk], rows[chunk] = found
        for q in sorted(set(range(len(queries))) - set(light)):
            mask = np.ones(self.num_items, bool) if allowed is None else allowed.copy()
            mask[excluded[q]] = False
            scores[q], rows[q] = (a[0] for a in self._search_overfetched(queries[q : q + 1], k, mask, [_NO_ROWS]))
        return scores, rows

    def search_exact(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """As `search` without filters, comparing every vector whatever the backend."""
        found = [
            self._faiss_search(queries[start : start + QUERIES_AT_ONCE], min(k, self.num_items), None, exact=True)
            for start in range(0, len(queries), QUERIES_AT_ONCE)
        ]
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])

    def save(self, folder: str | Path, model_version: str) -> None:
        """Write the index into an existing folder, under the version of the towers that made the embeddings."""
        write_index_files(Path(folder), self._index, self._metadata, model_version)

    def _search_overfetched(
        self, queries: Vectors, k: int, allowed: Mask | None, excluded: list[Rows]
    ) -> tuple[Vectors, Rows]:
        """Fetch k and as many as the largest exclusion more, drop the excluded, search exactly what came out short."""
        num_allowed = self.num_items if allowed is None else int(allowed.sum())
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        if not num_allowed:
            return scores, rows
        fetch = min(k + max(map(len, excluded)), num_allowed)
        found = self._faiss_search(queries, fetch, allowed)
        for q, without in enumerate(excluded):
            blocked = len(without) if allowed is None else int(allowed[without].sum())
            wanted = min(k, num_allowed - blocked)
            best = _without(found[0][q], found[1][q], without)
            if len(best[1]) < wanted:
                again = self._faiss_search(queries[q : q + 1], fetch, allowed, exact=True)
                best = _without(again[0][0], again[1][0], without)
            scores[q, :wanted], rows[q, :wanted] = best[0][:wanted], best[1][:wanted]
        return scores, rows

    def _faiss_search(
        self, queries: Vectors, fetch: int, allowed: Mask | None, exact: bool = False
    ) -> tuple[Vectors, Rows]:
        params = faiss.SearchParameters() if self.backend == "flat" else faiss.SearchParametersIVF()
        if isinstance(params, faiss.SearchParametersIVF):
            share = 1.0 if allowed is None else float(allowed.mean())
            probes = math.ceil(self._metadata.num_probes / share)
            params.nprobe = self._index.nlist if exact else min(probes, self._index.nlist)
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            params.sel = selector
        scores, rows = self._index.search(np.ascontiguousarray(queries), fetch, params=params)
        order = np.lexsort((rows, -scores))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _checked(self, queries: Vectors, k: int, allowed: Mask | None, exclude: Sequence[Rows] | None) -> list[Rows]:
        if queries.ndim != 2 or queries.shape[1] != self.dim or queries.dtype != np.float32:
            raise ValueError(f"queries are {queries.dtype} {queries.shape}; expected float32 [Q, {self.dim}]")
        if not np.isfinite(queries).all():
            raise ValueError(f"query {np.argmin(np.isfinite(queries).all(1))} is not finite; check the user tower")
        if k < 1:
            raise ValueError(f"k={k}; expected at least 1")
        if allowed is not None and (allowed.shape != (self.num_items,) or allowed.dtype != np.bool_):
            raise ValueError(f"allowed is {allowed.dtype} {allowed.shape}; expected bool [{self.num_items}]")
        if exclude is None:
            return [_NO_ROWS] * len(queries)
        if len(exclude) != len(queries):
            raise ValueError(f"exclude has {len(exclude)} entries for {len(queries)} queries; expected one for each")
        excluded = [np.unique(np.asarray(rows, np.int64)) for rows in exclude]
        if any(len(rows) and not 0 <= rows[0] <= rows[-1] < self.num_items for rows in excluded):
            raise ValueError(f"exclude holds an item_idx outside [0, {self.num_items})")
        return excluded


def build_index(embeddings: Vectors, cfg: IndexConfig) -> VectorIndex:
    """Index float32 [N, D] unit vectors.

    Raises:
        BundleError: no vectors, or vectors of wrong type or shape, not finite, or not of length 1.
        ConfigError: more lists asked for than there are vectors.
    """
    check_embeddings(embeddings)
    backend = cfg.backend
    if backend == "auto":
        backend = "flat" if len(embeddings) <= cfg.flat_max_items else "ivf_flat"
    index = BUILDERS[backend](np.ascontiguousarray(embeddings), cfg)
    return VectorIndex(index, IndexMetadata(backend=backend, num_probes=cfg.num_probes))


def load_index(folder: str | Path, model_version: str, mmap: bool = False) -> VectorIndex:
    """Open what `VectorIndex.save` wrote.

    Args:
        model_version: version of the towers that it must have been built from.
        mmap: leave the vectors in the file, shared by the processes of a machine, instead of copying them.

    Raises:
        BundleError: a file is missing or changed, the version is another, or vectors are not finite.
    """
    index, metadata = read_index_files(Path(folder), model_version, mmap)
    return VectorIndex(index, metadata)


def recall_against_exact(index: VectorIndex, queries: Vectors, k: int) -> float:
    """Share of the true `k` best that `search` finds, mean over queries; 1.0 is exact. Equal scores are as good."""
    found, _ = index.search(queries, k)
    exact, _ = index.search_exact(queries, k)
    threshold = exact[:, -1:] - 1e-6
    return float((found[:, : exact.shape[1]] >= threshold).mean())


def check_embeddings(embeddings: Vectors) -> None:
    """Raise BundleError unless these are float32 [N, D] unit vectors, N and D at least 1."""
    if not isinstance(embeddings, np.ndarray) or embeddings.ndim != 2 or embeddings.dtype != np.float32:
        got = f"{embeddings.dtype} {embeddings.shape}" if isinstance(embeddings, np.ndarray) else type(embeddings)
        raise BundleError(f"embeddings are {got}; expected float32 [N, D]")
    if not embeddings.size:
        raise BundleError(f"embeddings are {embeddings.shape}: an index needs at least one item; embed the items first")
    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.isfinite(lengths).all():
        raise BundleError(f"embedding {np.argmin(np.isfinite(lengths))} is not finite; train and embed again")
    wrong = int(np.argmax(np.abs(lengths - 1)))
    if abs(lengths[wrong] - 1) > MAX_NORM_ERROR:
        raise BundleError(f"embedding {wrong} has length {lengths[wrong]:.4f}; expected unit vectors, normalise them")


def _build_flat(embeddings: Vectors, cfg: IndexConfig) -> Any:
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    return index


def _build_ivf_flat(embeddings: Vectors, cfg: IndexConfig) -> Any:
    num_items, dim = embeddings.shape
    num_lists = cfg.num_lists or max(1, min(int(4 * math.sqrt(num_items)), num_items // MIN_LIST_VECTORS))
    if num_lists > num_items:
        raise ConfigError(f"index.num_lists={num_lists} for {num_items} items; expected at most one list an item, or 0")
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = cfg.seed + 1
    index.cp.min_points_per_centroid = 1  # the user who asks for more lists than advised gets them without a warning
    index.train(embeddings)
    index.add(embeddings)
    return index


BUILDERS: dict[str, Callable[[Vectors, IndexConfig], Any]] = {"flat": _build_flat, "ivf_flat": _build_ivf_flat}
"""What builds each backend but `auto`."""

_NO_ROWS = np.zeros(0, np.int64)


def _without(scores: Vectors, rows: Rows, without: Rows) -> tuple[Vectors, Rows]:
    keep = rows >= 0
    if len(without):
        keep &= ~np.isin(rows, without)
    return scores[keep], rows[keep]
