"""The edge through Ray Serve's proxy: keys from a file, rates in an actor, headers that the proxy itself reads."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from avrec_ray.config import LimitsConfig
from avrec_ray.retrieval.matcher import Matcher
from serve_apps.config import ServeConfig
from serve_apps.keys import Key
from serve_apps.problems import ProblemError
from serve_apps.rate_actor import NAMESPACE, SharedBuckets
from serve_apps.rate_limits import RateLimiter, TokenBuckets
from serve_apps.run import start
from tests.serve_apps.conftest import feedback_event, free_port, small_catalogue
from tests.serve_apps.test_service import kill_processes, wait_until
from tests.tiny_bundle import build_tiny_bundle

pytestmark = [pytest.mark.ray, pytest.mark.slow]

READER, WRITER, NEW = "reader-key-0123456789", "writer-key-0123456789", "new-key-0123456789"
LIMITS = LimitsConfig(read_per_second=20, read_burst=100, write_per_second=20, write_burst=100, url_bytes=4096)


def write_keys(path: Path, **scopes_of: list[str]) -> None:
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)
    rows = [{"key": secret, "scopes": scopes} for secret, scopes in scopes_of.items()]
    beside.write_text(json.dumps({"keys": rows}))
    beside.rename(path)


class Service:
    def __init__(self, url: str, keys: Path, bundle: Path) -> None:
        self.client = httpx.Client(base_url=url, timeout=30, headers={"X-API-Key": READER})
        self.keys, self.bundle, self.port = keys, bundle, self.client.base_url.port


@pytest.fixture(scope="module")
def service(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    from ray import serve

    folder = tmp_path_factory.mktemp("edge")
    keys = folder / "keys.json"
    write_keys(keys, **{READER: ["read"], WRITER: ["write"]})
    bundle = build_tiny_bundle(folder / "v-edge", catalogue=small_catalogue())
    cfg = ServeConfig(bundle=str(bundle), storage_path=str(folder), port=free_port(), deadline_ms=10_000, limits=LIMITS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AVREC_API_KEYS_FILE", str(keys))
        running = Service(start(cfg, ready_timeout_seconds=250), keys, bundle)
    yield running
    running.client.close()
    serve.shutdown()


def test_keys_of_the_file_have_their_scopes(service: Service) -> None:
    ask, like = {"user_id": "u1"}, {"events": [feedback_event("e1")]}
    statuses = {
        key: (
            service.client.post("/v1/recommend", json=ask, headers={"X-API-Key": key}).status_code,
            service.client.post("/v1/feedback", json=like, headers={"X-API-Key": key}).status_code,
        )
        for key in (READER, WRITER, "not-a-key-0123456789")
    }
    assert list(statuses.values()) == [(200, 403), (403, 200), (401, 401)]


def test_a_write_after_a_slow_start_is_counted(ray_cluster: None) -> None:
    """On a busy node the actor begins seconds after the gateway; what is asked before cannot be counted."""
    import ray

    class SlowBuckets(TokenBuckets):
        def __init__(self) -> None:
            time.sleep(2.0)
            super().__init__()

    writer = Key("c" * 64, ("write",), "slow")

    async def write(waits: bool) -> None:
        slow = ray.remote(SlowBuckets).options(name="rate_limits/slow", namespace=NAMESPACE, num_cpus=0).remote()
        try:
            buckets = SharedBuckets("slow")
            if waits:
                await buckets.started()
            await RateLimiter(LIMITS, buckets.take).admit(writer, "write")
        finally:
            ray.kill(slow)

    with pytest.raises(ProblemError, match="cannot be counted now"):
        asyncio.run(write(waits=False))
    gone = {"name": "rate_limits/slow", "namespace": NAMESPACE}
    wait_until(lambda: gone not in ray.util.list_named_actors(all_namespaces=True))
    asyncio.run(write(waits=True))


def test_search_is_the_matchers_through_the_service(service: Service) -> None:
    answer = service.client.get("/v1/search", params={"q": "Title 7", "k": 4}).json()
    expected = Matcher(service.bundle).search("Title 7", 4) or []
    assert (answer["kind"], answer["degraded"]) == ("embedding", [])
    assert [item["item_id"] for item in answer["items"]] == [candidate.item_id for candidate in expected]


def test_clients_of_gorse_and_metarank_are_served(service: Service) -> None:
    assert len(service.client.get("/api/recommend/u1", params={"n": 3}).json()) == 3
    ranking = {"id": "r", "timestamp": 1, "items": [{"id": "i1"}, {"id": "i2"}]}
    assert len(service.client.post("/rank/champion", json=ranking).json()["items"]) == 2


@pytest.mark.parametrize("offered", ["trace-42", None])
def test_the_answer_has_one_request_id(service: Service, offered: str | None) -> None:
    headers = {} if offered is None else {"X-Request-Id": offered}
    found = service.client.get("/health/live", headers=headers).headers.get_list("x-request-id")
    assert len(found) == 1
    assert offered in (found[0], None)


def test_an_unclean_request_id_is_not_the_one_that_is_logged(service: Service) -> None:
    """Serve's proxy repeats what it was sent; ours stands beside it."""
    found = service.client.get("/health/live", headers={"X-Request-Id": "a b"}).headers.get_list("x-request-id")
    assert "a b" in found
    assert any(len(one) == 32 for one in found)


@pytest.mark.parametrize("value", ["0", "-5", "1e9", "nan", "later"])
def test_serves_own_timeout_header_raises_no_deadline(service: Service, value: str) -> None:
    started = time.monotonic()
    headers = {"X-Request-Timeout-Seconds": value, "X-Request-Disconnect-Disabled": "?1"}
    answer = service.client.post("/v1/recommend", json={"user_id": "u1", "deadline_ms": 1}, headers=headers)
    assert (answer.status_code, "deadline" in answer.json()["degraded"]) == (200, True)
    assert time.monotonic() - started < 10


def test_heads_that_are_too_much_are_refused(service: Service) -> None:
    assert service.client.get("/v1/items/i1", headers={"X-Fill": "a" * 20_000}).status_code == 431
    assert service.client.get("/v1/items/" + "a" * 5000).status_code == 414


def test_keys_rotate_without_a_restart(service: Service) -> None:
    assert service.client.get("/v1/items/i1", headers={"X-API-Key": NEW}).status_code == 401
    write_keys(service.keys, **{READER: ["read"], WRITER: ["write"], NEW: ["read"]})
    wait_until(lambda: service.client.get("/v1/items/i1", headers={"X-API-Key": NEW}).status_code == 200)
    write_keys(service.keys, **{READER: ["read"], WRITER: ["write"]})
    wait_until(lambda: service.client.get("/v1/items/i1", headers={"X-API-Key": NEW}).status_code == 401)


def test_a_flood_is_429_and_the_actor_that_counts_may_die(service: Service) -> None:
    import ray

    def status() -> int:
        return service.client.get("/v1/items/i1").status_code

    started, statuses = time.monotonic(), []
    while 429 not in statuses:
        statuses.append(status())
        assert time.monotonic() - started < 120
    most = LIMITS.read_burst + (time.monotonic() - started + 60) * LIMITS.read_per_second
    assert statuses.count(200) <= most
    assert set(statuses) <= {200, 429}
    assert service.client.get("/health/live").status_code == 200
    actor = ray.get_actor(f"rate_limits/{service.port}", NAMESPACE)
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, 9)
    wait_until(lambda: status() == 200)  # another actor, with full buckets
    like = {"events": [feedback_event("after")]}
    headers = {"X-API-Key": WRITER}
    wait_until(lambda: service.client.post("/v1/feedback", json=like, headers=headers).status_code == 200)


def test_keys_survive_the_death_of_the_gateway(service: Service) -> None:
    assert kill_processes("gateway") >= 1
    wait_until(lambda: service.client.get("/v1/items/i1").status_code == 200)
    assert service.client.get("/v1/items/i1", headers={"X-API-Key": NEW}).status_code == 401
