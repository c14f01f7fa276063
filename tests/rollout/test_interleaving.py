"""Team draft: every item belongs to whoever picked it, both get as many turns, and equals win as often."""

import random

from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.rollout.interleaving import Preference, preference, team_draft
from avrec_ray.rollout.lineup import CANDIDATE, CHAMPION

RANKING = st.lists(st.sampled_from([f"i{n}" for n in range(30)]), unique=True, max_size=20)


@given(RANKING, RANKING, st.integers(1, 20), st.integers())
def test_draft_takes_each_item_once_from_a_list_that_has_it(
    champion: list[str], candidate: list[str], k: int, seed: int
) -> None:
    drafted = team_draft(champion, candidate, k, random.Random(seed))
    items = [item for item, _ in drafted]
    assert len(items) == len(set(items)) == min(k, len({*champion, *candidate}))
    for place, (item, variant) in enumerate(drafted):
        mine = champion if variant == CHAMPION else candidate
        # Its best that was left.
        assert item == next(other for other in mine if other not in items[:place])


@given(RANKING, st.integers(1, 20), st.integers())
def test_draft_of_equal_rankings_is_that_ranking(ranking: list[str], k: int, seed: int) -> None:
    drafted = team_draft(ranking, ranking, k, random.Random(seed))
    assert [item for item, _ in drafted] == ranking[:k]


@given(st.integers())
def test_turns_differ_by_one_at_most_where_lists_share_nothing(seed: int) -> None:
    mine, others = [f"a{n}" for n in range(10)], [f"b{n}" for n in range(10)]
    for k in range(1, 12):
        picked = [variant for _, variant in team_draft(mine, others, k, random.Random(seed))]
        assert abs(picked.count(CHAMPION) - picked.count(CANDIDATE)) <= 1


def test_equals_win_as_often_and_the_better_one_more() -> None:
    rng = random.Random(0)

    def wins(candidate: list[str], liked: str) -> Preference:
        lists = (team_draft(list("abcdefgh"), candidate, 4, rng) for _ in range(2000))
        return preference({str(n): [v for item, v in drafted if item == liked] for n, drafted in enumerate(lists)})

    equal = wins(list("abcdefgh"), "c")
    assert min(equal.p_candidate_better, equal.p_champion_better) > 0.01
    better = wins(list("habcdefg"), "h")  # it brings the liked item up from the eighth place
    assert better.p_candidate_better < 1e-6
    assert better.p_champion_better > 0.99


def test_preference_counts_lists() -> None:
    found = preference({"1": [CHAMPION, CHAMPION, CANDIDATE], "2": [CANDIDATE], "3": [], "4": [CANDIDATE, CHAMPION]})
    assert found == Preference(champion_wins=1, candidate_wins=1, ties=2)
