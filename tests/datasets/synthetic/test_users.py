from itertools import pairwise

import numpy as np

from avrec_ray.datasets.config import SyntheticConfig
from avrec_ray.datasets.synthetic.factors import FACTOR_OFFSETS, FACTORS
from avrec_ray.datasets.synthetic.users import SENSES, WEIGHT_SHARE, WEIGHT_SUM, PlantedUsers, plant_users


def plant(seed: int = 0, drift_fraction: float = 0.2) -> PlantedUsers:
    return plant_users(SyntheticConfig(drift_fraction=drift_fraction), np.random.default_rng(seed))


def columns_of(factors: tuple[str, ...]) -> list[int]:
    return [c for f, name in enumerate(FACTORS) if name in factors for c in range(*FACTOR_OFFSETS[f : f + 2])]


def test_plant_users_single_modality_users_are_a_tenth_each() -> None:
    kinds = plant().kinds
    assert [kinds.count(kind) for kind in ("video", "audio", "text")] == [50, 50, 50]


def test_plant_users_single_modality_users_care_only_for_their_factors() -> None:
    users = plant()
    for kind, factors in SENSES.items():
        rows = [u for u, k in enumerate(users.kinds) if k == kind]
        others = sorted(set(range(users.start_UV.shape[1])) - set(columns_of(factors)))
        assert not users.start_UV[np.ix_(rows, others)].any()
        assert not users.end_UV[np.ix_(rows, others)].any()


def test_plant_users_best_item_is_worth_the_sum_of_weights() -> None:
    users = plant()
    for user, kind in enumerate(users.kinds):
        spans = pairwise(FACTOR_OFFSETS)
        best = sum(users.start_UV[user, low:high].max() for low, high in spans)
        assert abs(best - WEIGHT_SUM * WEIGHT_SHARE[kind]) < 1e-4


def test_plant_users_without_drift_keep_their_tastes() -> None:
    users = plant(drift_fraction=0.0)
    assert np.array_equal(users.start_UV, users.end_UV)


def test_plant_users_with_drift_change_about_that_share_of_tastes() -> None:
    users = plant(drift_fraction=1.0)
    assert (users.start_UV != users.end_UV).any(axis=1).mean() > 0.8


def test_plant_users_of_one_archetype_resemble_each_other() -> None:
    users = plant()
    kept = np.array([kind == "all" for kind in users.kinds])
    tastes, archetypes = users.start_UV[kept], users.archetypes[kept]
    similarity = np.corrcoef(tastes)
    same = archetypes[:, None] == archetypes[None, :]
    assert similarity[same].mean() > similarity[~same].mean() + 0.4


def test_take_repeats_rows_in_order() -> None:
    users = plant()
    taken = users.take(np.array([3, 3, 0]))
    assert taken.user_ids == [users.user_ids[3], users.user_ids[3], users.user_ids[0]]
    assert np.array_equal(taken.end_UV, users.end_UV[[3, 3, 0]])
