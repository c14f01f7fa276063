"""Both models in one replica: the same lists as apart, whoever else is in the call; what fails is one query's own."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from avrec_ray.catalogue import Catalogue
from avrec_ray.dataclass_io import to_dict
from avrec_ray.feedback.store import EventStore
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Because, Candidate, Counterfactual, Event, Filters, Query, RankedItem
from serve_apps import matcher as matcher_module
from serve_apps import reranker as reranker_module
from serve_apps.answers import FusedAnswer, RankAnswer
from serve_apps.config import ServeConfig
from serve_apps.flow import RequestFlow
from serve_apps.models import ModelsDeployment
from serve_apps.models_app import app_name
from serve_apps.packing import pack_answers, pack_queries, unpack_answers, unpack_queries
from tests.serve_apps.conftest import VERSION, CategoryModels, small_catalogue
from tests.tiny_bundle import build_tiny_bundle

MATCHER, POLICY = MatcherConfig(num_candidates=20, num_fresh=2), PolicyConfig(fresh_share=0.1)


def history(*item_ids: str) -> tuple[Event, ...]:
    return tuple(Event("u", i, "view", 1e9 + n, 3.0, event_id=f"e{n}") for n, i in enumerate(item_ids))


QUERIES = [
    Query("u1", history("i1", "i5", "i9"), 5),
    Query(None, (), 3),
    Query("u2", history(*(f"i{n}" for n in range(25))), 20, Filters(categories=("music",)), diversity=0.3),
    Query("u3", (Event("u3", "i2", "like", 2e9, value=1.0), Event("u3", "gone", "skip", 2e9)), 10),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return build_tiny_bundle(folder / "v-tiny", catalogue=small_catalogue(), head_std=1.0)


@pytest.fixture
def models(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> ModelsDeployment:
    for module in (matcher_module, reranker_module):
        monkeypatch.setattr(module, "keep_replica_on_loopback", lambda: None)  # that is of a node's replicas
    return ModelsDeployment(str(bundle), to_dict(MATCHER), to_dict(POLICY))


def ask(models: ModelsDeployment, queries: Sequence[Query]) -> list[FusedAnswer]:
    return unpack_answers(asyncio.run(models.recommend_many(pack_queries(queries))))


def test_lists_are_those_of_the_models_apart(models: ModelsDeployment, bundle: Path) -> None:
    expected = recommend(Matcher(str(bundle), MATCHER), Reranker(str(bundle), POLICY), QUERIES, 0.0)
    answers = ask(models, QUERIES)
    assert [answer.items for answer in answers] == expected
    assert {answer.model_version for answer in answers} == {"v-tiny"}
    assert answers[1].sources == {"popular": 20}
    assert all(answer.candidates == [] for answer in answers)


def test_a_list_does_not_depend_on_its_company(models: ModelsDeployment) -> None:
    together = ask(models, QUERIES * 3)
    alone = [ask(models, [query])[0] for query in QUERIES]
    assert [answer.items for answer in together] == [answer.items for answer in alone] * 3


def test_reranker_that_fails_for_one_query_leaves_the_others(
    models: ModelsDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    rerank = models._ranking.rerank

    async def moody(query: Query, candidates: Sequence[Candidate]) -> RankAnswer:
        if query.user_id == "u2":
            raise RuntimeError("no mood")
        ranked = await rerank(query, candidates)
        if query.user_id == "u3":
            ranked.items[0] = RankedItem(ranked.items[0].item_id, 1, math.nan)
        return ranked

    monkeypatch.setattr(models._ranking, "rerank", moody)
    answers = ask(models, QUERIES)
    assert [answer.items is None for answer in answers] == [False, False, True, True]
    assert answers[2].candidates == models._matching.match_now([QUERIES[2]])[0].candidates
    assert len(answers[3].candidates) >= 10


def test_packed_is_what_was_packed() -> None:
    why = RankedItem(
        "a", 1, -0.5, (Because("b", 0.5, "video", 0.0, 4.0),), ("t",), Counterfactual("b", 3), "s", 0.25, {"like": 0.5}
    )
    unranked = FusedAnswer("v", {}, None, [Candidate("a", 1.0, "x")], 0.0, 0.0)
    answers = [FusedAnswer("v", {"popular": 2}, [why], [], 1.0, 2.0), unranked]
    assert unpack_answers(pack_answers(answers)) == answers
    assert unpack_queries(pack_queries(QUERIES)) == QUERIES


def test_layouts_have_applications_of_their_own(bundle: Path, tmp_path: Path) -> None:
    apart = ServeConfig(bundle=str(bundle), storage_path=str(tmp_path))
    fused = ServeConfig(bundle=str(bundle), storage_path=str(tmp_path), fused_models=True)
    assert app_name(fused, "v") == f"{app_name(apart, 'v')}-fused"


class FusedModels(CategoryModels):
    """Does both stages by one call; fails as told."""

    reranks = True

    def as_models(self) -> Any:
        import dataclasses

        return dataclasses.replace(super().as_models(), recommend=self.recommend)

    async def recommend(self, query: Query) -> FusedAnswer:
        matched = await self.match(query)
        items = (await self.rerank(query, matched.candidates)).items if self.reranks else None
        return FusedAnswer(
            matched.model_version, {"test": len(matched.candidates)}, items, matched.candidates, 1.0, 2.0
        )


@pytest.fixture
def fused(catalogue: Catalogue) -> FusedModels:
    return FusedModels(catalogue)


def served_by(fused: FusedModels, store: EventStore, deadline_ms: int = 1500) -> tuple[list[str], list[str], Any]:
    flow = RequestFlow(fused.as_models(), store, fused.catalogue, VERSION, "v-index", 50, deadline_ms)
    session = [Event("", "i1", "view", 1e9)]  # music: i1, i5, i9 ...
    served = asyncio.run(flow.recommend(Query(None, k=3), session, None))
    return [item.item_id for item in served.items], served.degraded, served


def test_flow_serves_the_list_of_one_call(fused: FusedModels, store: EventStore) -> None:
    item_ids, degraded, served = served_by(fused, store)
    assert (item_ids, degraded) == (["i5", "i9", "i13"], [])
    assert served.stages_ms["rerank"] == 2.0
    assert served.stages_ms["match"] >= 0.0


def test_flow_takes_the_matchers_order_where_reranking_failed(fused: FusedModels, store: EventStore) -> None:
    fused.reranks = False
    item_ids, degraded, _ = served_by(fused, store)
    assert (item_ids, degraded) == (["i5", "i9", "i13"], ["reranker_unavailable"])


def test_flow_falls_back_to_popular_items_where_the_call_fails(fused: FusedModels, store: EventStore) -> None:
    fused.failing.add("match")
    assert served_by(fused, store)[:2] == (["i0", "i2", "i3"], ["matcher_unavailable"])


def test_flow_falls_back_to_popular_items_in_time(fused: FusedModels, store: EventStore) -> None:
    fused.slow_seconds["match"] = 30.0
    assert served_by(fused, store, deadline_ms=50)[:2] == (["i0", "i2", "i3"], ["matcher_unavailable", "deadline"])


def test_flow_does_not_mix_bundles(fused: FusedModels, store: EventStore) -> None:
    fused.matcher_version = "v-other"
    assert served_by(fused, store)[:2] == (["i0", "i2", "i3"], ["mixed_model"])
