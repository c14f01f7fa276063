"""Two models on the same users: which is better, where, and how sure. From tables alone, so that any run can take part.

Dimension key: U users, N items of either table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.errors import TableError
from avrec_ray.evaluation.metrics import PER_USER
from avrec_ray.evaluation.significance import Comparison, compare_models

TRUTH_COLUMNS = ("user_id", "item_id", "is_cold", "popularity", "history_length")
"""What users went on to choose, and what slices need to know of it."""
NEW_USER_BELOW = 5
PerUser = dict[str, npt.NDArray[np.float64]]
"""Values [U] by metric."""
MIN_USERS = 10
"""Slices with fewer users say nothing and are left out."""


@dataclass(frozen=True)
class SliceComparison:
    """The comparison on the users and targets of a slice."""

    slice: str
    num_users: int
    metrics: list[Comparison]


def compare_tables(
    lists_a: Sequence[pa.Table],
    lists_b: Sequence[pa.Table],
    truth: pa.Table,
    ks: Sequence[int] = (10, 20),
    seed: int = 0,
    headline: str = "ndcg_at_10",
) -> list[SliceComparison]:
    """All users first, then each slice that has enough of them.

    `headline` was chosen beforehand and is tested alone; the other metrics of a slice are corrected for their number.

    Args:
        lists_a, lists_b: recommendations tables (user_id, item_id, rank), one a seed of the model; a user's value is
            the mean over the seeds.
        truth: columns TRUTH_COLUMNS; one row a target.
    """
    users = pc.unique(truth["user_id"]).to_pylist()
    every = [table["item_id"].to_pylist() for table in (*lists_a, *lists_b, truth)]
    items = _numbers([item for column in every for item in column])
    ranked = [[_ranked(table, users, items) for table in lists] for lists in (lists_a, lists_b)]
    found = []
    for name, part in _slices(truth).items():
        targets = _targets(part, users, items)
        rows = [row for row, target in enumerate(targets) if len(target)]
        if len(rows) < MIN_USERS:
            continue
        kept = [targets[row] for row in rows]
        a, b = (_over_seeds([each[rows] for each in seeds], kept, ks) for seeds in ranked)
        found.append(SliceComparison(name, len(rows), _compare(a, b, headline, seed)))
    return found


def seed_means(lists: Sequence[pa.Table], truth: pa.Table, metric: str) -> list[float]:
    """`metric`, such as ndcg_at_10, over all users, of each seed."""
    name, k = metric.rsplit("_at_", 1)
    users = pc.unique(truth["user_id"]).to_pylist()
    items = _numbers([item for table in (*lists, truth) for item in table["item_id"].to_pylist()])
    targets = _targets(truth, users, items)
    return [float(PER_USER[name](_ranked(table, users, items), targets, int(k)).mean()) for table in lists]


def same_truth(truths: Sequence[pa.Table]) -> pa.Table:
    """The truth of all runs.

    Raises:
        TableError: two runs were asked different questions, so that their metrics do not compare.
    """
    first, *others = [set(zip(t["user_id"].to_pylist(), t["item_id"].to_pylist(), strict=True)) for t in truths]
    for pairs in others:
        if pairs != first:
            raise TableError(
                f"the runs were asked about different choices: {len(first)} and {len(pairs)} pairs of user and item, "
                f"{len(first & pairs)} in common; evaluate both on the same data and split"
            )
    return truths[0]


def _over_seeds(
    seeds: Sequence[npt.NDArray[np.int64]], targets: list[npt.NDArray[np.int64]], ks: Sequence[int]
) -> PerUser:
    """Metrics [U] by name, each user's the mean over the lists [U, K] of every seed."""
    return {
        f"{name}_at_{k}": np.mean([PER_USER[name](ranked, targets, k) for ranked in seeds], axis=0)
        for k in ks
        for name in ("ndcg", "recall", "mrr")
    }


def verdict(found: Sequence[SliceComparison], metric: str, name_a: str = "a", name_b: str = "b") -> str:
    """One sentence: which is better on all users in `metric`, how sure, and where it is otherwise."""
    whole = next(comparison for comparison in found[0].metrics if comparison.metric == metric)
    names = {"a": name_a, "b": name_b}
    spread = f"{whole.mean_a:.4f} against {whole.mean_b:.4f}, difference {whole.difference:+.4f}"
    spread += f" [{whole.low:+.4f}, {whole.high:+.4f}], p {whole.p_value:.3f}"
    if whole.better == "neither":
        sentence = f"Neither is better in {metric} over {found[0].num_users} users: {spread}."
    else:
        sentence = f"{names[whole.better]} is better in {metric} over {found[0].num_users} users: {spread}."
    others = {
        part.slice: c.better for part in found[1:] for c in part.metrics if c.metric == metric and c.better != "neither"
    }
    against = [f"{names[better]} on {name}" for name, better in others.items() if better != whole.better]
    return sentence + (f" Better elsewhere: {', '.join(against)}." if against else "")


def _compare(a: PerUser, b: PerUser, headline: str, seed: int) -> list[Comparison]:
    groups = [[name for name in a if (name == headline) is alone] for alone in (True, False)]
    found = [
        compare_models({n: a[n] for n in names}, {n: b[n] for n in names}, np.random.default_rng(seed))
        for names in groups
        if names
    ]
    return [comparison for group in found for comparison in group]


def _slices(truth: pa.Table) -> dict[str, pa.Table]:
    """Parts of the truth table by name; a slice of items keeps the targets in it, one of users all of theirs."""
    is_new = pc.less(truth["history_length"], NEW_USER_BELOW)
    masks = {"cold_items": truth["is_cold"], "warm_items": pc.invert(truth["is_cold"])}
    masks |= {f"{tier}_items": pc.equal(truth["popularity"], tier) for tier in ("head", "mid", "tail")}
    masks |= {"new_users": is_new, "known_users": pc.invert(is_new)}
    return {"all": truth} | {name: truth.filter(mask) for name, mask in masks.items()}


def _numbers(item_ids: list[str]) -> dict[str, int]:
    return {item_id: number for number, item_id in enumerate(dict.fromkeys(item_ids))}


def _ranked(table: pa.Table, users: list[str], items: dict[str, int]) -> npt.NDArray[np.int64]:
    """Lists [U, K] in the order of `users`, -1 where a list is shorter."""
    row_of = {user: row for row, user in enumerate(users)}
    ranked = np.full((len(users), int(np.max(table["rank"].to_numpy(), initial=1))), -1, np.int64)
    columns = (table[name].to_pylist() for name in ("user_id", "item_id", "rank"))
    for user, item, rank in zip(*columns, strict=True):
        if user in row_of:
            ranked[row_of[user], rank - 1] = items[item]
    return ranked


def _targets(truth: pa.Table, users: list[str], items: dict[str, int]) -> list[npt.NDArray[np.int64]]:
    chosen: dict[str, list[int]] = {user: [] for user in users}
    for user, item in zip(truth["user_id"].to_pylist(), truth["item_id"].to_pylist(), strict=True):
        chosen[user].append(items[item])
    return [np.array(targets, np.int64) for targets in chosen.values()]
