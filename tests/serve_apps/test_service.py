"""The whole service on Ray Serve, over HTTP, with a real bundle; and killed with SIGKILL."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from avrec_ray.feedback.store import EventStore
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Event, Filters, Query, RankedItem
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.serve_apps.conftest import feedback_event, free_port, small_catalogue
from tests.tiny_bundle import TOWERS_VERSION, build_tiny_bundle
from tests.tiny_models import tiny_towers

pytestmark = pytest.mark.ray

MATCHER, POLICY = MatcherConfig(num_candidates=20, num_fresh=2), PolicyConfig(fresh_share=0.1)
TOWERS = tiny_towers(user_blocks="hstu", num_attribute_buckets=32, num_friends=3, friend_items=2)
"""All that a tower can read at a request."""
USERS = {"u1": ["i1", "i5", "i9"], "u2": ["i0"], "u3": [f"i{n}" for n in range(25)]}


class Service:
    """The running service, and the same models in this process."""

    def __init__(self, url: str, bundle: Path, store: EventStore) -> None:
        self.client = httpx.Client(base_url=url, timeout=30)
        self.matcher = Matcher(str(bundle), MATCHER)
        self.reranker = Reranker(str(bundle), POLICY)
        self.store = store

    def recommend(self, **body: object) -> dict[str, Any]:
        response = self.client.post("/v1/recommend", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def offline(self, query: Query) -> list[RankedItem]:
        return recommend(self.matcher, self.reranker, [query])[0]


@pytest.fixture(scope="module")
def service(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    from ray import serve

    folder = tmp_path_factory.mktemp("service")
    bundle = build_tiny_bundle(folder / "v-tiny", catalogue=small_catalogue(), head_std=1.0, towers=TOWERS)
    store = EventStore(f"sqlite:///{folder / 'events.db'}")
    for user_id, item_ids in USERS.items():
        events = [
            Event(user_id, item_id, "view", 1e9 + n, 3.0 + n, event_id=f"{user_id}-{n}")
            for n, item_id in enumerate(item_ids)
        ]
        store.append(events, 2e9)
    cfg = ServeConfig(
        bundle=str(bundle),
        storage_path=str(folder),
        port=free_port(),
        matcher=MATCHER,
        policy=POLICY,
        deadline_ms=10_000,
    )
    service = Service(start(cfg), bundle, store)
    yield service
    service.client.close()
    serve.shutdown()
    store.close()


def served_ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def assert_same_list(answer: dict[str, Any], expected: list[RankedItem]) -> None:
    assert answer["degraded"] == []
    assert served_ids(answer) == [item.item_id for item in expected]
    assert [item["rank"] for item in answer["items"]] == [item.rank for item in expected]
    assert [item["score"] for item in answer["items"]] == pytest.approx([item.score for item in expected], abs=1e-5)


@pytest.mark.parametrize("user_id", USERS)
@pytest.mark.parametrize(
    ("body", "filters"),
    [
        ({}, Filters()),
        ({"filters": {"categories": ["music"], "exclude_items": ["i13"]}}, Filters(("music",), (), None, ("i13",))),
        ({"filters": {"languages": ["en"], "max_duration_seconds": 350}}, Filters((), ("en",), 350.0)),
    ],
)
def test_served_list_equals_the_list_computed_offline(
    service: Service, user_id: str, body: dict[str, Any], filters: Filters
) -> None:
    history = service.store.history(user_id, 1000)
    expected = service.offline(Query(user_id, history, k=8, filters=filters))
    assert expected
    assert_same_list(service.recommend(user_id=user_id, k=8, **body), expected)


def test_served_explanation_equals_the_offline_one(service: Service) -> None:
    query = Query("u1", service.store.history("u1", 1000), k=3, explain=True)
    answer = service.recommend(user_id="u1", k=3, explain=True)
    for got, expected in zip(answer["items"], service.offline(query), strict=True):
        assert [b["item_id"] for b in got["explanation"]["because"]] == [b.item_id for b in expected.because]
        assert [b["modality"] for b in got["explanation"]["because"]] == [b.modality for b in expected.because]
        assert got["explanation"]["tags"] == list(expected.tags)


def test_served_to_many_at_once_equals_served_to_one(service: Service) -> None:
    """Concurrent requests share batches in the matcher; nobody gets another user's list."""
    alone = {user_id: served_ids(service.recommend(user_id=user_id)) for user_id in USERS}
    with ThreadPoolExecutor(12) as pool:
        asked = list(USERS) * 8
        answers = list(pool.map(lambda user_id: service.recommend(user_id=user_id), asked))
    assert [served_ids(answer) for answer in answers] == [alone[user_id] for user_id in asked]


def test_served_rank_equals_offline(service: Service) -> None:
    items = ["i30", "i2", "i7", "nothing"]
    answer = service.client.post("/v1/rank", json={"user_id": "u1", "items": items}).json()
    query = Query("u1", service.store.history("u1", 1000), k=3)
    assert_same_list(answer, service.reranker.rerank(query, service.matcher.score(query, items[:3])))
    assert answer["unknown_items"] == ["nothing"]


def test_served_similar_equals_offline(service: Service) -> None:
    answer = service.client.get("/v1/items/i3/similar", params={"k": 4}).json()
    assert served_ids(answer) == [c.item_id for c in service.matcher.similar("i3", 4)]


def test_a_user_known_by_profile_alone_gets_a_list_of_their_own(service: Service) -> None:
    expected = service.offline(Query("newcomer", (), k=5))
    assert [item.score for item in expected] != [item.score for item in service.offline(Query("nobody", (), k=5))]
    assert_same_list(service.recommend(user_id="newcomer", k=5), expected)


def test_unknown_user_gets_popular_items_marked(service: Service) -> None:
    answer = service.recommend(user_id="nobody", k=5)
    assert (answer["degraded"], served_ids(answer)) == (["unknown_user"], [f"i{n}" for n in range(5)])


def test_posted_like_changes_the_next_list_and_counts_once(service: Service) -> None:
    before = service.recommend(user_id="u2")
    liked = before["items"][0]["item_id"]
    count = service.store.count()
    for expected in ({"accepted": 1, "duplicates": 0}, {"accepted": 0, "duplicates": 1}):
        answer = service.client.post("/v1/feedback", json={"events": [feedback_event("once", liked, user_id="u2")]})
        assert answer.json() == {**expected, "rejected": []}
    assert service.store.count() == count + 1
    after = service.recommend(user_id="u2")
    assert liked not in served_ids(after)
    assert [item["score"] for item in after["items"]] != [item["score"] for item in before["items"]]


def test_ready_names_the_bundle(service: Service) -> None:
    ready = service.client.get("/health/ready").json()
    assert (ready["status"], ready["model_version"], ready["index_version"]) == ("ready", "v-tiny", TOWERS_VERSION)
    assert 'route="/v1/recommend",status="200"' in service.client.get("/metrics").text


def test_bad_request_is_a_problem_through_serve_too(service: Service) -> None:
    answer = service.client.post("/v1/recommend", json={"k": "ten"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_models_killed_lists_go_on_marked_degraded_and_then_recover(service: Service) -> None:
    assert kill_processes("matcher", "reranker") >= 2
    answer = service.recommend(user_id="u1", deadline_ms=1500)
    assert set(answer["degraded"]) & {"matcher_unavailable", "reranker_unavailable"}
    assert len(answer["items"]) == 10
    assert not set(USERS["u1"]) & set(served_ids(answer))
    wait_until(lambda: service.recommend(user_id="u1")["degraded"] == [])


def test_service_killed_right_after_the_answer_loses_nothing(service: Service) -> None:
    events = [feedback_event(f"kill-{n}", f"i{n}", user_id="u4") for n in range(20)]
    assert service.client.post("/v1/feedback", json={"events": events}).json()["accepted"] == 20
    assert kill_processes("gateway", "matcher", "reranker", "Proxy", "Controller") >= 4
    assert [e.event_id for e in service.store.history("u4", 100)] == [e["event_id"] for e in events]
    wait_until(lambda: service.client.get("/health/ready").json()["status"] == "ready")
    again = service.client.post("/v1/feedback", json={"events": events}).json()
    assert (again["accepted"], again["duplicates"]) == (0, 20)
    expected = service.offline(Query("u4", service.store.history("u4", 1000)))
    assert_same_list(service.recommend(user_id="u4"), expected)


def wait_until(is_true: Callable[[], bool], timeout_seconds: float = 90) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            if is_true():
                return
        except (httpx.HTTPError, ValueError, AssertionError):
            pass  # the proxy is not back yet
        assert time.monotonic() < deadline, "the service did not come back"
        time.sleep(0.1)


def kill_processes(*names: str) -> int:
    """SIGKILL to the Serve processes, below this one, whose title holds one of `names`; returns how many there were."""
    titles = {pid: title for pid, title in descendants(os.getpid()).items() if title.startswith("ray::")}
    doomed = [pid for pid, title in titles.items() if any(name in title for name in names)]
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    return len(doomed)


def descendants(root: int) -> dict[int, str]:
    """Process ids and titles of all children of `root`, and theirs."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    found: dict[int, str] = {}
    generation = {root}
    while generation:
        generation = {pid for pid, parent in parents.items() if parent in generation}
        for pid in generation:
            found[pid] = title_of(pid)
    return found


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
