import pytest

from avrec_ray.dataclass_io import from_dict
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.config import FeedbackConfig


def test_store_url_empty_is_a_file_under_storage_path() -> None:
    assert FeedbackConfig().store_url("/data/avrec") == "sqlite:////data/avrec/events.db"


def test_store_url_configured_is_kept() -> None:
    assert FeedbackConfig(url="postgresql+psycopg://db/avrec").store_url("/x") == "postgresql+psycopg://db/avrec"


@pytest.mark.parametrize(
    "values",
    [
        {"max_events_per_request": 0},
        {"max_events_per_request": 501},
        {"max_clock_skew_seconds": -1},
        {"history_length": 0},
        {"busy_timeout_seconds": -1},
        {"retention_days": -1},
    ],
)
def test_feedback_config_out_of_range_names_the_field(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"feedback.{next(iter(values))}"):
        from_dict(FeedbackConfig, values)


def test_feedback_config_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'urll'"):
        from_dict(FeedbackConfig, {"urll": ""})
