"""The checkpoints of one training: which to go on from, and which to keep.

A training's folder holds a folder for each position, `epoch_00003_step_00000`, with the checkpoint in it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from avrec_ray.errors import CheckpointError
from avrec_ray.training.checkpoint import save_state, verify_checkpoint
from avrec_ray.training.distributed import of_first_worker, world
from avrec_ray.training.state import TrainState

CHECKPOINT = "checkpoint"
"""Name of the checkpoint in the folder of its position."""
_KEPT = 2


def newest_checkpoint(
    training: Path, note: Callable[[str], None] = lambda line: None, at: str = "epoch_*"
) -> Path | None:
    """The checkpoint furthest on that is complete, or the one `at` a position; None before the first one.

    Torn ones are passed over, and `note` is told of each. One that was sealed but had not taken its name yet counts.
    """
    for position in sorted(training.glob(at), reverse=True):
        for folder in sorted(position.glob(f"{CHECKPOINT}*"), key=_by_name):
            try:
                verify_checkpoint(folder)
            except CheckpointError as error:
                note(f"passed over: {error}")
                continue
            return folder
    return None


def agreed_checkpoint(training: Path) -> Path | None:
    """The newest checkpoint as rank 0 sees it, on every worker; all must ask.

    Raises:
        CheckpointError: this worker does not see it: the folder is not shared by all nodes.
    """
    found = newest_checkpoint(training) if world()[0] == 0 else None
    epoch, step = _position(found) if found else (-1, -1)
    epoch, step = int(of_first_worker(epoch)), int(of_first_worker(step))
    if epoch < 0:
        return None
    mine = found or newest_checkpoint(training, at=position_folder(training, epoch, step).name)
    if mine is None:
        raise CheckpointError(f"no complete checkpoint of epoch {epoch}, step {step} in {training}; share storage_path")
    return mine


def settle(training: Path, note: Callable[[str], None]) -> Path | None:
    """Put a training's folder in order, when nobody trains, and give the newest position; None before the first one.

    Each position holds its checkpoint under the proper name and nothing else; positions without one go.
    """
    newest: Path | None = None
    for position in sorted(training.glob("epoch_*"), reverse=True):
        found = newest_checkpoint(training, note, at=position.name)
        for folder in position.iterdir():
            if folder != found:
                shutil.rmtree(folder, ignore_errors=True)
        if found is None:
            shutil.rmtree(position, ignore_errors=True)
            continue
        found.rename(position / CHECKPOINT)
        newest = newest or position
    return newest


def _position(checkpoint: Path) -> tuple[int, int]:
    _, epoch, _, step = checkpoint.parent.name.split("_")
    return int(epoch), int(step)


def position_folder(training: Path, epoch: int, step: int) -> Path:
    """Where the checkpoint of a position lies; names are in the order of training."""
    return training / f"epoch_{epoch:05d}_step_{step:07d}"


def keep_state(training: Path, state: TrainState) -> None:
    """Write the checkpoint of where the training is and remove all but the newest two. Every worker must call it."""
    save_state(position_folder(training, state.epoch, state.step) / CHECKPOINT, state)
    if world()[0] == 0:
        complete = [p for p in sorted(training.glob("epoch_*")) if (p / CHECKPOINT / "COMPLETE.json").is_file()]
        for position in sorted(training.glob("epoch_*")):
            if position < complete[-_KEPT:][0]:
                shutil.rmtree(position, ignore_errors=True)


def _by_name(folder: Path) -> tuple[bool, bool, str]:
    """The named one first, then what was to take its place, then what it replaced."""
    return folder.name != CHECKPOINT, not folder.name.endswith(".part"), folder.name
