"""Lists of the reranker: what a request about valid would see, and the best of the towers and of the session."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from avrec_ray.config import JobConfig
from avrec_ray.pipelines.train_reranker import held_out_lists, union_of_best
from avrec_ray.types import INTERACTIONS, ITEMS

SCORES = arrays(np.float32, 12, elements=st.floats(-4, 4, width=32), unique=True)


@given(SCORES, SCORES, arrays(bool, 12), st.integers(0, 5))
def test_union_holds_the_best_of_both_and_nothing_barred(
    scores: np.ndarray, spoken_for: np.ndarray, barred: np.ndarray, num_spoken_for: int
) -> None:
    free = np.flatnonzero(~barred)
    k = min(6, len(free))
    best = union_of_best(scores, spoken_for, barred, k, num_spoken_for).tolist()
    assert len(set(best)) == k
    assert not barred[best].any()
    named = [row for row in free[np.argsort(-spoken_for[free])].tolist() if spoken_for[row] > 0][:num_spoken_for]
    by_score = free[np.argsort(-scores[free], kind="stable")].tolist()
    expected = {*named, *[row for row in by_score if row not in named][: k - len(named)]}
    assert set(best) == (expected if len(named) <= k else set(best) & set(named))


def test_histories_of_lists_hold_all_of_train_also_what_is_later_than_valid(tmp_path: Path) -> None:
    """Where items are held out whole, what a user chose of them lies anywhere in time."""
    for folder in ("tables", "splits"):
        (tmp_path / folder).mkdir()
    items = [{"item_id": item, "title": item} for item in "abcd"]
    pq.write_table(pa.Table.from_pylist(items, ITEMS), tmp_path / "tables" / "items.parquet")
    for part, choices in {"train": [("a", 1), ("b", 9)], "valid": [("c", 2), ("d", 5)]}.items():
        rows = [{"user_id": "u", "item_id": item, "event": "view", "at": at} for item, at in choices]
        pq.write_table(pa.Table.from_pylist(rows, INTERACTIONS), tmp_path / "splits" / f"{part}.parquet")
    columns, queries = held_out_lists(tmp_path, JobConfig(), list("abcd"))
    found = [(columns.item_idx[q.start : q.stop], columns.item_idx[q.stop : q.future_stop]) for q in queries]
    assert [(past.tolist(), future.tolist()) for past, future in found] == [([0, 1], [2, 3]), ([0, 1, 2], [3])]
