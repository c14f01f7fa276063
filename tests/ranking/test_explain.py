"""Reasons on a small real bundle, against scores from scratch: the matcher and the reranker on the changed history."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.ranking.explain import MAX_REASONS
from avrec_ray.ranking.leave_one_out import MAX_LEFT_OUT
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.ranking.sentences import NOTHING_CARRIED
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Candidate, Event, Query, RankedItem
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import tiny_towers

NUM_ITEMS = 40
MET = [("i03", "view"), ("i07", "like"), ("i12", "skip"), ("i07", "skip"), ("i21", "share"), ("gone", "view")]
MET += [("i30", "view"), ("i07", "share"), ("i11", "view"), ("i34", "favorite"), ("i26", "view"), ("i05", "impression")]
PAST = tuple(Event("u1", item, event, 60.0 * at, watch_seconds=3.0 + at) for at, (item, event) in enumerate(MET))
CHOSEN = ["i26", "i34", "i11", "i07", "i30", "i21", "i03"]
"""Newest first; more than the reranker has interests."""
QUERY = Query("u1", PAST, k=8, explain=True)


@pytest.fixture(scope="module", params=["plain", "friends"])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A bundle whose reranker has an opinion of its own, tables included."""
    towers = tiny_towers(num_friends=2, friend_items=3) if request.param == "friends" else tiny_towers()
    path = tmp_path_factory.mktemp("bundles") / f"v-{request.param}"
    return build_tiny_bundle(path, NUM_ITEMS, 0, towers, head_std=10.0)


@pytest.fixture(scope="module")
def matcher(folder: Path) -> Matcher:
    return Matcher(folder, MatcherConfig(num_candidates=20))


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Reranker:
    made = Reranker(folder, PolicyConfig(max_per_creator=2))
    with torch.no_grad():
        made.model.context.weight[0, 3:6] = torch.tensor([1.5, 0.8, 2.0])
    return made


@pytest.fixture(scope="module")
def candidates(matcher: Matcher) -> list[Candidate]:
    return matcher.match([QUERY])[0]


def without(query: Query, item_id: str) -> Query:
    return replace(query, history=tuple(e for e in query.history if e.item_id != item_id), explain=False)


def from_scratch(matcher: Matcher, reranker: Reranker, query: Query, item_ids: list[str]) -> dict[str, RankedItem]:
    """What the public parts say of the items for a history."""
    whole = replace(query, k=len(item_ids))
    return {row.item_id: row for row in reranker.rerank(whole, matcher.score(query, item_ids))}


def test_contributions_equal_scores_from_scratch(
    matcher: Matcher, reranker: Reranker, candidates: list[Candidate]
) -> None:
    item_ids = [c.item_id for c in candidates]
    rows = np.array([reranker.bundle.items.index_of[item_id] for item_id in item_ids])
    measure = reranker.explainer.leave_one_out
    histories = measure.histories(QUERY)
    assert [reranker.bundle.items.item_ids[row] for row in histories.watched] == CHOSEN
    assert histories.events[CHOSEN.index("i07")] == "share"
    found = measure.contributions(histories, rows)
    plain = from_scratch(matcher, reranker, replace(QUERY, explain=False), item_ids)
    for item_id, found_S in zip(CHOSEN, found, strict=True):
        left = from_scratch(matcher, reranker, without(QUERY, item_id), item_ids)
        np.testing.assert_allclose(found_S, [plain[i].score - left[i].score for i in item_ids], atol=1e-4)
    assert np.abs(found).max() > 0.1


def test_reasons_are_the_items_without_which_the_score_falls_most(
    matcher: Matcher, reranker: Reranker, candidates: list[Candidate]
) -> None:
    for row in reranker.rerank(QUERY, candidates):
        falls = {}
        for item_id in CHOSEN:
            left = from_scratch(matcher, reranker, without(QUERY, item_id), [row.item_id])
            falls[item_id] = row.score - left[row.item_id].score
        positive = {item_id: fall for item_id, fall in falls.items() if fall > 1e-4}
        expected = sorted(positive, key=lambda item_id: -positive[item_id])[:MAX_REASONS]
        assert [reason.item_id for reason in row.because] == expected
        weights = [reason.weight for reason in row.because]
        assert weights == pytest.approx([positive[i] / sum(positive.values()) for i in expected], abs=1e-3)
        assert all(0 < weight <= 1 for weight in weights)
        assert sum(weights) <= 1 + 1e-9
        assert row.sentence != NOTHING_CARRIED or not expected


def test_counterfactual_is_the_rank_of_a_ranking_from_scratch(
    matcher: Matcher, reranker: Reranker, candidates: list[Candidate]
) -> None:
    item_ids = [c.item_id for c in candidates]
    ranks = set()
    for row in reranker.rerank(QUERY, candidates):
        if row.because:
            assert row.counterfactual is not None
            assert row.counterfactual.item_id == row.because[0].item_id
            left = from_scratch(matcher, reranker, without(QUERY, row.because[0].item_id), item_ids)
            assert row.counterfactual.rank == left[row.item_id].rank
            ranks.add((row.rank, row.counterfactual.rank))
    assert any(rank != now for now, rank in ranks)


def test_the_only_item_left_out_leaves_what_strangers_are_served(folder: Path, matcher: Matcher) -> None:
    plain = Reranker(folder)
    torch.nn.init.zeros_(plain.model.heads.weight)  # any history at all shifts every score of attention
    query = Query("nobody", PAST[:1], k=20, explain=True)
    (found,) = matcher.match([query])
    left = from_scratch(matcher, plain, without(query, "i03"), [c.item_id for c in found])
    named = [row for row in plain.rerank(query, found) if row.because]
    assert named
    for row in named:
        assert [(reason.item_id, reason.weight) for reason in row.because] == [("i03", 1.0)]
        assert row.counterfactual is not None
        assert row.counterfactual.rank == left[row.item_id].rank


def test_moment_named_is_the_one_without_which_the_score_falls_most(
    reranker: Reranker, folder: Path, candidates: list[Candidate]
) -> None:
    items, bundle = reranker.bundle.items, reranker.bundle
    masked = Reranker(folder)
    masked.model.load_state_dict(reranker.model.state_dict())
    layout, counted = np.array([name for name, _ in reranker.layout]), 0

    def fall(row: RankedItem, left_out_M: np.ndarray) -> float:
        number = items.index_of[row.item_id]
        masked.items.moment_mask[number] = torch.from_numpy(bundle.moment_mask[number] & ~left_out_M)
        (left,) = masked.rerank(replace(QUERY, explain=False), [c for c in candidates if c.item_id == row.item_id])
        masked.items.moment_mask[number] = torch.from_numpy(bundle.moment_mask[number])
        return row.score - left.score

    for row in reranker.rerank(QUERY, candidates):
        by_modality = {name: fall(row, layout == name) for name in ("video", "audio", "text")}
        best = max(by_modality, key=lambda name: by_modality[name])
        if not row.because or by_modality[best] <= 1e-4:
            assert "counted most" not in row.sentence
            continue
        counted += 1
        assert "counted most" in row.sentence
        assert {reason.modality for reason in row.because} == {best}
        exists = np.flatnonzero((layout == best) & bundle.moment_mask[items.index_of[row.item_id]])
        moment = max(exists, key=lambda m: fall(row, np.arange(len(layout)) == m))
        span = tuple(bundle.moment_spans[items.index_of[row.item_id], moment].tolist())
        assert {(reason.start_seconds, reason.end_seconds) for reason in row.because} == {span}
    assert counted


def test_where_no_moment_moves_the_score_the_nearest_is_named(tmp_path: Path) -> None:
    folder = build_tiny_bundle(tmp_path / "v-new", NUM_ITEMS)
    (found,) = Matcher(folder).match([QUERY])
    reranker = Reranker(folder)
    bundle, items = reranker.bundle, reranker.bundle.items
    named = [row for row in reranker.rerank(QUERY, found) if row.because]
    assert named
    for row in named:
        assert "counted most" not in row.sentence
        number, reason = items.index_of[row.item_id], row.because[0]
        far = np.linalg.norm(bundle.moments[number] - bundle.embeddings[items.index_of[reason.item_id]], axis=1)
        nearest = int(np.where(bundle.moment_mask[number], far, np.inf).argmin())
        assert (reason.modality, reason.start_seconds) == (
            reranker.layout[nearest][0],
            bundle.moment_spans[number, nearest, 0],
        )


def test_reasons_do_not_depend_on_the_other_candidates(reranker: Reranker, candidates: list[Candidate]) -> None:
    whole = {row.item_id: row for row in reranker.rerank(replace(QUERY, k=20), candidates)}
    for candidate in candidates[::4]:
        (alone,) = reranker.rerank(QUERY, [candidate])
        expected = whole[alone.item_id]
        assert [b.item_id for b in alone.because] == [b.item_id for b in expected.because]
        assert [b.weight for b in alone.because] == pytest.approx([b.weight for b in expected.because], abs=1e-3)
        assert [b.modality for b in alone.because] == [b.modality for b in expected.because]
        assert alone.tags == expected.tags


def test_explanations_are_deterministic_and_change_no_score(reranker: Reranker, candidates: list[Candidate]) -> None:
    first = reranker.rerank(QUERY, candidates)
    reranker.rerank(Query("v", PAST[:3], k=3, explain=True), candidates[5:])
    assert reranker.rerank(QUERY, candidates) == first
    plain = reranker.rerank(replace(QUERY, explain=False), candidates)
    assert [(row.item_id, row.rank, row.score) for row in plain] == [(r.item_id, r.rank, r.score) for r in first]


def test_towers_are_not_loaded_until_somebody_asks_why(
    folder: Path, candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the towers were loaded")

    monkeypatch.setattr("avrec_ray.ranking.leave_one_out.QueryVectors", refuse)
    reranker = Reranker(folder)
    assert reranker.rerank(replace(QUERY, explain=False), candidates)
    with pytest.raises(AssertionError, match="the towers were loaded"):
        reranker.rerank(QUERY, candidates)


def test_long_histories_name_the_newest_items_alone(tmp_path: Path) -> None:
    folder = build_tiny_bundle(tmp_path / "v-long", 90, reranker=RerankerConfig(num_interests=5, hidden_dim=8))
    past = tuple(Event("u", f"i{n:02d}", "view", 60.0 * n) for n in range(80))
    query = Query("u", past, k=3, explain=True)
    (found,) = Matcher(folder, MatcherConfig(num_candidates=5)).match([query])
    newest = {f"i{n:02d}" for n in range(80 - MAX_LEFT_OUT, 80)}
    assert all(reason.item_id in newest for row in Reranker(folder).rerank(query, found) for reason in row.because)


def test_sentence_names_title_tags_and_rank(reranker: Reranker, candidates: list[Candidate]) -> None:
    items = reranker.bundle.items
    row = next(row for row in reranker.rerank(QUERY, candidates) if row.because and row.tags)
    watched = items.index_of[row.because[0].item_id]
    assert f'"{items.titles[watched]}"' in row.sentence
    assert row.sentence.startswith("Because you ")
    shared = [tag for tag in items.tags[items.index_of[row.item_id]] if tag in items.tags[watched]]
    assert ("both are tagged" in row.sentence) == bool(shared)
    assert all(tag in row.sentence for tag in shared)
