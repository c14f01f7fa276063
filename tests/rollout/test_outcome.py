"""Who chose more: counted by user, by the variant that was shown, and from mixed lists by who picked."""

import numpy as np
import pyarrow as pa
import pytest

from avrec_ray.feedback.impressions import IMPRESSIONS, JOINED
from avrec_ray.rollout.outcome import Outcome, outcome_of

VERSIONS = ("v1", "v2")
START_US = 1_700_000_000_000_000


def outcome(shown: list[tuple[str, str, str, str]], chosen: list[tuple[str, str, str]], since: float = 0.0) -> Outcome:
    """`shown`: request, user, item, variant; `chosen`: request, item, event."""
    variants = {(request, item): (user, variant) for request, user, item, variant in shown}
    impressions = [
        {
            "request_id": request, "user_id": user, "item_id": item, "position": 1, "propensity": 1.0,
            "model_version": VERSIONS[variant == "candidate"], "variant": variant, "source": "", "at": START_US,
        }
        for (request, item), (user, variant) in variants.items()
    ]  # fmt: skip
    joined = [
        {
            "request_id": request, "item_id": item, "position": 1, "propensity": 1.0,
            "model_version": VERSIONS[variants[request, item][1] == "candidate"], "variant": variants[request, item][1],
            "source": "", "shown_at": START_US, "shown_to": "u", "event_id": f"e{n}", "user_id": "u", "event": event,
            "at": START_US, "watch_seconds": None, "value": None,
        }
        for n, (request, item, event) in enumerate(chosen)
    ]  # fmt: skip
    return outcome_of(
        pa.Table.from_pylist(impressions, IMPRESSIONS), pa.Table.from_pylist(joined, JOINED), VERSIONS, since
    )


def test_choices_a_list_are_a_mean_over_users() -> None:
    shown = [(f"r{n}", "busy", "a", "champion") for n in range(9)] + [("r9", "idle", "a", "champion")]
    shown += [("s0", "u2", "a", "candidate"), ("s1", "u3", "a", "candidate")]
    found = outcome(shown, [("r9", "a", "like"), ("r9", "a", "share"), ("s0", "a", "skip")])
    assert (found.champion.num_users, found.champion.num_lists) == (2, 10)
    assert found.champion.choices_per_list == 0.5  # (0 of nine + 1 of one) / 2; two events on one item are one choice
    assert found.candidate.choices_per_list == 0
    assert found.difference == -0.5
    assert found.low < -0.5 < found.high
    assert found.mixed is None


def test_interval_and_p_value_equal_those_of_scipy() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    counts = {"champion": rng.poisson(1.0, 40), "candidate": rng.poisson(1.6, 25)}
    shown, chosen = [], []
    for variant, numbers in counts.items():
        for user, number in enumerate(numbers):
            request = f"{variant}{user}"
            shown += [(request, request, f"i{n}", variant) for n in range(10)]
            chosen += [(request, f"i{n}", "like") for n in range(number)]
    found = outcome(shown, chosen)
    expected = ttest_ind(counts["candidate"], counts["champion"], equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_equals_differ_as_rarely_as_they_should() -> None:
    """An A/A test, 200 times over: the interval misses 0 in about one of twenty."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        shown, chosen = [], []
        for n in range(60):
            variant = ("champion", "candidate")[n % 2]
            shown += [(f"r{n}", f"u{n}", f"i{k}", variant) for k in range(3)]
            chosen += [(f"r{n}", f"i{k}", "like") for k in range(rng.binomial(3, 0.4))]
        found = outcome(shown, chosen)
        missed += not found.low <= 0 <= found.high
    assert 2 <= missed <= 20


def test_mixed_lists_are_won_by_who_picked_what_was_chosen() -> None:
    shown = []
    for n in range(12):
        shown += [(f"m{n}", f"u{n}", "a", "champion"), (f"m{n}", f"u{n}", "b", "candidate")]
    found = outcome(shown, [(f"m{n}", "b", "like") for n in range(9)] + [("m10", "a", "like")])
    assert found.mixed is not None
    assert (found.mixed.candidate_wins, found.mixed.champion_wins, found.mixed.ties) == (9, 1, 2)
    assert found.champion.num_lists == found.candidate.num_lists == 0
    assert "candidate wins 9, champion 1, ties 2 (p 0.011 for the candidate)" in str(found)


def test_what_was_shown_before_does_not_count() -> None:
    found = outcome([("r", "u", "a", "champion")], [("r", "a", "like")], since=START_US / 1e6 + 1)
    assert found.champion.num_lists == 0
    assert (found.low, found.high) == (-np.inf, np.inf)
