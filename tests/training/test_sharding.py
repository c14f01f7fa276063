"""FSDP gives what DDP gives, and a checkpoint of one is gone on from by the other, on another number of workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from avrec_ray.training.checkpoints import newest_checkpoint
from avrec_ray.training.sharding import group_numbers, load_optimizer_state, optimizer_state, whole_state
from tests.training import sharded_worker

ROOT = Path(__file__).parents[2]


def run_workers(folder: Path, num_workers: int, strategy: str, stop_at: int = -1) -> list[dict[str, Tensor]]:
    """What each worker of a training found; nothing if it was to stop."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    arguments = [str(num_workers), strategy, str(folder), str(stop_at)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.sharded_worker", str(rank), *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(num_workers)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * num_workers, "\n".join(outputs)
    paths = [folder / f"{rank}.safetensors" for rank in range(num_workers)]
    return [load_file(str(path)) for path in paths if path.exists()]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of two workers with DDP."""
    folder = tmp_path_factory.mktemp("ddp")
    run_workers(folder, 2, "ddp")
    return folder


def weights_in(folder: Path) -> dict[str, Tensor]:
    newest = newest_checkpoint(folder / "training")
    assert newest is not None
    assert newest.parent.name.startswith(f"epoch_{sharded_worker.CFG.epochs:05d}")
    return load_file(str(newest / "model.safetensors"))


def assert_same_training(folder: Path, other: Path) -> None:
    weights, expected = weights_in(folder), weights_in(other)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        # The gradient of an attention's key bias is zero but for rounding, which AdamW divides by its own size.
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_fsdp_gives_the_losses_norms_and_weights_of_ddp(ddp: Path, tmp_path: Path) -> None:
    for rank, found in enumerate(run_workers(tmp_path, 2, "fsdp")):
        expected = load_file(str(ddp / f"{rank}.safetensors"))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert expected["losses"][0] > expected["losses"][-1]
    assert_same_training(tmp_path, ddp)


@pytest.mark.slow
def test_a_sharded_training_goes_on_within_an_epoch_on_one_worker_with_the_same_global_batch(
    ddp: Path, tmp_path: Path
) -> None:
    assert run_workers(tmp_path, 2, "fsdp", stop_at=3) == []
    newest = newest_checkpoint(tmp_path / "training")
    assert newest is not None
    assert newest.parent.name == "epoch_00001_step_0000002"  # two batches into the second epoch
    run_workers(tmp_path, 1, "ddp")
    assert_same_training(tmp_path, ddp)


def test_optimizer_state_is_by_name_and_survives_another_order_of_groups() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    one = torch.optim.AdamW([{"params": [first.weight]}, {"params": [first.bias]}], lr=0.1)
    first(torch.ones(1, 2)).sum().backward()
    one.step()
    state = optimizer_state(first, one)
    assert sorted(state) == [f"{w}.{m}" for w in ("bias", "weight") for m in ("exp_avg", "exp_avg_sq", "step")]
    other = torch.optim.AdamW([{"params": [second.bias]}, {"params": [second.weight]}], lr=0.5)
    second.load_state_dict(whole_state(first))
    load_optimizer_state(second, other, state, group_numbers(one))
    for module, optimizer in ((first, one), (second, other)):
        optimizer.zero_grad()
        module(torch.full((1, 2), 2.0)).pow(2).sum().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
