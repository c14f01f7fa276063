"""Checkpoints: exact round trips, and a torn or foreign one refused by name."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avrec_ray.errors import CheckpointError
from avrec_ray.training.checkpoint import load_checkpoint, restore_generators, save_checkpoint, verify_checkpoint
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.fit import build_optimizer


def net(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.LayerNorm(width))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(4, 2)).pow(2).sum().backward()
        optimizer.step()


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = net()
    optimizer = build_optimizer(module, OptimConfig())
    train(module, optimizer, steps)
    return module, optimizer


def equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_checkpoint_restores_module_optimizer_and_epoch_exactly(tmp_path: Path) -> None:
    module, optimizer = trained()
    save_checkpoint(tmp_path / "c", module, optimizer, epoch=7)
    torch.manual_seed(9)
    other = net()
    resumed = build_optimizer(other, OptimConfig(learning_rate=0.5))
    assert load_checkpoint(tmp_path / "c", other, resumed) == 7
    assert equal_states(other.state_dict(), module.state_dict())
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    for original, copy in ((module, optimizer), (other, resumed)):
        train(original, copy, 4, seed=5)
    assert equal_states(other.state_dict(), module.state_dict())


def test_checkpoint_of_an_optimizer_that_never_stepped_restores(tmp_path: Path) -> None:
    module, optimizer = trained(steps=0)
    save_checkpoint(tmp_path / "c", module, optimizer, epoch=0)
    assert load_checkpoint(tmp_path / "c", net(), build_optimizer(net(), OptimConfig())) == 0


def test_save_checkpoint_replaces_an_older_one_and_a_torn_attempt(tmp_path: Path) -> None:
    module, optimizer = trained()
    (tmp_path / "c.part").mkdir()
    (tmp_path / "c.part" / "junk").write_text("of a run that was killed")
    save_checkpoint(tmp_path / "c", module, optimizer, epoch=1)
    save_checkpoint(tmp_path / "c", module, optimizer, epoch=2)
    assert load_checkpoint(tmp_path / "c", module, optimizer) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]
    assert not (tmp_path / "c" / "junk").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_checkpoint_with_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    module, optimizer = trained()
    save_checkpoint(tmp_path / "c", module, optimizer, epoch=1)
    path = tmp_path / "c" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{name} is missing or differs from what was written"):
        load_checkpoint(tmp_path / "c", module, optimizer)


@pytest.mark.parametrize("content", [None, "", '{"model.safe'])
def test_checkpoint_without_its_seal_is_not_complete(tmp_path: Path, content: str | None) -> None:
    module, optimizer = trained()
    save_checkpoint(tmp_path / "c", module, optimizer, epoch=1)
    seal = tmp_path / "c" / "COMPLETE.json"
    seal.unlink() if content is None else seal.write_text(content)
    with pytest.raises(CheckpointError, match="is not a complete checkpoint"):
        verify_checkpoint(tmp_path / "c")


def test_each_worker_gets_its_own_generator_back() -> None:
    states, drawn = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
        drawn.append(torch.rand(3))
    for rank in range(3):
        assert restore_generators({"cpu": torch.stack(states)}, rank, num_workers=3)
        assert torch.equal(torch.rand(3), drawn[rank])
    assert not restore_generators({"cpu": torch.stack(states)}, 0, num_workers=2)
    assert not restore_generators({}, 0, num_workers=1)


def test_checkpoint_that_was_never_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a complete checkpoint"):
        verify_checkpoint(tmp_path / "nowhere")


def test_checkpoint_files_are_safetensors_and_json_alone(tmp_path: Path) -> None:
    module, optimizer = trained()
    save_checkpoint(tmp_path / "c", module, optimizer, epoch=1)
    assert {p.suffix for p in (tmp_path / "c").iterdir()} == {".safetensors", ".json"}
    assert json.loads((tmp_path / "c" / "state.json").read_text())["epoch"] == 1
