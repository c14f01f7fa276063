"""Choices and histories as the arrays that baselines compute with.

Dimension key: E choices, U users, N catalogue.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

Rows = npt.NDArray[np.int64]
"""Catalogue rows (`item_idx`) or numbers of users."""
Scores = npt.NDArray[np.float32]
Times = npt.NDArray[np.float64]
"""POSIX times, UTC."""


def distinct_pairs(user_idx: Rows, item_idx: Rows, num_items: int) -> tuple[Rows, Rows]:
    """Each (user, item) once, sorted by user, then item: what is fitted does not depend on the order of a log.

    >>> distinct_pairs(np.array([1, 0, 1]), np.array([2, 3, 2]), num_items=4)
    (array([0, 1]), array([3, 2]))
    """
    codes = np.unique(user_idx.astype(np.int64) * num_items + item_idx)
    return codes // num_items, codes % num_items


def choice_matrix(user_idx: Rows, item_idx: Rows, num_users: int, num_items: int) -> sparse.csr_matrix:
    """Float32 [U, N], 1 where a user chose an item, however often."""
    users, items = distinct_pairs(user_idx, item_idx, num_items)
    starts = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=num_users))])
    return sparse.csr_matrix((np.ones(len(items), np.float32), items, starts), shape=(num_users, num_items))


def history_matrix(histories: Sequence[Rows], num_items: int) -> sparse.csr_matrix:
    """Float32 [U, N], 1 where an item is in a user's history, however often."""
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    items = np.concatenate([np.zeros(0, np.int64), *histories])
    return choice_matrix(users, items, len(histories), num_items)
