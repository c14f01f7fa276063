"""The checkpoints of one training: the newest complete one is found whatever lies around it, and two are kept."""

import shutil
from pathlib import Path

from torch import nn

from avrec_ray.training.checkpoints import agreed_checkpoint, keep_state, newest_checkpoint, position_folder, settle
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.fit import build_state


def written(training: Path, *positions: tuple[int, int]) -> None:
    """Checkpoints at these positions, one behind the other."""
    state = build_state(nn.Linear(2, 2), OptimConfig())
    for state.epoch, state.step in positions:
        keep_state(training, state)


def names(training: Path) -> list[str]:
    return sorted(path.name for path in training.iterdir())


def test_the_two_newest_positions_are_kept_in_the_order_of_training(tmp_path: Path) -> None:
    written(tmp_path, (0, 9), (0, 10), (1, 0), (1, 2))
    assert names(tmp_path) == ["epoch_00001_step_0000000", "epoch_00001_step_0000002"]
    assert newest_checkpoint(tmp_path) == position_folder(tmp_path, 1, 2) / "checkpoint"
    assert agreed_checkpoint(tmp_path) == newest_checkpoint(tmp_path)


def test_a_torn_checkpoint_is_passed_over_and_told_of(tmp_path: Path) -> None:
    written(tmp_path, (1, 0), (2, 0))
    path = position_folder(tmp_path, 2, 0) / "checkpoint" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == position_folder(tmp_path, 1, 0) / "checkpoint"
    assert len(said) == 1
    assert "optimizer.safetensors is missing or differs" in said[0]
    assert settle(tmp_path, said.append) == position_folder(tmp_path, 1, 0)
    assert names(tmp_path) == ["epoch_00001_step_0000000"]


def test_a_sealed_checkpoint_without_its_name_counts_and_gets_it(tmp_path: Path) -> None:
    written(tmp_path, (3, 0))
    position = position_folder(tmp_path, 3, 0)
    (position / "checkpoint").rename(position / "checkpoint.0a.part")
    shutil.copytree(position / "checkpoint.0a.part", position / "checkpoint.0b.part")
    (position / "checkpoint.0b.part" / "COMPLETE.json").unlink()
    assert newest_checkpoint(tmp_path) == position / "checkpoint.0a.part"
    assert settle(tmp_path, lambda line: None) == position
    assert names(position) == ["checkpoint"]


def test_nothing_is_found_where_nothing_is_whole(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "never") is None
    assert settle(tmp_path / "never", print) is None
    position_folder(tmp_path, 0, 1).mkdir()
    assert agreed_checkpoint(tmp_path) is None
    assert settle(tmp_path, print) is None
    assert names(tmp_path) == []
