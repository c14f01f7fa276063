"""Files of weights: exact round trips, and one that is torn or does not fit refused by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avrec_ray.errors import CheckpointError
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.weights import load_weights, save_weights
from tests.tiny_models import tiny_towers


def net(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.LayerNorm(width))


def equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_save_weights_round_trips_the_towers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers, others = TwoTower(tiny_towers(), 5), TwoTower(tiny_towers(), 5)
    assert not equal_states(towers.state_dict(), others.state_dict())
    save_weights(tmp_path / "w.safetensors", towers)
    load_weights(tmp_path / "w.safetensors", others)
    assert equal_states(towers.state_dict(), others.state_dict())


def test_load_weights_of_another_shape_names_the_tensor(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", net(3))
    with pytest.raises(CheckpointError, match=r"tensor '0.weight' has shape \(3, 2\), expected \(4, 2\)"):
        load_weights(tmp_path / "w.safetensors", net(4))


@pytest.mark.parametrize(("stored", "wanted", "where"), [(2, 3, "model"), (3, 2, "file")])
def test_load_weights_with_another_set_of_tensors_says_where(
    tmp_path: Path, stored: int, wanted: int, where: str
) -> None:
    save_weights(tmp_path / "w.safetensors", nn.ModuleList(nn.Linear(1, 1) for _ in range(stored)))
    with pytest.raises(CheckpointError, match=f"tensor '2.bias' is only in the {where}"):
        load_weights(tmp_path / "w.safetensors", nn.ModuleList(nn.Linear(1, 1) for _ in range(wanted)))


def test_load_weights_that_fail_leave_the_module_as_it_was(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", net(3))
    module = net(4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(tmp_path / "w.safetensors", module)
    assert equal_states(module.state_dict(), before)


def test_load_weights_of_a_missing_or_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match=r"no weights at .*run the stage"):
        load_weights(path, net())
    save_weights(path, net())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"w\.safetensors is torn or no safetensors file"):
        load_weights(path, net())


def test_modules_that_share_a_tensor_are_saved_with_one_each(tmp_path: Path) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    save_weights(tmp_path / "w.safetensors", nn.Sequential(first, second))
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    load_weights(tmp_path / "w.safetensors", other)
    assert torch.equal(other[0].weight, first.weight)
    assert torch.equal(other[1].weight, first.weight)


def test_models_are_served_without_distributed_training() -> None:
    modules = "avrec_ray.retrieval.matcher, avrec_ray.ranking.reranker"
    code = f"import {modules}, sys; sys.exit('torch.distributed.fsdp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
