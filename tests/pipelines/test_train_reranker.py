"""Lists of the reranker: what a request about valid would see, and the best of the towers and of the session."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from avrec_ray.config import JobConfig
from avrec_ray.pipelines.train_reranker import asked_in_training, held_out_lists, union_of_best
from avrec_ray.ranking.training import RerankQuery
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.retrieval.sources import gather
from avrec_ray.types import EVENTS, INTERACTIONS, ITEMS, Event, Query
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import random_columns, tiny_profiles, tiny_towers

SCORES = arrays(np.float32, 12, elements=st.floats(-4, 4, width=32), unique=True)


@given(SCORES, st.lists(st.integers(0, 11), max_size=5, unique=True), arrays(bool, 12))
def test_union_holds_what_is_named_and_the_best_and_nothing_barred(
    scores: np.ndarray, named: list[int], barred: np.ndarray
) -> None:
    free = np.flatnonzero(~barred)
    k = min(6, len(free))
    named = [row for row in named if not barred[row]]
    best = union_of_best(scores, named, barred, k).tolist()
    assert len(set(best)) == k
    assert not barred[best].any()
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


def test_sources_are_asked_in_training_what_a_request_asks(tmp_path: Path) -> None:
    towers = tiny_towers(num_friends=3, friend_items=4)
    cfg = MatcherConfig(
        num_candidates=4, num_neighbours=3, num_item_to_item=3, num_multi_interest=3, multi_interest_queries=2,
        num_popular=3, num_followed=3, num_friends=3,
    )  # fmt: skip
    matcher = Matcher(build_tiny_bundle(tmp_path / "v-asked", towers=towers), cfg)
    columns = tiny_profiles(random_columns(8, 40, 0), towers)
    columns.event[:] = np.random.default_rng(0).integers(2, 1 + len(EVENTS), len(columns.event))  # all but impressions
    everything = np.ones(40, bool)
    for user in range(8):
        rows = columns.rows(user)
        past = tuple(
            Event(f"u{user}", f"i{item:02d}", EVENTS[event - 1], at)
            for item, event, at in zip(
                columns.item_idx[rows], columns.event[rows], columns.at_seconds[rows], strict=True
            )
        )
        ((served, known),) = matcher.asked([Query(f"u{user}", past)])
        assert known
        trained = asked_in_training(columns, RerankQuery(rows.start, rows.stop, rows.stop), served.vector, everything)
        for name in ("chosen", "followed", "seen", "profile_row", "newest_at"):
            np.testing.assert_array_equal(getattr(trained, name), getattr(served, name))
        assert trained.allowed is served.allowed is None
        assert gather(matcher.stock, trained, cfg.quotas) == gather(matcher.stock, served, cfg.quotas)
