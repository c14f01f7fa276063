from typing import Any

import pytest

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.datasets.config import DataConfig, MovieLensConfig, SyntheticConfig
from avrec_ray.errors import ConfigError


def test_data_config_defaults_survive_a_round_trip() -> None:
    config = DataConfig()
    assert from_dict(DataConfig, to_dict(config)) == config


def test_synthetic_config_default_is_the_demo_size() -> None:
    config = SyntheticConfig()
    assert (config.num_items, config.num_users, config.num_interactions) == (300, 500, 15_000)


def test_data_config_unknown_dataset_lists_choices() -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.dataset='netflix' is not one of \['lastfm', 'microvideo', 'movielens', 'synthetic', 'tables'\]",
    ):
        DataConfig(dataset="netflix")


def test_data_config_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown key 'num_item'"):
        from_dict(DataConfig, {"synthetic": {"num_item": 3}})


@pytest.mark.parametrize("name", ["items", "interactions", "users", "edges"])
def test_data_config_relative_table_raises(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name}='my/t\.parquet' is relative; expected an absolute path"):
        DataConfig(**{name: "my/t.parquet"})


def test_data_config_relative_media_root_raises() -> None:
    with pytest.raises(ConfigError, match=r"data\.media_roots='media' is relative"):
        DataConfig(media_roots=["/a", "media"])


def test_movielens_config_unknown_variant_raises() -> None:
    with pytest.raises(ConfigError, match=r"movielens\.variant='ml-1m' is not one of"):
        MovieLensConfig(variant="ml-1m")


@pytest.mark.parametrize("name", ["source", "posters"])
def test_movielens_config_relative_folder_raises(name: str) -> None:
    with pytest.raises(ConfigError, match=f"movielens.{name}='here' is relative"):
        MovieLensConfig(**{name: "here"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_items": 5}, r"synthetic\.num_items=5 is outside \[25"),
        ({"cold_fraction": 0.9}, r"synthetic\.cold_fraction=0\.9 is outside"),
        ({"broken_items": 200}, r"synthetic\.broken_items=200 is outside \[0, 75\]"),
        ({"frame_size": 65}, r"synthetic\.frame_size=65 is odd"),
        ({"min_seconds": 6.0, "max_seconds": 5.0}, r"synthetic\.max_seconds=5\.0 is outside \[6\.0"),
        ({"num_interactions": 100}, r"synthetic\.num_interactions=100 is outside \[2500, 30000\]"),
        ({"num_interactions": 90_000}, r"synthetic\.num_interactions=90000 is outside.*change num_interactions"),
    ],
)
def test_synthetic_config_out_of_range_names_field_and_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticConfig(**values)
