"""Checkpoints: safetensors and JSON, complete or absent. No pickle."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avrec_ray.errors import CheckpointError

_COMPLETE = "COMPLETE.json"


def save_weights(path: Path, module: nn.Module) -> None:
    """The module's state as one safetensors file."""
    save_file({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, str(path))


def load_weights(path: Path, module: nn.Module) -> None:
    """Load a file of `save_weights`; every name and shape must match.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown or of another shape.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; run the stage that writes them first")
    try:
        stored, wanted = load_file(str(path)), module.state_dict()
    except SafetensorError as error:
        raise CheckpointError(f"{path} is torn or no safetensors file ({error}); run the stage again") from error
    for name in sorted(set(stored) ^ set(wanted)):
        where = "file" if name in stored else "model"
        raise CheckpointError(f"{path.name}: tensor {name!r} is only in the {where}; model and config differ")
    for name, value in wanted.items():
        if stored[name].shape != value.shape:
            raise CheckpointError(
                f"{path.name}: tensor {name!r} has shape {tuple(stored[name].shape)}, expected {tuple(value.shape)}"
            )
    module.load_state_dict(stored)


def save_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Write module, optimiser and the number of finished epochs; `folder` appears whole or not at all."""
    staging = folder.with_name(folder.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    save_weights(staging / "model.safetensors", module)
    tensors, scalars = _split_optimizer(optimizer.state_dict())
    save_file(tensors, str(staging / "optimizer.safetensors"))
    (staging / "state.json").write_text(json.dumps({"epoch": epoch, "optimizer": scalars}))
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(staging.iterdir())}
    (staging / _COMPLETE).write_text(json.dumps(digests))
    for path in staging.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote and return the number of finished epochs.

    Raises:
        CheckpointError: the checkpoint is torn or does not fit.
    """
    verify_checkpoint(folder)
    load_weights(folder / "model.safetensors", module)
    state = json.loads((folder / "state.json").read_text())
    tensors = load_file(str(folder / "optimizer.safetensors"))
    optimizer.load_state_dict(_join_optimizer(tensors, state["optimizer"]))
    return int(state["epoch"])


def verify_checkpoint(folder: Path) -> None:
    """Raise CheckpointError unless every file is there with the digest it was written with."""
    try:
        digests = json.loads((folder / _COMPLETE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint ({error}); delete it and resume") from error
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise CheckpointError(f"{path} is missing or differs from what was written; delete the checkpoint")


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def _join_optimizer(tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}
