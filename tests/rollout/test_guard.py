"""A guard that takes back what is ill, and hardly ever what is well."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.guard import Guard, lower_bound, overlap, quantile

CFG = RolloutConfig(guard_requests=30)


def watched(seed: int, requests: int = 1000, share: float = 0.1, **candidate: float) -> tuple[str, int]:
    """The first verdict over mixed traffic, and after how many requests of the candidate it came."""
    rng, guard = random.Random(seed), Guard(CFG)
    seen = 0
    for _ in range(requests):
        is_candidate = rng.random() < share
        seen += is_candidate
        failing = candidate.get("failing", 0.01) if is_candidate else 0.01
        slower = candidate.get("slower", 1.0) if is_candidate else 1.0
        guard.observe(is_candidate, rng.random() < failing, slower * rng.lognormvariate(-4, 0.6))
        if is_candidate and rng.random() < CFG.mirror_share:
            common = candidate.get("agreement", 0.5)
            guard.compare(sum(rng.random() < common for _ in range(10)) / 10)
        if is_candidate and (verdict := guard.verdict()):
            return verdict, seen
    return "", seen


def test_equals_are_left_alone() -> None:
    """Asked after each of a hundred requests or so, in 60 runs."""
    assert sum(bool(watched(seed)[0]) for seed in range(60)) == 0


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        ({"failing": 0.5}, "requests failed"),
        ({"slower": 10.0}, "took over"),
        ({"agreement": 0.03}, "share"),
    ],
)
def test_the_ill_are_taken_back_soon(candidate: dict[str, float], says: str) -> None:
    found = [watched(seed, 3000, **candidate) for seed in range(20)]
    assert all(says in verdict for verdict, _ in found)
    assert max(seen for _, seen in found) < 250


def test_a_candidate_that_always_fails_needs_ten_requests() -> None:
    guard = Guard(CFG)
    for n in range(10):
        assert not guard.verdict()
        guard.observe(True, True, 0.01)
        guard.observe(False, False, 0.01)
        assert bool(guard.verdict()) == (n == 9)


def test_a_little_slower_than_fast_is_fine() -> None:
    guard = Guard(CFG)
    for _ in range(200):
        guard.observe(False, False, 0.002)
        guard.observe(True, False, 0.018)
    assert not guard.verdict()


def test_failures_of_both_are_nobodys() -> None:
    guard = Guard(CFG)
    for n in range(300):
        guard.observe(n % 2 == 0, True, 0.01)
    assert not guard.verdict()


@given(st.integers(0, 400), st.integers(1, 400))
def test_lower_bound_is_a_share_below_the_observed_one(count: int, of: int) -> None:
    count = min(count, of)
    assert 0 <= lower_bound(count, of) <= count / of + 1e-12


def test_lower_bound_of_wilson() -> None:
    """By hand: 10 of 10 at z = 3.29 gives 10 / (10 + z^2)."""
    assert lower_bound(10, 10) == pytest.approx(10 / (10 + 3.29**2))
    assert lower_bound(0, 0) == 0


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.01, 1))
def test_quantile_is_reached_by_its_share(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert found in values


def test_overlap() -> None:
    assert overlap(["a", "b"], ["b", "c"]) == 0.5
    assert overlap(["a", "b", "c"], ["a"]) == pytest.approx(1 / 3)
    assert overlap([], []) == 1
    assert overlap(list("abcdefghijk"), list("k" + "abcdefghij")) == 0.9
