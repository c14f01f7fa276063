"""A bundle on its way from asked for to serving, over applications that start, fail and disappear when told to."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from avrec_ray.errors import StageError
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.lineup import Arm, Lineup
from avrec_ray.rollout.replay import Probe
from avrec_ray.rollout.store import Rollout, RolloutStore
from serve_apps.conductor import Conductor
from tests.serve_apps.conftest import small_catalogue
from tests.tiny_bundle import build_tiny_bundle

ITEMS = small_catalogue().item_ids
PROBES = [Probe((), None), *(Probe((), ITEMS[n]) for n in range(20))]


@dataclass
class SomeApps:
    """Starts at once unless told otherwise; every application gives the first twenty items."""

    states: dict[str, str] = field(default_factory=dict)
    next_state: str = "running"
    given: dict[str, list[str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    settings: str = "s1"

    def name(self, model_version: str) -> str:
        return f"models-{model_version}-{self.settings}"

    def names(self) -> list[str]:
        return list(self.states)

    def start(self, arm: Arm) -> None:
        self.states[arm.app] = self.next_state

    def state(self, app: str) -> str:
        return self.states.get(app, "missing")

    def lists(self, app: str, probes: Sequence[Probe]) -> list[list[str]]:
        if app in self.broken:
            raise ConnectionError("the replica died")
        return [self.given.get(app, ITEMS[:20]) for _ in probes]

    def delete(self, app: str) -> None:
        del self.states[app]


@dataclass
class Stage:
    """A conductor, and what it acts on."""

    store: RolloutStore
    apps: SomeApps
    cfg: RolloutConfig
    bundles: dict[str, Path]
    conductor: Conductor = None  # type: ignore[assignment]
    registered: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        def resolve(reference: str) -> Path:
            if not reference.startswith("models:"):
                return Path(reference)
            if reference == "models:404":
                raise StageError("version '404' is not in the registry")
            return self.bundles[f"v{reference.removeprefix('models:')}"]

        self.conductor = Conductor(
            self.store, self.apps, self.cfg, resolve, lambda _known: PROBES, lambda: self.registered
        )

    @property
    def lineup(self) -> Lineup:
        found = self.store.current()
        assert found is not None
        return found.lineup

    def ask(self, action: str, bundle: str = "", **more: float) -> int:
        return self.store.ask(action, str(self.bundles[bundle]) if bundle else "", **more)

    def play(self, seq: int, ticks: int = 6) -> Rollout:
        """Tick until the rollout stands still, or so often."""
        for _ in range(ticks):
            self.conductor.tick()
        return self.store.rollout(seq)

    def tick_until(self, is_so: Callable[[], bool]) -> None:
        """Tick until it is so, or for ten seconds."""
        deadline = time.monotonic() + 10
        while not is_so():
            assert time.monotonic() < deadline
            self.conductor.tick()
            time.sleep(0.01)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: build_tiny_bundle(folder / name, catalogue=small_catalogue()) for name in ("v1", "v2", "v3")}


@pytest.fixture
def stage(bundles: dict[str, Path], tmp_path: Path) -> Iterator[Stage]:
    store = RolloutStore(f"sqlite:///{tmp_path / 'events.db'}")
    champion = Arm(model_version="v1", bundle=str(bundles["v1"]), app="models-v1-s1")
    store.append(Lineup(champion=champion, deployed=str(bundles["v1"]), reason="deployed"), 0)
    cfg = RolloutConfig(idle_seconds=0.0, linger_seconds=0.0, registry_poll_seconds=0.5, start_seconds=1.0)
    stage = Stage(store, SomeApps(), cfg, bundles)
    stage.conductor.tick()  # starts the champion's application, which nobody has
    assert stage.apps.states == {"models-v1-s1": "running"}
    yield stage
    store.close()


def test_swap_serves_after_its_replicas_have_answered(stage: Stage) -> None:
    seq = stage.ask("swap", "v2")
    stage.apps.next_state = "starting"
    assert stage.play(seq).state == "starting"
    assert stage.lineup.champion.model_version == "v1"
    stage.apps.states["models-v2-s1"] = "running"
    done = stage.play(seq)
    assert (done.state, stage.lineup.champion.model_version) == ("done", "v2")
    assert "agreement 1.00" in done.detail
    assert stage.lineup.previous is not None
    assert stage.lineup.previous.model_version == "v1"
    assert set(stage.apps.states) == {"models-v1-s1", "models-v2-s1"}  # the one before stays, to roll back to


def test_rollback_is_a_change_of_the_lineup_alone(stage: Stage) -> None:
    stage.play(stage.ask("swap", "v2"))
    before = dict(stage.apps.states)
    back = stage.ask("rollback")
    stage.conductor.tick()
    assert (stage.store.rollout(back).state, stage.lineup.champion.model_version) == ("done", "v1")
    assert stage.apps.states == before


def test_nothing_to_roll_back_to_is_said(stage: Stage) -> None:
    assert stage.play(stage.ask("rollback")).detail == "there is no champion before this one to go back to"
    assert stage.play(stage.ask("promote")).detail == "there is no candidate to promote"


def test_applications_that_nobody_needs_are_taken_down(stage: Stage) -> None:
    for name in ("v2", "v3"):
        stage.play(stage.ask("swap", name))
    assert set(stage.apps.states) == {"models-v2-s1", "models-v3-s1"}


def test_applications_go_although_another_rollout_is_under_way(stage: Stage) -> None:
    """With one rollout after the other there is never a quiet moment."""
    stage.play(stage.ask("swap", "v2"))
    stage.apps.states["models-old-s1"] = "running"  # of a lineup of before
    stage.apps.next_state = "starting"
    assert stage.play(stage.ask("swap", "v3")).state == "starting"
    assert set(stage.apps.states) == {"models-v1-s1", "models-v2-s1", "models-v3-s1"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "21 of 21 of its lists are empty"),
        (ITEMS[20:], "agree with the champion's less than 0.1"),
        (ITEMS[:2] + ITEMS[20:38], "the champion finds what users chose of late surely more often"),
    ],
)
def test_candidate_that_answers_badly_is_refused(stage: Stage, given: list[str], reason: str) -> None:
    stage.apps.given["models-v2-s1"] = given
    refused = stage.play(stage.ask("swap", "v2"))
    assert refused.state == "refused"
    assert reason in refused.detail
    assert stage.lineup.champion.model_version == "v1"
    assert set(stage.apps.states) == {"models-v1-s1"}


def test_candidate_that_does_not_answer_is_refused(stage: Stage) -> None:
    stage.apps.broken.add("models-v2-s1")
    refused = stage.play(stage.ask("canary", "v2", share=0.1))
    assert refused.state == "refused"
    assert "it does not answer (ConnectionError: the replica died)" in refused.detail


def test_a_dead_champion_does_not_keep_its_successor_away(stage: Stage) -> None:
    stage.apps.broken.add("models-v1-s1")
    assert stage.play(stage.ask("swap", "v2")).state == "done"


def test_replicas_that_fail_or_never_come_end_the_rollout(stage: Stage) -> None:
    stage.apps.next_state = "failed: no module named x"
    failed = stage.play(stage.ask("swap", "v2"))
    assert (failed.state, failed.detail) == ("failed", "v2: failed: no module named x")
    stage.apps.next_state = "starting"
    seq = stage.ask("swap", "v3")
    stage.play(seq)
    stage.tick_until(lambda: stage.store.rollout(seq).state != "starting")
    assert "replicas were not up after 1 s" in stage.store.rollout(seq).detail
    stage.conductor.tick()
    assert set(stage.apps.states) == {"models-v1-s1"}


def test_what_is_no_bundle_fails_and_the_next_goes_on(stage: Stage, tmp_path: Path) -> None:
    first = stage.store.ask("swap", str(tmp_path))
    second = stage.ask("swap", "v2")
    stage.play(second, 8)
    assert stage.store.rollout(first).state == "failed"
    assert "is not a bundle" in stage.store.rollout(first).detail
    assert stage.store.rollout(second).state == "done"


def test_canary_that_stays_well_is_promoted(stage: Stage) -> None:
    seq = stage.ask("canary", "v2", share=0.1, seconds=0.3)
    assert stage.play(seq, 3).state == "running"
    assert (stage.lineup.mode, stage.lineup.share) == ("canary", 0.1)
    stage.tick_until(lambda: stage.store.rollout(seq).state != "running")
    assert (stage.store.rollout(seq).state, stage.lineup.champion.model_version) == ("done", "v2")
    assert "was well for 0 s" in stage.lineup.reason


def test_canary_that_a_gateway_took_back_is_told(stage: Stage) -> None:
    seq = stage.ask("canary", "v2", share=0.1)
    stage.play(seq, 3)
    now = stage.store.current()
    assert now is not None
    stage.store.append(now.lineup.without_candidate("10 of 10 requests failed"), now.revision)
    ended = stage.play(seq)
    assert (ended.state, ended.detail) == ("taken_back", "v2: 10 of 10 requests failed")
    assert set(stage.apps.states) == {"models-v1-s1"}


def test_candidate_whose_replicas_stay_down_is_taken_back(stage: Stage) -> None:
    stage.cfg.down_seconds = 0.2
    seq = stage.ask("shadow", "v2", share=0.1)
    stage.play(seq, 3)
    stage.apps.states["models-v2-s1"] = "starting"
    assert stage.play(seq, 2).state == "running"
    stage.apps.states["models-v2-s1"] = "running"
    stage.conductor.tick()
    stage.apps.states["models-v2-s1"] = "failed: the reranker died"
    stage.conductor.tick()
    stage.tick_until(lambda: stage.store.rollout(seq).state != "running")
    ended = stage.store.rollout(seq)
    assert ended.state == "taken_back"
    assert "(failed: the reranker died)" in ended.detail
    assert stage.lineup.candidate is None


@pytest.mark.parametrize(("order", "state", "champion"), [("stop", "stopped", "v1"), ("promote", "done", "v2")])
def test_candidate_is_stopped_or_promoted_by_order(stage: Stage, order: str, state: str, champion: str) -> None:
    seq = stage.ask("ab", "v2", share=0.5)
    assert stage.play(seq).state == "running"
    assert stage.play(stage.ask(order)).state == "done"
    assert (stage.store.rollout(seq).state, stage.lineup.champion.model_version) == (state, champion)


def test_one_bundle_at_a_time(stage: Stage) -> None:
    first, second = stage.ask("ab", "v2", share=0.5), stage.ask("swap", "v3")
    stage.play(second)
    assert (stage.store.rollout(first).state, stage.store.rollout(second).state) == ("running", "asked")
    stage.play(stage.ask("stop"))
    assert stage.play(second).state == "done"


def test_a_new_champion_of_the_registry_is_rolled_out_once(stage: Stage) -> None:
    def follow() -> None:
        stage.tick_until(lambda: stage.store.last_of_registry() == stage.registered[0])  # type: ignore[index]
        for _ in range(5):
            stage.conductor.tick()

    stage.cfg.registry_poll_seconds = 0.0  # asked with every tick
    stage.registered = ("1", "v1")
    follow()
    assert stage.lineup.champion.model_version == "v1"
    stage.registered = ("2", "v2")
    follow()
    assert stage.lineup.champion.model_version == "v2"
    stage.play(stage.ask("rollback"))
    for _ in range(5):
        stage.conductor.tick()
    assert stage.lineup.champion.model_version == "v1"  # nobody promoted it again
    stage.registered = ("404", "v404")
    follow()
    assert stage.lineup.champion.model_version == "v1"


def test_settings_that_changed_swap_the_same_bundle(stage: Stage) -> None:
    stage.apps.settings = "s2"
    stage.restart()
    for _ in range(6):
        stage.conductor.tick()
    assert stage.lineup.champion.app == "models-v1-s2"
    assert stage.lineup.champion.model_version == "v1"


@pytest.mark.parametrize("crash_after", range(1, 5))
def test_a_conductor_that_died_goes_on_where_it_was(stage: Stage, crash_after: int) -> None:
    seq = stage.ask("canary", "v2", share=0.1, seconds=1e-6)
    for _ in range(crash_after):
        stage.conductor.tick()
        stage.restart()
    assert stage.play(seq).state == "done"
    assert stage.lineup.champion.model_version == "v2"


def test_a_cluster_that_lost_its_applications_gets_them_again(stage: Stage) -> None:
    stage.play(stage.ask("ab", "v2", share=0.5))
    stage.apps.states.clear()
    stage.conductor.tick()
    assert set(stage.apps.states) == {"models-v1-s1", "models-v2-s1"}


def test_a_lineup_that_changes_under_its_hands_is_read_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway writes between the conductor's look and its own writing."""
    seq = stage.ask("swap", "v2")
    stage.conductor.tick()
    stage.conductor.tick()
    append: Callable[[Lineup, int], int] = stage.store.append
    meddled: list[int] = []

    def meddle(lineup: Lineup, after: int) -> int:
        if not meddled:
            meddled.append(append(stage.lineup, after))
        return append(lineup, after)

    monkeypatch.setattr(stage.store, "append", meddle)
    assert stage.play(seq).state == "done"
    assert meddled
    assert stage.lineup.champion.model_version == "v2"
