"""What is lost between two models, against a plain count."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.evaluation.regressions import LostItem, lost_items, lost_users

N = 6


def test_lost_items_by_hand() -> None:
    before = np.array([[0, 1], [0, 2], [3, 0], [4, -1]])
    after = np.array([[1, 2], [2, 5], [0, 3], [-1, -1]])
    targets = [np.array([0, 0]), np.array([0, 2]), np.array([3, 5]), np.array([4])]
    # Item 0 lost both of its two finds, item 4 its only one; 2 and 3 are found as before; repeats count once.
    assert lost_items(before, after, targets, k=2) == [LostItem(0, 2, 2, 0), LostItem(4, 1, 1, 0)]
    assert lost_items(before, after, targets, k=2, num=1) == [LostItem(0, 2, 2, 0)]
    assert [item.item_idx for item in lost_items(before, after, targets, k=1)] == [0, 3, 4]
    assert lost_items(after, after, targets) == []


def test_of_as_many_lost_the_surer_comes_first() -> None:
    before, after = np.array([[0], [1], [9]]), np.array([[9], [9], [9]])
    lost = lost_items(before, after, [np.array([0]), np.array([1]), np.array([0])], k=1)
    assert [(item.item_idx, item.recall_before, item.recall_after) for item in lost] == [(1, 1.0, 0.0), (0, 0.5, 0.0)]


@st.composite
def two_models(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    num_users = draw(st.integers(1, 5))
    lists = [[draw(st.permutations(range(N)))[:3] for _ in range(num_users)] for _ in range(2)]
    targets = [draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=4)) for _ in range(num_users)]
    return np.array(lists[0]), np.array(lists[1]), [np.array(target) for target in targets]


@given(two_models())
def test_lost_items_equal_a_plain_count(
    case: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[npt.NDArray[np.int64]]],
) -> None:
    before, after, targets = case
    expected = {}
    for item in range(N):
        owners = [row for row, target in enumerate(targets) if item in target]
        found = [sum(item in lists[row, :2] for row in owners) for lists in (before, after)]
        if found[0] > found[1]:
            expected[item] = (len(owners), *found)
    lost = lost_items(before, after, targets, k=2)
    assert {i.item_idx: (i.num_choices, i.found_before, i.found_after) for i in lost} == expected
    falls = [i.found_before - i.found_after for i in lost]
    assert falls == sorted(falls, reverse=True)


def test_lost_users_come_by_their_loss_and_gainers_do_not() -> None:
    before, after = np.array([0.5, 1.0, 0.2, 0.9]), np.array([0.5, 0.1, 0.8, 0.8])
    assert lost_users(before, after).tolist() == [1, 3]
    assert lost_users(before, after, num=1).tolist() == [1]
