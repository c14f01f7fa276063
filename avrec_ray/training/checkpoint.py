"""Checkpoints: safetensors and JSON, complete or absent. No pickle.

A checkpoint is written beside its place, sealed with the digest of every file, synced to disk, and renamed. Whatever
dies at whatever moment, `newest_checkpoint` finds the last one that was sealed.
"""

import errno
import hashlib
import json
import secrets
import shutil
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avrec_ray.durable import sync
from avrec_ray.errors import CheckpointError
from avrec_ray.training.distributed import gather_equal, world
from avrec_ray.training.sharding import (
    group_numbers,
    load_optimizer_state,
    load_whole_state,
    optimizer_state,
    placed_like,
    whole,
    whole_state,
)
from avrec_ray.training.state import TrainState
from avrec_ray.training.weights import read_weights

_COMPLETE = "COMPLETE.json"


@dataclass(eq=False)
class Snapshot:
    """A training at one moment, in memory: the files of a checkpoint, and what goes into its JSON."""

    files: dict[str, dict[str, Tensor]]
    values: dict[str, Any]


def take_snapshot(state: TrainState) -> Snapshot:
    """The state as whole tensors on the CPU. Every worker must call it; they are the same on all, but for `sums`."""
    with state.kept_weights() as module:
        files = {"model": whole_state(module)}
    if state.average is not None:
        files["live"] = whole_state(state.module)
    files["optimizer"] = optimizer_state(state.module, state.optimizer)
    files["random"] = {name: gather_equal(value) for name, value in _generators().items()}
    if state.patience.weights:
        files["best"] = {name: whole(value) for name, value in state.patience.weights.items()}
    patience = {name: value for name, value in vars(state.patience).items() if name != "weights"}
    values = {
        "epoch": state.epoch,
        "step": state.step,
        "num_updates": state.num_updates,
        "sums": dict(state.sums),
        "history": state.history,
        "patience": {**patience, "value": str(patience["value"])},  # JSON knows no infinity
        "optimizer": group_numbers(state.optimizer),
        "scaler": state.scaler.state_dict() if state.scaler else {},
        "num_workers": world()[1],
    }
    return Snapshot(files, values)


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Write a snapshot; `folder` appears whole or not at all, and what it replaces goes after it has come."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The name is drawn: a worker that outlived its driver may be writing the same checkpoint.
    staging = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.part")
    staging.mkdir()
    for name, tensors in snapshot.files.items():
        save_file(tensors, str(staging / f"{name}.safetensors"))
    (staging / "state.json").write_text(json.dumps(snapshot.values))
    digests = {path.name: _digest(path) for path in sorted(staging.iterdir())}
    (staging / _COMPLETE).write_text(json.dumps(digests))
    for path in [*staging.iterdir(), staging]:
        sync(path)
    _take_name(staging, folder)
    sync(folder.parent)
    for path in _left_over(folder):
        shutil.rmtree(path, ignore_errors=True)


def save_state(folder: Path, state: TrainState) -> None:
    """A checkpoint of the whole training. Every worker must call it; the first one writes."""
    snapshot = take_snapshot(state)
    if world()[0] == 0:
        write_snapshot(folder, snapshot)


def load_state(folder: Path, state: TrainState) -> None:
    """Restore what `save_state` wrote into a state that was built alike. Every worker must call it.

    Raises:
        CheckpointError: the checkpoint is torn or does not fit.
    """
    verify_checkpoint(folder)
    values = json.loads((folder / "state.json").read_text())
    live = folder / "live.safetensors"
    weights = read_weights(live if live.is_file() else folder / "model.safetensors", state.module)
    load_whole_state(state.module, weights)
    if state.average is not None:
        kept = load_file(str(folder / "model.safetensors"))
        for name, value in state.average.weights.items():
            value.copy_(placed_like(kept[name], value))
    moments = load_file(str(folder / "optimizer.safetensors"))
    load_optimizer_state(state.module, state.optimizer, moments, values["optimizer"])
    if state.scaler and values["scaler"]:
        state.scaler.load_state_dict(values["scaler"])
    state.epoch, state.step, state.num_updates = values["epoch"], values["step"], values["num_updates"]
    state.sums = defaultdict(float, values["sums"])
    state.history = values["history"]
    state.random = load_file(str(folder / "random.safetensors"))
    for name, value in {**values["patience"], "value": float(values["patience"]["value"])}.items():
        setattr(state.patience, name, value)
    if (folder / "best.safetensors").is_file():
        parameters = dict(state.module.named_parameters())
        best = load_file(str(folder / "best.safetensors"))
        state.patience.weights = {name: placed_like(value, parameters[name]) for name, value in best.items()}


def restore_generators(states: dict[str, Tensor], rank: int, num_workers: int) -> bool:
    """Set this worker's generators as they were; false if they are of another number of workers, or of none."""
    if not states or len(states["cpu"]) != num_workers:
        return False
    # Copies: torch reads a state from the start of its storage, which a row of a matrix does not have to itself.
    torch.set_rng_state(states["cpu"][rank].clone())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][rank].clone())
    return True


def _generators() -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def save_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """A checkpoint at the end of an epoch, of a training without more state than module and optimiser."""
    save_state(folder, TrainState(module, optimizer, epoch=epoch))


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore module and optimiser and return the number of finished epochs.

    Raises:
        CheckpointError: the checkpoint is torn or does not fit.
    """
    state = TrainState(module, optimizer)
    load_state(folder, state)
    return state.epoch


def verify_checkpoint(folder: Path) -> None:
    """Raise CheckpointError unless every file is there with the digest it was written with."""
    try:
        digests = json.loads((folder / _COMPLETE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint ({error}); delete it and resume") from error
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file() or _digest(path) != digest:
            raise CheckpointError(f"{path} is missing or differs from what was written; delete the checkpoint")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take_name(staging: Path, folder: Path, attempts: int = 5) -> None:
    """Rename; what had the name is renamed first. Somebody else may be doing the same."""
    for attempt in range(attempts):
        with suppress(FileNotFoundError):
            folder.rename(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.old"))
        try:
            staging.rename(folder)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or attempt + 1 == attempts:
                raise


def _left_over(folder: Path) -> list[Path]:
    """What writers that died left beside a checkpoint, sealed ones too."""
    return [*sorted(folder.parent.glob(f"{folder.name}.*part")), *sorted(folder.parent.glob(f"{folder.name}.*old"))]
