"""What happens to scores before a list is shown: who is allowed, what is added to scores, who gets each place.

    filters and blocks > boosts of rules > boosts of exposure > place by place: a pin, or of those whom caps and
    fresh places let have it the best by score and diversity, or one drawn among them

Boosts come before diversity, which then trades the boosted scores. Exploration is the draw for a place, not noise on
the scores before diversity: only so are the logged propensities those of the list that is shown (see `places`).
Boosts and temperature are in standard deviations of a request's scores, whose scale differs between models and users.

Dimension key: K candidates, D embedding, N catalogue, G groups.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError
from avrec_ray.ranking import exposure
from avrec_ray.ranking.diversity import DIVERSIFIERS, Order, diversifier_of, min_max
from avrec_ray.ranking.exploration import day_of, request_rng
from avrec_ray.ranking.exposure import ExposureLedger, ExposureState
from avrec_ray.ranking.places import Codes, PlaceRules, fill_places
from avrec_ray.ranking.rule_effects import RuleEffects
from avrec_ray.ranking.rules import load_rules
from avrec_ray.types import Filters, Query

__all__ = ["Placement", "Policy", "PolicyConfig", "allowed_mask", "apply_policy"]


@dataclass(kw_only=True)
class PolicyConfig:
    """Rules of the list as a whole. All are off by default: then the list is in the order of the scores."""

    max_per_creator: int = 0
    """At most this many items of one creator in a list; 0: no cap."""
    max_per_category: int = 0
    """At most this many items of one category in a list; 0: no cap."""
    diversity: float = 0.0
    """0..1, for queries that ask for none: 0 is the order of the scores, 1 takes what is least like the items above."""
    diversifier: str = "mmr"
    """Key of DIVERSIFIERS."""
    dpp_window: int = 0
    """With diversifier=dpp: only the last so many places repel; 0: all of the list."""
    fresh_share: float = 0.0
    """At least this share of the places goes to items that nobody has chosen yet: with 0.1 one of every ten places."""
    exploration: float = 0.0
    """Temperature of the draw for each place, in standard deviations of a request's scores; 0: the best gets it."""
    exploration_seed: int = 0
    """With the user and the day it decides the draws."""
    exposure_groups: str = ""
    """creator, category or warm: groups whose exposure over requests is steered; empty: none."""
    exposure_targets: dict[str, Any] = field(default_factory=dict)
    """Group to its share of exposure, "merit" or "equal"; "*": all others, by default merit."""
    exposure_strength: float = 1.0
    """What is added to the scores of a group that is one list or more behind, in standard deviations; 0: nothing."""
    rules: str = ""
    """Absolute path of a YAML or JSON file with pins, blocks and boosts, see `ranking.rules`; empty: none."""

    def __post_init__(self) -> None:
        check_range("policy.max_per_creator", self.max_per_creator, 0)
        check_range("policy.max_per_category", self.max_per_category, 0)
        check_range("policy.diversity", self.diversity, 0, 1)
        check_choice("policy.diversifier", self.diversifier, DIVERSIFIERS)
        check_range("policy.dpp_window", self.dpp_window, 0)
        check_range("policy.fresh_share", self.fresh_share, 0, 1)
        check_range("policy.exploration", self.exploration, 0, 100)
        check_choice("policy.exposure_groups", self.exposure_groups, ("", *exposure.GROUP_COLUMNS))
        exposure.check_targets(self.exposure_targets)
        check_range("policy.exposure_strength", self.exposure_strength, 0, 100)
        if self.rules and not Path(self.rules).is_absolute():
            raise ConfigError(
                f"policy.rules={self.rules!r} is not absolute; workers run in another directory, give a full path"
            )


@dataclass(frozen=True, eq=False)
class Placement:
    """A list as positions of candidates, and what the next request has to know."""

    order: Order
    """[k], rank 1 first."""
    propensities: npt.NDArray[np.float64]
    """[k]: probability that the item got its place, given those above; 1 where nothing was drawn."""
    exposure: ExposureState | None = None
    """The state after this list; None where none was given."""


class Policy:
    """The policy of one catalogue: reads rules and finds groups once, then is a pure function of its arguments."""

    def __init__(self, items: Catalogue, embeddings: npt.NDArray[np.float32], cfg: PolicyConfig) -> None:
        """`embeddings` are unit vectors [N, D].

        Raises:
            ConfigError: the rules are wrong, or a target names a group that no item has.
        """
        self.cfg = cfg
        self._items = items
        self._embeddings = embeddings
        self._rules = RuleEffects(load_rules(cfg.rules) if cfg.rules else (), items)
        caps = [(items.creator_ids, cfg.max_per_creator), (items.categories, cfg.max_per_category)]
        self._caps = [(Groups(values), cap) for values, cap in caps if cap > 0]
        self._groups = exposure.item_groups(items, cfg.exposure_groups) if cfg.exposure_groups else None
        if self._groups is not None:
            exposure.check_targets(cfg.exposure_targets, self._groups.names)

    def cover(self, rows: Sequence[int], embeddings: npt.NDArray[np.float32]) -> None:
        """Read rows of the catalogue that have changed, or joined behind the others, all of these together.

        Groups whose exposure is steered stay those of the bundle: an item of a new one counts for none.
        """
        self._embeddings = embeddings
        self._rules.cover(rows)
        for groups, _ in self._caps:
            groups.cover(rows)
        if self._groups is not None:
            self._groups = exposure.with_rows(self._groups, self._items, self.cfg.exposure_groups, rows)

    def ledger(self) -> ExposureLedger | None:
        """Where to keep exposure from request to request, at zero; None where it is not steered."""
        return None if self._groups is None else ExposureLedger(exposure.no_exposure(len(self._groups.names)))

    def pinned_items(self, k: int, at_seconds: float | None) -> list[str]:
        """Items to be made candidates because a rule pins them by name."""
        return self._rules.pinned_items(k, self._rules.time_of(at_seconds))

    def __call__(
        self,
        scores: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        query: Query,
        at_seconds: float | None = None,
        state: ExposureState | None = None,
    ) -> Placement:
        """Places for `query.k` of the candidates, while so many pass filters and blocks.

        Args:
            scores: [K] finite, higher is better.
            rows: [K] catalogue rows of the candidates.
            query: its filters, user and k count; its diversity does where it is above 0, else that of the settings.
            at_seconds: POSIX time of the request, for exploration and for rules with dates.
            state: exposure so far; None: exposure is not steered in this request.

        Raises:
            ValueError: a score is not finite, or a time is needed and not given.
        """
        cfg, now = self.cfg, self._rules.time_of(at_seconds)
        allowed = np.flatnonzero(self._may_be_shown(rows, query.filters, now))
        worth = self._boosted(scores[allowed], rows[allowed], query.k, now, state)
        best_first = np.argsort(-worth, kind="stable").astype(np.int64)
        allowed, worth = allowed[best_first], worth[best_first]
        shown_rows = rows[allowed]
        diversity = query.diversity or cfg.diversity
        temperature = cfg.exploration * (1 - diversity) * _deviation(min_max(worth))
        order, propensities = fill_places(
            diversifier_of(cfg.diversifier, worth, self._embeddings[shown_rows], diversity, cfg.dpp_window),
            query.k,
            PlaceRules(
                fresh=~self._items.warm[shown_rows],
                fresh_share=cfg.fresh_share,
                caps=[(groups.codes[shown_rows], cap) for groups, cap in self._caps],
                pins=self._rules.pins(shown_rows, now),
            ),
            temperature,
            self._rng(query.user_id, at_seconds),
        )
        placed = allowed[order]
        return Placement(placed, propensities, self._recorded(state, scores[allowed], shown_rows, rows[placed]))

    def _may_be_shown(self, rows: npt.NDArray[np.int64], filters: Filters, at_seconds: float) -> npt.NDArray[np.bool_]:
        unblocked = ~self._rules.blocked(rows, at_seconds)
        if filters == Filters():
            return unblocked
        items, places = self._items, rows.tolist()
        categories, languages, item_ids = (
            [column[row] for row in places] for column in (items.categories, items.languages, items.item_ids)
        )
        return unblocked & allowed_mask(categories, languages, items.durations[rows], filters, item_ids)

    def _boosted(
        self,
        scores: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        k: int,
        at_seconds: float,
        state: ExposureState | None,
    ) -> npt.NDArray[np.float64]:
        """Scores [K] with what rules and exposure add."""
        boosts = self._rules.boosts(rows, at_seconds)
        if self._groups is not None and state is not None:
            shares = exposure.target_shares(self._groups.names, self.cfg.exposure_targets, state)
            boosts += self.cfg.exposure_strength * exposure.boosts(state, shares, self._groups.codes[rows], k)
        boosted: npt.NDArray[np.float64] = scores.astype(np.float64) + _deviation(scores.astype(np.float64)) * boosts
        return boosted

    def _recorded(
        self,
        state: ExposureState | None,
        scores: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        shown: npt.NDArray[np.int64],
    ) -> ExposureState | None:
        """The state after `shown` rows of all candidates' `rows`; merit is by the scores of the model."""
        if self._groups is None or state is None:
            return None
        merits = exposure.merit_of(scores.astype(np.float64) / _deviation(scores.astype(np.float64)))
        return exposure.record(state, self._groups.codes[shown], self._groups.codes[rows], merits)

    def _rng(self, user_id: str | None, at_seconds: float | None) -> np.random.Generator | None:
        if self.cfg.exploration == 0:
            return None
        if at_seconds is None:
            raise ValueError("exploration draws anew each day; give the at_seconds of the request")
        return request_rng(self.cfg.exploration_seed, user_id, day_of(at_seconds))


def apply_policy(
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    items: Catalogue,
    embeddings: npt.NDArray[np.float32],
    query: Query,
    cfg: PolicyConfig,
    at_seconds: float | None = None,
) -> Order:
    """Positions of the candidates to show, best first: `Policy` for one request, whose arguments these are."""
    return Policy(items, embeddings, cfg)(scores, rows, query, at_seconds).order


def allowed_mask(
    categories: Sequence[str | None],
    languages: Sequence[str | None],
    durations: npt.NDArray[np.float32],
    filters: Filters,
    item_ids: Sequence[str] | None = None,
) -> npt.NDArray[np.bool_]:
    """Bool [N]: which items the filters allow. An item without the value asked for is left out.

    Args:
        durations: [N] seconds, NaN where unknown.
        item_ids: [N]; where given, `filters.exclude_items` counts too.

    >>> allowed_mask(["a", "b", None], [None] * 3, np.zeros(3, np.float32), Filters(categories=("a",))).tolist()
    [True, False, False]
    """
    keep = np.ones(len(durations), bool)
    if filters.categories:
        keep &= _is_in(categories, filters.categories)
    if filters.languages:
        keep &= _is_in(languages, filters.languages)
    if filters.max_duration_seconds is not None:
        keep &= durations <= filters.max_duration_seconds  # False where NaN
    if filters.exclude_items and item_ids is not None:
        keep &= ~_is_in(item_ids, filters.exclude_items)
    return keep


class Groups:
    """Numbers of groups by the values of a column of the catalogue, -1 for None.

    >>> Groups(["b", None, "a", "b"]).codes.tolist()
    [0, -1, 1, 0]
    """

    def __init__(self, values: Sequence[Hashable | None]) -> None:
        """`values` is the column itself: it may go on growing, see `cover`."""
        self._values = values
        self._number: dict[Hashable, int] = {}
        self.codes: Codes = np.array([self._code(value) for value in values], np.int64)

    def cover(self, rows: Sequence[int]) -> None:
        """Read some rows anew; those that are new lie behind the others."""
        self.codes = np.append(self.codes, np.full(len(self._values) - len(self.codes), -1))
        for row in rows:
            self.codes[row] = self._code(self._values[row])

    def _code(self, value: Hashable | None) -> int:
        return -1 if value is None else self._number.setdefault(value, len(self._number))


def _is_in(values: Sequence[str | None], wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
    chosen = set(wanted)
    return np.fromiter((value in chosen for value in values), bool, len(values))


def _deviation(values: npt.NDArray[np.float64]) -> float:
    """Standard deviation; 1 where all are equal, so that a boost still says something."""
    deviation = float(values.std()) if len(values) else 0.0
    return deviation if deviation > 0 else 1.0
