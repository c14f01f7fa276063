"""Lineups follow one another without a gap or a fork; rollouts end once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from avrec_ray.errors import ConfigError, FeedbackError
from avrec_ray.rollout.store import LineupConflictError, RolloutStore
from tests.rollout.test_lineup import ALONE, arm


@pytest.fixture
def store(url: str) -> Iterator[RolloutStore]:
    opened = RolloutStore(url)
    yield opened
    opened.close()


def test_lineup_comes_back_as_it_was_written(store: RolloutStore) -> None:
    assert store.current() is None
    lineup = ALONE.promoted(arm("v2"), "swap").challenged(arm("v3"), "canary", 0.05, "try")
    assert store.append(ALONE, 0) == 1
    assert store.append(lineup, 1) == 2
    found = store.current()
    assert found is not None
    assert (found.revision, found.lineup) == (2, lineup)
    assert store.reasons() == [(2, "v2", "try"), (1, "v1", "")]


def test_of_writers_that_saw_the_same_lineup_one_wins(store: RolloutStore, url: str) -> None:
    store.append(ALONE, 0)

    def follow(number: int) -> bool:
        mine = RolloutStore(url)
        try:
            mine.append(ALONE.promoted(arm(f"w{number}"), ""), 1)
        except LineupConflictError:
            return False
        finally:
            mine.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(follow, range(8))) == 1
    assert [revision for revision, _, _ in store.reasons()] == [2, 1]


def test_rollout_goes_through_its_states_and_ends_once(store: RolloutStore) -> None:
    first = store.ask("canary", "/bundles/v2", share=0.1, seconds=5)
    second = store.ask("stop")
    assert [(r.seq, r.action, r.state) for r in store.open_rollouts()] == [
        (first, "canary", "asked"), (second, "stop", "asked"),
    ]  # fmt: skip
    store.note(first, "starting", "replicas start")
    assert store.rollout(first).detail == "replicas start"
    store.note(first, "taken_back", "it failed")
    store.note(first, "done", "no")
    assert (store.rollout(first).state, store.rollout(first).detail) == ("taken_back", "it failed")
    assert [r.seq for r in store.open_rollouts()] == [second]


def test_last_of_the_registry_is_known_whatever_came_of_it(store: RolloutStore) -> None:
    assert store.last_of_registry() is None
    store.ask("swap", "models:3", origin="registry:3")
    store.note(store.ask("swap", "models:4", origin="registry:4"), "refused", "")
    store.ask("swap", "/bundles/v9")
    assert store.last_of_registry() == "4"


def test_what_cannot_be_asked_for_is_refused(store: RolloutStore) -> None:
    with pytest.raises(ConfigError, match=r"rollout.action"):
        store.ask("swoop", "/b")
    with pytest.raises(FeedbackError, match=r"action 'swap' with bundle ''"):
        store.ask("swap")
    with pytest.raises(FeedbackError, match=r"action 'stop' with bundle '/b'"):
        store.ask("stop", "/b")
    with pytest.raises(ConfigError, match=r"rollout.share=2"):
        store.ask("ab", "/b", share=2)
    with pytest.raises(FeedbackError, match="there is no rollout 99"):
        store.rollout(99)
