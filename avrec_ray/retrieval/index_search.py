"""Search over the rows of an index: as many items as there are, equal scores by row, the same in any batch.

Dimension key: D embedding, Q queries, k items wanted.
"""

from typing import Any

import numpy as np
from faiss import swig_ptr

from avrec_ray.retrieval.index_rows import FlatRows, ListRows, Rows, Selection, Vectors

OVERFETCH = 512
"""A query that excludes at most this many items gets so many more and drops them; above, they are masked out."""
QUERIES_AT_ONCE = 16
"""faiss switches to BLAS at 20 queries, whose rounding differs: smaller chunks keep answers equal in any batch."""

Found = tuple[Vectors, Rows]
"""Scores float32 [Q, k] and rows int64 [Q, k], best first, padded with -inf and -1."""


def search_rows(
    stored: FlatRows | ListRows,
    queries: Vectors,
    k: int,
    selection: Selection,
    excluded: list[Rows] | None,
    exact: bool,
) -> Found:
    """The k best of the selection for each query [Q, D], without what that query excludes (rows ascending)."""
    scores, rows = _nothing(len(queries), k)
    light = [q for q in range(len(queries)) if excluded is None or len(excluded[q]) <= OVERFETCH]
    for start in range(0, len(light), QUERIES_AT_ONCE):
        chunk = light[start : start + QUERIES_AT_ONCE]
        without = None if excluded is None else [excluded[q] for q in chunk]
        scores[chunk], rows[chunk] = search_chunk(stored.raw, queries[chunk], k, selection, without, exact)
    for q in sorted(set(range(len(queries))) - set(light)):
        mask = stored.alive.copy() if selection.mask is None else selection.mask.copy()
        mask[excluded[q] if excluded else []] = False
        found = search_chunk(stored.raw, queries[q : q + 1], k, stored.select(mask), None, exact)
        scores[q], rows[q] = found[0][0], found[1][0]
    return scores, rows


def search_chunk(
    raw: Any, queries: Vectors, k: int, selection: Selection, excluded: list[Rows] | None, exact: bool
) -> Found:
    """As `search_rows` for at most QUERIES_AT_ONCE queries, none of which excludes more than OVERFETCH.

    Fetches k and as many as the largest exclusion more, drops the excluded, searches exactly what came out short.
    """
    extra = max(map(len, excluded), default=0) if excluded else 0
    fetch = min(k + extra, selection.num_items)
    if not fetch or not len(queries):
        return _nothing(len(queries), k)
    found = _faiss_search(raw, queries, fetch, selection.every if exact else selection.near)
    if extra and excluded:
        return _without(raw, queries, k, selection, excluded, found)
    scores, rows = found
    if min(rows[:, -1].tolist()) < 0:  # at most QUERIES_AT_ONCE: a list is faster than NumPy
        short = rows[:, -1] < 0
        scores[short], rows[short] = _faiss_search(raw, queries[short], fetch, selection.every)
    return found if fetch == k else _padded(scores, rows, k)


def _without(raw: Any, queries: Vectors, k: int, selection: Selection, excluded: list[Rows], found: Found) -> Found:
    """What was found less each query's exclusions; searched again exactly where fewer are left than there are."""
    scores, rows = _nothing(len(queries), k)
    for q, without in enumerate(excluded):
        blocked = len(without) if selection.mask is None else int(selection.mask[without].sum())
        wanted = min(k, selection.num_items - blocked)
        best = _dropped(found[0][q], found[1][q], without)
        if len(best[1]) < wanted:
            again = _faiss_search(raw, queries[q : q + 1], found[1].shape[1], selection.every)
            best = _dropped(again[0][0], again[1][0], without)
        scores[q, :wanted], rows[q, :wanted] = best[0][:wanted], best[1][:wanted]
    return scores, rows


def _faiss_search(raw: Any, queries: Vectors, fetch: int, params: Any) -> Found:
    # The C++ method under faiss' `search`: its checks are made already, and take as long as ours.
    queries, shape = np.ascontiguousarray(queries), (len(queries), fetch)
    scores, rows = np.empty(shape, np.float32), np.empty(shape, np.int64)
    raw.search_c(shape[0], swig_ptr(queries), fetch, swig_ptr(scores), swig_ptr(rows), params)
    flat = scores.ravel()  # one row is compared with the next, too: at worst a sort too many, and half the time
    if np.count_nonzero(flat[1:] == flat[:-1]):  # faiss sorts by score, and gives equal ones in any order
        order = np.lexsort((rows, -scores))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return scores, rows


def _dropped(scores: Vectors, rows: Rows, without: Rows) -> Found:
    keep = rows >= 0
    if len(without):
        keep &= ~np.isin(rows, without)
    return scores[keep], rows[keep]


def _padded(scores: Vectors, rows: Rows, k: int) -> Found:
    wide = _nothing(len(rows), k)
    wide[0][:, : rows.shape[1]], wide[1][:, : rows.shape[1]] = scores, rows
    return wide


def _nothing(num_queries: int, k: int) -> Found:
    return np.full((num_queries, k), -np.inf, np.float32), np.full((num_queries, k), -1, np.int64)
