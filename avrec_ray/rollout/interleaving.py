"""Two rankings in one list, and which of them users choose from: needs far fewer requests than an A/B test.

Team draft (Radlinski, Kurup, Joachims, "How Does Clickthrough Data Reflect Retrieval Quality?", CIKM 2008).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avrec_ray.rollout.lineup import CANDIDATE, CHAMPION
from avrec_ray.rollout.replay import sign_test


def team_draft(champion: Sequence[str], candidate: Sequence[str], k: int, rng: random.Random) -> list[tuple[str, str]]:
    """The first `k` items that the two pick by turns, each its best that is left, as (item, variant that picked it).

    In each round a coin says who picks first. An item that both want belongs to whoever picked it.
    """
    left = {CHAMPION: list(reversed(champion)), CANDIDATE: list(reversed(candidate))}
    drafted: dict[str, str] = {}
    while len(drafted) < k and any(left.values()):
        order = [CHAMPION, CANDIDATE]
        rng.shuffle(order)
        for variant in order:
            item_id = _best_left(left[variant], drafted)
            if item_id is not None and len(drafted) < k:
                drafted[item_id] = variant
    return list(drafted.items())


@dataclass(frozen=True)
class Preference:
    """Lists of which users chose more from one side than from the other."""

    champion_wins: int
    candidate_wins: int
    ties: int

    @property
    def p_candidate_better(self) -> float:
        """How likely the candidate would win so often were both as good; small: it is better."""
        return sign_test(self.candidate_wins, self.champion_wins)

    @property
    def p_champion_better(self) -> float:
        """The same of the champion."""
        return sign_test(self.champion_wins, self.candidate_wins)


def preference(chosen: Mapping[str, Sequence[str]]) -> Preference:
    """`chosen`: for each list that was answered, the variants that picked the items which the user chose."""
    apart = [list(variants).count(CANDIDATE) - list(variants).count(CHAMPION) for variants in chosen.values()]
    return Preference(sum(n < 0 for n in apart), sum(n > 0 for n in apart), sum(n == 0 for n in apart))


def _best_left(left: list[str], drafted: Mapping[str, str]) -> str | None:
    while left:
        item_id = left.pop()
        if item_id not in drafted:
            return item_id
    return None
