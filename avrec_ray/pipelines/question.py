"""What an evaluation asks, read from the splits: who, what they met before, and what they went on to choose."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.split import eval_targets
from avrec_ray.evaluation.tuning import Question
from avrec_ray.pipelines.catalogue import read_fitted
from avrec_ray.pipelines.split import read_split
from avrec_ray.training.histories import POSITIVE_CODES, EventColumns, columns_from_table


def ask(
    storage_root: Path, index: Mapping[str, int], durations: npt.NDArray[np.float32], part: str = "test"
) -> Question:
    """The question about `part`, "valid" or "test", over the catalogue rows of `index`; nobody may be asked at all.

    Items outside the catalogue, set aside for bad media, are in no list and no target.
    """
    split = read_split(storage_root)
    fitted_parts, history_parts = (split.fitted, split.history) if part == "test" else (("train",), ("train",))
    history = read_fitted(storage_root, history_parts)
    targets = {
        user: np.array([index[item] for item in items if item in index], np.int64)
        for user, items in eval_targets(read_fitted(storage_root, (part,)), history).items()
    }
    users = sorted(user for user, rows in targets.items() if len(rows))
    columns = columns_from_table(history, index, durations)
    fitted = columns_from_table(read_fitted(storage_root, fitted_parts), index, durations)
    chosen = np.isin(fitted.event, POSITIVE_CODES)
    candidates = split.candidates_at(part)
    return Question(
        users=users,
        targets=[targets[user] for user in users],
        seen=_items_of(columns, users, np.ones(len(columns.event), bool)),
        liked=_items_of(columns, users, np.isin(columns.event, POSITIVE_CODES)),
        user_idx=np.repeat(np.arange(len(fitted.user_ids)), np.diff(fitted.starts))[chosen],
        item_idx=fitted.item_idx[chosen],
        at_seconds=fitted.at_seconds[chosen],
        num_fitted_users=len(fitted.user_ids),
        num_items=len(index),
        candidates=None if candidates is None else np.isin(list(index), candidates),
    )


def _items_of(columns: EventColumns, users: list[str], keep: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    """Catalogue rows that each user met, where `keep` is true, in order of time."""
    row_of = {user: row for row, user in enumerate(columns.user_ids)}
    rows = [row_of.get(user) for user in users]
    spans = [slice(0, 0) if row is None else columns.rows(row) for row in rows]
    return [columns.item_idx[span][keep[span]] for span in spans]
