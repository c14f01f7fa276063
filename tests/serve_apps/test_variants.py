"""Two bundles behind one gateway, over HTTP: each user has one, no answer mixes them, and what is ill is taken back."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from avrec_ray.catalogue import Catalogue
from avrec_ray.feedback.impressions import IMPRESSIONS
from avrec_ray.feedback.store import EventStore
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.lineup import CANDIDATE, Arm, Lineup
from serve_apps.flow import RequestFlow
from serve_apps.variants import Variants
from tests.serve_apps.conftest import CategoryModels, small_catalogue

USERS = [f"user{n}" for n in range(60)]
ARMS = {name: Arm(model_version=name, bundle=f"/b/{name}", app=f"models-{name}") for name in ("v1", "v2")}
ALONE = Lineup(champion=ARMS["v1"])


@dataclass
class Two:
    """A gateway with two bundles' models, which a test may break."""

    variants: Variants
    flows: dict[str, RequestFlow]
    models: dict[str, CategoryModels]
    client: httpx.Client

    def serve(self, lineup: Lineup) -> None:
        """In the gateway's own thread, as its watch does."""
        self.variants.switch(self.variants.revision + 1, lineup, self.flows)

    def ask(self, user_id: str | None, **body: object) -> dict[str, object]:
        response = self.client.post("/v1/recommend", json={"user_id": user_id, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, object] = response.json()
        return answer


def reversed_catalogue() -> Catalogue:
    """The same items in another order, so that rows of one bundle mean other items in the other."""
    catalogue = small_catalogue()
    return catalogue.take(list(reversed(range(len(catalogue)))))


@pytest.fixture
def two(store: EventStore, make_client: Callable[..., httpx.Client]) -> Two:
    catalogues = {"v1": small_catalogue(), "v2": reversed_catalogue()}
    models = {
        name: CategoryModels(catalogue, matcher_version=name, reranker_version=name)
        for name, catalogue in catalogues.items()
    }
    flows = {
        f"models-{name}": RequestFlow(models[name].as_models(), store, catalogues[name], name, "v-index", 50, 5000)
        for name in models
    }
    cfg = RolloutConfig(guard_requests=10, mirror_share=0.0)
    variants = Variants(flows["models-v1"], 1, ALONE, cfg, seed=1)
    return Two(variants, flows, models, make_client(variants))


@pytest.fixture
def make_client(flow: RequestFlow) -> object:
    from contextlib import ExitStack

    from tests.serve_apps.conftest import client_of

    with ExitStack() as stack:
        yield lambda variants: stack.enter_context(client_of(variants))


def canary(share: float = 0.5) -> Lineup:
    return ALONE.challenged(ARMS["v2"], "canary", share, "test")


def test_users_keep_their_variant_and_answers_say_which(two: Two) -> None:
    two.serve(canary())
    first = {user: two.ask(user) for user in USERS}
    assert {(a["variant"], a["model_version"]) for a in first.values()} == {("champion", "v1"), ("candidate", "v2")}
    again = {user: two.ask(user)["variant"] for user in USERS}
    assert again == {user: answer["variant"] for user, answer in first.items()}
    assert two.ask(None)["variant"] == "champion"


def test_impressions_say_which_variant_was_shown(two: Two, store: EventStore) -> None:
    two.serve(canary())
    shown = {answer["request_id"]: answer for answer in map(two.ask, USERS)}
    deadline = time.monotonic() + 10
    while (table := store.export_impressions()[0]).num_rows < 10 * len(USERS) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert IMPRESSIONS.names[: table.num_columns] == table.column_names
    for row in table.to_pylist():
        answer = shown[row["request_id"]]
        assert (row["variant"], row["model_version"]) == (answer["variant"], answer["model_version"])


def test_rank_and_compatible_routes_follow_the_users_variant(two: Two) -> None:
    two.serve(canary())
    for user in USERS[:20]:
        mine = two.ask(user)["variant"]
        ranked = two.client.post("/v1/rank", json={"user_id": user, "items": ["i1", "i2"]}).json()
        assert ranked["variant"] == mine
        gorse = two.client.get(f"/api/recommend/{user}", params={"n": 10}).json()
        assert gorse == [item["item_id"] for item in two.ask(user)["items"]]  # type: ignore[attr-defined]


def test_no_answer_mixes_bundles_while_lineups_change(two: Two) -> None:
    """Readers ask all the time, and the lineup changes two hundred times."""
    stop, answers, failures = threading.Event(), [], []

    def read(user: str) -> None:
        with httpx.Client(base_url=two.client.base_url, timeout=20) as client:
            while not stop.is_set():
                response = client.post("/v1/recommend", json={"user_id": user})
                if response.status_code != 200:
                    failures.append(response.text)
                answers.append(response.json())

    readers = [threading.Thread(target=read, args=(user,)) for user in USERS[:4]]
    for reader in readers:
        reader.start()
    swapped = Lineup(champion=ARMS["v2"], previous=ARMS["v1"])
    for n in range(200):
        two.serve((ALONE, canary(), swapped)[n % 3])
        time.sleep(0.005)
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len({answer["model_version"] for answer in answers}) == 2
    # A bundle that met another's answer would have said so, or have served popular items instead.
    assert {json.dumps(answer["degraded"]) for answer in answers} == {'["unknown_user"]'}


@pytest.mark.parametrize("stage", ["match", "rerank"])
def test_candidate_that_errs_is_taken_back(two: Two, stage: str) -> None:
    condemned: list[tuple[int, str]] = []
    two.variants.condemn = lambda revision, _lineup, reason: condemned.append((revision, reason))
    two.serve(canary())
    two.models["v2"].failing.add(stage)
    answers = [two.ask(user) for user in USERS]
    assert all(answer["items"] for answer in answers)  # also with a broken candidate every user got a list
    assert [revision for revision, _ in condemned] == [2]
    assert "requests failed" in condemned[0][1]
    assert two.variants.lineup.candidate is None
    assert {two.ask(user)["variant"] for user in USERS} == {"champion"}
    metrics = two.client.get("/metrics").text
    assert "avrec_candidates_taken_back_total 1.0" in metrics
    assert 'avrec_variant_lists_total{outcome="failed",variant="candidate"} 10.0' in metrics


def test_candidate_that_is_slow_is_taken_back(two: Two) -> None:
    two.serve(canary())
    two.models["v2"].slow_seconds["match"] = 0.15
    for user in USERS * 2:
        two.ask(user)
        if two.variants.lineup.candidate is None:
            break
    assert two.variants.lineup.candidate is None
    assert "took over" in two.variants.lineup.reason


def test_candidate_with_lists_of_another_world_is_taken_back(two: Two) -> None:
    """Its models rank the catalogue backwards, as if vectors had changed places."""
    two.variants.cfg.mirror_share = 1.0
    two.serve(canary())
    for user in USERS * 4:
        two.ask(user)
        if two.variants.lineup.candidate is None:
            break
    assert "its lists share 0%" in two.variants.lineup.reason


def test_a_candidate_like_the_champion_stays(two: Two) -> None:
    two.models["v2"].catalogue = two.flows["models-v2"].catalogue = small_catalogue()
    two.variants.cfg.mirror_share = 1.0
    two.serve(canary())
    for user in USERS * 3:
        two.ask(user)
    assert two.variants.lineup.candidate == ARMS["v2"]


def test_a_candidate_that_was_taken_back_does_not_take_its_successor_along(two: Two) -> None:
    two.serve(canary())
    before = two.variants.revision
    two.serve(ALONE.promoted(ARMS["v2"], "promoted"))
    two.variants.take_back(before, "late news")
    assert two.variants.lineup.champion == ARMS["v2"]


def test_shadow_is_asked_and_shown_to_nobody(two: Two) -> None:
    two.models["v2"].catalogue = two.flows["models-v2"].catalogue = small_catalogue()
    two.serve(ALONE.challenged(ARMS["v2"], "shadow", 1.0, "test"))
    assert {two.ask(user)["variant"] for user in USERS} == {"champion"}
    deadline = time.monotonic() + 10
    while len(two.models["v2"].queries) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(two.models["v2"].queries) >= 20
    metrics = two.client.get("/metrics").text
    assert 'avrec_candidate_info{mode="shadow",model_version="v2"} 1.0' in metrics
    lists = next(line for line in metrics.splitlines() if line.startswith('avrec_stage_seconds_count{stage="total"}'))
    assert float(lists.split()[1]) == len(USERS)  # what was asked in the shadow counts as no list


def test_a_shadow_that_errs_harms_nobody_and_goes(two: Two) -> None:
    two.serve(ALONE.challenged(ARMS["v2"], "shadow", 1.0, "test"))
    two.models["v2"].failing.add("match")
    for user in USERS * 2:
        assert two.ask(user)["degraded"] == ["unknown_user"]
        if two.variants.lineup.candidate is None:
            break
    assert "requests failed" in two.variants.lineup.reason


def test_interleaved_lists_hold_items_of_both_and_impressions_say_whose(two: Two, store: EventStore) -> None:
    two.serve(ALONE.challenged(ARMS["v2"], "interleave", 1.0, "test"))
    answers = [two.ask(user) for user in USERS[:10]]
    assert {(a["variant"], a["model_version"]) for a in answers} == {("interleaved", "v1")}
    deadline = time.monotonic() + 10
    while (table := store.export_impressions()[0]).num_rows < 100 and time.monotonic() < deadline:
        time.sleep(0.02)
    rows = table.to_pylist()
    assert len(rows) == 100
    picked = [row["variant"] for row in rows]
    assert picked.count(CANDIDATE) == 50  # by turns
    best = {"champion": "i0", "candidate": "a/b"}  # both rank by their catalogue's order
    for answer in answers:
        mine = {row["item_id"]: row["variant"] for row in rows if row["request_id"] == answer["request_id"]}
        ranked = [item["item_id"] for item in answer["items"]]  # type: ignore[attr-defined]
        assert len(set(ranked)) == 10
        assert set(ranked[:2]) == set(best.values())
        assert all(mine[item] == variant for variant, item in best.items())
        scores = [item["score"] for item in answer["items"]]  # type: ignore[attr-defined]
        assert scores == sorted(scores, reverse=True)


def test_an_interleaved_candidate_that_errs_leaves_the_champions_list(two: Two) -> None:
    two.serve(ALONE.challenged(ARMS["v2"], "interleave", 1.0, "test"))
    two.models["v2"].failing.add("match")
    answer = two.ask("user1")
    assert (answer["variant"], answer["degraded"]) == ("champion", ["unknown_user"])
