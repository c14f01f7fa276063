"""MLflow as jobs use it: where files lie, what a run names, and a monitor that ends with its run."""

import time
from pathlib import Path

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import DIGEST_CHARS, Tracking, artifact_location


def test_files_lie_beside_a_database_and_are_left_to_a_server() -> None:
    assert artifact_location("sqlite:////data/mlflow.db") == "file:///data/mlartifacts"
    assert artifact_location("http://127.0.0.1:5000") is None


def test_a_shared_database_keeps_files_beside_it(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    cfg = TrackingConfig(uri=f"sqlite:///{shared}/mlflow.db", experiment="several", system_metrics_seconds=0.0)
    tracking = Tracking(cfg, Storage.at(str(tmp_path / "one")))
    run = tracking.start("a", {"seed": 0})
    run.artifact_json({"x": 1}, "x.json")
    run.end()
    assert [path.name for path in (shared / "mlartifacts").rglob("*.json")] == ["x.json"]


def test_a_run_names_the_tables_it_read_and_renames_files(tmp_path: Path) -> None:
    tracking = Tracking(TrackingConfig(system_metrics_seconds=0.0), Storage.at(str(tmp_path)))
    table = tmp_path / "train.parquet"
    table.write_bytes(b"x")
    run = tracking.start("a", {})
    run.inputs("training", {table: "0" * 64})
    run.artifact(table, "folder", "other.parquet")
    run.end()
    (found,) = tracking.client.get_run(run.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("train", "0" * DIGEST_CHARS)
    assert found.tags[0].value == "training"
    assert [f.path for f in tracking.client.list_artifacts(run.run_id, "folder")] == ["folder/other.parquet"]


def test_the_machine_is_watched_from_the_start_of_a_parent_to_its_end(tmp_path: Path) -> None:
    tracking = Tracking(TrackingConfig(system_metrics_seconds=0.2), Storage.at(str(tmp_path)))
    parent = tracking.start("parent", {})
    child = tracking.start("child", {}, parent=parent.run_id)
    time.sleep(1.5)
    child.end()
    parent.end()
    metrics = tracking.client.get_run(parent.run_id).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0
    assert not [name for name in tracking.client.get_run(child.run_id).data.metrics if name.startswith("system/")]
    steps = len(tracking.client.get_metric_history(parent.run_id, "system/system_memory_usage_megabytes"))
    time.sleep(0.5)
    assert len(tracking.client.get_metric_history(parent.run_id, "system/system_memory_usage_megabytes")) == steps
