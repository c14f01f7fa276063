"""Slices beside each other: planted differences are found, chance is not, few users are not judged."""

import numpy as np
import pytest

from avrec_ray.evaluation.slice_compare import MIN_USERS, compare_slices


def test_planted_differences_are_found_and_means_are_plain() -> None:
    rng = np.random.default_rng(0)
    other = {name: rng.uniform(0.3, 0.6, 200) for name in ("all", "cold_items", "warm_items")}
    noise = 0.02 * rng.normal(size=200)
    mine = {
        "all": other["all"] + noise,
        "cold_items": other["cold_items"] - 0.1 + noise,
        "warm_items": other["warm_items"],
    }
    rows = {row.name: row for row in compare_slices(mine, other)}
    assert list(rows) == list(mine)
    assert [row.verdict for row in rows.values()] == ["unclear", "worse", "unclear"]
    cold = rows["cold_items"]
    assert (cold.num_users, cold.mean, cold.other) == (200, mine["cold_items"].mean(), other["cold_items"].mean())
    assert cold.difference == pytest.approx(-0.1, abs=0.01)
    assert cold.difference_low < cold.difference < cold.difference_high < 0
    assert cold.low < cold.mean < cold.high
    assert [row.verdict for row in compare_slices(other, mine)] == ["unclear", "better", "unclear"]


def test_slices_of_few_users_are_listed_and_not_judged_those_of_nobody_are_left_out() -> None:
    mine = {"a": np.ones(MIN_USERS - 1), "b": np.zeros(0), "c": np.ones(MIN_USERS)}
    few, enough = compare_slices(mine, {name: 0 * values for name, values in mine.items()})
    assert (few.name, few.mean, few.difference, few.verdict) == ("a", 1.0, 1.0, "few users")
    assert np.isnan([few.low, few.high, few.difference_low, few.difference_high]).all()
    assert (enough.name, enough.verdict) == ("c", "better")


def test_among_many_slices_of_equal_models_hardly_one_is_called_different() -> None:
    rng = np.random.default_rng(1)
    mine = {f"slice_{number}": rng.normal(size=50) for number in range(60)}
    other = {name: rng.normal(size=50) for name in mine}
    assert sum(row.verdict != "unclear" for row in compare_slices(mine, other)) <= 1


def test_the_whole_is_not_corrected_for_its_parts() -> None:
    """A difference with p = 0.02 or so is clear for the whole and unclear for one part of many."""
    values = np.concatenate([np.ones(17), -np.ones(5)])  # 17 of 22 better: two-sided sign test p = 0.017
    zeros = np.zeros(22)
    named = ["all", *(f"part_{number}" for number in range(20))]
    rows = compare_slices(dict.fromkeys(named, values), dict.fromkeys(named, zeros))
    assert [row.verdict for row in rows] == ["better"] + ["unclear"] * 20
