"""A recommendations table, ours or somebody else's, scored against what users went on to choose."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avrec_ray.errors import TableError
from avrec_ray.evaluation.metrics import Ranked, auc, evaluate_rankings
from avrec_ray.types import RECOMMENDATIONS, check_table

LISTS = pa.schema([column for column in RECOMMENDATIONS if column.name != "score"])
"""What scoring reads; a score column may be there and is not used."""
TRUTH = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("item_id", pa.string(), nullable=False)])
"""What users chose, in no order; a pair may be repeated."""
CANDIDATES = pa.schema([pa.field("item_id", pa.string(), nullable=False)])
"""What could have been listed."""


def read_table(path: str | Path) -> pa.Table:
    """A Parquet file.

    Raises:
        TableError: the file is missing or is no Parquet.
    """
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def score_recommendations(
    recommendations: pa.Table,
    truth: pa.Table,
    *,
    candidates: pa.Table | None = None,
    seen: pa.Table | None = None,
    ks: tuple[int, ...] = (10, 20),
) -> dict[str, float]:
    """Metrics of `evaluate_rankings` over the users of `truth`; a user without a list counts with misses.

    Args:
        recommendations: user_id, item_id, rank (1..n in each list), any row order.
        truth: user_id, item_id.
        candidates: item_id of what could have been listed; where given, AUC, coverage and Gini are added.
        seen: user_id, item_id that no list may hold, such as what users met before.

    Returns:
        "ndcg_at_10" and so on, `num_users` of truth, `num_users_without_list` of these, and `num_users_extra` who have
        a list but no truth and are left out.

    Raises:
        TableError: a column is missing, ranks of a user are not 1..n, an item is twice in a list, truth is empty, or a
            list holds an item that its user has seen or that is no candidate.
    """
    lists = check_table(recommendations, LISTS, "recommendations")
    chosen = check_table(truth, TRUTH, "truth")
    if not chosen.num_rows:
        raise TableError("truth has no rows; expected user_id and item_id of what users chose")
    if seen is not None:
        _check_unseen(lists, check_table(seen, TRUTH, "seen"))
    num_items = None if candidates is None else _check_candidates(lists, chosen, candidates)
    items, users = _codes(lists, chosen, "item_id"), _codes(chosen, lists, "user_id")
    truth_user, list_user = users[: chosen.num_rows], users[chosen.num_rows :]
    num_users = int(truth_user.max()) + 1
    order = np.argsort(truth_user, kind="stable")
    targets = np.split(items[lists.num_rows :][order], np.cumsum(np.bincount(truth_user))[:-1])
    depth = max(*ks, int(np.max(lists["rank"].to_numpy(), initial=1))) if num_items else max(ks)
    every = _ranked(lists, list_user, items[: lists.num_rows], depth)
    ranked = np.full((num_users, depth), -1, np.int64)
    ranked[: len(every)] = every[:num_users]
    results = evaluate_rankings(ranked, targets, num_items, ks)
    if num_items is not None:
        results["auc"] = float(auc(ranked, targets, num_items).mean())
    without = float((ranked < 0).all(1).sum())
    num_extra = float(len(np.unique(list_user[list_user >= num_users])))
    return results | {"num_users_without_list": without, "num_users_extra": num_extra}


def _check_unseen(lists: pa.Table, seen: pa.Table) -> None:
    """A list that holds what its user met before was made with another history, or leaks."""
    met = set(zip(seen["user_id"].to_pylist(), seen["item_id"].to_pylist(), strict=True))
    for user, item in zip(lists["user_id"].to_pylist(), lists["item_id"].to_pylist(), strict=True):
        if (user, item) in met:
            raise TableError(
                f"recommendations: the list of user {user!r} holds {item!r}, which is in seen; leave it out"
            )


def _check_candidates(lists: pa.Table, chosen: pa.Table, candidates: pa.Table) -> int:
    """How many candidates there are, after checking that lists and truth hold nothing else."""
    allowed = pc.unique(check_table(candidates, CANDIDATES, "candidates")["item_id"])
    for name, table in (("recommendations", lists), ("truth", chosen)):
        known = pc.is_in(table["item_id"], value_set=allowed)
        if table.num_rows and not pc.all(known).as_py():
            row = pc.index(known, False).as_py()
            raise TableError(
                f"{name}: item {table['item_id'][row].as_py()!r} in row {row} is none of {len(allowed)} candidates"
            )
    return len(allowed)


def _ranked(lists: pa.Table, user: npt.NDArray[np.int64], item: npt.NDArray[np.int64], depth: int) -> Ranked:
    """The first `depth` places of each user's list, [users, depth], -1 behind, after checking the whole lists."""
    rank = lists["rank"].to_numpy().astype(np.int64)
    order = np.lexsort((rank, user))
    first = np.searchsorted(user[order], user[order])
    expected = np.arange(len(order)) - first + 1
    if (wrong := rank[order] != expected).any():
        row = int(order[np.argmax(wrong)])
        raise TableError(
            f"recommendations: rank {rank[row]} of user {lists['user_id'][row].as_py()!r} in row {row}, expected "
            f"{expected[np.argmax(wrong)]}: the ranks of a user go 1, 2, 3 without gap or repeat"
        )
    pairs, counts = np.unique(np.stack([user, item]), axis=1, return_counts=True)
    if (counts > 1).any():
        row = int(np.flatnonzero((np.stack([user, item]) == pairs[:, [np.argmax(counts > 1)]]).all(0))[1])
        raise TableError(
            f"recommendations: item {lists['item_id'][row].as_py()!r} is twice in the list of user "
            f"{lists['user_id'][row].as_py()!r}, again in row {row}; expected distinct items"
        )
    ranked = np.full((int(user.max(initial=-1)) + 1, depth), -1, np.int64)
    top = rank <= depth
    ranked[user[top], rank[top] - 1] = item[top]
    return ranked


def _codes(first: pa.Table, second: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """Numbers of the ids of both tables, row after row, from 0 in order of appearance: those of `first` come first."""
    ids = pa.chunked_array([*first[name].chunks, *second[name].chunks], pa.string()).combine_chunks()
    return ids.dictionary_encode().indices.to_numpy().astype(np.int64)
