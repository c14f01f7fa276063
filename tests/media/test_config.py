import pytest

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import ConfigError
from avrec_ray.media.config import MediaConfig


def test_media_config_default_shapes() -> None:
    cfg = MediaConfig()
    assert cfg.frames_shape == (8, 3, 64, 64)
    assert cfg.log_mel_shape == (80, 400)
    assert cfg.num_samples == 64000
    assert cfg.clip_bytes == 8 * 3 * 64 * 64 + 4 * 80 * 400


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_frames", 0, r"media\.num_frames=0 is outside"),
        ("frame_size", 4, r"media\.frame_size"),
        ("decoder", "opencv", r"media\.decoder='opencv' is not one of"),
        ("mode", "quick", r"media\.mode='quick' is not one of"),
        ("clip_seconds", 1.001, "multiple of 160"),
        ("timeout_seconds", 0, r"media\.timeout_seconds"),
        ("front_end", "mfcc", r"media\.front_end='mfcc' is not one of"),
        ("front_end", "ast", r"media\.num_mel_bins=80, but front_end=ast is made for 128; choose media=ast"),
        ("front_end", "clap", r"media\.sample_rate_hz=16000, but front_end=clap is made for 48000"),
        ("max_duration_seconds", 1.0, r"media\.max_duration_seconds"),
        ("media_roots", ["relative"], "expected absolute folders"),
    ],
)
def test_media_config_wrong_value_names_the_key(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(MediaConfig, {field: value})


def test_media_config_log_mel_shape_is_the_front_ends() -> None:
    assert MediaConfig(front_end="ast", num_mel_bins=128).log_mel_shape == (128, 398)
    assert MediaConfig(front_end="clap", sample_rate_hz=48000, num_mel_bins=64).log_mel_shape == (64, 401)


def test_media_config_fast_needs_pyav() -> None:
    with pytest.raises(ConfigError, match="got media.decoder=decord; expected auto or pyav"):
        MediaConfig(mode="fast", decoder="decord")


def test_media_config_survives_a_round_trip() -> None:
    cfg = MediaConfig(num_frames=4, media_roots=["/data"], decoder="pyav")
    assert from_dict(MediaConfig, to_dict(cfg)) == cfg
