"""Is a candidate as good as the champion on what users chose of late? Both are asked; whose list had the choice?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avrec_ray.rollout.guard import overlap
from avrec_ray.types import POSITIVE_EVENTS, Event

DEPTH = 20
"""Length of the lists that are asked for."""


@dataclass(frozen=True)
class Probe:
    """A user's history before the newest choice, and that choice."""

    history: tuple[Event, ...]
    chosen: str | None
    """None: nothing to be right about; the lists are compared alone."""


@dataclass(frozen=True)
class Replay:
    """What champion and candidate gave for the same probes."""

    num_probes: int
    agreement: float
    """Mean overlap of the first ten items."""
    num_choices: int
    champion_hits: int
    """Choices in the champion's list."""
    candidate_hits: int
    p_worse: float
    """How likely so many of the choices that only one found are the champion's, were both as good: a sign test."""

    def __str__(self) -> str:
        said = f"{self.num_probes} probes, agreement {self.agreement:.2f}"
        if self.num_choices:
            said += f", choices found by champion {self.champion_hits} and candidate {self.candidate_hits}"
            said += f" of {self.num_choices} (p {self.p_worse:.3f})"
        return said


def probes_of(histories: Mapping[str, Sequence[Event]], known: set[str]) -> list[Probe]:
    """One probe a user, and one of a visitor without a history. `known`: items of both catalogues."""
    probes = [Probe((), None)]
    for history in histories.values():
        events = tuple(history)
        at = next((n for n in reversed(range(len(events))) if _is_choice(events, n, known)), None)
        probes.append(Probe(events, None) if at is None else Probe(events[:at], events[at].item_id))
    return probes


def replayed(probes: Sequence[Probe], champion: Sequence[Sequence[str]], candidate: Sequence[Sequence[str]]) -> Replay:
    """Compare two sides' lists, one for each probe."""
    pairs = list(zip(probes, champion, candidate, strict=True))
    asked = [(probe.chosen, mine, other) for probe, mine, other in pairs if probe.chosen is not None]
    only_champion = sum(chosen in mine and chosen not in other for chosen, mine, other in asked)
    only_candidate = sum(chosen in other and chosen not in mine for chosen, mine, other in asked)
    return Replay(
        num_probes=len(probes),
        agreement=math.fsum(overlap(mine, other) for _, mine, other in pairs) / max(1, len(pairs)),
        num_choices=len(asked),
        champion_hits=sum(chosen in mine for chosen, mine, _ in asked),
        candidate_hits=sum(chosen in other for chosen, _, other in asked),
        p_worse=sign_test(only_champion, only_candidate),
    )


def sign_test(first: int, second: int) -> float:
    """Probability of `first` or more heads among `first + second` fair coins; 1 where there are none."""
    tosses = first + second
    return sum(math.comb(tosses, heads) for heads in range(first, tosses + 1)) / 2**tosses


def _is_choice(events: Sequence[Event], n: int, known: set[str]) -> bool:
    """Chosen, servable, and not met before: lists leave out what was met."""
    item_id = events[n].item_id
    is_new = all(before.item_id != item_id for before in events[:n])
    return events[n].event in POSITIVE_EVENTS and item_id in known and is_new
