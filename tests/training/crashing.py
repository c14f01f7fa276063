"""A training whose checkpoint writer dies at a chosen call of the file system; the program of `test_crashes`.

Run as: python -m tests.training.crashing FOLDER. For every call that a training makes when it writes its checkpoints, a
forked child trains and dies there (os._exit, nothing is flushed), and a second child goes on from what it finds. A line
says what came out: the number of the call, its name, where it went on, whether the weights are bit-equal to those of an
uninterrupted training, and what lies there in the end. "torn" calls die after half of a file was written.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avrec_ray.training import checkpoint
from avrec_ray.training.checkpoints import keep_state, newest_checkpoint, settle
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.fit import build_state, fit
from tests.training.test_fit import NoisyLine

CFG = OptimConfig(
    epochs=2, learning_rate=0.1, ema_decay=0.9, accumulate_steps=2, checkpoint_every_epochs=1, checkpoint_every_steps=1
)
NUM_BATCHES = 4
WATCHED = ("mkdir", "open", "rename", "unlink", "rmdir", "fsync")
"""Functions of `os`; everything else that the writer does to files goes through them, or is patched below."""


class Calls:
    """Counts the calls of the file system and dies at one of them."""

    def __init__(self, fatal: int, log: Path) -> None:
        self.fatal, self.log, self.count = fatal, log, 0

    def note(self, name: str, before_death: Callable[[], None] = lambda: None) -> None:
        self.count += 1
        if self.count == self.fatal:
            before_death()
            self.log.write_text(f"{name}")
            os._exit(37)

    def patch(self) -> None:
        for name in WATCHED:
            setattr(os, name, self._watched(name, getattr(os, name)))
        save_file = checkpoint.save_file

        def torn_save_file(tensors: dict[str, torch.Tensor], path: str) -> None:
            def half() -> None:
                save_file(tensors, path)
                content = Path(path).read_bytes()
                Path(path).write_bytes(content[: len(content) // 2])

            self.note("torn " + Path(path).name, half)
            save_file(tensors, path)

        write_text = Path.write_text

        def torn_write_text(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
            self.note("torn " + path.name, lambda: write_text(path, text[: len(text) // 2]))
            return write_text(path, text, *args, **kwargs)

        checkpoint.save_file = torn_save_file  # type: ignore[assignment]
        Path.write_text = torn_write_text  # type: ignore[method-assign, assignment]

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.note(name)
            return function(*args, **kwargs)

        return call


def train(folder: Path) -> tuple[str, str]:
    """Go on from what is there to the end: (epoch and step it went on from, digest of the weights kept)."""
    torch.manual_seed(0)
    step = NoisyLine()
    state = build_state(step, CFG)
    if found := newest_checkpoint(folder):
        checkpoint.load_state(found, state)
    place = f"{state.epoch}.{state.step}"
    batches = [torch.tensor(float(number)) for number in range(NUM_BATCHES)]
    fit(
        step, lambda epoch: batches, NUM_BATCHES, CFG, lambda e, metrics, due: state.history.append(metrics),
        state=state, save=lambda state: keep_state(folder, state), seed=5,
    )  # fmt: skip
    last = settle(folder, print)
    assert last is not None
    losses = [metrics["loss"] for metrics in state.history]
    weights = (last / "checkpoint" / "model.safetensors").read_bytes()
    return place, hashlib.sha256(weights + json.dumps(losses).encode()).hexdigest()


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked child that does `work`."""
    if not (pid := os.fork()):
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(root: Path) -> None:
    torch.set_num_threads(1)
    root.mkdir(exist_ok=True)
    _, whole = train(root / "whole")
    fatal, status = 0, 37
    while status == 37:
        fatal += 1
        folder, log, found = root / f"{fatal:04d}", root / "log", root / "found"

        def die(folder: Path = folder, log: Path = log, fatal: int = fatal) -> None:
            Calls(fatal, log).patch()
            train(folder)

        status = in_child(die)
        assert in_child(lambda folder=folder, found=found: found.write_text(json.dumps(train(folder)))) == 0
        place, digest = json.loads(found.read_text())
        if status == 37:
            left = sorted(path.name for path in folder.glob("epoch_*/*"))
            print(json.dumps([fatal, log.read_text(), place, digest == whole, left]), flush=True)
    assert status == 0, f"the training that nobody killed ended with {status}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
