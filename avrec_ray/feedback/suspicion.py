"""Traffic that nobody should learn from: bots, bursts of fresh accounts on one item, groups that act as one.

Whatever is held back is kept, with its reason, in a table beside what is learned from: the two hold every event once.

- rate: an account that acts faster than people do (`max_events_per_minute`, `max_events_per_day`).
- burst: in a short time far more fresh accounts choose an item than fresh accounts did before. Their events on it are
  held back, not the accounts.
- clique: accounts whose chosen items are nearly the same, see `near_duplicates`.

What is left of new accounts counts less in training at first (`trust_of_users`).

Dimension key: E events.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binom

from avrec_ray.dataclass_io import check_range
from avrec_ray.feedback.event_log import DAY_US, Codes, EventLog, Flags, read_log
from avrec_ray.feedback.near_duplicates import MOST_COMPARED, near_duplicates
from avrec_ray.types import INTERACTIONS

SUSPICIONS = {
    "rate": "the account acts faster than people do",
    "burst": "many fresh accounts chose the item in a short time, far more than fresh accounts did before",
    "clique": "the account chose nearly the same items as several others",
}
"""Documented reason codes of the table of events held back."""
HELD_BACK = pa.schema(
    [*INTERACTIONS, pa.field("reason", pa.string(), nullable=False), pa.field("detail", pa.string(), nullable=False)]
)
_HOUR_US = DAY_US // 24
_MINUTE_US = _HOUR_US // 60


@dataclass(kw_only=True)
class SuspicionConfig:
    """From when on traffic is held back."""

    max_events_per_minute: int = 120
    """Events of one account, impressions not counted; 0: any number. Imports that lost their times may need 0."""
    max_events_per_day: int = 5_000
    fresh_days: float = 7.0
    """For so long after its first event an account is fresh."""
    burst_hours: float = 48.0
    """Length of the time in which fresh accounts on one item are counted."""
    min_burst_accounts: int = 5
    """Fewer fresh accounts are no burst; 0: bursts are not looked for."""
    burst_p_value: float = 1e-6
    """How unlikely so many are, by the share of fresh accounts that chose the item before."""
    clique_jaccard: float = 0.8
    """Least likeness of two accounts' chosen items: shared ones as a share of all of both. In a catalogue of some
    hundred items people of one taste come to 0.7 and, rarely, above."""
    min_clique_accounts: int = 4
    """So many, each like all the others or like so many of them, are a clique; 0: cliques are not looked for."""
    min_clique_items: int = 6
    """Accounts with fewer chosen items are in no group: two short histories are often the same by chance."""
    trust_days: float = 3.0
    """How long it takes until a new account counts in full; 0: at once."""
    least_trust: float = 0.1
    """What a new account's events count at first."""

    def __post_init__(self) -> None:
        for name in ("max_events_per_minute", "max_events_per_day", "min_burst_accounts", "min_clique_accounts"):
            check_range(f"retrain.suspicion.{name}", getattr(self, name), 0)
        for name in ("fresh_days", "burst_hours"):
            check_range(f"retrain.suspicion.{name}", getattr(self, name), 1e-3)
        check_range("retrain.suspicion.burst_p_value", self.burst_p_value, 0.0, 1.0)
        check_range("retrain.suspicion.clique_jaccard", self.clique_jaccard, 0.3, 1.0)
        check_range("retrain.suspicion.min_clique_items", self.min_clique_items, 2)
        check_range("retrain.suspicion.trust_days", self.trust_days, 0.0)
        check_range("retrain.suspicion.least_trust", self.least_trust, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Sifted:
    """An interactions table in two parts, rows of each in the order they had."""

    kept: pa.Table
    held_back: pa.Table
    """Columns HELD_BACK."""

    def counts(self) -> dict[str, int]:
        """Events held back, by reason."""
        found = dict.fromkeys(SUSPICIONS, 0)
        for row in pc.value_counts(self.held_back["reason"]).to_pylist():
            found[row["values"]] = row["counts"]
        return found


@dataclass(frozen=True, eq=False)
class _Finding:
    rows: Codes
    """Of the events that were looked at."""
    detail: str


def sift(interactions: pa.Table, cfg: SuspicionConfig) -> Sifted:
    """Part what may be learned from and what is held back. An event has the first reason that was found for it.

    Args:
        interactions: a checked interactions table of all that is known, older events too: they say what is usual.
    """
    left = np.arange(interactions.num_rows)
    held: list[tuple[Codes, str, str]] = []
    for reason, find in _FINDERS.items():
        log = read_log(interactions.take(pa.array(left)))
        taken = np.zeros(len(left), bool)
        for finding in find(log, cfg):
            new = finding.rows[~taken[finding.rows]]
            taken[new] = True
            held.append((left[new], reason, finding.detail))
        left = left[~taken]
    rows = np.concatenate([np.zeros(0, np.int64), *(found for found, _, _ in held)])
    order = np.argsort(rows, kind="stable")
    told = [(reason, detail) for found, reason, detail in held for _ in found]
    held_back = interactions.select(INTERACTIONS.names).take(pa.array(rows[order]))
    for place, name in enumerate(("reason", "detail")):
        held_back = held_back.append_column(name, pa.array([told[row][place] for row in order], pa.string()))
    return Sifted(interactions.take(pa.array(left)), held_back.cast(HELD_BACK))


def trust_of_users(interactions: pa.Table, cfg: SuspicionConfig) -> dict[str, float]:
    """Factor in [least_trust, 1] of users whose first event is less than `trust_days` before the newest of all."""
    log = read_log(interactions)
    if not cfg.trust_days or not len(log.at_us):
        return {}
    age_days = (log.at_us.max() - log.first_at_us()) / DAY_US
    trust = cfg.least_trust + (1 - cfg.least_trust) * np.minimum(age_days / cfg.trust_days, 1.0)
    return {user: float(value) for user, value in zip(log.user_ids, trust, strict=True) if value < 1}


def _find_rates(log: EventLog, cfg: SuspicionConfig) -> Iterator[_Finding]:
    acted = np.flatnonzero(log.is_acted)
    order = acted[np.lexsort((log.at_us[acted], log.user[acted]))]
    user, at_us = log.user[order], log.at_us[order]
    for most, window_us, unit in (
        (cfg.max_events_per_minute, _MINUTE_US, "minute"),
        (cfg.max_events_per_day, DAY_US, "day"),
    ):
        if not most or len(order) <= most:
            continue
        # Row n + most of the same user lies less than the window after row n: one more than allowed.
        is_over = (user[most:] == user[:-most]) & (at_us[most:] - at_us[:-most] < window_us)
        for found in np.unique(user[most:][is_over]):
            yield _Finding(np.flatnonzero(log.user == found), f"more than {most} events within a {unit}")


def _find_bursts(log: EventLog, cfg: SuspicionConfig) -> Iterator[_Finding]:
    if not cfg.min_burst_accounts or not len(log.at_us):
        return
    first_us = log.first_at_us()
    joined_us = np.sort(first_us)
    rows = _first_of_pairs(log)
    chosen_first_us = np.full(len(log.item_ids), np.iinfo(np.int64).max)
    np.minimum.at(chosen_first_us, log.item[rows], log.at_us[rows])
    rows = rows[log.at_us[rows] - first_us[log.user[rows]] <= cfg.fresh_days * DAY_US]
    rows = rows[np.lexsort((log.at_us[rows], log.item[rows]))]
    for mine in np.split(rows, np.flatnonzero(np.diff(log.item[rows])) + 1):
        if len(mine) < cfg.min_burst_accounts:
            continue
        item = log.item[mine[0]]
        is_burst = _burst_rows(log.at_us[mine], int(chosen_first_us[item]), joined_us, cfg)
        if is_burst.any():
            users = log.user[mine[is_burst]]
            chosen = np.flatnonzero((log.item == item) & np.isin(log.user, users))
            hours = np.ptp(log.at_us[mine[is_burst]]) / _HOUR_US
            detail = f"{len(users)} fresh accounts chose {log.item_ids[item]} within {hours:.1f} hours"
            yield _Finding(chosen, detail)


def _first_of_pairs(log: EventLog) -> Codes:
    """Rows of each user's first positive event on each item."""
    rows = np.flatnonzero(log.is_positive)
    rows = rows[np.lexsort((rows, log.at_us[rows]))]
    return rows[np.unique(log.pair[rows], return_index=True)[1]]


def _burst_rows(at_us: Codes, known_us: int, joined_us: Codes, cfg: SuspicionConfig) -> Flags:
    """Which of an item's choices by fresh accounts, in order of time, lie in a window with far too many.

    A window ends with each choice. If fresh accounts choose as they did before, their number is binomial among the
    accounts that are fresh then, with the share of those that chose the item before the window, as Laplace would
    estimate it. `known_us`: when anybody first chose the item; accounts that were fresh before it do not count.
    """
    fresh_us, window_us = cfg.fresh_days * DAY_US, cfg.burst_hours * _HOUR_US
    ends = np.arange(len(at_us))
    starts = np.searchsorted(at_us, at_us - window_us, "left")
    count = ends - starts + 1
    num_fresh = _between(joined_us, at_us[starts] - fresh_us, at_us)
    num_before = _between(joined_us, np.full(len(at_us), known_us - fresh_us), at_us[starts] - 1)
    usual = (starts + 1) / (np.maximum(num_before, starts) + 2)
    chance = binom.sf(count - 1, np.maximum(num_fresh, count), usual)
    found = np.flatnonzero((count >= cfg.min_burst_accounts) & (chance < cfg.burst_p_value))
    is_burst = np.zeros(len(at_us), bool)
    for end in found:
        is_burst[starts[end] : end + 1] = True
    return is_burst


def _between(sorted_us: Codes, low_us: npt.NDArray[np.floating], high_us: Codes) -> Codes:
    """How many of `sorted_us` lie from each low to each high, both included."""
    return np.searchsorted(sorted_us, high_us, "right") - np.searchsorted(sorted_us, low_us, "left")


def _find_cliques(log: EventLog, cfg: SuspicionConfig) -> Iterator[_Finding]:
    if not cfg.min_clique_accounts:
        return
    rows = _first_of_pairs(log)
    links = min(cfg.min_clique_accounts - 1, MOST_COMPARED)
    for members in near_duplicates(
        log.user[rows], log.item[rows], cfg.clique_jaccard, cfg.min_clique_items, max(links, 1)
    ):
        if len(members) >= cfg.min_clique_accounts:
            detail = f"one of {len(members)} accounts that chose nearly the same items, like {log.user_ids[members[0]]}"
            yield _Finding(np.flatnonzero(np.isin(log.user, members)), detail)


_FINDERS: dict[str, Callable[[EventLog, SuspicionConfig], Iterator[_Finding]]] = {
    "rate": _find_rates,
    "burst": _find_bursts,
    "clique": _find_cliques,
}


def no_suspicion() -> SuspicionConfig:
    """Settings that hold nothing back and trust everybody at once: the baseline that defences are measured against."""
    return SuspicionConfig(
        max_events_per_minute=0, max_events_per_day=0, min_burst_accounts=0, min_clique_accounts=0, trust_days=0.0
    )
