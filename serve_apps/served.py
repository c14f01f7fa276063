"""A list on its way to the client, and what it is made of where models do not make it."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from avrec_ray.catalogue import Catalogue
from avrec_ray.rollout.lineup import CHAMPION
from avrec_ray.types import Candidate, Event, RankedItem

MODEL_FAILURES = frozenset({"matcher_unavailable", "reranker_unavailable", "mixed_model"})
"""Reasons in `degraded` that speak against a bundle."""


@dataclass
class Served:
    """A list on its way to the client: what it holds, what it lacks, where the time went."""

    deadline_ms: int
    model_version: str
    catalogue: Catalogue
    """Of the bundle that serves it: holds every item of the list."""
    variant: str = CHAMPION
    is_shown: bool = True
    """False: made to be compared, not to be read."""
    picked_by: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Where rankings were mixed, variant and model_version that picked each item."""
    items: list[RankedItem] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    stages_ms: dict[str, float] = field(default_factory=dict)
    started_seconds: float = field(default_factory=time.perf_counter)

    def seconds_left(self) -> float:
        """Time until the deadline; may be negative."""
        return self.deadline_ms / 1000 - (time.perf_counter() - self.started_seconds)

    @property
    def failed(self) -> bool:
        """Whether a model did not answer as it should have."""
        return any(reason in MODEL_FAILURES for reason in self.degraded)

    def lack(self, *reasons: str) -> None:
        """Note what is missing, each reason once."""
        self.degraded += [reason for reason in reasons if reason not in self.degraded]


def in_given_order(candidates: Sequence[Candidate], k: int) -> list[RankedItem]:
    """The first `k` candidates as a ranking."""
    return [RankedItem(c.item_id, rank, c.score, source=c.source) for rank, c in enumerate(candidates[:k], start=1)]


def with_session(stored: Sequence[Event], session: Sequence[Event], now_seconds: float) -> tuple[Event, ...]:
    """A history that goes on with the running session, oldest first.

    Undated session events happened now, in the order given; an event that is stored already counts once.
    """
    known = {event.event_id for event in stored if event.event_id}
    fresh = [event for event in session if event.event_id is None or event.event_id not in known]
    dated = [dataclasses.replace(e, at_seconds=now_seconds) if math.isnan(e.at_seconds) else e for e in fresh]
    return tuple(sorted([*stored, *dated], key=lambda event: event.at_seconds))
