"""The vector index: which items lie nearest to a query. Exact for small catalogues, inverted lists for large ones.

A search returns min(k, number of items that may be returned) items, always: where inverted lists or a filter left too
few, the query is searched again exactly. Answers do not depend on which other queries are in the call.

Items join, change and leave in place (`add`, `update`, `delete`), and keep their `item_idx` for ever. Any number of
threads may search while one or more change: a change waits for the searches that run, and searches that come later wait
for it, so that each answers from before a change or from after, never from the middle. One change of many items costs
little more than one of one item.

Dimension key: N rows of the catalogue, deleted items too; D embedding, Q queries, M items of a change.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from avrec_ray.errors import ConfigError
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index_checks import (
    changed_rows,
    check_embeddings,
    check_queries,
    sorted_exclusions,
    whole_mask,
)
from avrec_ray.retrieval.index_files import IndexMetadata, read_index_files, write_index_files
from avrec_ray.retrieval.index_rows import FlatRows, ListRows, Mask, Rows, Selection, Vectors
from avrec_ray.retrieval.index_search import QUERIES_AT_ONCE, search_chunk, search_rows
from avrec_ray.retrieval.read_write_lock import ReadWriteLock

MIN_LIST_VECTORS = 39
"""faiss calls fewer training vectors a list too few."""


class PreparedFilter:
    """A filter that an index has made ready, see `VectorIndex.prepare`. The mask must not change."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.ready: tuple[object, Selection] | None = None
        """The state of the index for which it was made ready, and what was made."""


class VectorIndex:
    """Item embeddings ready for search; row numbers are `item_idx`."""

    def __init__(self, index: Any, metadata: IndexMetadata, read_only: bool = False) -> None:
        """Around a faiss index.

        Args:
            index: of the class of `metadata.backend`, row numbers as ids.
            metadata: backend, probes and deleted rows count; `num_items` 0: as many as `index` holds.
            read_only: the vectors are mapped from a file, which a change would write to.
        """
        self._metadata = metadata
        self._rows: FlatRows | ListRows
        if metadata.backend == "flat":
            self._rows = FlatRows(index, np.array(metadata.deleted, np.int64))
        else:
            self._rows = ListRows(index, metadata.num_items or int(index.ntotal), metadata.num_probes)
        self._dim = int(index.d)  # a Python int: asking faiss takes as long as checking a query
        self._num_at_start = self._rows.num_rows
        self._read_only = read_only
        self._lock = ReadWriteLock()
        self._everything = self._rows.select(None)
        self._state = object()  # another one after each change, and in each index

    @property
    def num_items(self) -> int:
        """N: one above the largest `item_idx`."""
        return self._rows.num_rows

    @property
    def num_deleted(self) -> int:
        """How many of them are deleted."""
        return self.num_items - self._everything.num_items

    @property
    def dim(self) -> int:
        """D."""
        return self._dim

    @property
    def backend(self) -> str:
        """What was built: "flat" or "ivf_flat"."""
        return self._metadata.backend

    def search(
        self,
        queries: Vectors,
        k: int,
        allowed: Mask | PreparedFilter | None = None,
        exclude: Sequence[Rows] | None = None,
    ) -> tuple[Vectors, Rows]:
        """The `k` items of highest inner product with each query, best first; equal scores by `item_idx`.

        Args:
            queries: float32 [Q, D], finite; need not be unit vectors.
            k: at least 1; may exceed N.
            allowed: bool [N], the same for all queries, or what `prepare` made of it; None allows every item. A mask
                made before items joined may end before them; it does not allow them.
            exclude: for each query the `item_idx` to leave out, in any order; None leaves out nothing.

        Returns:
            scores float32 [Q, k] and item_idx int64 [Q, k], padded with -inf and -1 where no further item may be
            returned. Deleted items are not.

        Raises:
            ValueError: naming the argument of wrong shape, type or range.
        """
        return self._search(queries, k, allowed, exclude, exact=False)

    def prepare(self, allowed: Mask) -> PreparedFilter:
        """A filter for many searches: a mask is packed, counted and compared once instead of at each of them.

        It follows the index: after a change it is made ready again at its next search.

        Raises:
            ValueError: as `search`.
        """
        prepared = PreparedFilter(allowed.copy())
        with self._lock.reading():
            self._selection(prepared)
        return prepared

    def search_exact(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """As `search`, comparing every allowed vector whatever the backend."""
        return self._search(queries, k, allowed, None, exact=True)

    def add(self, vectors: Vectors) -> Rows:
        """Items that join.

        Args:
            vectors: float32 [M, D] unit vectors.

        Returns:
            Their item_idx, int64 [M]: the numbers after the last one given, also where that is deleted.

        Raises:
            BundleError: vectors that `build_index` would refuse.
            ValueError: vectors of another D.
            RuntimeError: the index was opened with mmap.
        """
        self._check_changeable()
        vectors = self._checked_vectors(vectors)
        with self._lock.writing():
            first = self.num_items
            self._rows.add(vectors)
            self._changed()
            return np.arange(first, self.num_items)

    def update(self, rows: Rows, vectors: Vectors) -> None:
        """Other vectors for items that stay.

        Args:
            rows: int64 [M], item_idx, each once, none deleted: what was taken down comes back as a new item only.
            vectors: float32 [M, D] unit vectors.

        Raises:
            BundleError, ValueError, RuntimeError: as `add`, or rows that do not fit; nothing is changed then.
        """
        self._check_changeable()
        vectors = self._checked_vectors(vectors)
        with self._lock.writing():
            rows = changed_rows(rows, self.num_items)
            if len(rows) != len(vectors):
                raise ValueError(f"{len(rows)} rows for {len(vectors)} vectors; expected a vector a row")
            if not (alive := self._rows.alive[rows]).all():
                raise ValueError(f"item_idx {rows[np.argmin(alive)]} is deleted; add it as a new item")
            self._rows.replace(rows, vectors)
            self._changed()

    def delete(self, rows: Rows) -> int:
        """Items that no search shall return again; their vectors are wiped. Deleting twice is once.

        Args:
            rows: int64 [M], item_idx, each once.

        Returns:
            How many of them were not deleted before.

        Raises:
            ValueError: rows out of range or given twice; nothing is deleted then.
            RuntimeError: the index was opened with mmap.
        """
        self._check_changeable()
        with self._lock.writing():
            rows = changed_rows(rows, self.num_items)
            living = rows[self._rows.alive[rows]]
            if len(living):
                self._rows.remove(living)
                self._changed()
            return len(living)

    def save(self, folder: str | Path, model_version: str) -> None:
        """Write the index into an existing folder, under the version of the towers that made the embeddings."""
        with self._lock.reading():
            deleted = np.flatnonzero(~self._rows.alive).tolist()
            written = replace(self._metadata, num_items=self.num_items, deleted=deleted, model_version=model_version)
            write_index_files(Path(folder), self._rows.raw, written)

    def _search(
        self,
        queries: Vectors,
        k: int,
        allowed: Mask | PreparedFilter | None,
        exclude: Sequence[Rows] | None,
        exact: bool,
    ) -> tuple[Vectors, Rows]:
        self._lock.start_reading()
        try:
            check_queries(queries, k, self._dim)
            excluded = None if exclude is None else sorted_exclusions(exclude, len(queries), self.num_items)
            selection = self._selection(allowed)
            if excluded is None and len(queries) <= QUERIES_AT_ONCE:  # what a request asks: nothing to put together
                return search_chunk(self._rows.raw, queries, k, selection, None, exact)
            return search_rows(self._rows, queries, k, selection, excluded, exact)
        finally:
            self._lock.stop_reading()

    def _selection(self, allowed: Mask | PreparedFilter | None) -> Selection:
        if allowed is None:
            return self._everything
        if not isinstance(allowed, PreparedFilter):
            return self._rows.select(whole_mask(allowed, self._num_at_start, self.num_items))
        if (ready := allowed.ready) is not None and ready[0] is self._state:
            return ready[1]
        selection = self._rows.select(whole_mask(allowed.mask, self._num_at_start, self.num_items))
        allowed.ready = self._state, selection  # one assignment: threads that meet here make the same
        return selection

    def _changed(self) -> None:
        self._everything = self._rows.select(None)
        self._state = object()

    def _check_changeable(self) -> None:
        if self._read_only:
            raise RuntimeError("this index was opened with mmap and cannot change; use load_index(..., mmap=False)")

    def _checked_vectors(self, vectors: Vectors) -> Vectors:
        check_embeddings(vectors)
        if vectors.shape[1] != self.dim:
            raise ValueError(f"vectors are {vectors.shape}; expected [M, {self.dim}]")
        return np.ascontiguousarray(vectors)


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
        mmap: leave the vectors in the file, shared by the processes of a machine, instead of copying them. Such an
            index answers only; it takes no changes.

    Raises:
        BundleError: a file is missing or changed, the version is another, or vectors are not finite.
    """
    index, metadata = read_index_files(Path(folder), model_version, mmap)
    return VectorIndex(index, metadata, read_only=mmap)


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
