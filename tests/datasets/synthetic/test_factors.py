from collections import Counter

import numpy as np
import pytest

from avrec_ray.datasets.config import SyntheticConfig
from avrec_ray.datasets.synthetic.factors import FACTORS, KIND_SHARES, NUM_VALUES, SHOWN, PlantedItems, plant_items


def plant(seed: int = 0, **changes: float) -> PlantedItems:
    return plant_items(SyntheticConfig(**changes), np.random.default_rng(seed))  # type: ignore[arg-type]


def test_plant_items_holds_every_kind_in_its_share() -> None:
    counts = Counter(plant().kinds)
    assert counts["broken"] == 6
    for kind, share in KIND_SHARES.items():
        assert counts[kind] == pytest.approx(294 * share, abs=1.01)


@pytest.mark.parametrize("num_items", [25, 37, 300])
def test_plant_items_small_catalogue_has_every_kind(num_items: int) -> None:
    cfg = SyntheticConfig(num_items=num_items, num_users=4, num_interactions=20, broken_items=4)
    kinds = plant_items(cfg, np.random.default_rng(0)).kinds
    assert len(kinds) == num_items
    assert set(kinds) == {*KIND_SHARES, "broken"}


def test_plant_items_cold_items_are_never_broken_and_come_late() -> None:
    items = plant()
    assert items.is_cold.sum() == 15
    assert not (items.is_cold & items.is_broken).any()
    assert items.published_at_seconds[items.is_cold].min() > items.published_at_seconds[~items.is_cold].max()


def test_plant_items_uses_every_factor_value() -> None:
    items = plant()
    for column, values in enumerate(FACTORS.values()):
        counts = np.bincount(items.factor_idx_NF[:, column], minlength=len(values))
        assert len(counts) == len(values)
        assert counts.min() > 10


def test_plant_items_items_of_one_creator_resemble_each_other() -> None:
    items = plant()
    same = items.creators[:, None] == items.creators[None, :]
    np.fill_diagonal(same, False)
    alike = (items.factor_idx_NF[:, None] == items.factor_idx_NF[None, :]).mean(axis=2)
    assert alike[same].mean() > 1.3 * alike[~same].mean()


def test_vectors_hold_what_each_kind_shows() -> None:
    items = plant()
    vectors = items.vectors()
    assert vectors.shape == (300, NUM_VALUES)
    for kind, row in zip(items.kinds, vectors, strict=True):
        assert sorted(row[row > 0]) == pytest.approx(sorted(SHOWN[kind]))


def test_factor_values_names_every_factor() -> None:
    values = plant().factor_values(0)
    assert list(values) == list(FACTORS)
    assert all(values[name] in FACTORS[name] for name in FACTORS)
