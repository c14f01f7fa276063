"""Sizes that cannot work are refused before any weight is made."""

from typing import Any

import pytest

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import ConfigError
from avrec_ray.towers.config import TowersConfig


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_dim": 30}, "towers.model_dim=30 is not a multiple of num_heads=4"),
        ({"frame_size": 60}, "media.frame_size=60 is not a multiple of towers.patch_size=16"),
        ({"num_frames": 6}, "media.num_frames=6 is not a multiple of tokens_per_clip=4"),
        ({"dropout": 1.0}, "towers.dropout=1.0 is outside"),
        ({"modality_dropout": -0.1}, "towers.modality_dropout=-0.1 is outside"),
        ({"id_dropout": 1.5}, "towers.id_dropout=1.5 is outside"),
        ({"max_clips": 0}, "towers.max_clips=0 is outside"),
        ({"history_length": 0}, "towers.history_length=0 is outside"),
        ({"history_length": 5000}, "towers.history_length=5000 is outside"),
        ({"user_blocks": "lstm"}, "towers.user_blocks='lstm' is not one of"),
        ({"num_attribute_buckets": -1}, "towers.num_attribute_buckets=-1 is outside"),
        ({"num_friends": -1}, "towers.num_friends=-1 is outside"),
        ({"friend_items": 0}, "towers.friend_items=0 is outside"),
        ({"attribute_dropout": 1.0}, "towers.attribute_dropout=1.0 is outside"),
    ],
)
def test_towers_config_with_an_impossible_size_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TowersConfig(**overrides)


def test_towers_config_with_fewer_frames_than_tokens_is_allowed() -> None:
    assert TowersConfig(num_frames=1, tokens_per_clip=4).num_frames == 1


def test_towers_config_takes_long_histories_and_reads_no_profiles_unless_asked() -> None:
    assert TowersConfig(history_length=1000).history_length == 1000
    assert not TowersConfig().reads_profiles
    assert TowersConfig(num_friends=1).reads_profiles
    assert TowersConfig(num_attribute_buckets=8).reads_profiles


def test_towers_config_round_trips_through_plain_values() -> None:
    config = TowersConfig(embedding_dim=32, dropout=0.3)
    assert from_dict(TowersConfig, to_dict(config)) == config
