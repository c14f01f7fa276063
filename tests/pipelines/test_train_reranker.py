"""Candidates of the reranker's lists: the best of the towers and of what the session speaks for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from avrec_ray.pipelines.train_reranker import union_of_best

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
