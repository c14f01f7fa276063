"""What a vector index refuses: vectors that cannot be served, and arguments that do not fit it."""

import math
from collections.abc import Sequence

import numpy as np

from avrec_ray.errors import BundleError
from avrec_ray.retrieval.index_rows import Mask, Rows, Vectors

FLOAT32 = np.dtype(np.float32)  # made once: a check of every request compares with it
MAX_NORM_ERROR = 1e-3
"""How far an embedding's length may be from 1."""


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


def check_queries(queries: Vectors, k: int, dim: int) -> None:
    """Raise ValueError unless these are finite float32 [Q, D] and k is at least 1."""
    if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype != FLOAT32:
        raise ValueError(f"queries are {queries.dtype} {queries.shape}; expected float32 [Q, {dim}]")
    # The product is one fast call; large finite queries may overflow it, so it only says when to look closer.
    if not math.isfinite(np.vdot(queries, queries)) and not np.isfinite(queries).all():
        raise ValueError(f"query {np.argmin(np.isfinite(queries).all(1))} is not finite; check the user tower")
    if k < 1:
        raise ValueError(f"k={k}; expected at least 1")


def whole_mask(allowed: Mask, num_at_start: int, num_items: int) -> Mask:
    """A filter over all items: one that was made before items joined does not allow them.

    Raises:
        ValueError: it is no bool [n] with n from `num_at_start` to `num_items`.
    """
    if allowed.ndim != 1 or not num_at_start <= len(allowed) <= num_items or allowed.dtype != np.bool_:
        raise ValueError(f"allowed is {allowed.dtype} {allowed.shape}; expected bool [{num_items}]")
    missing = num_items - len(allowed)
    return np.append(allowed, np.zeros(missing, bool)) if missing else allowed


def sorted_exclusions(exclude: Sequence[Rows], num_queries: int, num_items: int) -> list[Rows]:
    """What each query excludes, ascending, each row once; ValueError where it does not fit."""
    if len(exclude) != num_queries:
        raise ValueError(f"exclude has {len(exclude)} entries for {num_queries} queries; expected one for each")
    excluded = [np.unique(np.asarray(rows, np.int64)) for rows in exclude]
    if any(len(rows) and not 0 <= rows[0] <= rows[-1] < num_items for rows in excluded):
        raise ValueError(f"exclude holds an item_idx outside [0, {num_items})")
    return excluded


def changed_rows(rows: Rows, num_items: int) -> Rows:
    """The rows of a change as int64 [M]; ValueError unless each is in [0, num_items) and given once."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise ValueError(f"rows are {rows.dtype} {rows.shape}; expected int64 [M]")
    rows = rows.astype(np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < num_items:
        raise ValueError(f"rows hold an item_idx outside [0, {num_items})")
    if len(np.unique(rows)) != len(rows):
        raise ValueError("rows hold an item_idx twice; give each once")
    return rows
