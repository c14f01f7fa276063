"""What a history says of a user in words: tags, categories and creators of late and for long, and the newest items.

Two horizons: what counts half after minutes is what the user is after now, what counts half after weeks is taste. A
share is of all that the user's events say; a lift is how many times more that is than the catalogue's choices at large.

The towers do not read this: they read the events. It is for people, who ask why, and for rules.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from avrec_ray.catalogue import Catalogue
from avrec_ray.dataclass_io import check_range
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.labels import default_strengths
from avrec_ray.types import Event

STRENGTHS: Mapping[str, float] = default_strengths()
"""How much an event says for what it is about, as in training; below 0 against it. Impressions say nothing."""


@dataclass(kw_only=True)
class ProfileConfig:
    """How far back each horizon looks."""

    short_half_life_seconds: float = 1800.0
    """An event counts half for the short horizon after so much time before the newest one."""
    long_half_life_seconds: float = 30 * 86_400.0
    top: int = 10
    """Tags, categories, creators and items told at most."""

    def __post_init__(self) -> None:
        check_range("profile.short_half_life_seconds", self.short_half_life_seconds, 1.0)
        check_range("profile.long_half_life_seconds", self.long_half_life_seconds, 1.0)
        check_range("profile.top", self.top, 1, 100)
        if self.short_half_life_seconds > self.long_half_life_seconds:
            raise ConfigError(
                f"profile.short_half_life_seconds={self.short_half_life_seconds} is above "
                f"profile.long_half_life_seconds={self.long_half_life_seconds}; give the shorter one first"
            )


@dataclass(frozen=True)
class Affinity:
    """One tag, category or creator."""

    name: str
    share: float
    """Of what positive events say, above 0 and up to 1; what speaks against it is taken off."""
    lift: float
    """Share over the share that the catalogue's choices have; above 1: more than others."""


@dataclass(frozen=True)
class Horizon:
    """What a user is after, strongest first."""

    tags: tuple[Affinity, ...] = ()
    categories: tuple[Affinity, ...] = ()
    creators: tuple[Affinity, ...] = ()


@dataclass(frozen=True)
class RecentItem:
    """What the user last did with an item."""

    item_id: str
    title: str
    event: str
    at_seconds: float


@dataclass(frozen=True)
class Profile:
    """A user, as the history tells. Empty where no event is about an item of the catalogue."""

    num_events: int = 0
    """Events of the history that are about items of the catalogue."""
    short_term: Horizon = field(default_factory=Horizon)
    long_term: Horizon = field(default_factory=Horizon)
    recent: tuple[RecentItem, ...] = ()
    """Newest first, each item once."""


class Profiler:
    """Profiles against one catalogue, whose base rates are counted once."""

    def __init__(self, items: Catalogue, cfg: ProfileConfig | None = None) -> None:
        self._items = items
        self.cfg = cfg or ProfileConfig()

    @cached_property
    def _base(self) -> dict[str, dict[str, float]]:
        """Counted when somebody first asks: a large catalogue takes seconds."""
        return {kind: self._base_shares(kind) for kind in ("tags", "categories", "creators")}

    def profile(self, history: Sequence[Event]) -> Profile:
        """The profile of a history, which may be in any order; times count from its newest event."""
        known = [e for e in history if e.event in STRENGTHS and self._items.idx(e.item_id) is not None]
        if not known:
            return Profile()
        newest = max(event.at_seconds for event in known)
        ages = [newest - event.at_seconds for event in known]
        return Profile(
            num_events=len(known),
            short_term=self._horizon(known, ages, self.cfg.short_half_life_seconds),
            long_term=self._horizon(known, ages, self.cfg.long_half_life_seconds),
            recent=self._recent(known),
        )

    def _horizon(self, events: Sequence[Event], ages: Sequence[float], half_life_seconds: float) -> Horizon:
        weights = [
            STRENGTHS[event.event] * 0.5 ** (age / half_life_seconds) for event, age in zip(events, ages, strict=True)
        ]
        rows = [self._items.index_of[event.item_id] for event in events]
        told = {kind: self._affinities(kind, rows, weights) for kind in self._base}
        return Horizon(**told)

    def _affinities(self, kind: str, rows: Sequence[int], weights: Sequence[float]) -> tuple[Affinity, ...]:
        sums: dict[str, float] = defaultdict(float)
        positive = 0.0
        for row, weight in zip(rows, weights, strict=True):
            names = self._names(kind, row)
            for name in names:
                sums[name] += weight / len(names)  # an item of many tags says no more than one of few
            positive += max(weight, 0.0) if names else 0.0
        shares = {name: total / positive for name, total in sums.items() if total > 0} if positive > 0 else {}
        best = sorted(shares, key=lambda name: (-shares[name], name))[: self.cfg.top]
        base = self._base[kind]
        # A tag of an item that has just joined is in no base yet.
        return tuple(
            Affinity(name, min(shares[name], 1.0), min(shares[name], 1.0) / base.get(name, 1e-6)) for name in best
        )

    def _base_shares(self, kind: str) -> dict[str, float]:
        """Share of each name in the catalogue's choices; an item nobody chose counts as chosen once in a million."""
        sums: dict[str, float] = defaultdict(float)
        for row in range(len(self._items)):
            names = self._names(kind, row)
            for name in names:
                sums[name] += max(float(self._items.popularity[row]), 1e-6) / len(names)
        total = sum(sums.values())
        return {name: value / total for name, value in sums.items()}

    def _names(self, kind: str, row: int) -> list[str]:
        if kind == "tags":
            return list(dict.fromkeys(self._items.tags[row]))
        value = (self._items.categories if kind == "categories" else self._items.creator_ids)[row]
        return [] if value is None else [value]

    def _recent(self, events: Sequence[Event]) -> tuple[RecentItem, ...]:
        newest_first = sorted(events, key=lambda event: -event.at_seconds)
        latest = {event.item_id: event for event in reversed(newest_first)}
        shown = sorted(latest.values(), key=lambda event: (-event.at_seconds, event.item_id))[: self.cfg.top]
        titles, index_of = self._items.titles, self._items.index_of
        return tuple(RecentItem(e.item_id, titles[index_of[e.item_id]], e.event, e.at_seconds) for e in shown)
