"""Who gets which bundle: fixed for a user, in the shares that were asked for, and independent between candidates."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError
from avrec_ray.rollout.lineup import CANDIDATE, CHAMPION, INTERLEAVED, Arm, Lineup, unit_of


def arm(version: str) -> Arm:
    return Arm(model_version=version, bundle=f"/bundles/{version}", app=f"models-{version}")


ALONE = Lineup(champion=arm("v1"), deployed="/bundles/v1")
USERS = [f"u{n}" for n in range(20_000)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_candidate_gets_its_share_of_users(share: float) -> None:
    lineup = ALONE.challenged(arm("v2"), "ab", share, "test")
    got = sum(lineup.variant_of(user) == CANDIDATE for user in USERS) / len(USERS)
    assert got == pytest.approx(share, abs=4 * (share * (1 - share) / len(USERS)) ** 0.5)


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_larger_share_keeps_everybody_of_the_smaller_one(user: str, first: float, second: float) -> None:
    small, large = sorted((first, second))
    if ALONE.challenged(arm("v2"), "canary", small, "").variant_of(user) == CANDIDATE:
        assert ALONE.challenged(arm("v2"), "canary", large, "").variant_of(user) == CANDIDATE


def test_candidates_are_given_to_users_independently() -> None:
    one, other = (ALONE.challenged(arm(v), "ab", 0.5, "") for v in ("v2", "v3"))
    both = sum(one.variant_of(u) == other.variant_of(u) for u in USERS) / len(USERS)
    assert both == pytest.approx(0.5, abs=0.02)


def test_nobody_without_a_name_takes_part() -> None:
    assert ALONE.challenged(arm("v2"), "ab", 1.0, "").variant_of(None) == CHAMPION


def test_a_shadow_is_given_to_nobody_and_a_mixture_to_its_share() -> None:
    assert ALONE.challenged(arm("v2"), "shadow", 1.0, "").variant_of("u1") == CHAMPION
    assert ALONE.challenged(arm("v2"), "interleave", 1.0, "").variant_of("u1") == INTERLEAVED


def test_promoted_candidate_leaves_the_old_champion_to_roll_back_to() -> None:
    after = ALONE.challenged(arm("v2"), "canary", 0.1, "").promoted(arm("v2"), "well")
    assert (after.champion, after.candidate, after.previous, after.mode) == (arm("v2"), None, arm("v1"), "alone")
    assert after.deployed == "/bundles/v1"
    back = after.promoted(arm("v1"), "rollback")
    assert (back.champion, back.previous) == (arm("v1"), arm("v2"))


def test_promoting_the_champion_keeps_what_was_before_it() -> None:
    after = ALONE.promoted(arm("v2"), "").promoted(arm("v2"), "again")
    assert after.previous == arm("v1")


def test_candidate_and_mode_belong_together() -> None:
    with pytest.raises(ValueError, match="mode 'ab' and candidate None"):
        dataclasses.replace(ALONE, mode="ab")
    with pytest.raises(ConfigError, match="lineup.mode"):
        ALONE.challenged(arm("v2"), "dark", 0.1, "")


@given(st.text(), st.text())
def test_unit_of_is_a_share(salt: str, key: str) -> None:
    assert 0 <= unit_of(salt, key) < 1
