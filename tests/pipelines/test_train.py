"""Ray Train around the loop: whoever is killed, it costs the steps since the last checkpoint, and nothing else."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avrec_ray.cluster_config import ClusterConfig, TrackingConfig
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import Tracking
from avrec_ray.pipelines.train import scaling
from tests.pipelines.killed_decoding import kill_with_workers, start
from tests.pipelines.killed_worker import EPOCHS, KILLED_IN_EPOCH, PAUSE, train

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, Path]:
    """The weights of an uninterrupted training, and its folder."""
    root = tmp_path_factory.mktemp("whole")
    weights, said = train(root)
    assert any(f"epoch {EPOCHS}/{EPOCHS}" in line for line in said)
    return weights, root


def assert_same_weights(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


def curves(root: Path) -> dict[str, list[tuple[int, float]]]:
    """The losses of the stage's MLflow run, of which there must be one, finished, under one finished parent."""
    tracking = Tracking(TrackingConfig(system_metrics_seconds=0), Storage.at(str(root)))
    runs = tracking.client.search_runs([tracking.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    (run,) = [run for run in runs if run.data.tags.get("stage") == "train"]
    assert {"git_sha", "env.python", "env.torch", "env.ray", "env.platform", "env.omp_num_threads"} <= set(
        run.data.tags
    )
    artifacts = {file.path for file in tracking.client.list_artifacts(run.info.run_id)}
    assert {"checkpoint", "model_summary.txt"} <= artifacts
    kept = {file.path for file in tracking.client.list_artifacts(run.info.run_id, "checkpoint")}
    assert kept == {"checkpoint/model.safetensors", "checkpoint/config.json"}
    names = ("train/loss", "train/scale", "train/learning_rate")
    history = {name: tracking.client.get_metric_history(run.info.run_id, name) for name in names}
    return {name: sorted((point.step, point.value) for point in points) for name, points in history.items()}


@pytest.mark.slow
@pytest.mark.ray
def test_training_goes_on_within_the_epoch_after_a_killed_worker_and_ends_the_same(
    whole: tuple[Weights, Path], tmp_path: Path
) -> None:
    killed, said = train(tmp_path / "killed", killed=str(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()
    assert f"train: going on at epoch {KILLED_IN_EPOCH + 1}, batch 2" in said
    assert not any("again" in line for line in said)  # no epoch was repeated
    assert_same_weights(killed, whole[0])
    assert curves(tmp_path / "killed") == curves(whole[1])


@pytest.mark.slow
@pytest.mark.ray
def test_training_goes_on_after_a_killed_driver_as_the_same_run(whole: tuple[Weights, Path], tmp_path: Path) -> None:
    os.environ[PAUSE] = "0.3"
    try:
        driver = start_driver(tmp_path)
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("checkpoints/train/*/epoch_00001_step_0000001/checkpoint")):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        kill_with_workers(driver)  # they would train on for a second or two, which is no harm but no test either
        driver.wait()
    finally:
        os.environ.pop(PAUSE)
    assert start_driver(tmp_path).wait(timeout=200) == 0, (tmp_path / "log").read_text()
    assert re.search("train: going on at epoch [23], batch", (tmp_path / "log").read_text())
    assert_same_weights(load_file(str(tmp_path / "weights.safetensors")), whole[0])
    assert curves(tmp_path) == curves(whole[1])
    assert not list((tmp_path / "stages").glob("*.running.json"))


def start_driver(folder: Path) -> "subprocess.Popen[bytes]":
    """A driver with a cluster of its own."""
    return start([sys.executable, "-m", "tests.pipelines.killed_worker", str(folder)], folder / "log")


@pytest.mark.ray
def test_a_finished_training_is_not_run_again(whole: tuple[Weights, Path]) -> None:
    again, said = train(whole[1])
    assert said == []
    assert all(torch.equal(whole[0][name], value) for name, value in again.items())


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_that_always_fails_ends_the_stage_with_its_words(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no such column in the moon table"):
        train(tmp_path, error="no such column in the moon table")


def test_workers_ask_for_what_the_config_says() -> None:
    fixed = scaling(ClusterConfig(num_workers=3))
    assert (fixed.num_workers, fixed.use_gpu, fixed.resources_per_worker) == (3, False, {"CPU": 1.0})
    elastic = scaling(ClusterConfig(num_workers=4, min_workers=2, train_resource="train"))
    assert elastic.num_workers == (2, 4)
    assert elastic.resources_per_worker == {"CPU": 1.0, "train": 1.0}
    assert scaling(ClusterConfig(use_gpu=True)).num_gpus_per_worker == 1


def test_elastic_training_on_cpus_needs_a_resource_that_pins_it() -> None:
    with pytest.raises(ConfigError, match="cluster.min_workers=1 needs cluster.train_resource or cluster.use_gpu=true"):
        ClusterConfig(min_workers=1)
    with pytest.raises(ConfigError, match="cluster.strategy='zero' is not one of"):
        ClusterConfig(strategy="zero")
