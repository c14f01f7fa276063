from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.datasets.config import SyntheticConfig
from avrec_ray.datasets.synthetic.behaviour import Exposure, behave, draw_budgets
from avrec_ray.datasets.synthetic.factors import DAY_SECONDS, START_SECONDS, plant_items
from avrec_ray.datasets.synthetic.oracle import taste
from avrec_ray.datasets.synthetic.users import plant_users

CFG = SyntheticConfig()
ITEMS = plant_items(CFG, np.random.default_rng(0))
USERS = plant_users(CFG, np.random.default_rng(1))


def act(user: int, budget: int = 40, seed: int = 2, cfg: SyntheticConfig = CFG) -> list[Exposure]:
    return list(behave(cfg, ITEMS, USERS, user, budget, np.random.default_rng([seed, user])))


@settings(max_examples=30, deadline=None)
@given(num_users=st.integers(4, 60), num_items=st.integers(20, 200), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_draw_budgets_sum_exactly_and_stay_in_range(num_users: int, num_items: int, share: float, seed: int) -> None:
    low, high = 5 * num_users, num_users * num_items // 5
    if high < low:
        return
    total = low + round(share * (high - low))
    cfg = SyntheticConfig(num_users=num_users, num_items=num_items, num_interactions=total, broken_items=0)
    budgets = draw_budgets(cfg, np.random.default_rng(seed))
    assert budgets.sum() == total
    assert budgets.min() >= 3
    assert budgets.max() <= num_items // 3


@settings(max_examples=25, deadline=None)
@given(user=st.integers(0, CFG.num_users - 1), budget=st.integers(3, 100), seed=st.integers(0, 2**31))
def test_behave_makes_exactly_the_rows_of_the_budget(user: int, budget: int, seed: int) -> None:
    exposures = act(user, budget, seed)
    assert sum(1 + len(exposure.reactions) for exposure in exposures) == budget


def test_behave_stays_in_time_and_after_publication() -> None:
    for user in range(40):
        for exposure in act(user):
            assert START_SECONDS <= exposure.at_seconds < START_SECONDS + CFG.num_days * DAY_SECONDS
            assert exposure.at_seconds >= ITEMS.published_at_seconds[exposure.item_idx]


def test_behave_never_touches_broken_items() -> None:
    assert not {e.item_idx for user in range(80) for e in act(user)} & set(np.flatnonzero(ITEMS.is_broken))


def test_behave_seldom_repeats_an_item() -> None:
    for user in range(40):
        chosen = [exposure.item_idx for exposure in act(user)]
        assert len(set(chosen)) >= 0.95 * len(chosen)


def test_behave_users_watch_longer_and_react_to_what_they_like() -> None:
    liking, shares, reacted = [], [], []
    for user in range(60):
        for exposure in act(user):
            at = np.array([exposure.at_seconds])
            affinity = ITEMS.vectors()[exposure.item_idx] @ taste(USERS.take(np.array([user])), at)[0]
            liking.append(float(affinity))
            shares.append(exposure.watch_share)
            reacted.append(bool(exposure.reactions))
    assert np.corrcoef(liking, shares)[0, 1] > 0.4
    assert np.mean(np.array(liking)[reacted]) > np.mean(liking)
    assert 0 < min(shares) < max(shares) < 1


def test_behave_without_preferences_follows_popularity_alone() -> None:
    cfg = SyntheticConfig(preference_strength=0.0, session_strength=0.0, popularity_strength=3.0)
    items = plant_items(cfg, np.random.default_rng(0))
    users = plant_users(cfg, np.random.default_rng(1))
    counts = np.zeros(cfg.num_items)
    for user in range(100):
        for exposure in behave(cfg, items, users, user, 15, np.random.default_rng([5, user])):
            counts[exposure.item_idx] += 1
    old = (items.published_at_seconds < START_SECONDS) & ~items.is_broken
    assert np.corrcoef(items.popularity[old], np.log1p(counts[old]))[0, 1] > 0.6


def test_behave_sessions_keep_to_a_shared_factor() -> None:
    """Items that follow each other within minutes share more factors than items a session apart."""
    near, far = [], []
    for user in range(120):
        exposures = act(user, budget=60)
        for first, second in pairwise(exposures):
            alike = float((ITEMS.factor_idx_NF[first.item_idx] == ITEMS.factor_idx_NF[second.item_idx]).mean())
            (near if second.at_seconds - first.at_seconds < 120 else far).append(alike)
    assert np.mean(near) > np.mean(far) + 0.03
