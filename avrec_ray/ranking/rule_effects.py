"""What the business rules do to the candidates of one request.

Dimension key: K candidates, N catalogue.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.ranking.rules import Rule


class RuleEffects:
    """Rules on a catalogue. Matching is done once: a byte a rule and item."""

    def __init__(self, rules: Sequence[Rule], items: Catalogue) -> None:
        self._rules = [(rule, rule.matches(items)) for rule in rules]
        self._items = items
        self.are_dated = any(rule.is_dated for rule in rules)

    def cover(self, rows: Sequence[int]) -> None:
        """Match rows of the catalogue that have changed, or joined behind the others, all of these together."""
        some = self._items.take(rows)
        for number, (rule, known) in enumerate(self._rules):
            matches = np.append(known, np.zeros(len(self._items) - len(known), bool))
            matches[list(rows)] = rule.matches(some)
            self._rules[number] = (rule, matches)

    def blocked(self, rows: npt.NDArray[np.int64], at_seconds: float) -> npt.NDArray[np.bool_]:
        """Bool [K]: what a rule takes off the list."""
        blocked = np.zeros(len(rows), bool)
        for _, matches in self._holding("block", at_seconds):
            blocked |= matches[rows]
        return blocked

    def boosts(self, rows: npt.NDArray[np.int64], at_seconds: float) -> npt.NDArray[np.float64]:
        """[K]: the sum of the boosts that fit each candidate, in standard deviations of the scores."""
        boosts = np.zeros(len(rows))
        for rule, matches in self._holding("boost", at_seconds):
            boosts += rule.boost * matches[rows]
        return boosts

    def pins(self, rows: npt.NDArray[np.int64], at_seconds: float) -> dict[int, int]:
        """Place, from 0, to the candidate that gets it: the first in `rows` that fits, and no other place has.

        Of rules for the same place the first in the file gets it, the others the next free ones.

        Args:
            rows: [K] best score first, only what may be shown: a pin does not bring back what filters or blocks took.
        """
        pins: dict[int, int] = {}
        for rule, matches in self._holding("pin", at_seconds):
            fitting = [p for p in np.flatnonzero(matches[rows]).tolist() if p not in pins.values()]
            if not fitting:
                continue
            place = rule.place - 1
            while place in pins:
                place += 1
            pins[place] = fitting[0]
        return pins

    def pinned_items(self, k: int, at_seconds: float) -> list[str]:
        """Items that pins for the first `k` places name; they are candidates whether or not the matcher found them."""
        named = [i for rule, _ in self._holding("pin", at_seconds) if rule.place <= k for i in rule.item_ids]
        return [item_id for item_id in dict.fromkeys(named) if self._items.idx(item_id) is not None]

    def time_of(self, at_seconds: float | None) -> float:
        """The time to judge validity by; only rules with dates need to be given one."""
        if at_seconds is None and self.are_dated:
            raise ValueError("some rules are valid from or until a time; give the at_seconds of the request")
        return 0.0 if at_seconds is None else at_seconds

    def _holding(self, action: str, at_seconds: float) -> list[tuple[Rule, npt.NDArray[np.bool_]]]:
        return [(r, matches) for r, matches in self._rules if r.action == action and r.holds_at(at_seconds)]
