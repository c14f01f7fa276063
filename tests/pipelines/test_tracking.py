"""MLflow as jobs use it: where files lie, what a run names, and a monitor that ends with its run."""

import threading
import time
from pathlib import Path

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import DIGEST_CHARS, VERDICT, Tracking, artifact_location
from tests.tiny_bundle import build_tiny_bundle


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


def test_the_machine_is_watched_until_the_run_ends(tmp_path: Path) -> None:
    tracking = Tracking(TrackingConfig(system_metrics_seconds=0.2), Storage.at(str(tmp_path)))
    watched, other = tracking.start("watched", {}), tracking.start("other", {})
    tracking.watch(watched)
    name = "system/system_memory_usage_megabytes"
    deadline = time.monotonic() + 30
    while name not in tracking.client.get_run(watched.run_id).data.metrics:
        assert time.monotonic() < deadline, "nothing was noted in 30 s"
        time.sleep(0.05)
    watched.end()
    assert tracking.client.get_run(watched.run_id).data.metrics[name] > 0
    assert name not in tracking.client.get_run(other.run_id).data.metrics
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_nothing_is_watched_at_0_seconds(tmp_path: Path) -> None:
    tracking = Tracking(TrackingConfig(system_metrics_seconds=0.0), Storage.at(str(tmp_path)))
    run = tracking.start("a", {})
    tracking.watch(run)
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
    run.end()
    assert not tracking.client.get_run(run.run_id).data.metrics


def test_a_run_registers_one_version_however_often_it_goes_on(tmp_path: Path) -> None:
    tracking = Tracking(TrackingConfig(system_metrics_seconds=0.0), Storage.at(str(tmp_path / "run")))
    bundle = build_tiny_bundle(tmp_path / "v-1", num_items=12)
    run = tracking.start("register", {})
    assert tracking.register(run, bundle, "v-1", {VERDICT: "refused"}) == "1"
    kept = tracking.resolve_bundle(f"models:/{tracking.cfg.model_name}/1") / "metadata.json"
    written_at = kept.stat().st_mtime_ns
    assert tracking.register(run, bundle, "v-1", {VERDICT: "passed"}) == "1"
    assert tracking.registered("1").tags[VERDICT] == "passed"
    assert kept.stat().st_mtime_ns == written_at  # somebody may be reading it
    assert tracking.register(tracking.start("register", {}), bundle, "v-1", {}) == "2"
