"""The reranker on a small real bundle: order, explanations, policy, and the whole request path."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from avrec_ray.bundle import CLASSES_FILE, CONTENT_FILE, NEIGHBOUR_FILES, load_bundle
from avrec_ray.errors import BundleError
from avrec_ray.ranking.explain import MAX_REASONS
from avrec_ray.ranking.interaction import combine
from avrec_ray.ranking.lists import context_features, interests_of
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.ranking.user_classes import UserClasses, history_of, load_tastes
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.retrieval.neighbours import load_neighbours
from avrec_ray.training.histories import POSITIVE_CODES, columns_from_events
from avrec_ray.types import Candidate, Event, Filters, Query
from tests.tiny_bundle import build_tiny_bundle

NUM_ITEMS = 40
ITEMS = [f"i{row:02d}" for row in range(NUM_ITEMS)]
PAST = tuple(
    Event("u", item, event, 60.0 * at, watch_seconds=watch)
    for at, (item, event, watch) in enumerate(
        [
            ("i03", "view", 9.0),
            ("i07", "like", None),
            ("i12", "skip", 0.5),
            ("i07", "share", None),
            ("i21", "view", None),
        ]
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose reranker has an opinion of its own."""
    return build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "v-rank", NUM_ITEMS, head_std=10.0)


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Reranker:
    return Reranker(folder)


@pytest.fixture(scope="module")
def matcher(folder: Path) -> Matcher:
    return Matcher(folder, MatcherConfig(num_candidates=20))


@pytest.fixture(scope="module")
def candidates(matcher: Matcher) -> list[Candidate]:
    return matcher.match([Query(user_id="u", history=PAST)])[0]


def test_rerank_gives_k_distinct_candidates_best_first(reranker: Reranker, candidates: list[Candidate]) -> None:
    ranking = reranker.rerank(Query(user_id="u", history=PAST, k=7), candidates)
    assert [row.rank for row in ranking] == list(range(1, 8))
    assert len({row.item_id for row in ranking}) == 7
    assert {row.item_id for row in ranking} <= {c.item_id for c in candidates}
    scores = [row.score for row in ranking]
    assert scores == sorted(scores, reverse=True)
    assert [row.item_id for row in ranking] != [c.item_id for c in candidates[:7]]


def test_rerank_scores_are_those_of_the_model_on_the_bundle(reranker: Reranker, candidates: list[Candidate]) -> None:
    bundle = load_bundle(reranker.bundle.path)
    columns = columns_from_events([PAST], bundle.items.index_of, bundle.items.durations)
    interests = interests_of(columns, [(0, len(columns.item_idx))], 5)
    rows = torch.tensor([[bundle.items.index_of[c.item_id] for c in candidates]])
    chosen = columns.item_idx[np.isin(columns.event, POSITIVE_CODES)]
    tables = (load_neighbours(bundle.path / name, len(bundle.items)) for name in NEIGHBOUR_FILES)
    content = load_file(bundle.path / CONTENT_FILE)["vectors"].astype(np.float32)
    likeness = content @ content[np.unique(chosen)].mean(0)
    spoken_for = [table.scores(chosen) for table in tables]
    tastes = load_tastes(bundle.path / CLASSES_FILE, bundle.embeddings.shape[1] + content.shape[1])
    of_kind = UserClasses(tastes, bundle.embeddings, content).scores(
        history_of(columns, (0, len(columns.item_idx))), np.arange(len(bundle.items))
    )
    said = np.stack([*(scores / np.sqrt(np.mean(scores**2)) for scores in spoken_for), likeness, of_kind], 1)
    with torch.no_grad():
        logits, _ = reranker.model(
            torch.from_numpy(bundle.embeddings)[interests.item_idx], interests.event, interests.watch_ratio,
            interests.mask, torch.from_numpy(bundle.moments)[rows], torch.from_numpy(bundle.moment_mask)[rows],
            context_features(
                torch.tensor([[c.score for c in candidates]]),
                torch.from_numpy(bundle.items.popularities)[rows],
                torch.from_numpy(said)[rows],
            ),
        )  # fmt: skip
    expected = dict(zip([c.item_id for c in candidates], combine(logits, {"choose": 1.0})[0].tolist(), strict=True))
    ranking = reranker.rerank(Query(user_id="u", history=PAST, k=20), candidates)
    assert {row.item_id: row.score for row in ranking} == pytest.approx(expected, rel=1e-6, abs=1e-5)


@given(st.data())
def test_rerank_score_does_not_depend_on_the_other_candidates(
    reranker: Reranker, candidates: list[Candidate], data: st.DataObject
) -> None:
    query = Query(user_id="u", history=PAST, k=100)
    whole = {row.item_id: row.score for row in reranker.rerank(query, candidates)}
    some = data.draw(st.lists(st.sampled_from(candidates), min_size=1, unique=True))
    for row in reranker.rerank(query, some):
        assert row.score == pytest.approx(whole[row.item_id], abs=1e-5)


def test_rerank_is_a_pure_function(reranker: Reranker, folder: Path, candidates: list[Candidate]) -> None:
    query = Query(user_id="u", history=PAST, k=9, explain=True)
    first = reranker.rerank(query, candidates)
    reranker.rerank(Query(user_id="v", history=PAST[:1], k=3), candidates[3:])
    assert reranker.rerank(query, candidates) == first == Reranker(str(folder)).rerank(query, candidates)


def test_untrained_reranker_keeps_the_matchers_order(tmp_path: Path) -> None:
    folder = build_tiny_bundle(tmp_path / "v-new", NUM_ITEMS)
    query = Query(user_id="u", history=PAST, k=10)
    (found,) = Matcher(folder).match([query])
    ranking = Reranker(folder).rerank(query, found)
    assert [row.item_id for row in ranking] == [c.item_id for c in found[:10]]
    assert [row.score for row in ranking] == pytest.approx([c.score for c in found[:10]], abs=1e-6)


def test_explanation_names_watched_items_and_moments_of_the_item(
    reranker: Reranker, candidates: list[Candidate]
) -> None:
    items, spans = reranker.bundle.items, reranker.bundle.moment_spans
    for row in reranker.rerank(Query(user_id="u", history=PAST, k=20, explain=True), candidates):
        assert len(row.because) <= MAX_REASONS
        assert {reason.item_id for reason in row.because} <= {"i03", "i07", "i21"}  # chosen; never the skipped i12
        assert len({reason.item_id for reason in row.because}) == len(row.because)
        weights = [reason.weight for reason in row.because]
        assert weights == sorted(weights, reverse=True)
        assert all(0 < weight <= 1 for weight in weights)
        assert sum(weights) <= 1 + 1e-5
        index = items.index_of[row.item_id]
        own = {
            (reranker.layout[moment][0], *spans[index, moment].tolist())
            for moment in np.flatnonzero(reranker.bundle.moment_mask[index])
        }
        assert {(r.modality, r.start_seconds, r.end_seconds) for r in row.because} <= own
        watched = {tag for reason in row.because for tag in items.tags[items.index_of[reason.item_id]]}
        assert row.tags == tuple(tag for tag in items.tags[index] if tag in watched)


def test_item_without_any_moment_is_ranked_and_its_reasons_name_no_moment(
    folder: Path, candidates: list[Candidate]
) -> None:
    bare = Reranker(folder)
    bare.items.moment_mask[bare.bundle.items.index_of[candidates[0].item_id]] = False
    bare.bundle.moment_mask[bare.bundle.items.index_of[candidates[0].item_id]] = False
    (row,) = bare.rerank(Query(user_id="u", history=PAST, explain=True), candidates[:1])
    assert np.isfinite(row.score)
    assert row.because
    assert {(b.modality, b.start_seconds, b.end_seconds) for b in row.because} == {("", 0.0, 0.0)}


def test_no_explanation_unless_asked(reranker: Reranker, candidates: list[Candidate]) -> None:
    ranking = reranker.rerank(Query("u", PAST), candidates)
    assert all(row.because == row.tags == () and not row.sentence and not row.counterfactual for row in ranking)


@pytest.mark.parametrize(
    "past",
    [(), (Event("u", "i12", "skip", 0.0),), (Event("u", "gone", "view", 0.0),)],
    ids=["empty", "skips", "unknown"],
)
def test_rerank_without_interests_keeps_the_matchers_order(
    reranker: Reranker, matcher: Matcher, past: tuple[Event, ...]
) -> None:
    query = Query(user_id="u", history=past, k=8, explain=True)
    (found,) = matcher.match([query])
    ranking = reranker.rerank(query, found)
    assert [row.item_id for row in ranking] == [c.item_id for c in found[:8]]
    assert [row.score for row in ranking] == pytest.approx([c.score for c in found[:8]])
    assert all(row.because == () for row in ranking)


def test_rerank_of_no_candidates_is_empty(reranker: Reranker) -> None:
    assert reranker.rerank(Query(user_id="u", history=PAST), []) == []


def test_rerank_with_fewer_candidates_than_k_gives_them_all(reranker: Reranker, candidates: list[Candidate]) -> None:
    assert len(reranker.rerank(Query(user_id="u", history=PAST, k=100), candidates[:4])) == 4


def test_rerank_of_an_unknown_candidate_is_refused(reranker: Reranker, candidates: list[Candidate]) -> None:
    stranger = Candidate("from-another-bundle", 1.0, "user_tower")
    with pytest.raises(
        BundleError, match=r"candidate 'from-another-bundle' is not in bundle v-rank; .*the same bundle"
    ):
        reranker.rerank(Query(user_id="u", history=PAST), [*candidates, stranger])


def test_rerank_applies_the_filters_of_the_query(reranker: Reranker, candidates: list[Candidate]) -> None:
    out = (candidates[0].item_id,)
    filters = Filters(categories=("music", "sport"), exclude_items=out)
    ranking = reranker.rerank(Query(user_id="u", history=PAST, k=20, filters=filters), candidates)
    items = reranker.bundle.items
    expected = {
        c.item_id for c in candidates[1:] if items.categories[items.index_of[c.item_id]] in ("music", "sport")
    } - set(out)  # fmt: skip
    assert {row.item_id for row in ranking} == expected


def test_rerank_with_diversity_reorders_and_keeps_scores(reranker: Reranker, candidates: list[Candidate]) -> None:
    plain = reranker.rerank(Query(user_id="u", history=PAST, k=20), candidates)
    diverse = reranker.rerank(Query(user_id="u", history=PAST, k=20, diversity=1.0), candidates)
    assert diverse[0] == plain[0]
    assert [row.item_id for row in diverse] != [row.item_id for row in plain]
    assert {row.item_id: row.score for row in diverse} == {row.item_id: row.score for row in plain}


def test_rerank_caps_creators_by_policy(folder: Path, candidates: list[Candidate]) -> None:
    capped = Reranker(folder, PolicyConfig(max_per_creator=1))
    items = capped.bundle.items
    ranking = capped.rerank(Query(user_id="u", history=PAST, k=5), candidates)
    creators = [items.creator_ids[items.index_of[row.item_id]] for row in ranking]
    named = [creator for creator in creators if creator is not None]
    assert len(named) == len(set(named))


DAY = 86_400.0


def test_rerank_explores_by_day_and_says_how_probable_each_place_was(folder: Path, candidates: list[Candidate]) -> None:
    exploring, query = Reranker(folder, PolicyConfig(exploration=1.0)), Query(user_id="u", history=PAST, k=8)
    first, same, other = (exploring.rerank(query, candidates, at) for at in (10 * DAY, 10.5 * DAY, 11 * DAY))
    assert first == same
    assert [row.item_id for row in first] != [row.item_id for row in other]
    assert all(0 < row.propensity < 1 for row in first)
    assert [row.rank for row in first] == list(range(1, 9))


def test_rerank_without_exploration_has_propensity_one(reranker: Reranker, candidates: list[Candidate]) -> None:
    assert {row.propensity for row in reranker.rerank(Query(user_id="u", history=PAST), candidates)} == {1.0}


def test_rerank_pins_what_the_matcher_did_not_find_but_not_what_was_met_or_asked_for(
    folder: Path, matcher: Matcher, candidates: list[Candidate], tmp_path: Path
) -> None:
    missed = next(i for i in ITEMS if i not in {c.item_id for c in candidates} | {e.item_id for e in PAST})
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        f"- {{name: new, match: {{item_ids: [{missed}]}}, action: pin, place: 2}}\n"
        "- {name: met, match: {item_ids: [i07]}, action: pin, place: 1}\n"
    )
    pinning, query = Reranker(folder, PolicyConfig(rules=str(rules))), Query(user_id="u", history=PAST, k=5)
    ranking = [row.item_id for row in pinning.rerank(query, candidates)]
    assert ranking[1] == missed
    assert "i07" not in ranking
    excluding = Query(user_id="u", history=PAST, k=5, filters=Filters(exclude_items=(missed,)))
    assert missed not in [row.item_id for row in pinning.rerank(excluding, candidates)]
    named = matcher.score(query, ["i01", "i02"])
    assert {row.item_id for row in pinning.rerank(query, named)} == {"i01", "i02"}


def test_rerank_keeps_exposure_in_the_ledger_given(folder: Path, matcher: Matcher, candidates: list[Candidate]) -> None:
    cfg = PolicyConfig(exposure_groups="warm", exposure_targets={"cold": 0.9}, exposure_strength=5.0)
    steered, query = Reranker(folder, cfg), Query(user_id="u", history=PAST, k=4)
    candidates = [*candidates, Candidate("i09", 0.0, "fresh"), Candidate("i19", 0.0, "fresh")]
    ledger = steered.policy.ledger()
    assert ledger is not None
    lists = [[row.item_id for row in steered.rerank(query, candidates, ledger=ledger)] for _ in range(3)]
    assert ledger.state.num_requests == 3
    assert lists[0] == [row.item_id for row in steered.rerank(query, candidates)]
    assert len({"i09", "i19"} & set(lists[-1])) > len({"i09", "i19"} & set(lists[0]))
    steered.rerank(query, matcher.score(query, ["i01"]), ledger=ledger)
    assert ledger.state.num_requests == 3


def test_recommend_is_matcher_then_reranker(matcher: Matcher, reranker: Reranker) -> None:
    queries = [
        Query(user_id="u", history=PAST, k=6, explain=True),
        Query(user_id=None, k=3),
        Query(user_id="v", history=PAST[:2], k=40, filters=Filters(languages=("de",))),
    ]
    by_hand = [reranker.rerank(query, matcher.match([query])[0]) for query in queries]
    for found, expected in zip(recommend(matcher, reranker, queries), by_hand, strict=True):
        assert [row.item_id for row in found] == [row.item_id for row in expected]
        assert [row.score for row in found] == pytest.approx([row.score for row in expected], abs=1e-4)
    assert recommend(matcher, reranker, []) == []


def test_recommend_leaves_out_what_was_seen_and_fills_k(matcher: Matcher, reranker: Reranker) -> None:
    (ranking,) = recommend(matcher, reranker, [Query(user_id="u", history=PAST, k=36)])
    assert len(ranking) == 36
    assert {row.item_id for row in ranking} == set(ITEMS) - {"i03", "i07", "i12", "i21"}


def test_probabilities_are_told_of_calibrated_targets_alone(tmp_path: Path) -> None:
    calibration = {"choose": (0.5, -2.0), "skip": (0.0, -1.0)}
    folder = build_tiny_bundle(tmp_path / "v-told", NUM_ITEMS, head_std=10.0, calibration=calibration)
    reranker = Reranker(folder)
    found = Matcher(folder, MatcherConfig(num_candidates=20)).match([Query("u", PAST, k=20)])[0]
    for item in reranker.rerank(Query("u", PAST, k=20), found):
        assert set(item.probabilities) == {"choose", "skip"}
        # Of the default targets `choose` alone makes the score, so the one follows from the other.
        assert item.probabilities["choose"] == pytest.approx(1 / (1 + np.exp(2.0 - 0.5 * item.score)), abs=1e-5)
        assert item.probabilities["skip"] == pytest.approx(1 / (1 + np.e), abs=1e-6)
    nobody = reranker.rerank(Query("u", (), k=20), found)
    assert nobody
    assert not any(item.probabilities for item in nobody)
