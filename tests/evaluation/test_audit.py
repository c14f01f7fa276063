"""The audit: planted unfairness is found, fairness is not accused, and few data are not judged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.evaluation.audit import AuditConfig, audit_items, audit_users, group_codes, popularity_groups

CFG = AuditConfig(k=2, min_choices=20, num_samples=200)
GROUPS, NAMES = np.array([0, 0, 0, 1, 1, 1, -1]), ["big", "small"]


def lists(num_users: int, first: tuple[int, int], second: tuple[int, int]) -> np.ndarray:
    """Half of the users see one list, half the other."""
    return np.array([first if user % 2 else second for user in range(num_users)], np.int64)


def chosen(num_users: int, first: int, second: int) -> list[np.ndarray]:
    return [np.array([first if user % 2 else second]) for user in range(num_users)]


def test_equal_exposure_for_equal_merit_is_no_finding() -> None:
    findings = audit_items(lists(100, (0, 3), (3, 0)), chosen(100, 0, 3), "category", GROUPS, NAMES, CFG)
    assert [f.group for f in findings] == NAMES
    assert [f.size for f in findings] == [3, 3]
    for finding in findings:
        assert finding.judged
        assert finding.within
        assert finding.share == finding.expected == 0.5
        assert finding.value == pytest.approx(1.0)
        assert finding.low < 1.0 < finding.high


def test_a_group_that_is_chosen_but_not_shown_is_found() -> None:
    findings = audit_items(lists(100, (0, 1), (1, 2)), chosen(100, 0, 3), "category", GROUPS, NAMES, CFG)
    big, small = findings
    assert (small.value, small.high, small.within) == (0.0, 0.0, False)
    assert small.expected == 0.5
    assert big.value == pytest.approx(2.0)


def test_exposure_counts_by_place_and_leaves_out_items_of_no_group() -> None:
    (big, small) = audit_items(np.array([[0, 3], [6, 3]]), [np.array([0]), np.array([3])], "x", GROUPS, NAMES, CFG)
    second = 1 / np.log2(3)
    assert big.share == pytest.approx(1 / (1 + 2 * second))
    assert small.share == pytest.approx(2 * second / (1 + 2 * second))
    assert not big.judged
    assert big.within  # two choices say nothing


def test_lists_shorter_than_k_and_groups_that_nobody_chose_are_listed() -> None:
    ranked = np.full((40, 2), -1)
    big, small = audit_items(ranked, [np.array([0])] * 40, "x", GROUPS, NAMES, CFG)
    assert big.value == 0.0
    assert not big.within
    assert np.isnan(small.value)
    assert small.within


def test_a_user_group_that_is_served_worse_is_found() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(200) % 2
    quality = 0.5 - 0.3 * group + 0.05 * rng.normal(size=200)
    served, neglected = audit_users(quality, "age", group, ["young", "old"], CFG)
    assert served.value == pytest.approx(-neglected.value)
    assert neglected.value == pytest.approx(-0.3, abs=0.03)
    assert neglected.low < neglected.value < neglected.high
    assert not neglected.within
    assert not served.within
    assert neglected.expected == pytest.approx(quality[::2].mean())


def test_user_groups_by_chance_are_no_finding() -> None:
    rng = np.random.default_rng(1)
    findings = audit_users(rng.uniform(size=300), "x", rng.integers(0, 3, 300), ["a", "b", "c"], CFG)
    assert all(finding.judged and finding.within for finding in findings)


def test_a_group_of_everybody_or_of_few_is_not_judged() -> None:
    (everybody,) = audit_users(np.ones(50), "x", np.zeros(50, int), ["all"], CFG)
    assert np.isnan(everybody.value)
    assert not everybody.judged
    few, _ = audit_users(
        np.r_[np.zeros(5), np.ones(60)], "x", np.r_[np.zeros(5, int), np.ones(60, int)], ["a", "b"], CFG
    )
    assert few.value == -1.0
    assert not few.judged
    assert few.within


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=20))
def test_group_codes_name_each_value(values: list[str | None]) -> None:
    codes, names = group_codes(values)
    assert [None if code < 0 else names[code] for code in codes] == values
    assert names == sorted(set(names))


def test_popularity_groups_split_choices_not_items() -> None:
    codes, names = popularity_groups(np.array([0.0, 1, 20, 30, 29, 20]))
    assert names == ["head", "middle", "tail", "cold"]
    assert codes.tolist() == [3, 2, 1, 0, 1, 1]
