"""What is planted in a user: tastes at the start and at the end of the time, and when they change.

Dimension key: U users, F factors, V values of all factors laid end to end, A archetypes
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from avrec_ray.datasets.config import SyntheticConfig
from avrec_ray.datasets.synthetic.factors import DAY_SECONDS, FACTOR_OFFSETS, FACTORS, NUM_VALUES, START_SECONDS

NUM_ARCHETYPES = 10
"""Kinds of people; a user takes most tastes from one, which is what collaborative filtering feeds on."""
ARCHETYPE_SHARE = 0.95
"""Chance that a taste is the archetype's and not the user's own."""

CONCENTRATION = 1.0
"""Of the Dirichlet distribution that shares an archetype's weights out to factors; higher is more even."""

WEIGHT_SUM = 6.0
"""Log odds between an item that has everything a user likes most and one that has nothing of it."""

SENSES = {
    "all": tuple(FACTORS),
    "video": ("scene", "action", "character"),
    "audio": ("mood",),
    "text": ("theme",),
}
"""Kind of user -> the factors that the user cares for."""
WEIGHT_SHARE = {"all": 1.0, "video": 0.8, "audio": 0.4, "text": 0.45}
"""One factor of six values cannot tell as many items apart as five, so it gets a smaller sum of weights."""

LIKED, ALSO_LIKED, DISLIKED = 1.0, 0.2, -0.2


@dataclass(frozen=True, eq=False)
class PlantedUsers:
    """The truth about U users. Tastes are log odds that a factor value adds; times are POSIX seconds."""

    user_ids: list[str]
    kinds: list[str]
    archetypes: npt.NDArray[np.int64]
    start_UV: npt.NDArray[np.float32]
    end_UV: npt.NDArray[np.float32]
    drift_at_seconds: npt.NDArray[np.float64]
    drift_seconds: npt.NDArray[np.float64]
    session_strength: npt.NDArray[np.float32]

    def take(self, rows: npt.NDArray[np.int64]) -> "PlantedUsers":
        """The users at `rows`, in that order; a row may repeat."""
        return PlantedUsers(
            user_ids=[self.user_ids[r] for r in rows],
            kinds=[self.kinds[r] for r in rows],
            archetypes=self.archetypes[rows],
            start_UV=self.start_UV[rows],
            end_UV=self.end_UV[rows],
            drift_at_seconds=self.drift_at_seconds[rows],
            drift_seconds=self.drift_seconds[rows],
            session_strength=self.session_strength[rows],
        )


def plant_users(cfg: SyntheticConfig, rng: np.random.Generator) -> PlantedUsers:
    """Draw the users."""
    num, span = cfg.num_users, cfg.num_days * DAY_SECONDS
    kinds = _draw_kinds(cfg, rng)
    archetypes = rng.integers(NUM_ARCHETYPES, size=num)
    values_A = np.stack([_draw_tastes(rng) for _ in range(NUM_ARCHETYPES)])
    start_UV = _personal(values_A[archetypes], rng)
    # A changed taste is copied from another kind of people, so that drift, too, can be learned from others.
    changed_UV = _personal(values_A[rng.integers(NUM_ARCHETYPES, size=num)], rng)
    end_UV = _spread(rng.random((num, len(FACTORS))) < cfg.drift_fraction, changed_UV, start_UV)
    weights_UV = cfg.preference_strength * _draw_weights(kinds, archetypes, rng)
    return PlantedUsers(
        user_ids=[f"user{u:05d}" for u in range(num)],
        kinds=kinds,
        archetypes=archetypes,
        start_UV=(start_UV * weights_UV).astype(np.float32),
        end_UV=(end_UV * weights_UV).astype(np.float32),
        drift_at_seconds=np.round(START_SECONDS + span * rng.uniform(0.1, 0.65, num)),
        drift_seconds=np.round(span * rng.uniform(0.02, 0.08, num)),
        session_strength=np.full(num, cfg.session_strength, np.float32),
    )


def _draw_kinds(cfg: SyntheticConfig, rng: np.random.Generator) -> list[str]:
    single = round(cfg.single_modality_user_fraction * cfg.num_users)
    names = list(np.resize(["video", "audio", "text"], single)) + ["all"] * (cfg.num_users - single)
    return [str(k) for k in rng.permutation(names)]


def _draw_tastes(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """[V]: in each factor one value liked, one also liked, one disliked."""
    tastes = np.zeros(NUM_VALUES)
    for low, high in pairwise(FACTOR_OFFSETS):
        tastes[rng.permutation(np.arange(low, high))[:3]] = LIKED, ALSO_LIKED, DISLIKED
    return tastes


def _personal(archetype_UV: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Replace some factors of the archetype's tastes by the user's own."""
    own_UV = np.stack([_draw_tastes(rng) for _ in archetype_UV])
    return _spread(rng.random((len(own_UV), len(FACTORS))) < ARCHETYPE_SHARE, archetype_UV, own_UV)


def _spread(
    choose_UF: npt.NDArray[np.bool_], yes_UV: npt.NDArray[np.float64], no_UV: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return np.where(np.repeat(choose_UF, np.diff(FACTOR_OFFSETS), axis=1), yes_UV, no_UV)


def _draw_weights(
    kinds: list[str], archetypes: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """[U, V]: how much each user cares for each factor; zero for factors of the modalities it does not care for."""
    weights_AF = rng.dirichlet(np.full(len(FACTORS), CONCENTRATION), size=NUM_ARCHETYPES)
    sense_UF = np.array([[name in SENSES[kind] for name in FACTORS] for kind in kinds])
    weights_UF = (weights_AF[archetypes] + 0.02) * sense_UF
    sums_U = WEIGHT_SUM * np.array([WEIGHT_SHARE[kind] for kind in kinds])
    weights_UF *= (sums_U / weights_UF.sum(1))[:, None]
    return np.repeat(weights_UF, np.diff(FACTOR_OFFSETS), axis=1)
