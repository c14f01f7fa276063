"""The matcher on a small real bundle, each list against the same list worked out by brute force."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.bundle import load_bundle
from avrec_ray.errors import BundleError
from avrec_ray.retrieval.config import IndexConfig, MatcherConfig
from avrec_ray.retrieval.index import build_index
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.retrieval.neighbours import load_neighbours
from avrec_ray.training.histories import columns_from_events, pad_histories
from avrec_ray.types import EVENTS, Candidate, Event, Filters, Query
from tests.test_bundle import reseal
from tests.tiny_bundle import TOWERS_VERSION, build_tiny_bundle
from tests.tiny_models import tiny_towers

NUM_ITEMS = 40
ITEMS = [f"i{row:02d}" for row in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "v-match", NUM_ITEMS)


@pytest.fixture(scope="module")
def matcher(folder: Path) -> Matcher:
    return Matcher(folder, MatcherConfig(num_candidates=15))


def history(*items: str, event: str = "view") -> tuple[Event, ...]:
    return tuple(Event("u", item, event, 60.0 * at, watch_seconds=5.0) for at, item in enumerate(items))


def ids(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.item_id for candidate in candidates]


def brute_force(matcher: Matcher, query: Query) -> dict[str, float]:
    """The logit of every item for a query, from the towers themselves."""
    items = matcher.bundle.items
    columns = columns_from_events([query.history], items.index_of, items.durations)
    padded = pad_histories(columns, [(0, len(columns.item_idx))], matcher.towers.cfg.history_length)
    with torch.no_grad():
        vector = matcher.towers.queries(padded, torch.from_numpy(matcher.bundle.embeddings))[0, -1]
        logits = matcher.towers.scale() * torch.from_numpy(matcher.bundle.embeddings) @ vector
    return dict(zip(items.item_ids, logits.tolist(), strict=True))


def test_match_finds_the_nearest_unseen_items_in_order(matcher: Matcher) -> None:
    query = Query(user_id="u", history=history("i03", "i07", "i11"))
    (found,) = matcher.match([query])
    logits = brute_force(matcher, query)
    unseen = sorted(set(ITEMS) - {"i03", "i07", "i11"}, key=lambda item: -logits[item])
    assert ids(found) == unseen[:15]
    assert [c.score for c in found] == pytest.approx([logits[c.item_id] for c in found], abs=1e-4)
    assert {c.source for c in found} == {"user_tower"}


past_events = st.builds(Event, st.just("u"), st.sampled_from([*ITEMS, "gone"]), st.sampled_from(EVENTS), st.just(1.0))
queries = st.builds(
    Query,
    user_id=st.none() | st.just("u"),
    history=st.lists(past_events, max_size=45).map(tuple),
    k=st.integers(1, 100),
    filters=st.builds(
        Filters,
        categories=st.sampled_from([(), ("music",), ("music", "sport"), ("none of these",)]),
        languages=st.sampled_from([(), ("en",), ("en", "de")]),
        max_duration_seconds=st.none() | st.floats(5, 60),
        exclude_items=st.lists(st.sampled_from([*ITEMS, "gone"]), max_size=5).map(tuple),
    ),
)  # fmt: skip


@given(st.lists(queries, max_size=4))
def test_match_gives_every_allowed_unseen_item_up_to_what_is_asked(matcher: Matcher, asked: list[Query]) -> None:
    items = matcher.bundle.items
    for query, found in zip(asked, matcher.match(asked), strict=True):
        filters = query.filters
        seen = {e.item_id for e in query.history if e.event != "impression"} | set(filters.exclude_items)
        allowed = {
            item
            for row, item in enumerate(items.item_ids)
            if item not in seen
            and (not filters.categories or items.categories[row] in filters.categories)
            and (not filters.languages or items.languages[row] in filters.languages)
            and (filters.max_duration_seconds is None or items.durations[row] <= filters.max_duration_seconds)
        }
        assert set(ids(found)) <= allowed
        assert len(found) == len(set(ids(found))) == min(max(15, query.k), len(allowed))
        assert all(a.score >= b.score for a, b in zip(found, found[1:], strict=False))
        assert all(np.isfinite(c.score) for c in found)


def test_match_of_a_batch_is_that_of_each_query_alone(matcher: Matcher) -> None:
    asked = [Query(user_id="u", history=history(*ITEMS[n : n + n % 5]), k=3) for n in range(20)]
    for query, found in zip(asked, matcher.match(asked), strict=True):
        (alone,) = matcher.match([query])
        assert ids(alone) == ids(found)
        assert [c.score for c in alone] == pytest.approx([c.score for c in found], abs=1e-4)


def test_match_of_nothing_is_nothing(matcher: Matcher) -> None:
    assert matcher.match([]) == []


@pytest.mark.parametrize(
    "past", [(), history("gone", "never there"), history("i01", event="impression")], ids=["new", "unknown", "shown"]
)
def test_match_without_a_usable_history_is_by_popularity(matcher: Matcher, past: tuple[Event, ...]) -> None:
    (found,) = matcher.match([Query(user_id="new", history=past)])
    items = matcher.bundle.items
    assert ids(found) == [ITEMS[row] for row in items.popular_order[:15]]
    assert [c.score for c in found] == pytest.approx(
        [np.log(items.popularity[items.index_of[c.item_id]]) for c in found]
    )
    assert {c.source for c in found} == {"popular"}


def test_match_by_popularity_respects_filters_and_exclusions(matcher: Matcher) -> None:
    filters = Filters(categories=("sport",), exclude_items=("i01", "i05"))
    (found,) = matcher.match([Query(user_id=None, filters=filters)])
    items = matcher.bundle.items
    expected = [r for r in items.popular_order if items.categories[r] == "sport" and r not in (1, 5)]
    assert ids(found) == [ITEMS[row] for row in expected]


def test_match_of_a_history_of_rejections_reads_it_and_leaves_them_out(matcher: Matcher) -> None:
    (found,) = matcher.match([Query(user_id="u", history=history("i02", "i04", event="skip"))])
    assert {c.source for c in found} == {"user_tower"}
    assert not {"i02", "i04"} & set(ids(found))


def test_match_of_a_user_who_saw_everything_is_empty(matcher: Matcher) -> None:
    assert matcher.match([Query(user_id="u", history=history(*ITEMS))]) == [[]]


def test_score_keeps_the_order_given_and_leaves_out_unknown_items(matcher: Matcher) -> None:
    query = Query(user_id="u", history=history("i03", "i07"))
    found = matcher.score(query, ["i09", "gone", "i03", "i01"])
    logits = brute_force(matcher, query)
    assert ids(found) == ["i09", "i03", "i01"]
    assert [c.score for c in found] == pytest.approx([logits[item] for item in ids(found)], abs=1e-4)
    assert matcher.score(query, []) == matcher.score(query, ["gone"]) == []


def test_score_equals_that_of_match(matcher: Matcher) -> None:
    for query in (Query(user_id="u", history=history("i03", "i07")), Query(user_id=None)):
        (found,) = matcher.match([query])
        again = matcher.score(query, ids(found))
        assert [c.score for c in again] == pytest.approx([c.score for c in found], abs=1e-4)


def test_similar_is_by_cosine_without_the_item_itself(matcher: Matcher) -> None:
    found = matcher.similar("i08", 6)
    cosine = matcher.bundle.embeddings @ matcher.bundle.embeddings[8]
    assert ids(found) == [ITEMS[row] for row in np.argsort(-cosine) if row != 8][:6]
    assert [c.score for c in found] == pytest.approx(np.sort(cosine)[::-1][1:7], abs=1e-5)
    assert len(matcher.similar("i08", 100)) == NUM_ITEMS - 1


def test_similar_of_an_unknown_item_is_a_key_error(matcher: Matcher) -> None:
    with pytest.raises(KeyError, match="gone"):
        matcher.similar("gone", 3)


def test_matcher_opens_a_bundle_by_path_string_or_object(folder: Path, matcher: Matcher) -> None:
    query = Query(user_id="u", history=history("i03"))
    for opened in (str(folder), load_bundle(folder)):
        assert Matcher(opened, MatcherConfig(num_candidates=15)).match([query]) == matcher.match([query])
    assert matcher.model_version == "v-match"


@pytest.mark.parametrize(
    ("num_vectors", "version", "message"),
    [
        (NUM_ITEMS - 1, TOWERS_VERSION, "the index holds 39 vectors, the catalogue 40 items"),
        (NUM_ITEMS, "v-old", "mixed"),
    ],
)
def test_matcher_refuses_an_index_of_another_catalogue_or_version(
    folder: Path, tmp_path: Path, num_vectors: int, version: str, message: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "v-match"))
    embeddings = load_bundle(copy).embeddings[:num_vectors]
    build_index(embeddings, IndexConfig()).save(copy / "index", version)
    reseal(copy)
    with pytest.raises(BundleError, match=message):
        Matcher(copy)


def test_fresh_items_come_on_top_of_the_candidates(folder: Path) -> None:
    plain = Matcher(folder, MatcherConfig(num_candidates=5))
    fresh = Matcher(folder, MatcherConfig(num_candidates=5, num_fresh=2))
    query = Query(user_id="u", history=(Event("u", "i00", "view", 1.0),), k=5)
    (few,), (more,) = plain.match([query]), fresh.match([query])
    warm = fresh.bundle.items.warm
    assert more[: len(few)] == few
    added = more[len(few) :]
    assert {candidate.source for candidate in added} <= {"fresh"}
    assert all(not warm[fresh.bundle.items.index_of[candidate.item_id]] for candidate in added)
    cold_found = [c for c in few if not warm[fresh.bundle.items.index_of[c.item_id]]]
    assert len(added) + len(cold_found) >= 2


@pytest.fixture(scope="module")
def by_neighbours(folder: Path) -> dict[int, Matcher]:
    """Matchers by how many neighbours they add."""
    return {n: Matcher(folder, MatcherConfig(num_candidates=5, num_neighbours=n)) for n in (0, 1, 3, 8)}


@given(
    st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([(), ("music",)]),
)
def test_what_the_newest_choices_speak_for_comes_on_top(
    folder: Path, by_neighbours: dict[int, Matcher], items: list[str], count: int, categories: tuple[str, ...]
) -> None:
    plain, spoken = by_neighbours[0], by_neighbours[count]
    query = Query(user_id="u", history=history(*items), k=5, filters=Filters(categories=categories))
    (few,), (more,) = plain.match([query]), spoken.match([query])
    assert more[: len(few)] == few
    catalogue = spoken.bundle.items
    table = load_neighbours(folder / "session_neighbours.safetensors", NUM_ITEMS)
    scores = table.scores(np.array([catalogue.index_of[item] for item in items]))
    wanted = [row for row in np.argsort(-scores, kind="stable").tolist() if scores[row] > 0]
    wanted = [row for row in wanted if ITEMS[row] not in items]
    wanted = [row for row in wanted if not categories or catalogue.categories[row] in categories][:count]
    added = more[len(few) :]
    assert ids(added) == [ITEMS[row] for row in wanted if ITEMS[row] not in ids(few)]
    logits = brute_force(spoken, query)
    assert [c.score for c in added] == pytest.approx([logits[c.item_id] for c in added], abs=1e-4)
    assert {c.source for c in added} <= {"neighbours"}


def test_what_was_turned_down_speaks_for_nothing(by_neighbours: dict[int, Matcher]) -> None:
    spoken = by_neighbours[3]
    query = Query(user_id="u", history=history("i03", "i07", event="skip"), k=5)
    assert "neighbours" not in {candidate.source for candidate in spoken.match([query])[0]}


EVERY_SOURCE = MatcherConfig(
    num_candidates=4, num_neighbours=3, num_item_to_item=3, item_to_item_last=2, num_multi_interest=3,
    multi_interest_queries=2, num_popular=3, num_followed=3, num_friends=3, num_fresh=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def every_source(tmp_path_factory: pytest.TempPathFactory) -> Matcher:
    """Users u0 to u7 have friends."""
    folder = tmp_path_factory.mktemp("bundles") / "v-sources"
    towers = tiny_towers(num_friends=3, friend_items=4)
    return Matcher(build_tiny_bundle(folder, NUM_ITEMS, towers=towers), EVERY_SOURCE)


asked_of_all = st.builds(
    Query,
    user_id=st.sampled_from([None, "u1", "u5", "newcomer", "stranger"]),
    history=st.lists(
        st.builds(
            Event, st.just("u"), st.sampled_from([*ITEMS, "gone"]), st.sampled_from(EVENTS), st.floats(0, 1e6, width=32)
        ),
        max_size=20,
    ).map(lambda events: tuple(sorted(events, key=lambda event: event.at_seconds))),
    k=st.integers(1, 50),
    filters=st.builds(
        Filters,
        categories=st.sampled_from([(), ("music",), ("music", "sport"), ("none of these",)]),
        languages=st.sampled_from([(), ("en",)]),
        exclude_items=st.lists(st.sampled_from([*ITEMS, "gone"]), max_size=5).map(tuple),
    ),
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(asked_of_all, max_size=3))
def test_sources_together_name_unseen_allowed_items_once_and_as_many_as_asked_for(
    every_source: Matcher, asked: list[Query]
) -> None:
    items = every_source.bundle.items
    for query, found in zip(asked, every_source.match(asked), strict=True):
        filters = query.filters
        seen = {e.item_id for e in query.history if e.event != "impression"} | set(filters.exclude_items)
        allowed = {
            item
            for row, item in enumerate(ITEMS)
            if item not in seen
            and (not filters.categories or items.categories[row] in filters.categories)
            and (not filters.languages or items.languages[row] in filters.languages)
        }
        assert set(ids(found)) <= allowed
        assert min(query.k, len(allowed)) <= len(found) == len(set(ids(found)))
        quotas = {**EVERY_SOURCE.quotas, "user_tower": max(4, query.k)}
        sources = [candidate.source for candidate in found]
        if set(sources) != {"popular"}:
            assert all(sources.count(source) <= quotas[source] for source in sources)
            assert sources == sorted(sources, key=list(quotas).index)
        (alone,) = every_source.match([query])
        assert [(c.item_id, c.source) for c in alone] == [(c.item_id, c.source) for c in found]
        assert [c.score for c in alone] == pytest.approx([c.score for c in found], abs=1e-4)
        scored = every_source.score(query, ids(found))
        assert [c.score for c in scored] == pytest.approx([c.score for c in found], abs=1e-4)


def test_every_source_has_its_say(every_source: Matcher) -> None:
    """Where sources agree the first has the item, so not every list has them all."""
    pasts = [(*history(*ITEMS[n : n + 6]), Event("u", ITEMS[n + 6], "follow", 1e6)) for n in range(12)]
    found = every_source.match([Query("u1", past, k=4) for past in pasts])
    assert {candidate.source for each in found for candidate in each} == set(EVERY_SOURCE.quotas)
    unknown = every_source.match([Query("stranger", past, k=4) for past in pasts])
    assert "friends" not in {candidate.source for each in unknown for candidate in each}
    creators, of_item = every_source.bundle.items.creator_ids, every_source.bundle.items.index_of
    for n, each in enumerate(found):
        assert {creators[of_item[c.item_id]] for c in each if c.source == "followed"} <= {creators[n + 6]}


def test_more_sources_leave_the_lists_of_the_first_ones_alone(every_source: Matcher) -> None:
    query = Query("u1", history("i03", "i07", event="follow"), k=4)
    few = Matcher(every_source.bundle, MatcherConfig(num_candidates=4, num_neighbours=3)).match([query])[0]
    assert every_source.match([query])[0][: len(few)] == few
