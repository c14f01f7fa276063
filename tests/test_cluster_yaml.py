"""cluster.yaml passes Ray's own validation and our rules; Ray's covers neither provider keys nor versions."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_yaml_passes_ray_validation(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_cluster_yaml_with_a_typo_is_refused(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster["available_node_types"]["decode"]["lables"] = {"pool": "decode"}
    with pytest.raises(Exception, match="lables"):
        validate_config(prepare_config(cluster))


def test_cluster_yaml_has_head_decode_and_gpu_train_nodes_that_scale(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {"head", "decode", "train"}
    assert types["train"]["resources"]["GPU"] >= 1
    assert "GPU" not in types["decode"]["resources"]
    for name in ("decode", "train"):
        assert types[name]["max_workers"] > types[name]["min_workers"]


def test_cluster_yaml_installs_the_pinned_ray(cluster: dict[str, Any]) -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    (pinned,) = [line for line in constraints if line.startswith("ray==")]
    assert any(pinned.removeprefix("ray") in command for command in cluster["setup_commands"])


def test_cluster_yaml_keeps_the_dashboard_on_loopback_and_the_token_on(cluster: dict[str, Any]) -> None:
    (start,) = [c for c in cluster["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_AUTH_MODE=token" in start


def test_cluster_yaml_offers_the_decode_resource_of_the_config_on_decode_nodes_alone(cluster: dict[str, Any]) -> None:
    resource = yaml.safe_load((ROOT / "conf" / "cluster" / "gpu.yaml").read_text())["decode_resource"]
    offers = [name for name, kind in cluster["available_node_types"].items() if resource in kind["resources"]]
    assert offers == ["decode"]
