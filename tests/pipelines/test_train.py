"""Ray Train around the loop: a killed worker costs the epochs since the last checkpoint, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from avrec_ray.cluster_config import ClusterConfig, TrackingConfig
from avrec_ray.errors import StageError
from avrec_ray.pipelines.stage import Loop, StageRun
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.train import run_trainer
from avrec_ray.training.checkpoint import load_weights
from tests.pipelines.killed_worker import EPOCHS, KILLED_IN_EPOCH, build_step, build_work

pytestmark = pytest.mark.ray
CLUSTER = ClusterConfig(num_workers=2, max_failures=1)


def train(root: Path, **settings: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """A stage that trains; its weights and what it said. The same root and settings are the same training."""
    said: list[str] = []
    loop = Loop(Storage.at(str(root)), TrackingConfig(), "test", echo=said.append)
    weights: dict[str, torch.Tensor] = {}

    def work(stage: StageRun) -> dict[str, float]:
        checkpoint = run_trainer(stage, CLUSTER, build_work, settings, EPOCHS, seed=0)
        step = build_step()
        load_weights(checkpoint / "checkpoint" / "model.safetensors", step)
        weights.update(step.state_dict())
        return {}

    loop.stage("train", work, settings=settings, inputs={}, outputs=[root / "never"])  # so that it is never skipped
    loop.close()
    return weights, [line for line in said if "epoch" in line]


def test_training_goes_on_after_a_killed_worker_and_ends_the_same(ray_cluster: None, tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole")
    killed, said = train(tmp_path / "killed", killed=str(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()
    assert any(f"epoch {EPOCHS}/{EPOCHS}" in line for line in said)
    assert not any(f"epoch {KILLED_IN_EPOCH - 1} again" in line for line in said)  # earlier epochs were not repeated
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_finished_training_is_not_run_again(ray_cluster: None, tmp_path: Path) -> None:
    first, said = train(tmp_path)
    assert said
    again, said = train(tmp_path)
    assert said == []
    assert all(torch.equal(first[name], value) for name, value in again.items())


def test_a_worker_that_always_fails_ends_the_stage_with_its_words(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no such column in the moon table"):
        train(tmp_path, error="no such column in the moon table")
