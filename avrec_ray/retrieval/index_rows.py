"""What lies in a faiss index by row: rows keep their number while items come, change and go.

Two kinds: `FlatRows` compares every vector and hides deleted rows, `ListRows` (inverted lists) takes them out. Both
give a `Selection` for a filter: the faiss parameters of a search for the rows that it allows. Neither locks or checks.

Dimension key: N rows, deleted ones too; D embedding; M vectors of a change.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

KEPT_FILTERS = 32
"""Filters that inverted lists keep ready, 1.2 bytes an item each; forgotten at every change."""


@dataclass(frozen=True)
class Selection:
    """The rows that a search may return, as faiss wants to be told."""

    num_items: int
    """How many they are."""
    mask: Mask | None
    """bool [N]; None: all rows."""
    near: Any
    """Search parameters of the backend's own search."""
    every: Any
    """Search parameters that compare every selected vector."""
    held: tuple[object, ...] = ()
    """What the parameters point to; faiss does not keep it alive."""


class FlatRows:
    """Every vector in one array, row after row; a deleted row stays there as zeros that no search returns."""

    def __init__(self, raw: Any, deleted: Rows) -> None:
        self.raw = raw
        self.alive: Mask = np.ones(raw.ntotal, bool)
        self.alive[deleted] = False
        self._has_deleted = len(deleted) > 0

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.alive)

    def select(self, allowed: Mask | None) -> Selection:
        """The rows that live and, if a filter is given, that it allows."""
        mask = allowed
        if self._has_deleted:
            mask = self.alive if allowed is None else allowed & self.alive
        if mask is None:
            return Selection(len(self.alive), None, None, None)
        bits, selector = _packed_selector(mask)
        params = faiss.SearchParameters()
        params.sel = selector
        return Selection(int(np.count_nonzero(mask)), mask, params, params, (bits, selector))

    def add(self, vectors: Vectors) -> None:
        """Append float32 [M, D] as rows N to N + M - 1."""
        self.raw.add(vectors)
        self.alive = np.append(self.alive, np.ones(len(vectors), bool))

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        """Give living rows [M] other vectors [M, D]."""
        stored = faiss.rev_swig_ptr(self.raw.get_xb(), self.raw.ntotal * self.raw.d)
        stored.reshape(-1, self.raw.d)[rows] = vectors

    def remove(self, rows: Rows) -> None:
        """Delete living rows [M]."""
        self.replace(rows, np.zeros((len(rows), self.raw.d), np.float32))
        self.alive[rows] = False
        self._has_deleted = True


class ListRows:
    """Inverted lists: each living row in the list of the nearest centre.

    A search without a filter probes `num_probes` lists. Under a filter only lists that hold an allowed item are
    probed, and enough of them to compare as many allowed items as a search without a filter compares items, times a
    factor: the farther the allowed items are from the query, the less their lists' centres say which is nearest. It
    rises to 2 as the filter narrows and to 4 as it leaves whole lists empty, where a probe costs less. Where that is a
    good part of the lists it is less, see `_select_packed`. Measured recall at 100 with 100k and 1M items, filters of
    10 and 1 %: random .995 and more, by cluster .992 and more.
    """

    def __init__(self, raw: Any, num_rows: int, num_probes: int) -> None:
        self.raw = raw
        self.num_probes = num_probes
        self.list_of: Rows = list_of_rows(raw, num_rows)
        """int64 [N]: the list that holds each row; a deleted row is in one behind the last."""
        # Filters repeat (a language, a category), and counting the lists of one takes as long as a search with it.
        self._selection_of = lru_cache(KEPT_FILTERS)(self._select_packed)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.list_of)

    @property
    def alive(self) -> Mask:
        """bool [N]: the rows that are not deleted. Made anew: not for the way of a request."""
        return np.asarray(self.list_of < self.raw.nlist)

    def select(self, allowed: Mask | None) -> Selection:
        """The rows that live and, if a filter is given, that it allows."""
        if allowed is not None:
            return self._selection_of(np.packbits(allowed, bitorder="little").tobytes())
        mask = None if self.raw.ntotal == len(self.list_of) else self.alive
        near, every = (_probing(num) for num in (min(self.num_probes, self.raw.nlist), self.raw.nlist))
        return Selection(int(self.raw.ntotal), mask, near, every)

    def _select_packed(self, packed: bytes) -> Selection:
        item_bits = np.frombuffer(packed, np.uint8)
        allowed = np.unpackbits(item_bits, count=len(self.list_of), bitorder="little").view(np.bool_)
        lists = self.list_of[np.flatnonzero(allowed)]
        counts = np.bincount(lists, minlength=self.raw.nlist + 1)[: self.raw.nlist]
        num_allowed, num_filled = int(counts.sum()), int(np.count_nonzero(counts))
        if num_allowed == self.raw.ntotal:
            return self.select(None)
        if not num_allowed:
            return Selection(0, allowed & self.alive, None, None)
        narrowed, emptied = 1 - num_allowed / self.raw.ntotal, 1 - num_filled / self.raw.nlist
        wanted = (1 + narrowed * (1 + 2 * emptied)) * self.num_probes * self.raw.ntotal / self.raw.nlist
        lists_wanted = wanted * num_filled / num_allowed
        # Few lists lack few of the nearest, and the last ones hold hardly any: the odds grow, not the share.
        enough = math.ceil(num_filled * lists_wanted / (num_filled + lists_wanted))
        items, (list_bits, filled) = _selector(item_bits), _packed_selector(counts > 0)
        centres = faiss.SearchParameters()
        centres.sel = filled
        near, every = (_probing(num, items, centres) for num in (enough, num_filled))
        mask = allowed if self.raw.ntotal == len(self.list_of) else allowed & self.alive
        return Selection(num_allowed, mask, near, every, (item_bits, items, list_bits, filled, centres))

    def add(self, vectors: Vectors) -> None:
        """Append float32 [M, D] as rows N to N + M - 1."""
        rows = np.arange(len(self.list_of), len(self.list_of) + len(vectors))
        self._selection_of.cache_clear()
        self.list_of = np.append(self.list_of, np.full(len(vectors), self.raw.nlist))
        self._put(rows, vectors)

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        """Give living rows [M] other vectors [M, D]."""
        self.remove(rows)
        self._put(rows, vectors)

    def remove(self, rows: Rows) -> None:
        """Delete living rows [M]."""
        self._selection_of.cache_clear()
        self.raw.remove_ids(rows)
        self.list_of[rows] = self.raw.nlist

    def _put(self, rows: Rows, vectors: Vectors) -> None:
        lists = self.raw.quantizer.search(vectors, 1)[1][:, 0]
        # Not add_with_ids: the lists that faiss files the vectors in must be those that `list_of` says.
        pointers = [faiss.swig_ptr(array) for array in (vectors, rows, lists)]
        self.raw.add_core(len(vectors), *pointers)
        self.list_of[rows] = lists


def list_of_rows(raw: Any, num_rows: int) -> Rows:
    """int64 [N]: the number of the list that holds each row, `nlist` where none does.

    Raises:
        ValueError: a row lies in two lists, or outside [0, num_rows).
    """
    found: Rows = np.full(num_rows, raw.nlist)
    num_found = 0
    for number in range(raw.nlist):
        if size := raw.invlists.list_size(number):
            ids = raw.invlists.get_ids(number)
            rows = faiss.rev_swig_ptr(ids, size)
            if not 0 <= rows.min() <= rows.max() < num_rows:
                raise ValueError(f"list {number} holds a row outside [0, {num_rows})")
            found[rows] = number
            num_found += size
            raw.invlists.release_ids(number, ids)
    if num_found != np.count_nonzero(found < raw.nlist):
        raise ValueError("a row lies in two lists")
    return found


def _probing(num_probes: int, items: Any = None, centres: Any = None) -> Any:
    params = faiss.SearchParametersIVF()
    params.nprobe = num_probes
    params.sel = items
    params.quantizer_params = centres
    return params


def _packed_selector(mask: Mask) -> tuple[npt.NDArray[np.uint8], Any]:
    bits = np.packbits(mask, bitorder="little")
    return bits, _selector(bits)


def _selector(bits: npt.NDArray[np.uint8]) -> Any:
    return faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
