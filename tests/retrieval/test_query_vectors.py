"""Query vectors: what pads a history changes nothing, and neither does who else is in the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.bundle import load_bundle
from avrec_ray.retrieval.query_vectors import QueryVectors, padded_lengths
from avrec_ray.training.histories import columns_from_events, pad_histories, with_profiles
from avrec_ray.types import Event, Query
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import tiny_towers

NUM_ITEMS, LONGEST = 30, 40
USER_IDS = ["u1", "u3", None, "nobody"]


@pytest.fixture(scope="module", params=["sasrec", "hstu"])
def vectors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> QueryVectors:
    towers = tiny_towers(
        history_length=LONGEST, user_blocks=request.param, num_attribute_buckets=16, num_friends=3, friend_items=2
    )
    folder = build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "v-queries", NUM_ITEMS, towers=towers)
    return QueryVectors(load_bundle(folder))


def query(user_id: str | None, num_events: int, seed: int) -> Query:
    items = np.random.default_rng(seed).integers(0, NUM_ITEMS, num_events)
    events = [Event("u", f"i{item:02d}", "view", 50.0 * n, watch_seconds=3.0) for n, item in enumerate(items.tolist())]
    return Query(user_id, tuple(events))


QUERIES = st.builds(query, st.sampled_from(USER_IDS), st.integers(0, 60), st.integers(0, 9))


@settings(max_examples=20, deadline=None)
@given(queries=st.lists(QUERIES, min_size=1, max_size=4))
def test_vectors_are_those_of_histories_padded_to_all_that_the_tower_reads(
    vectors: QueryVectors, queries: list[Query]
) -> None:
    found, known = vectors.of_queries(queries)
    items = vectors.bundle.items
    columns = columns_from_events([q.history for q in queries], items.index_of, items.durations)
    columns = with_profiles(columns, vectors.bundle.profiles, [q.user_id for q in queries])
    spans = [(columns.rows(row).start, columns.rows(row).stop) for row in range(len(queries))]
    history = pad_histories(columns, spans, LONGEST, range(len(queries)))
    with torch.inference_mode():
        expected = vectors.towers.queries(history, vectors.embeddings)[:, -1] * vectors.towers.scale()
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
    assert known.tolist() == [bool(q.history) or q.user_id in ("u1", "u3") for q in queries]


@settings(max_examples=20, deadline=None)
@given(asked=QUERIES, others=st.lists(QUERIES, max_size=3))
def test_vector_does_not_depend_on_the_others_in_the_batch(
    vectors: QueryVectors, asked: Query, others: list[Query]
) -> None:
    alone, among = vectors.of_queries([asked])[0][0], vectors.of_queries([*others, asked])[0][-1]
    np.testing.assert_allclose(among, alone, atol=1e-5)


@given(st.lists(st.integers(0, 3000), min_size=1), st.integers(1, 2000))
def test_padded_lengths_hold_the_history_and_little_more(lengths: list[int], most: int) -> None:
    for length, padded in zip(lengths, padded_lengths(np.array(lengths), most).tolist(), strict=True):
        assert min(length, most) <= padded <= min(max(2 * length, 16), most)
