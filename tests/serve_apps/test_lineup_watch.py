"""A gateway follows the lineup that others write, and writes that a candidate must go."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from avrec_ray.feedback.store import EventStore
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.lineup import Arm, Lineup
from avrec_ray.rollout.store import RolloutStore
from serve_apps.flow import RequestFlow
from serve_apps.lineup_watch import LineupWatch
from serve_apps.variants import Variants
from tests.serve_apps.conftest import CategoryModels, client_of, small_catalogue

USERS = [f"user{n}" for n in range(30)]
ARMS = {name: Arm(model_version=name, bundle=f"/b/{name}", app=f"models-{name}") for name in ("v1", "v2")}


@dataclass
class Gateway:
    """With a watch, over bundles that a test may break."""

    store: EventStore
    lineups: RolloutStore
    models: dict[str, CategoryModels] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)
    client: httpx.Client = None  # type: ignore[assignment]
    variants: Variants = None  # type: ignore[assignment]

    def __call__(self, arm: Arm) -> RequestFlow:
        name = arm.model_version
        if name in self.unreadable:
            raise OSError(f"{arm.bundle} is not mounted here")
        self.opened.append(name)
        return RequestFlow(self.models[name].as_models(), self.store, small_catalogue(), name, "v", 50, 3000)

    def write(self, lineup: Lineup) -> None:
        newest = self.lineups.current()
        self.lineups.append(lineup, 0 if newest is None else newest.revision)

    def lineup(self) -> Lineup:
        newest = self.lineups.current()
        assert newest is not None
        return newest.lineup

    def versions(self) -> set[str]:
        answers = (self.client.post("/v1/recommend", json={"user_id": user}).json() for user in USERS)
        return {answer["model_version"] for answer in answers}

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[1])


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def gateway(store: EventStore, tmp_path: Path) -> Iterator[Gateway]:
    lineups = RolloutStore(f"sqlite:///{tmp_path / 'events.db'}", 10.0)
    gateway = Gateway(store, lineups)
    for name in ARMS:
        gateway.models[name] = CategoryModels(small_catalogue(), matcher_version=name, reranker_version=name)
    alone = Lineup(champion=ARMS["v1"])
    gateway.write(alone)
    cfg = RolloutConfig(poll_seconds=0.05, linger_seconds=0.2, guard_requests=10, mirror_share=0.0)
    gateway.variants = Variants(gateway(ARMS["v1"]), 0, alone, cfg)
    LineupWatch(lineups, gateway.variants, gateway)
    with client_of(gateway.variants) as gateway.client:
        yield gateway
    lineups.close()


def test_a_swap_and_the_way_back_are_followed(gateway: Gateway) -> None:
    assert gateway.versions() == {"v1"}
    gateway.write(gateway.lineup().promoted(ARMS["v2"], "swap"))
    wait_until(lambda: gateway.versions() == {"v2"})
    assert gateway.metric("avrec_lineup_revision ") == 2
    gateway.write(gateway.lineup().promoted(ARMS["v1"], "rollback"))
    wait_until(lambda: gateway.versions() == {"v1"})
    assert gateway.opened == ["v1", "v2"]  # the one before was kept at hand


def test_a_candidate_that_was_there_before_the_gateway_is_taken_up(gateway: Gateway) -> None:
    gateway.write(gateway.lineup().challenged(ARMS["v2"], "ab", 0.5, "test"))
    wait_until(lambda: gateway.versions() == {"v1", "v2"})


def test_a_bundle_that_cannot_be_read_leaves_what_serves_and_is_tried_again(gateway: Gateway) -> None:
    gateway.unreadable.add("v2")
    gateway.write(gateway.lineup().promoted(ARMS["v2"], "swap"))
    wait_until(lambda: gateway.metric("avrec_lineup_behind ") == 1)
    assert gateway.versions() == {"v1"}
    gateway.unreadable.clear()
    wait_until(lambda: gateway.versions() == {"v2"})
    wait_until(lambda: gateway.metric("avrec_lineup_behind ") == 0)


def test_models_that_do_not_answer_yet_are_waited_for(gateway: Gateway) -> None:
    gateway.models["v2"].failing.add("match")
    gateway.write(gateway.lineup().promoted(ARMS["v2"], "swap"))
    wait_until(lambda: gateway.metric("avrec_lineup_behind ") == 1)
    assert gateway.versions() == {"v1"}
    gateway.models["v2"].failing.clear()
    wait_until(lambda: gateway.versions() == {"v2"})


def test_that_a_candidate_is_ill_is_written_for_all(gateway: Gateway) -> None:
    gateway.write(gateway.lineup().challenged(ARMS["v2"], "canary", 0.5, "test"))
    wait_until(lambda: gateway.versions() == {"v1", "v2"})
    gateway.models["v2"].failing.add("rerank")
    wait_until(lambda: gateway.versions() == {"v1"})
    wait_until(lambda: gateway.lineup().candidate is None)
    assert "requests failed" in gateway.lineup().reason
    gateway.models["v2"].failing.clear()
    gateway.write(gateway.lineup().challenged(ARMS["v2"], "canary", 0.5, "mended"))
    wait_until(lambda: gateway.versions() == {"v1", "v2"})


def test_an_ill_candidate_that_is_promoted_in_that_moment_goes_too(gateway: Gateway) -> None:
    gateway.write(gateway.lineup().challenged(ARMS["v2"], "canary", 0.5, "test"))
    wait_until(lambda: gateway.versions() == {"v1", "v2"})
    now = gateway.lineups.current()
    assert now is not None
    gateway.lineups.append(now.lineup.promoted(ARMS["v2"], "its time was over"), now.revision)
    gateway.variants.condemn(now.revision, now.lineup, "10 of 10 requests failed")
    wait_until(lambda: gateway.lineup().champion == ARMS["v1"])
    assert gateway.lineup().reason == "10 of 10 requests failed"


def test_flows_that_nobody_needs_are_let_go(gateway: Gateway) -> None:
    gateway.write(gateway.lineup().challenged(ARMS["v2"], "ab", 0.5, "test"))
    wait_until(lambda: gateway.versions() == {"v1", "v2"})
    gateway.write(gateway.lineup().without_candidate("stopped"))
    wait_until(lambda: gateway.versions() == {"v1"})
    time.sleep(0.6)  # longer than they linger
    gateway.write(gateway.lineup().challenged(ARMS["v2"], "ab", 0.5, "again"))
    wait_until(lambda: gateway.opened == ["v1", "v2", "v2"])
