"""Ray Train around the training loop: workers, DDP, checkpoints, retries. The loop itself is `training.fit`."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.errors import AvrecError, StageError
from avrec_ray.pipelines.progress import epoch_progress
from avrec_ray.pipelines.stage import StageRun
from avrec_ray.training.checkpoint import load_checkpoint, save_checkpoint
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.distributed import largest_of_workers, sum_of_workers
from avrec_ray.training.fit import build_optimizer, fit
from avrec_ray.types import QUARANTINE_REASONS


@dataclass(eq=False)
class Work:
    """What a worker trains: a step module, its batches, and the loop's settings."""

    step: nn.Module
    batches: Callable[[int], Iterable[Any]]
    steps_per_epoch: int
    optim: OptimConfig
    left_out: Counter[str] = field(default_factory=Counter)
    """Items that the running epoch's batches had to leave out on this worker, by reason; the loop empties it."""
    notes: list[str] = field(default_factory=list)
    """A line on each of them; the loop prints the first and empties it."""


BuildWork = Callable[[dict[str, Any], int, int], Work]
"""build(settings, rank, num_workers): runs in the worker, so it must be importable from avrec_ray."""

_MOST_NOTES = 5
"""Lines a worker may print an epoch; the counts are complete."""

DDP_SETTINGS = {"find_unused_parameters": True, "broadcast_buffers": False}
"""A step's buffers hold the tokens of the whole catalogue, read from one file: sending them would cost each step."""


def run_trainer(
    stage: StageRun, cluster: ClusterConfig, build: BuildWork, settings: dict[str, Any], num_epochs: int, seed: int
) -> Path:
    """Train on `cluster.num_workers` workers and return the folder of the last checkpoint.

    A lost worker restarts the group from the last checkpoint, `cluster.max_failures` times; a driver that died goes
    on from there when the stage runs again with the same fingerprint.

    Raises:
        StageError: training failed for good; the message holds the worker's error.
    """
    folder = stage.storage.folder("checkpoints") / stage.name
    with epoch_progress(stage.run, num_epochs, stage.log) as queue:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"build": build, "settings": settings, "seed": seed, "queue": queue},
            scaling_config=ScalingConfig(
                num_workers=cluster.num_workers, use_gpu=cluster.use_gpu, resources_per_worker={"CPU": 1}
            ),
            run_config=RunConfig(
                # Ray Train resumes whatever has the same name: name it by what decides the result.
                name=stage.fingerprint[:16],
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=1),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise StageError(f"{stage.name}: training failed; the worker said: {_words_of(error)}") from error
    if result.checkpoint is None:
        raise StageError(f"{stage.name}: training ended without a checkpoint; epochs={num_epochs} must be at least 1")
    return Path(result.checkpoint.path)


def _words_of(error: ray.train.TrainingFailedError) -> str:
    """The first worker's own error, without the stacks around it; those are in the chain of causes."""
    failures = getattr(error, "worker_failures", {})
    first: BaseException = next(iter(failures.values()), error)
    cause = getattr(first, "cause", None) or first
    return f"{cause}" if isinstance(cause, AvrecError) else f"{type(cause).__name__}: {str(cause).strip()}"


def _worker(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(config["seed"])
    work: Work = config["build"](config["settings"], rank, num_workers)
    wrapped = prepare_model(work.step, parallel_strategy_kwargs=DDP_SETTINGS)
    optimizer = build_optimizer(work.step, work.optim)
    start_epoch = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            start_epoch = load_checkpoint(Path(folder) / "checkpoint", work.step, optimizer)

    def report(epoch: int, metrics: dict[str, float], due: bool) -> None:
        metrics = _of_all_workers(metrics, work.left_out, next(work.step.parameters()).device)
        for note in work.notes[:_MOST_NOTES]:
            config["queue"].put({"note": f"epoch {epoch + 1}: {note}"})
        work.notes.clear()
        if rank == 0:
            config["queue"].put({"epoch": epoch, "metrics": metrics})
        if not due:
            return
        with tempfile.TemporaryDirectory() as scratch:
            saved = None
            if rank == 0:
                save_checkpoint(Path(scratch) / "checkpoint", work.step, optimizer, epoch + 1)
                saved = ray.train.Checkpoint.from_directory(scratch)
            ray.train.report(
                {"epoch": epoch, **metrics}, checkpoint=saved, checkpoint_dir_name=f"epoch_{epoch + 1:05d}"
            )

    fit(
        wrapped,
        work.batches,
        work.steps_per_epoch,
        work.optim,
        report,
        optimizer=optimizer,
        start_epoch=start_epoch,
        seed=config["seed"],
        rank=rank,
    )


def _of_all_workers(metrics: dict[str, float], left_out: Counter[str], device: torch.device) -> dict[str, float]:
    """One worker's metrics, with the longest wait of any, since all wait for the slowest, and what all left out."""
    wait = largest_of_workers(torch.tensor(metrics["data_wait_share"], device=device)).item()
    counts = sum_of_workers(torch.tensor([left_out[reason] for reason in QUARANTINE_REASONS], device=device))
    left_out.clear()
    found = {
        f"left_out_{reason}": float(count)
        for reason, count in zip(QUARANTINE_REASONS, counts.tolist(), strict=True)
        if count
    }
    return {**metrics, "data_wait_share": wait, **found}
