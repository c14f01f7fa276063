"""2 workers x b give the gradient of 1 x 2b: real processes, a real process group, DDP as in training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avrec_ray.training.distributed import gather_rows, world
from tests.training import gradient_worker

ROOT = Path(__file__).parents[2]
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two workers found."""
    folder = tmp_path_factory.mktemp("workers")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.gradient_worker", str(rank), "2", str(folder)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    return [load_file(str(folder / f"2_{rank}")) for rank in range(2)]


@pytest.fixture(scope="module")
def one_worker() -> Found:
    """What one worker finds on the whole batch."""
    return gradient_worker.gradients(0, 1)


@pytest.mark.parametrize("step", gradient_worker.STEPS)
def test_two_workers_give_the_gradient_of_one_with_twice_the_batch(
    step: str, two_workers: list[Found], one_worker: Found
) -> None:
    names = [name for name in one_worker if name.startswith(f"{step}/") and not name.endswith("/loss")]
    norm = torch.stack([one_worker[name].norm() for name in names]).norm().item()
    assert norm > 0.1
    for name in names:
        for found in two_workers:
            torch.testing.assert_close(found[name], one_worker[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("step", gradient_worker.STEPS)
def test_losses_of_two_workers_average_to_that_of_one(step: str, two_workers: list[Found], one_worker: Found) -> None:
    losses = [float(found[f"{step}/loss"]) for found in two_workers]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)  # they did see different rows
    assert sum(losses) / 2 == pytest.approx(float(one_worker[f"{step}/loss"]), rel=1e-5)


def test_gather_rows_is_in_rank_order_and_its_gradient_is_summed_over_workers(two_workers: list[Found]) -> None:
    weights = torch.arange(12, dtype=torch.float32).view(4, 3)
    for rank, found in enumerate(two_workers):
        assert found["gather/rows"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
        assert torch.equal(found["gather/grad"], weights[2 * rank : 2 * rank + 2] * (1 + 2))


def test_without_a_process_group_there_is_one_worker_and_gather_is_the_identity() -> None:
    local = torch.ones(2, 3)
    assert world() == (0, 1)
    assert gather_rows(local) is local
