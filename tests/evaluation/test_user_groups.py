"""Attributes become groups that can be compared, or nothing."""

from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.evaluation.user_groups import MAX_GROUPS, attribute_groups


def groups_of(values: list[str | None]) -> dict[str, list[str | None]]:
    return attribute_groups([{} if value is None else {"x": value} for value in values])


def test_few_values_stay_as_they_are() -> None:
    found = attribute_groups([{"sex": "F", "plan": "a"}, {"sex": "M", "plan": "a"}, {"sex": "F"}, {}])
    assert found == {"sex": ["F", "M", "F", None]}  # one plan is no group to compare
    assert groups_of(["18", "25", ""]) == {"x": ["18", "25", None]}


def test_many_numbers_become_ranges_of_ten() -> None:
    ages = [str(age) for age in range(18, 38)]
    assert groups_of([*ages, None, "7"]) == {"x": ["10-19"] * 2 + ["20-29"] * 10 + ["30-39"] * 8 + [None, "0-9"]}


def test_names_and_post_codes_are_left_out() -> None:
    assert groups_of([f"name {number}" for number in range(50)]) == {}
    assert groups_of([str(10_000 + 100 * number) for number in range(50)]) == {}


def test_the_rare_ones_of_many_values_are_in_no_group() -> None:
    common = [f"job {number}" for number in range(MAX_GROUPS)]
    assert groups_of([*common * 3, "rare"]) == {"x": [*common * 3, None]}


@given(st.lists(st.one_of(st.none(), st.text("ab1", max_size=2)), max_size=40))
def test_groups_are_few_and_a_user_is_in_one_or_none(values: list[str | None]) -> None:
    for groups in groups_of(values).values():
        assert len(groups) == len(values)
        assert 2 <= len(set(groups) - {None}) <= MAX_GROUPS
        assert all(group is None for group, value in zip(groups, values, strict=True) if not value)
    assert groups_of(values[::-1]) == {name: groups[::-1] for name, groups in groups_of(values).items()}
