"""What users do: sessions in which they meet items they like or that are popular, and watch longer what they like.

An exposure is drawn with probability proportional to exp(true score + session interest), without items seen before.
How long the user watches, and whether a like follows, depends on taste alone, not on popularity.

Dimension key: S sessions of a user, N items, V factor values
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avrec_ray.datasets.config import SyntheticConfig
from avrec_ray.datasets.synthetic.factors import DAY_SECONDS, START_SECONDS, PlantedItems
from avrec_ray.datasets.synthetic.oracle import popularity, session_odds, taste
from avrec_ray.datasets.synthetic.users import PlantedUsers

ROWS_PER_SESSION = 3
SEEN_PENALTY = 12.0
"""Log odds against an item met before: it comes again only where little else is left."""
SKIP_BELOW = 0.2
"""A user who watches less than this share of an item skips it."""
REACTIONS = (("like", 0.25), ("share", 0.04), ("comment", 0.04), ("favorite", 0.06))
"""Reactions and their chance when a user likes an item fully."""
WATCH_SLOPE, WATCH_OFFSET = 4.0, -2.3
"""Log odds of the share watched: how they rise with liking, and where they stand without it."""
STILL_SECONDS = 5.0
"""Time that a user spends on an item without a duration: an image or a text."""


@dataclass(frozen=True)
class Exposure:
    """One item met by one user: rows of the interactions table share its time and watch time."""

    item_idx: int
    at_seconds: float
    watch_share: float
    reactions: tuple[str, ...]


def draw_budgets(cfg: SyntheticConfig, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """[U] int: interactions of each user; between 3 and a third of the catalogue, summing to cfg.num_interactions."""
    activity = rng.lognormal(0, 0.5, cfg.num_users)
    low, high = 3, cfg.num_items // 3
    budgets = np.clip(np.round(activity / activity.sum() * cfg.num_interactions), low, high).astype(np.int64)
    while gap := int(cfg.num_interactions - budgets.sum()):
        room = np.flatnonzero(budgets < high if gap > 0 else budgets > low)
        chosen = rng.choice(room, min(abs(gap), len(room)), replace=False)
        budgets[chosen] += np.sign(gap)
    return budgets


def behave(
    cfg: SyntheticConfig, items: PlantedItems, users: PlantedUsers, user_idx: int, budget: int, rng: np.random.Generator
) -> Iterator[Exposure]:
    """The exposures of one user in order of time; they make `budget` rows, give or take the last one's reactions."""
    num_sessions = max(1, round(budget / ROWS_PER_SESSION))
    at_S = START_SECONDS + np.sort(rng.random(num_sessions)) * (cfg.num_days * DAY_SECONDS - 3600)
    user = users.take(np.full(num_sessions, user_idx))
    taste_SV, vectors_NV = taste(user, at_S), items.vectors()
    score_SN = taste_SV @ vectors_NV.T + popularity(items, at_S)
    score_SN = np.where(items.published_at_seconds > at_S[:, None], -np.inf, score_SN)
    penalty_N = np.where(items.is_broken, np.inf, 0.0)
    quotas = np.diff(np.linspace(0, budget, num_sessions + 1).round().astype(int))
    for at, taste_V, odds_V, score_N, quota in zip(
        at_S, taste_SV, session_odds(taste_SV), score_SN, quotas, strict=True
    ):
        interest = rng.choice(len(odds_V), p=odds_V / odds_V.sum(dtype=np.float64))
        wanted_N = score_N + users.session_strength[user_idx] * vectors_NV[:, interest]
        affinity_N = vectors_NV @ taste_V
        best = float(np.quantile(affinity_N, 0.95))
        while quota > 0:
            item_idx = _choose(wanted_N - penalty_N, rng)
            penalty_N[item_idx] += SEEN_PENALTY
            exposure = _watch(item_idx, at, float(affinity_N[item_idx]) / max(best, 1e-6), quota, rng)
            yield exposure
            quota -= 1 + len(exposure.reactions)
            at += STILL_SECONDS * exposure.watch_share + rng.uniform(2, 30)


def _choose(log_odds_N: npt.NDArray[np.float64], rng: np.random.Generator) -> int:
    return int(np.argmax(log_odds_N + rng.gumbel(size=len(log_odds_N))))


def _watch(item_idx: int, at: float, liking: float, quota: int, rng: np.random.Generator) -> Exposure:
    """Watch and react. `liking` is the affinity as a share of that of the user's best items."""
    share = 1 / (1 + np.exp(-(WATCH_SLOPE * liking + WATCH_OFFSET + rng.normal(0, 0.8))))
    reactions: tuple[str, ...] = ()
    if share >= SKIP_BELOW:
        chance = np.clip(liking, 0, 1)
        reactions = tuple(name for name, top in REACTIONS if rng.random() < top * chance)[: quota - 1]
    return Exposure(item_idx=item_idx, at_seconds=at, watch_share=float(share), reactions=reactions)
