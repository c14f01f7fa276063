"""Rates of keys: exact buckets, leases of several replicas, what happens while nobody can count."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.config import LimitsConfig
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.store import EventStore
from serve_apps.keys import Key, KeyRing
from serve_apps.problems import ProblemError
from serve_apps.rate_limits import LEASE_SECONDS, RateLimiter, TokenBuckets
from tests.serve_apps.conftest import feedback_event
from tests.serve_apps.test_auth import SECRETS, ring_of_scopes

SHOP, OTHER = Key("a" * 64, ("read", "write"), "shop"), Key("b" * 64, ("read",), "other")


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def limiters(limits: LimitsConfig, clock: Clock, replicas: int) -> list[RateLimiter]:
    """Replicas that share one place, as they do through the actor."""
    buckets = TokenBuckets(clock)

    async def take(name: str, per_second: float, burst: int, wanted: int) -> tuple[int, float]:
        return buckets.take(name, per_second, burst, wanted)

    return [RateLimiter(limits, take, clock) for _ in range(replicas)]


def admitted(limiter: RateLimiter, key: Key = SHOP, kind: str = "read") -> bool:
    try:
        asyncio.run(limiter.admit(key, kind))
    except ProblemError as error:
        if error.status != 429:
            raise
        return False
    return True


@given(
    per_second=st.floats(0.1, 50),
    burst=st.integers(1, 20),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 30)), max_size=30),
)
def test_buckets_never_give_more_than_burst_and_rate_allow(
    per_second: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    buckets = TokenBuckets(clock)
    granted = 0
    for pause, wanted in steps:
        clock.seconds += pause
        got, wait = buckets.take("shop", per_second, burst, wanted)
        granted += got
        assert 0 <= got <= wanted
        assert granted <= burst + (clock.seconds - 100.0) * per_second + 1e-6
        if not got:
            assert wait > 0
            clock.seconds += wait + 1e-9
            assert buckets.take("shop", per_second, burst, 1)[0] == 1, "Retry-After was too short"
            granted += 1


def test_buckets_of_a_clock_that_steps_back_give_nothing_away() -> None:
    clock = Clock()
    buckets = TokenBuckets(clock)
    assert buckets.take("shop", 1.0, 5, 5) == (5, 0.0)
    clock.seconds -= 50
    assert buckets.take("shop", 1.0, 5, 5) == (0, 1.0)


@given(replicas=st.integers(1, 4), arrivals=st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 3)), max_size=120))
def test_replicas_together_admit_no_more_than_the_limit(replicas: int, arrivals: list[tuple[float, int]]) -> None:
    limits = LimitsConfig(read_per_second=40, read_burst=10)
    clock = Clock()
    pool = limiters(limits, clock, replicas)
    count = 0
    for pause, which in arrivals:
        clock.seconds += pause
        count += admitted(pool[which % replicas])
    assert count <= limits.read_burst + (clock.seconds - 100.0) * limits.read_per_second + 1e-6


def test_a_steady_client_below_the_rate_is_never_refused() -> None:
    clock = Clock()
    pool = limiters(LimitsConfig(read_per_second=40, read_burst=10), clock, 3)
    for number in range(2000):
        clock.seconds += 1 / 35
        assert admitted(pool[number % 3]), number


def test_replicas_seldom_ask_for_tokens() -> None:
    clock, asked = Clock(), 0

    async def take(name: str, per_second: float, burst: int, wanted: int) -> tuple[int, float]:
        nonlocal asked
        asked += 1
        return wanted, 0.0

    limiter = RateLimiter(LimitsConfig(read_per_second=200), take, clock)
    for _ in range(1000):
        assert admitted(limiter)
    assert asked == 1000 / (200 * LEASE_SECONDS)


def test_keys_and_kinds_have_buckets_of_their_own() -> None:
    (limiter,) = limiters(LimitsConfig(read_per_second=1, read_burst=2, write_per_second=1, write_burst=1), Clock(), 1)
    assert [admitted(limiter) for _ in range(3)] == [True, True, False]
    assert [admitted(limiter, SHOP, "write") for _ in range(2)] == [True, False]
    assert admitted(limiter, OTHER)


def test_rate_zero_is_no_limit() -> None:
    async def take(*_: object) -> tuple[int, float]:
        raise AssertionError("nobody should ask")

    limiter = RateLimiter(LimitsConfig(read_per_second=0), take)
    assert all(admitted(limiter) for _ in range(100))


@pytest.mark.parametrize("failure", ["dead", "hangs"])
def test_without_buckets_reads_go_on_and_writes_wait(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.rate_limits.CALL_SECONDS", 0.05)

    async def take(*_: object) -> tuple[int, float]:
        if failure == "hangs":
            await asyncio.sleep(30)
        raise ConnectionError("the actor died")

    limiter = RateLimiter(LimitsConfig(), take)
    assert admitted(limiter)
    with pytest.raises(ProblemError, match="nothing is stored; send it again") as caught:
        asyncio.run(limiter.admit(SHOP, "write"))
    assert caught.value.status == 503


def test_over_http_the_429_says_when_and_stores_nothing(
    make_client: Callable[..., httpx.Client], store: EventStore
) -> None:
    limits = LimitsConfig(read_per_second=0.2, read_burst=2, write_per_second=0.2, write_burst=1)
    clock = Clock()
    (limiter,) = limiters(limits, clock, 1)
    client = make_client(keys=ring_of_scopes(), admit=limiter.admit)
    reads = [client.get("/v1/items/i1", headers={"X-API-Key": SECRETS["read"]}) for _ in range(3)]
    assert [r.status_code for r in reads] == [200, 200, 429]
    assert reads[-1].headers["retry-after"] == "5"
    assert reads[-1].json()["detail"].startswith("more than 0.2 requests a second that read")
    for number, expected in enumerate((200, 429)):
        body = {"events": [feedback_event(f"e{number}")]}
        assert client.post("/v1/feedback", json=body, headers={"X-API-Key": SECRETS["write"]}).status_code == expected
    assert store.count() == 1
    clock.seconds += 5
    assert client.get("/v1/items/i1", headers={"X-API-Key": SECRETS["read"]}).status_code == 200


def test_over_http_strangers_and_wrong_scopes_use_up_no_tokens(make_client: Callable[..., httpx.Client]) -> None:
    counted: list[str] = []

    async def admit(key: Key, kind: str) -> None:
        counted.append(kind)

    client = make_client(keys=ring_of_scopes(), admit=admit)
    client.get("/v1/items/i1", headers={"X-API-Key": "not-a-key-0123456789"})
    client.post("/v1/feedback", json={"events": []}, headers={"X-API-Key": SECRETS["read"]})
    assert counted == []
    client.get("/v1/items/i1", headers={"X-API-Key": SECRETS["admin"]})
    client.post("/v1/feedback", json={"events": []}, headers={"X-API-Key": SECRETS["admin"]})
    assert counted == ["read", "write"]
    assert client.get("/health/live").status_code == 200
    assert len(counted) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"read_per_second": -1}, r"serve.limits.read_per_second=-1 is outside"),
        ({"write_burst": 0}, r"serve.limits.write_burst=0 is outside"),
        ({"header_bytes": 10}, r"serve.limits.header_bytes=10 is outside"),
        ({"body_seconds": 0}, r"serve.limits.body_seconds=0 is outside"),
    ],
)
def test_limits_out_of_range_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LimitsConfig(**values)  # type: ignore[arg-type]


def test_no_keys_no_counting(make_client: Callable[..., httpx.Client]) -> None:
    async def admit(key: Key, kind: str) -> None:
        raise AssertionError("without keys there is nobody to count")

    assert make_client(keys=KeyRing(), admit=admit).get("/v1/items/i1").status_code == 200
