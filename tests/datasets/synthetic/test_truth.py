import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from avrec_ray.datasets.config import SyntheticConfig
from avrec_ray.datasets.synthetic.factors import FACTORS, plant_items
from avrec_ray.datasets.synthetic.truth import ITEM_FACTORS, USER_PREFERENCES, read_truth, write_truth
from avrec_ray.datasets.synthetic.users import plant_users
from avrec_ray.errors import TableError


def test_write_truth_then_read_gives_the_same(tmp_path: Path) -> None:
    cfg = SyntheticConfig()
    items, users = plant_items(cfg, np.random.default_rng(0)), plant_users(cfg, np.random.default_rng(1))
    write_truth(tmp_path, items, users)
    for planted, read in zip((items, users), read_truth(tmp_path), strict=True):
        for field in dataclasses.fields(planted):
            before, after = getattr(planted, field.name), getattr(read, field.name)
            assert np.array_equal(before, after), field.name
            assert np.asarray(before).dtype == np.asarray(after).dtype, field.name


def test_write_truth_is_readable_by_people(tmp_path: Path) -> None:
    cfg = SyntheticConfig()
    items = plant_items(cfg, np.random.default_rng(0))
    write_truth(tmp_path, items, plant_users(cfg, np.random.default_rng(1)))
    table = pq.read_table(tmp_path / ITEM_FACTORS)
    assert {"item_id", "kind", "is_cold", *FACTORS} <= set(table.column_names)
    assert table["scene"][5].as_py() == items.factor_values(5)["scene"]
    assert {"user_id", "kind"} <= set(pq.read_table(tmp_path / USER_PREFERENCES).column_names)


@pytest.mark.parametrize("name", [ITEM_FACTORS, USER_PREFERENCES])
def test_read_truth_missing_file_is_named(tmp_path: Path, name: str) -> None:
    cfg = SyntheticConfig()
    write_truth(tmp_path, plant_items(cfg, np.random.default_rng(0)), plant_users(cfg, np.random.default_rng(1)))
    (tmp_path / name).unlink()
    with pytest.raises(TableError, match=f"{name} does not exist; only a synthetic dataset has a truth"):
        read_truth(tmp_path)
