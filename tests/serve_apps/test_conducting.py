"""The registry as the conductor follows it, with a real MLflow."""

from pathlib import Path

import pytest

from avrec_ray.bundle import load_metadata
from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.errors import StageError
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import Tracking
from serve_apps.conducting import Registry
from serve_apps.config import ServeConfig
from tests.tiny_bundle import build_tiny_bundle


@pytest.mark.slow
def test_champion_and_its_folder_are_found_and_shared(tmp_path: Path) -> None:
    elsewhere, storage = tmp_path / "elsewhere", tmp_path / "storage"
    cfg = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", system_metrics_seconds=0.0)
    bundle = build_tiny_bundle(elsewhere / "v-new", 20)
    registry = Registry(ServeConfig(bundle=str(bundle), storage_path=str(storage), tracking=cfg))
    assert registry.champion() is None
    with pytest.raises(StageError, match="is not in the registry"):
        registry.resolve("models:7")
    tracking = Tracking(cfg, Storage.at(str(storage)))
    run = tracking.start("loop", {})
    version = tracking.register(run, bundle, "v-new", {})
    run.end()
    tracking.promote(version)
    assert registry.champion() == (version, "v-new")
    found = registry.resolve(f"models:{version}")
    # Artifacts lie where this node found them; replicas on other nodes read what lies under storage_path.
    assert found == storage / "served" / "v-new"
    assert load_metadata(found).model_version == "v-new"
    assert registry.resolve(f"models:/avrec_ray/{version}") == found
    assert registry.resolve(str(bundle)) == bundle


def test_a_registry_that_does_not_answer_is_none_and_said(tmp_path: Path) -> None:
    cfg = TrackingConfig(uri="no-such-scheme://x", system_metrics_seconds=0.0)
    registry = Registry(ServeConfig(bundle="/b", storage_path=str(tmp_path), tracking=cfg))
    assert registry.champion() is None
    with pytest.raises(StageError, match="the registry cannot be opened"):
        registry.resolve("models:1")
