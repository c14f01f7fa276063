"""The production layout on Ray Serve: both models in one replica, calls that carry many queries."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from avrec_ray.feedback.store import EventStore
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.types import Event, Query
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.serve_apps.conftest import free_port, small_catalogue
from tests.tiny_bundle import build_tiny_bundle

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MATCHER = MatcherConfig(num_candidates=20, num_fresh=2)
HISTORIES = {f"u{n}": [f"i{(n + 7 * place) % 39}" for place in range(n % 6)] for n in range(24)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fused")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    return build_tiny_bundle(folder / "v-tiny", catalogue=small_catalogue(), head_std=1.0)


@pytest.fixture(scope="module")
def histories(folder: Path) -> dict[str, tuple[Event, ...]]:
    store = EventStore(f"sqlite:///{folder / 'events.db'}")
    events = {
        user_id: tuple(
            Event(user_id, item_id, "view", 1e9 + place, 3.0, event_id=f"{user_id}-{place}")
            for place, item_id in enumerate(item_ids)
        )
        for user_id, item_ids in HISTORIES.items()
    }
    store.append([event for history in events.values() for event in history], 2e9)
    store.close()
    return events


@pytest.fixture(scope="module")
def client(
    ray_cluster: None, folder: Path, bundle: Path, histories: dict[str, tuple[Event, ...]]
) -> Iterator[httpx.Client]:
    from ray import serve

    cfg = ServeConfig(
        bundle=str(bundle),
        storage_path=str(folder),
        port=free_port(),
        matcher=MATCHER,
        fused_models=True,
        max_batch=8,
        deadline_ms=10_000,
    )
    with httpx.Client(base_url=start(cfg), timeout=30) as client:
        yield client
    serve.shutdown()


def test_lists_asked_for_at_the_same_time_are_those_of_the_models(
    client: httpx.Client, bundle: Path, histories: dict[str, tuple[Event, ...]]
) -> None:
    queries = [Query(user_id, history, 6) for user_id, history in histories.items()]
    lists = recommend(Matcher(str(bundle), MATCHER), Reranker(str(bundle)), queries, 0.0)
    expected = {query.user_id: [item.item_id for item in items] for query, items in zip(queries, lists, strict=True)}

    def ask(user_id: str) -> None:
        answer = client.post("/v1/recommend", json={"user_id": user_id, "k": 6}).json()
        assert set(answer["degraded"]) <= {"unknown_user"}
        assert [item["item_id"] for item in answer["items"]] == expected[user_id]
        assert answer["stages_ms"]["match"] is not None
        assert answer["stages_ms"]["rerank"] is not None

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, list(HISTORIES) * 4))


def test_the_other_calls_are_answered_by_the_same_replica(client: httpx.Client) -> None:
    assert client.get("/health/ready").json()["status"] == "ready"
    explained = client.post("/v1/recommend", json={"user_id": "u5", "k": 3, "explain": True}).json()
    assert explained["degraded"] == []
    assert any(item["explanation"]["because"] for item in explained["items"])
    ranked = client.post("/v1/rank", json={"user_id": "u5", "items": ["i3", "i4", "nothing"]}).json()
    assert (ranked["degraded"], ranked["unknown_items"]) == ([], ["nothing"])
    assert client.get("/v1/items/i3/similar").json()["degraded"] == []
