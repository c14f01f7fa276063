"""Suspicion: each attack is found, ordinary traffic is left alone, and every event ends up on one side."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError
from avrec_ray.feedback.suspicion import HELD_BACK, SUSPICIONS, SuspicionConfig, no_suspicion, sift, trust_of_users
from avrec_ray.types import EVENTS
from tests.feedback.event_rows import acted

DAY = 24 * 60.0
"""Minutes."""
CFG = SuspicionConfig()


def ordinary(num_users: int = 300, num_items: int = 200, per_user: int = 15, seed: int = 0) -> list[tuple[Any, ...]]:
    """People who join over 60 days and choose by popularity, some minutes apart, in several sessions."""
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(1, num_items + 1)
    rows = []
    for user in range(num_users):
        start = rng.uniform(0, 50) * DAY
        at = start + np.sort(rng.uniform(0, 10 * DAY, per_user))
        items = rng.choice(num_items, per_user, replace=False, p=chance / chance.sum())
        rows += [(f"u{user}", f"i{item}", "view", float(t)) for item, t in zip(items, at, strict=True)]
    return rows


def fakes(kind: str, count: int = 15, at: float = 59.0 * DAY, seed: int = 1) -> list[tuple[Any, ...]]:
    """Accounts that like the target `i150`, each behind some fillers."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(count):
        fillers = rng.choice(200, 12, replace=False) if kind == "random" else np.arange(12)
        times = at + np.sort(rng.uniform(0, 6 * 60.0, len(fillers) + 1))
        rows += [(f"fake{user}", f"i{i}", "view", float(t)) for i, t in zip(fillers, times[:-1], strict=True)]
        rows.append((f"fake{user}", "i150", "like", float(times[-1])))
    return rows


def held_users(table: pa.Table, cfg: SuspicionConfig = CFG) -> dict[str, set[str]]:
    """Reason to users with an event held back for it."""
    held = sift(table, cfg).held_back.to_pylist()
    return {reason: {r["user_id"] for r in held if r["reason"] == reason} for reason in SUSPICIONS}


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_traffic_is_left_alone(seed: int) -> None:
    sifted = sift(acted(*ordinary(seed=seed)), CFG)
    assert sifted.held_back.num_rows == 0
    assert sifted.counts() == {"rate": 0, "burst": 0, "clique": 0}


def test_item_in_fashion_among_the_old_and_the_new_is_left_alone() -> None:
    """A new item that a third of everybody chooses at once, fresh accounts among them as at any time."""
    rng = np.random.default_rng(3)
    rows = ordinary()
    rows += [(f"u{user}", "hit", "like", 55 * DAY + user) for user in range(300) if rng.random() < 0.33]
    assert sift(acted(*rows), CFG).held_back.num_rows == 0


def test_burst_of_fresh_accounts_on_an_item_is_held_back_and_nothing_else() -> None:
    rows = ordinary() + fakes("random")
    sifted = sift(acted(*rows), CFG)
    assert sifted.counts() == {"rate": 0, "burst": 15, "clique": 0}
    assert {(r["user_id"], r["item_id"]) for r in sifted.held_back.to_pylist()} == {
        (f"fake{n}", "i150") for n in range(15)
    }
    assert "15 fresh accounts chose i150 within" in sifted.held_back["detail"][0].as_py()


def test_clique_is_held_back_whole() -> None:
    found = held_users(acted(*ordinary(), *fakes("bandwagon")), SuspicionConfig(min_burst_accounts=0))
    assert found == {"rate": set(), "burst": set(), "clique": {f"fake{n}" for n in range(15)}}


def test_clique_that_varies_a_little_is_found() -> None:
    rng = np.random.default_rng(5)
    rows = ordinary()
    for user in range(8):
        chosen = [*rng.choice(20, 19, replace=False), 150]
        rows += [(f"fake{user}", f"i{item}", "like", 58 * DAY + n) for n, item in enumerate(chosen)]
    found = held_users(acted(*rows), SuspicionConfig(min_burst_accounts=0))
    assert found["clique"] == {f"fake{n}" for n in range(8)}


def test_few_alike_or_short_histories_are_no_clique() -> None:
    pair = fakes("bandwagon", count=CFG.min_clique_accounts - 1)
    short = [(f"s{user}", f"i{item}", "view", user * 50.0 + item) for user in range(30) for item in range(3)]
    assert sift(acted(*ordinary(), *pair, *short), CFG).counts()["clique"] == 0


def test_account_faster_than_people_is_held_back_whole() -> None:
    bot = [("bot", f"i{n % 200}", "view", 3.0 + n / 130) for n in range(400)]
    quick = [("quick", f"i{n % 200}", "skip", 3.0 + n / 60) for n in range(400)]
    rows = [*ordinary(50), *bot, *quick, ("bot", "i7", "like", 9000.0)]
    found = held_users(acted(*rows))
    assert found["rate"] == {"bot"}
    assert sift(acted(*rows), CFG).counts()["rate"] == 401


def test_impressions_are_no_haste() -> None:
    rows = [("u", f"i{n % 200}", "impression", n / 1000) for n in range(1000)]
    assert sift(acted(*rows), CFG).held_back.num_rows == 0


def test_events_a_day_are_bounded() -> None:
    rows = [("u", f"i{n}", "view", n * 1.0) for n in range(200)]
    assert held_users(acted(*rows), SuspicionConfig(max_events_per_day=199))["rate"] == {"u"}
    assert held_users(acted(*rows), SuspicionConfig(max_events_per_day=200))["rate"] == set()


def test_switched_off_nothing_is_held_back() -> None:
    rows = [*ordinary(), *fakes("random"), *[("bot", "i1", "view", n / 500) for n in range(500)]]
    assert sift(acted(*rows), no_suspicion()).held_back.num_rows == 0
    assert trust_of_users(acted(*rows), no_suspicion()) == {}


def test_new_accounts_gain_trust_with_age() -> None:
    rows = [("old", "a", "view", 0.0), ("old", "b", "view", 10 * DAY), ("new", "a", "view", 10 * DAY)]
    rows.append(("some", "a", "view", 8.5 * DAY))
    trust = trust_of_users(acted(*rows), SuspicionConfig(trust_days=3.0, least_trust=0.1))
    assert trust == {"new": pytest.approx(0.1), "some": pytest.approx(0.1 + 0.9 * 0.5)}


def test_trust_of_nobody_is_empty() -> None:
    assert trust_of_users(acted(), CFG) == {}


def test_config_refuses() -> None:
    with pytest.raises(ConfigError, match=r"retrain.suspicion.clique_jaccard=0.1 is outside \[0.3, 1.0\]"):
        SuspicionConfig(clique_jaccard=0.1)


TOUCHY = SuspicionConfig(
    max_events_per_minute=2, max_events_per_day=6, min_burst_accounts=2, burst_p_value=0.5, min_clique_accounts=2,
    min_clique_items=2, clique_jaccard=0.5,
)  # fmt: skip
ROWS = st.lists(
    st.tuples(
        st.sampled_from("uvwxyz"), st.sampled_from("abcd"), st.sampled_from(EVENTS), st.floats(0, 3000, width=32)
    ),
    max_size=40,
)


@settings(max_examples=100)
@given(ROWS)
def test_every_event_is_on_one_side_in_its_order_and_held_back_for_a_known_reason(rows: list[Any]) -> None:
    table = acted(*rows)
    sifted = sift(table, TOUCHY)
    ids = [*sifted.kept["event_id"].to_pylist(), *sifted.held_back["event_id"].to_pylist()]
    assert sorted(ids) == sorted(table["event_id"].to_pylist())
    for part in (sifted.kept, sifted.held_back):
        numbers = [int(event_id[1:]) for event_id in part["event_id"].to_pylist()]
        assert numbers == sorted(numbers)
    assert sifted.held_back.schema.equals(HELD_BACK)
    assert set(sifted.held_back["reason"].to_pylist()) <= set(SUSPICIONS)
    assert sum(sifted.counts().values()) == sifted.held_back.num_rows
