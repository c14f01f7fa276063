"""New items through the whole service on Ray Serve: posted, servable, killed in between, restarted, taken down."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.retrieval.config import MatcherConfig
from serve_apps.config import ServeConfig
from serve_apps.run import start
from tests.media.render import tone, write_media
from tests.serve_apps.conftest import free_port, small_catalogue
from tests.serve_apps.test_service import kill_processes, wait_until
from tests.tiny_bundle import build_tiny_bundle, tiny_media

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_CLIPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    folder = tmp_path_factory.mktemp("new-items")
    bundle = build_tiny_bundle(folder / "v-tiny", catalogue=small_catalogue(), head_std=1.0, media=tiny_media())
    (folder / "media").mkdir()
    for number in range(NUM_CLIPS):
        write_media(folder / "media" / f"{number}.mp4", num_frames=10, fps=10, sound=tone(1.0, 300.0 + 50 * number))
    return ServeConfig(
        bundle=str(bundle),
        storage_path=str(folder),
        port=free_port(),
        matcher=MatcherConfig(num_candidates=20, num_fresh=12),
        policy=PolicyConfig(fresh_share=0.5),
        new_items=NewItemsConfig(media_roots=[str(folder / "media")], lease_seconds=2.0),
        deadline_ms=20_000,
    )


@pytest.fixture(scope="module")
def service(ray_cluster: None, config: ServeConfig) -> Iterator[httpx.Client]:
    from ray import serve

    with httpx.Client(base_url=start(config, 300), timeout=60) as client:
        yield client
    serve.shutdown()


def post(client: httpx.Client, config: ServeConfig, item_id: str, number: int) -> None:
    place = f"{config.storage_path}/media/{number}.mp4"
    body = {"item_id": item_id, "media_uri": place, "title": f"clip {number}", "category": "music"}
    answer = client.post("/v1/items", json=body)
    assert (answer.status_code, answer.json()["status"]) == (202, "queued"), answer.text


def status(client: httpx.Client, item_id: str) -> str:
    return str(client.get(f"/v1/items/{item_id}/status").json()["status"])


def listed(client: httpx.Client, **body: Any) -> list[str]:
    answer = client.post("/v1/recommend", json={"k": 40, **body}).json()
    assert answer["degraded"] in ([], ["unknown_user"]), answer
    return [item["item_id"] for item in answer["items"]]


def soon(is_true: Callable[[], bool]) -> None:
    wait_until(is_true, timeout_seconds=240)


def test_posted_clip_is_soon_recommended_with_reasons_and_similar(service: httpx.Client, config: ServeConfig) -> None:
    began = time.monotonic()
    post(service, config, "n0", 0)
    soon(lambda: status(service, "n0") == "servable")
    print(f"servable after {time.monotonic() - began:.1f} s")
    similar = service.get("/v1/items/n0/similar", params={"k": 3}).json()
    assert (len(similar["items"]), similar["degraded"]) == (3, [])
    session = [{"item_id": "i1", "event": "like"}, {"item_id": "i5", "event": "like"}]
    soon(lambda: "n0" in listed(service, session=session))
    answer = service.post("/v1/recommend", json={"k": 40, "session": session, "explain": True}).json()
    (mine,) = [item for item in answer["items"] if item["item_id"] == "n0"]
    assert mine["explanation"]["because"]
    assert "n0" in listed(service, session=session, filters={"categories": ["music"]})
    assert "n0" not in listed(service, session=session, filters={"categories": ["sport"]})
    liked = [{"item_id": "n0", "event": "like"}]
    assert "n0" not in listed(service, session=liked)


def test_hostile_media_are_refused_with_their_reason(service: httpx.Client) -> None:
    headers = {"Content-Type": "video/mp4"}
    params = {"item": '{"item_id": "evil"}'}
    assert service.post("/v1/items", params=params, content=b"#EXTM3U\n/etc/passwd", headers=headers).status_code == 202
    soon(lambda: status(service, "evil") == "refused")
    assert service.get("/v1/items/evil/status").json()["reason"] == "not_media"


@pytest.mark.parametrize("first", [1, NUM_CLIPS])
def test_killed_worker_loses_no_item(service: httpx.Client, config: ServeConfig, first: int) -> None:
    names = [f"k{number}" for number in range(first, first + NUM_CLIPS - 1)]

    def states() -> set[str]:
        return {status(service, item_id) for item_id in names}

    for number, name in enumerate(names, 1):
        post(service, config, name, number)
    soon(lambda: states() != {"queued"})  # the worker has begun
    assert kill_processes(":ingest") == 1
    soon(lambda: states() == {"servable"})


def test_deleted_item_is_gone_and_the_rest_survives_a_restart(service: httpx.Client, config: ServeConfig) -> None:
    from ray import serve

    for item_id in ("k1", "i2"):
        assert service.delete(f"/v1/items/{item_id}").json()["status"] == "deleted"
        assert item_id not in listed(service)
    session = [{"item_id": "i1", "event": "like"}, {"item_id": "i5", "event": "like"}]
    soon(lambda: not {"k1", "i2"} & set(listed(service, session=session)))
    assert {"n0", "k2"} <= set(listed(service, session=session))
    serve.shutdown()
    start(config, 300)
    soon(lambda: service.get("/health/ready").json()["status"] == "ready")
    assert {status(service, item_id) for item_id in ("n0", "k2")} == {"servable"}
    assert {status(service, item_id) for item_id in ("k1", "i2")} == {"deleted"}
    again = listed(service, session=session)
    assert {"n0", "k2"} <= set(again)
    assert not {"k1", "i2"} & set(again)
    assert service.get("/v1/items/i2/similar").status_code == 404
    assert len(service.get("/v1/items/n0/similar").json()["items"]) == 10
