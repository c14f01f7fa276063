"""Ray Train around the training loop: workers, DDP or FSDP, retries. The loop itself is `training.fit`.

Checkpoints are the loop's own and lie under storage_path: Ray Train copies a reported one into place file by file and
then overwrites its list of them, so that a kill can leave half of either, and the last checkpoint may not be on the
list yet. Here rank 0 renames a sealed one into place, and whoever starts takes the newest that is complete.
"""

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch import nn

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.errors import AvrecError, ConfigError, StageError
from avrec_ray.pipelines.progress import epoch_progress
from avrec_ray.pipelines.stage import StageRun
from avrec_ray.training.checkpoint import load_state
from avrec_ray.training.checkpoints import CHECKPOINT, agreed_checkpoint, keep_state, settle
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.distributed import largest_of_workers, sum_of_workers
from avrec_ray.training.fit import Validate, build_state, fit
from avrec_ray.training.sharding import shard
from avrec_ray.training.state import TrainState
from avrec_ray.training.summary import summarise
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
    validate: Validate | None = None
    """Metrics of the step module on what it is not trained on; called on rank 0 every `validate_every_epochs`."""


BuildWork = Callable[[dict[str, Any], int, int], Work]
"""build(settings, rank, num_workers): runs in the worker, so it must be importable from avrec_ray."""

_MOST_NOTES = 5
"""Lines a worker may print an epoch; the counts are complete."""
_RESIZE_SECONDS = 60.0
"""How often elastic training looks whether more workers would fit."""

DDP_SETTINGS = {"find_unused_parameters": True, "broadcast_buffers": False}
"""A step's buffers hold the tokens of the whole catalogue, read from one file: sending them would cost each step."""


def run_trainer(
    stage: StageRun, cluster: ClusterConfig, build: BuildWork, settings: dict[str, Any], num_epochs: int, seed: int
) -> Path:
    """Train on the cluster's workers; the weights are `checkpoint/model.safetensors` in the folder returned.

    A lost worker restarts the group from the last checkpoint, `cluster.max_failures` times; a driver that died goes
    on from there when the stage runs again with the same fingerprint.

    Raises:
        StageError: training failed for good; the message holds the worker's error.
    """
    folder = stage.storage.folder("checkpoints") / stage.name
    training, rays_own = folder / stage.fingerprint[:16], folder / "ray" / stage.fingerprint[:16]
    shutil.rmtree(rays_own, ignore_errors=True)  # nothing is kept there, and what was torn would stop the next run
    settle(training, stage.log)
    with epoch_progress(stage.run, num_epochs, stage.log) as queue:
        config = {"build": build, "settings": settings, "seed": seed, "queue": queue, "training": str(training)}
        trainer = TorchTrainer(
            _worker,
            train_loop_config={**config, "strategy": cluster.strategy},
            torch_config=TorchConfig(timeout_s=int(cluster.collective_timeout_seconds)),
            scaling_config=scaling(cluster),
            run_config=RunConfig(
                name=rays_own.name,
                storage_path=str(rays_own.parent),
                failure_config=FailureConfig(
                    max_failures=cluster.max_failures,
                    max_preemption_failures=cluster.max_preemption_failures,
                    controller_failure_limit=1,
                ),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise StageError(f"{stage.name}: training failed; the worker said: {_words_of(error)}") from error
    shutil.rmtree(rays_own, ignore_errors=True)
    last = settle(training, stage.log)
    if last is None:
        raise StageError(f"{stage.name}: training ended without a checkpoint; epochs={num_epochs} must be at least 1")
    stage.run.artifact(last / CHECKPOINT / "model.safetensors", "checkpoint")
    stage.run.artifact_json(settings, "checkpoint/config.json")
    return last


def scaling(cluster: ClusterConfig) -> ScalingConfig:
    """How many workers, and where. The GPU of each comes with `use_gpu`, and NCCL with it."""
    resources = {"CPU": 1.0} | ({cluster.train_resource: 1.0} if cluster.train_resource else {})
    return ScalingConfig(
        num_workers=(cluster.min_workers, cluster.num_workers) if cluster.min_workers else cluster.num_workers,
        use_gpu=cluster.use_gpu,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
    )


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
    wrapped, state = spread(work, config["strategy"], rank, num_workers)
    tell: Callable[[dict[str, Any]], None] = config["queue"].put
    training = Path(config["training"])
    if found := agreed_checkpoint(training):
        load_state(found, state)
    if rank == 0:
        _tell_start(tell, work, state)

    def report(epoch: int, metrics: dict[str, float], due: bool) -> None:
        metrics = _of_all_workers(metrics, work.left_out, next(work.step.parameters()).device)
        state.history.append(metrics)
        for note in work.notes[:_MOST_NOTES]:
            tell({"note": f"epoch {epoch + 1}: {note}"})
        work.notes.clear()
        if rank == 0:
            tell({"epoch": epoch, "metrics": metrics})

    fit(
        wrapped,
        work.batches,
        work.steps_per_epoch,
        work.optim,
        report,
        state=state,
        save=lambda state: keep_state(training, state),
        validate=work.validate,
        seed=config["seed"],
        rank=rank,
    )


def spread(work: Work, strategy: str, rank: int, num_workers: int) -> tuple[nn.Module, TrainState]:
    """The step on this worker's device and spread over all, and its training before the first step."""
    if strategy == "ddp" or num_workers == 1:
        wrapped = prepare_model(work.step, parallel_strategy_kwargs=DDP_SETTINGS)
        return wrapped, build_state(work.step, work.optim)
    if work.optim.precision == "float16":
        raise ConfigError(
            "precision='float16' with cluster.strategy='fsdp': gradients are scaled per worker; take bfloat16"
        )
    prepare_model(work.step, parallel_strategy=None)
    validates = bool(work.validate and work.optim.validate_every_epochs and rank == 0)
    twin = copy.deepcopy(work.step) if validates else None
    state = build_state(shard(work.step, next(work.step.parameters()).device), work.optim)
    state.twin = twin
    return work.step, state


def _tell_start(tell: Callable[[dict[str, Any]], None], work: Work, state: TrainState) -> None:
    """What is trained, and the epochs that are done already: a driver that was killed may not have noted them all."""
    tell({"file": "model_summary.txt", "text": summarise(work.step)})
    tell({"history": state.history})
    if (state.epoch or state.step) and state.epoch < work.optim.epochs and not state.patience.stopped:
        tell({"note": f"going on at epoch {state.epoch + 1}, batch {state.step + 1}"})


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
