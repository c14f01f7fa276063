"""Filling the places of a list one by one: pins, caps and places for fresh items say who may have the next one.

Going place by place is what makes propensities exact: each is the probability of the draw among those who could have
had this very place. Drawing an order first and rearranging it for diversity or caps would log the probabilities of a
list that is not shown.

Dimension key: K candidates, best score first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from avrec_ray.ranking.diversity import Diversifier, Order
from avrec_ray.ranking.exploration import draw_place

Codes = npt.NDArray[np.int64]
"""Number of each candidate's group; -1 belongs to none."""


@dataclass(frozen=True, eq=False)
class PlaceRules:
    """Who may have a place. What is listed first yields: pins win over caps, caps over fresh places."""

    fresh: npt.NDArray[np.bool_]
    """[K]: nobody has chosen it yet."""
    fresh_share: float = 0.0
    """Each run of 1 / share places holds a fresh item, at its end unless one stands there already; 0: no matter."""
    caps: Sequence[tuple[Codes, int]] = ()
    """Groups [K], and how many of one group a list may hold. Caps yield where the list would be too short."""
    pins: Mapping[int, int] = field(default_factory=dict)
    """Place, from 0, to the candidate that gets it."""


def fill_places(
    diversifier: Diversifier,
    k: int,
    rules: PlaceRules,
    temperature: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[Order, npt.NDArray[np.float64]]:
    """Candidates of the first `k` places, fewer where there are fewer, and the propensity of each at its place.

    Args:
        diversifier: says what each candidate is worth for the next place.
        temperature: 0 gives each place to the best of its pool, with propensity 1. A pin has propensity 1 always.
        rng: where the draws come from; needed with a temperature.
    """
    num_candidates = len(rules.fresh)
    pins = {place: position for place, position in rules.pins.items() if place < k}
    free = np.ones(num_candidates, bool)
    free[list(pins.values())] = False
    caps = _Caps(rules.caps)
    for position in pins.values():  # counted before the others, or a list could hold a pinned creator once too often
        caps.place(position)
    every = max(1, round(1 / rules.fresh_share)) if rules.fresh_share > 0 else 0
    since_fresh = 0
    order: list[int] = []
    propensities: list[float] = []
    for place in range(min(k, num_candidates)):
        if place in pins or not free.any():
            position, propensity = pins.pop(place if place in pins else min(pins)), 1.0
        else:
            pool = caps.room(free)
            if every and since_fresh == every - 1 and (pool & rules.fresh).any():
                pool = pool & rules.fresh
            position, propensity = draw_place(diversifier.utility, pool, temperature, rng)
            free[position] = False
            caps.place(position)
        diversifier.place(position)
        order.append(position)
        propensities.append(propensity)
        since_fresh = 0 if rules.fresh[position] else min(since_fresh + 1, every - 1)
    return np.array(order, np.int64), np.array(propensities, np.float64)


class _Caps:
    """How many of each group are placed."""

    def __init__(self, caps: Sequence[tuple[Codes, int]]) -> None:
        self._caps = [(codes, cap) for codes, cap in caps if cap > 0]
        self._counts = [np.zeros(codes.max(initial=-1) + 1, np.int64) for codes, _ in self._caps]

    def place(self, position: int) -> None:
        """One more of this candidate's groups."""
        for (codes, _), counts in zip(self._caps, self._counts, strict=True):
            if codes[position] >= 0:
                counts[codes[position]] += 1

    def room(self, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Of the free candidates those whose groups all have room; all of them where none has."""
        room = free.copy()
        for (codes, cap), counts in zip(self._caps, self._counts, strict=True):
            full = np.append(counts >= cap, False)  # the last one is that of code -1
            room &= ~full[codes]
        return room if room.any() else free
