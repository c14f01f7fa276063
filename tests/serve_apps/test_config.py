from pathlib import Path
from typing import Any

import pytest
import yaml

from avrec_ray.config import LimitsConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import ConfigError
from serve_apps.config import ServeConfig

PATHS = {"bundle": "/data/bundle/v1", "storage_path": "/data"}
PRESETS = Path(__file__).parents[2] / "serve_apps"


def test_serve_config_survives_plain_dicts() -> None:
    cfg = from_dict(ServeConfig, {**PATHS, "feedback": {"history_length": 7}, "deadline_ms": "250"})
    assert (cfg.feedback.history_length, cfg.deadline_ms, cfg.host) == (7, 250, "127.0.0.1")
    assert from_dict(ServeConfig, to_dict(cfg)) == cfg


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bundle": "bundle/v1"}, r"serve.bundle='bundle/v1' is not absolute; replicas run in another directory"),
        ({"bundle": ""}, r"serve.bundle='' is not absolute"),
        ({"storage_path": "runs"}, r"serve.storage_path='runs' is not absolute"),
        ({"port": 0}, r"serve.port=0 is outside \[1, 65535\]"),
        ({"deadline_ms": 0}, r"serve.deadline_ms=0 is outside"),
        ({"max_matcher_replicas": 0}, r"serve.max_matcher_replicas=0 is outside"),
        ({"max_body_bytes": 10}, r"serve.max_body_bytes=10 is outside"),
        ({"replicas": 3}, r"unknown key 'replicas'"),
        ({"limits": {"read_burst": 0}}, r"serve.limits.read_burst=0 is outside"),
        ({"limits": {"reads": 1}}, r"limits: unknown key 'reads'"),
        ({"event_names": {"clap": "applaud"}}, r"serve.event_names.clap='applaud' is not one of"),
        ({"feedback": {"history": 3}}, r"feedback: unknown key 'history'"),
        ({"port": "http"}, r"port='http': got str, expected int"),
    ],
)
def test_serve_config_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(ServeConfig, {**PATHS, **values})


@pytest.mark.parametrize(
    ("name", "is_production"), [("serve_config.yaml", False), ("serve_config_production.yaml", True)]
)
def test_serve_yaml_is_a_valid_serve_schema_with_valid_args(name: str, is_production: bool) -> None:
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load((PRESETS / name).read_text())
    schema = ServeDeploySchema(**values)
    (application,) = schema.applications
    cfg = from_dict(ServeConfig, application.args)
    assert application.import_path == "serve_apps.gateway:build_app"
    assert (cfg.host, cfg.port) == (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 8080)
    assert schema.proxy_location == "HeadOnly"
    assert cfg.limits == LimitsConfig()
    assert cfg.access_log == cfg.fused_models == is_production
    assert schema.http_options.request_timeout_s == cfg.limits.body_seconds + cfg.limits.request_seconds + 5


def test_environment_of_production_names_what_ray_reads() -> None:
    """A name that Ray does not know would change nothing, and say nothing."""
    import ray.serve._private as serve_private

    lines = [line for line in (PRESETS / "production.env").read_text().splitlines() if line and line[0] != "#"]
    environment = dict(line.split("=", 1) for line in lines)
    assert len(environment) == len(lines)
    constants = (Path(serve_private.__path__[0]) / "constants.py").read_text()
    for name in environment:
        if name.startswith("RAY_SERVE_"):
            assert f'"{name}"' in constants, name
    assert environment["RAY_AUTH_MODE"] == "token"
    files = [value for name, value in environment.items() if name.endswith(("_LOC", "_PATH", "_BASE", "_FILE"))]
    assert len(files) == 4
    assert not any(file.startswith("/tmp") for file in files)
