"""What is planted in an item: five factors, the kind of its media, its popularity, its time.

Dimension key: N items, F factors, V values of all factors laid end to end
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avrec_ray.datasets.config import SyntheticConfig

FACTORS = {
    "scene": ("forest", "ocean", "desert", "city", "night", "snow"),
    "action": ("slide", "bounce", "circle", "zoom", "spin", "shake"),
    "character": ("disc", "square", "triangle", "star", "ring", "cross"),
    "mood": ("calm", "happy", "sad", "tense", "epic", "playful"),
    "theme": ("cooking", "sport", "travel", "science", "fashion", "gaming", "gardening", "history"),
}
"""Factor name -> its values. The picture shows scene, action, character; the sound mood; the text theme."""

FACTOR_OFFSETS = np.cumsum([0] + [len(values) for values in FACTORS.values()])
"""Factor f occupies [FACTOR_OFFSETS[f], FACTOR_OFFSETS[f + 1]) of a vector of V values."""

NUM_VALUES = int(FACTOR_OFFSETS[-1])

START_SECONDS = 1_767_571_200.0
"""2026-01-05 00:00 UTC: the first moment of the behaviour."""
DAY_SECONDS = 86_400.0

TOLD = 0.3
"""How much a factor counts that an item's media cannot show and its text can only tell."""

SHOWN = {
    "video": (1.0, 1.0, 1.0, 1.0, 1.0),
    "webm": (1.0, 1.0, 1.0, 1.0, 1.0),
    "silent": (1.0, 1.0, 1.0, TOLD, 1.0),
    "audio": (TOLD, TOLD, TOLD, 1.0, 1.0),
    "image": (1.0, TOLD, 1.0, TOLD, 1.0),
    "text": (TOLD, TOLD, TOLD, TOLD, 1.0),
    "broken": (TOLD, TOLD, TOLD, TOLD, 1.0),
}
"""Kind of item -> how much each factor of FACTORS counts for those who see it."""

KIND_SHARES = {"video": 0.64, "webm": 0.08, "silent": 0.08, "audio": 0.09, "image": 0.06, "text": 0.05}
"""Shares of the kinds among the items that are not broken."""

WARM_FROM, WARM_UNTIL = -0.3, 0.88
"""Other items are published between these shares of the time; below 0 is before the first interaction."""

POPULARITY_SD = 0.35
"""Spread of the lasting popularity, log odds."""

TREND_HEIGHT = 0.2
"""Mean log odds that being in fashion adds at its best time."""

COLD_FROM = 0.91
"""Cold items are published from this share of the time on: past the last tenth's start, however a split rounds it."""


@dataclass(frozen=True, eq=False)
class PlantedItems:
    """The truth about N items. Times are POSIX seconds; popularities are log odds."""

    item_ids: list[str]
    kinds: list[str]
    creators: npt.NDArray[np.int64]
    factor_idx_NF: npt.NDArray[np.int64]
    shown_NF: npt.NDArray[np.float32]
    published_at_seconds: npt.NDArray[np.float64]
    popularity: npt.NDArray[np.float32]
    trend_at_seconds: npt.NDArray[np.float64]
    trend_height: npt.NDArray[np.float32]
    is_cold: npt.NDArray[np.bool_]

    @property
    def is_broken(self) -> npt.NDArray[np.bool_]:
        """True [N] for items whose media cannot be played."""
        return np.array([kind == "broken" for kind in self.kinds])

    def factor_values(self, item_idx: int) -> dict[str, str]:
        """Factor name -> value of one item."""
        return {f: FACTORS[f][v] for f, v in zip(FACTORS, self.factor_idx_NF[item_idx], strict=True)}

    def vectors(self) -> npt.NDArray[np.float32]:
        """Float32 [N, V]: how much of each factor value an item shows."""
        vectors = np.zeros((len(self.item_ids), NUM_VALUES), np.float32)
        rows = np.arange(len(self.item_ids))[:, None]
        vectors[rows, self.factor_idx_NF + FACTOR_OFFSETS[:-1]] = self.shown_NF
        return vectors


def plant_items(cfg: SyntheticConfig, rng: np.random.Generator) -> PlantedItems:
    """Draw the catalogue."""
    num, span = cfg.num_items, cfg.num_days * DAY_SECONDS
    kinds = _draw_kinds(cfg, rng)
    creators = rng.integers(cfg.num_creators, size=num)
    is_cold = _draw_cold(cfg, kinds, rng)
    published = np.where(is_cold, rng.uniform(COLD_FROM, 0.95, num), rng.uniform(WARM_FROM, WARM_UNTIL, num))
    return PlantedItems(
        item_ids=[f"item{i:05d}" for i in range(num)],
        kinds=kinds,
        creators=creators,
        factor_idx_NF=_draw_factors(cfg, creators, rng),
        shown_NF=np.array([SHOWN[kind] for kind in kinds], np.float32),
        published_at_seconds=np.round(START_SECONDS + span * published),
        popularity=(cfg.popularity_strength * rng.normal(0, POPULARITY_SD, num)).astype(np.float32),
        trend_at_seconds=np.round(START_SECONDS + span * np.maximum(published, 0) + span * rng.uniform(0, 1, num)),
        trend_height=(cfg.popularity_strength * rng.exponential(TREND_HEIGHT, num)).astype(np.float32),
        is_cold=is_cold,
    )


def _draw_kinds(cfg: SyntheticConfig, rng: np.random.Generator) -> list[str]:
    """Shares are kept exactly, so that even a small catalogue has every kind."""
    whole = cfg.num_items - cfg.broken_items
    ends = np.ceil(np.cumsum(list(KIND_SHARES.values())) * whole).astype(int)
    kinds = np.repeat(list(KIND_SHARES), np.diff(np.minimum(ends, whole), prepend=0)).tolist()
    return [str(k) for k in rng.permutation(kinds + ["broken"] * cfg.broken_items)]


def _draw_cold(cfg: SyntheticConfig, kinds: list[str], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    candidates = np.flatnonzero([kind != "broken" for kind in kinds])
    is_cold = np.zeros(cfg.num_items, bool)
    is_cold[rng.choice(candidates, round(cfg.cold_fraction * cfg.num_items), replace=False)] = True
    return is_cold


def _draw_factors(
    cfg: SyntheticConfig, creators: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A creator keeps to favourite values a third of the time; else every value is equally likely."""
    sizes = np.diff(FACTOR_OFFSETS)
    favourites = rng.integers(sizes, size=(cfg.num_creators, len(sizes)))
    drawn = rng.integers(sizes, size=(cfg.num_items, len(sizes)))
    return np.where(rng.random(drawn.shape) < 1 / 3, favourites[creators], drawn)
