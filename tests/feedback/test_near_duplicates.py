import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.feedback.near_duplicates import near_duplicates


def members(sets: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(number, element) for number, found in enumerate(sets) for element in sorted(found)]
    return np.array([p[0] for p in pairs], np.int64), np.array([p[1] for p in pairs], np.int64)


def groups(sets: list[set[int]], least: float = 0.7, min_elements: int = 1) -> list[list[int]]:
    return [group.tolist() for group in near_duplicates(*members(sets), least, min_elements)]


def test_equal_sets_are_one_group_and_others_none() -> None:
    assert groups([{1, 2, 3}, {4, 5, 6}, {1, 2, 3}, {7, 8, 9}, {3, 2, 1}]) == [[0, 2, 4]]


def test_small_sets_are_left_out() -> None:
    assert groups([{1, 2}, {1, 2}, {1, 2, 3}, {1, 2, 3}], min_elements=3) == [[2, 3]]


def test_nothing_in_nothing_out() -> None:
    assert near_duplicates(np.zeros(0, np.int64), np.zeros(0, np.int64), 0.7, 2) == []


@settings(max_examples=100)
@given(st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=25))
def test_every_member_is_that_like_another_of_its_group(sets: list[set[int]]) -> None:
    found = groups(sets)
    assert len({number for group in found for number in group}) == sum(map(len, found))
    for group in found:
        for number in group:
            others = [sets[other] for other in group if other != number]
            assert max(len(sets[number] & o) / len(sets[number] | o) for o in others) >= 0.7


@settings(max_examples=50)
@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=2, max_size=40))
def test_equal_sets_are_never_missed(sets: list[set[int]]) -> None:
    group_of = {number: n for n, group in enumerate(groups(sets)) for number in group}
    for a in range(len(sets)):
        for b in range(a):
            if sets[a] == sets[b]:
                assert group_of[a] == group_of[b]


def test_chain_of_likenesses_is_no_group_where_several_links_are_asked_for() -> None:
    chain = [set(range(n, n + 10)) for n in range(12)]  # each like the next one, 9 of 11
    assert groups(chain, least=0.8) == [list(range(12))]
    chained = near_duplicates(*members(chain), 0.8, 1, min_links=3)
    assert chained == []
    tight = [*chain, *[set(range(100, 110))] * 4]
    assert [g.tolist() for g in near_duplicates(*members(tight), 0.8, 1, min_links=3)] == [[12, 13, 14, 15]]


def test_thousands_of_equal_sets_take_no_square() -> None:
    """Of 20,000 equal sets all pairs would be 200 million; each is compared with few."""
    size = 20_000
    set_R, element_R = np.repeat(np.arange(size), 6), np.tile(np.arange(6), size)
    (group,) = near_duplicates(set_R, element_R, 0.7, 6)
    assert len(group) == size


def test_recall_of_likely_pairs() -> None:
    """Pairs of sets of 20 that share 17, a likeness of 0.74, among strangers: nearly all are found."""
    rng = np.random.default_rng(0)
    sets: list[set[int]] = []
    for number in range(200):
        pool = number * 1000 + np.arange(23)
        sets += [set(pool[:20].tolist()), {*pool[3:20].tolist(), *pool[20:23].tolist()}]
    assert len(sets[0] & sets[1]) / len(sets[0] | sets[1]) == 17 / 23
    order = rng.permutation(len(sets))
    assert len(groups([sets[n] for n in order])) >= 198
