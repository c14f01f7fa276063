"""Profiles: shares that add up, horizons that tell now from ever, and what was disliked is told of nobody."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.catalogue import Catalogue
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.profile import STRENGTHS, Profile, ProfileConfig, Profiler
from avrec_ray.types import EVENTS, Event
from tests.serve_apps.conftest import small_catalogue

DAY = 86_400.0


def event(item_id: str, kind: str, at_seconds: float) -> Event:
    return Event("u1", item_id, kind, at_seconds)


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """Item n: category n % 4 of cooking, music, sport and none; tag t{n % 3}; creator c{n % 5}."""
    return small_catalogue()


def test_short_term_is_now_and_long_term_is_ever(catalogue: Catalogue) -> None:
    music = [event(f"i{4 * n + 1}", "like", n * DAY) for n in range(9)]
    cooking = [event("i4", "like", 10 * DAY), event("i8", "like", 10 * DAY + 60)]
    found = Profiler(catalogue).profile(music + cooking)
    assert found.short_term.categories[0].name == "cooking"
    assert found.short_term.categories[0].share > 0.99
    assert [a.name for a in found.long_term.categories] == ["music", "cooking"]
    assert found.num_events == 11
    assert [(r.item_id, r.title) for r in found.recent[:2]] == [("i8", "Title 8"), ("i4", "Title 4")]


def test_an_event_counts_half_after_a_half_life(catalogue: Catalogue) -> None:
    found = Profiler(catalogue).profile([event("i0", "view", 0.0), event("i1", "view", 1800.0)])
    assert {a.name: a.share for a in found.short_term.categories} == pytest.approx({"music": 2 / 3, "cooking": 1 / 3})


def test_lift_is_against_what_everybody_chooses(catalogue: Catalogue) -> None:
    found = Profiler(catalogue).profile([event("i2", "view", 0.0)])
    (sport,) = found.long_term.categories
    chosen = sum(catalogue.popularity[row] for row in range(40) if catalogue.categories[row] == "sport")
    with_category = sum(catalogue.popularity[row] for row in range(40) if catalogue.categories[row])
    assert (sport.share, sport.lift) == pytest.approx((1.0, with_category / chosen), rel=1e-4)


def test_a_later_dislike_takes_a_taste_off(catalogue: Catalogue) -> None:
    liked = [event("i1", "view", 0.0), event("i2", "view", 1.0)]
    found = Profiler(catalogue).profile([*liked, event("i5", "dislike", 2.0)])
    assert [a.name for a in found.long_term.categories] == ["sport"]


def test_recent_tells_the_last_event_of_each_item_once(catalogue: Catalogue) -> None:
    found = Profiler(catalogue).profile([event("i1", "like", 5.0), event("i1", "view", 1.0), event("i3", "skip", 3.0)])
    assert [(r.item_id, r.event) for r in found.recent] == [("i1", "like"), ("i3", "skip")]


@pytest.mark.parametrize("history", [[], [("i1", "impression")], [("unknown", "like")]])
def test_nothing_is_told_of_nobody(catalogue: Catalogue, history: list[tuple[str, str]]) -> None:
    assert Profiler(catalogue).profile([event(item, kind, 1.0) for item, kind in history]) == Profile()


EVENT_LISTS = st.lists(
    st.builds(event, st.integers(0, 45).map("i{}".format), st.sampled_from(EVENTS), st.floats(0, 1e9)), max_size=30
)


@given(history=EVENT_LISTS, rng=st.randoms(use_true_random=False))
def test_shares_are_shares_in_any_order(catalogue: Catalogue, history: list[Event], rng: np.random.Generator) -> None:
    profiler = Profiler(catalogue, ProfileConfig(top=5))
    found = profiler.profile(history)
    for horizon in (found.short_term, found.long_term):
        for told in (horizon.tags, horizon.categories, horizon.creators):
            assert len(told) <= 5
            assert all(0 < a.share <= 1 and a.lift > 0 for a in told)
            assert [a.share for a in told] == sorted((a.share for a in told), reverse=True)
    if not any(STRENGTHS.get(e.event, 0.0) < 0 for e in history):
        assert sum(a.share for a in found.long_term.categories) <= 1 + 1e-6
    shuffled = list({(e.item_id, e.at_seconds): e for e in history}.values())
    expected = profiler.profile(shuffled)
    rng.shuffle(shuffled)
    again = profiler.profile(shuffled)
    assert again.recent == expected.recent
    for name, share in {a.name: a.share for a in expected.long_term.tags[:1]}.items():
        assert {a.name: a.share for a in again.long_term.tags}.get(name, share) == pytest.approx(share)


def test_config_refuses_a_short_horizon_that_is_longer() -> None:
    with pytest.raises(ConfigError, match=r"profile\.short_half_life_seconds=60.0 is above"):
        ProfileConfig(short_half_life_seconds=60.0, long_half_life_seconds=30.0)
