"""The training loop, whole and visible. It knows no Ray: the caller passes `report`, `save` and `validate`."""

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from avrec_ray.training.checkpoint import restore_generators
from avrec_ray.training.config import OptimConfig
from avrec_ray.training.distributed import of_first_worker, world
from avrec_ray.training.ema import MovingAverage
from avrec_ray.training.precision import autocast, grad_scaler, resolve_precision
from avrec_ray.training.sharding import assembled, average_whole_gradients, clip_gradients, deferred_sync
from avrec_ray.training.state import TrainState, monitored

T = TypeVar("T")

Report = Callable[[int, dict[str, float], bool], None]
"""report(epoch, metrics of the epoch, whether a checkpoint is due); called once an epoch, while the module holds the
weights that are kept. The metrics are the mean losses, and

- `data_wait_share`: the share of the epoch's seconds in which the loop waited for its next batch,
- `time_to_first_batch_seconds`: in the first epoch of this process alone,
- `steps_per_second`: batches a second, waits included,
- `learning_rate` of the epoch's last update, and `grad_norm`: the mean norm of its gradients before clipping,
- `val/...`: what the validation measured, where there was one.

After a resume within an epoch the losses are of the whole epoch; times and norms are of what was done since."""

Save = Callable[[TrainState], None]
Validate = Callable[[nn.Module], dict[str, float]]
"""validate(module with the weights to judge) -> metrics; called on rank 0."""


def build_optimizer(step: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors and scalars are not decayed."""
    trainable = [p for p in step.parameters() if p.requires_grad]
    # A sharded module's scalars are whole, and one call of torch's cannot change sharded and whole weights together.
    apart = [p for p in trainable if p.ndim == 0] if isinstance(step, FSDPModule) else []
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1 and not (apart and p.ndim == 0)], "weight_decay": 0.0},
    ]
    groups += [{"params": apart, "weight_decay": 0.0}] if apart else []
    return torch.optim.AdamW(groups, lr=cfg.learning_rate)


def build_state(step: nn.Module, cfg: OptimConfig) -> TrainState:
    """A training before its first step, with all that the config asks for. The module is on its device already."""
    device = next(step.parameters()).device
    return TrainState(
        step,
        build_optimizer(step, cfg),
        average=MovingAverage(step, cfg.ema_decay) if cfg.ema_decay else None,
        scaler=grad_scaler(resolve_precision(cfg.precision, device), device),
    )


def learning_rate(cfg: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then cosine to zero; a function of the step alone, so that resuming needs no state."""
    warmup = max(1, round(cfg.warmup_share * num_steps))
    if step < warmup:
        return cfg.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    step: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    steps_per_epoch: int,
    cfg: OptimConfig,
    report: Report,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    start_epoch: int = 0,
    seed: int = 0,
    rank: int = 0,
    state: TrainState | None = None,
    save: Save | None = None,
    validate: Validate | None = None,
) -> None:
    """Train `step`, a module from a batch to a dict with `loss`, for `cfg.epochs` epochs.

    Each epoch draws from (seed, epoch, rank) alone, so a run resumed at `start_epoch` equals an uninterrupted one. With
    a `state` (of `build_state`, or read from a checkpoint) it may also be resumed within an epoch, and `optimizer` and
    `start_epoch` are not read.

    Args:
        step: `state.module`, or what wraps it.
        save: called with the state where a checkpoint is due, on every worker.
        validate: called on rank 0 every `cfg.validate_every_epochs` epochs, while the others wait. Give it, or a
            function that is not called, to all workers.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is the state to go back to.
    """
    if state is None:
        state = build_state(step, cfg)
        state.optimizer, state.epoch = optimizer or state.optimizer, start_epoch
        state.num_updates = start_epoch * -(-steps_per_epoch // cfg.accumulate_steps)
    device = next(step.parameters()).device
    updates = Updates(step, state, cfg, steps_per_epoch, device)
    began_run, waited_first = time.perf_counter(), True
    step.train()
    while state.epoch < cfg.epochs and not state.patience.stopped:
        epoch, first = state.epoch, state.step
        seed_generators(state, seed, rank)
        began, waits = time.perf_counter(), Waits()
        updates.norms.clear()
        first_batch_seconds = None
        for group in grouped(waits.timed(batches_from(batches, epoch, first)), cfg.accumulate_steps):
            if first_batch_seconds is None:
                first_batch_seconds = time.perf_counter() - began_run
            updates(group)
            if due_within_epoch(cfg, state, steps_per_epoch) and save:
                save(state)
        seconds = time.perf_counter() - began
        metrics = {name: total / steps_per_epoch for name, total in state.sums.items()}
        metrics["data_wait_share"] = waits.seconds / seconds
        metrics["steps_per_second"] = (state.step - first) / seconds
        metrics |= updates.metrics()
        if waited_first and first_batch_seconds is not None:
            metrics["time_to_first_batch_seconds"], waited_first = first_batch_seconds, False
        state.epoch, state.step, state.sums = epoch + 1, 0, defaultdict(float)
        with state.kept_weights() as module:
            metrics |= judge(module, state, cfg, validate)
            is_last = state.epoch == cfg.epochs or state.patience.stopped
            if is_last and state.patience.weights:
                state.restore_best()
            due = state.epoch % cfg.checkpoint_every_epochs == 0 or is_last
            report(epoch, metrics, due)
        if due and save:
            save(state)


class Updates:
    """Callable: the batches of one update -> changed weights; the state's position and sums move on."""

    def __init__(
        self, step: nn.Module, state: TrainState, cfg: OptimConfig, steps_per_epoch: int, device: torch.device
    ) -> None:
        self.step, self.state, self.cfg, self.device = step, state, cfg, device
        self.precision = resolve_precision(cfg.precision, device)
        self.num_updates = cfg.epochs * -(-steps_per_epoch // cfg.accumulate_steps)
        self.norms: list[float] = []
        self.scaler = state.scaler = state.scaler or grad_scaler(self.precision, device)

    def __call__(self, group: list[Any]) -> None:
        state, scaler = self.state, self.scaler
        for settings in state.optimizer.param_groups:
            settings["lr"] = learning_rate(self.cfg, state.num_updates, self.num_updates)
        state.optimizer.zero_grad(set_to_none=True)
        for number, (batch, share) in enumerate(zip(group, shares(group), strict=True)):
            with deferred_sync(self.step, number + 1 < len(group)):
                with autocast(self.precision, self.device):
                    losses = self.step(to_device(batch, self.device))
                self._note(losses)
                loss = losses["loss"] if share == 1 else losses["loss"] * share
                scaler.scale(loss).backward()
        scaler.unscale_(state.optimizer)
        average_whole_gradients(self.step)
        self.norms.append(clip_gradients(self.step, self.cfg.clip_norm))
        scaler.step(state.optimizer)
        scaler.update()
        state.num_updates += 1
        if state.average is not None:
            state.average.update(state.num_updates)

    def _note(self, losses: dict[str, Tensor]) -> None:
        """Add the losses to the sums; one transfer from the device for all of them."""
        state = self.state
        values = torch.stack([value.detach().float().reshape(()) for value in losses.values()]).tolist()
        for name, value in zip(losses, values, strict=True):
            if name == "loss" and not math.isfinite(value):
                raise FloatingPointError(
                    f"loss is {value} in epoch {state.epoch}, step {state.step}: lower learning_rate"
                )
            state.sums[name] += value
        state.step += 1

    def metrics(self) -> dict[str, float]:
        """Of the epoch so far. A norm that is not finite is one that float16's scaler skipped."""
        finite = [norm for norm in self.norms if math.isfinite(norm)]
        rate = float(self.state.optimizer.param_groups[0]["lr"])
        return {"learning_rate": rate, "grad_norm": sum(finite) / len(finite) if finite else 0.0}


def judge(module: nn.Module, state: TrainState, cfg: OptimConfig, validate: Validate | None) -> dict[str, float]:
    """Validate where it is time, and let the result decide whether training goes on; the same on all workers."""
    if validate is None or not cfg.validate_every_epochs or state.epoch % cfg.validate_every_epochs:
        return {}
    found: dict[str, float] = {}
    if isinstance(module, FSDPModule):
        module = assembled(module, state.twin)
    if world()[0] == 0:
        module.eval()
        with torch.no_grad():
            found = validate(module)
        module.train()
    value = monitored(found, cfg.patience_metric) if found and cfg.patience else 0.0
    value = of_first_worker(value)
    if cfg.patience and state.patience.judge(value, state.epoch - 1, cfg.patience):
        state.remember_best()
    return {f"val/{name}": number for name, number in found.items()}


def seed_generators(state: TrainState, seed: int, rank: int) -> None:
    """Make torch draw what it would in an uninterrupted run; another number of workers draws anew."""
    if state.step and restore_generators(state.random, rank, world()[1]):
        return
    place = (seed, state.epoch, rank, state.step) if state.step else (seed, state.epoch, rank)
    torch.manual_seed(hash(place) & 0x7FFFFFFF)


def due_within_epoch(cfg: OptimConfig, state: TrainState, steps_per_epoch: int) -> bool:
    """Whether a checkpoint is due after this update; the last one of an epoch is left to the epoch's end."""
    if not cfg.checkpoint_every_steps or state.step >= steps_per_epoch:
        return False
    return -(-state.step // cfg.accumulate_steps) % cfg.checkpoint_every_steps == 0


def batches_from(batches: Callable[[int], Iterable[T]], epoch: int, first: int) -> Iterable[T]:
    """An epoch's batches from the `first`-th on. Batches with a method `starting_at` need not make those before."""
    if not first:
        return batches(epoch)
    start: Callable[[int, int], Iterable[T]] | None = getattr(batches, "starting_at", None)
    return start(epoch, first) if start else islice(batches(epoch), first, None)


def grouped(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values; the last may be shorter.

    >>> list(grouped("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    values = iter(values)
    while group := list(islice(values, size)):
        yield group


def shares(group: list[Any]) -> list[float]:
    """How much each batch's mean loss counts in the mean over all: by `total_weight` where batches have it.

    It is the sum over all workers, so that they agree.
    """
    weights = [float(getattr(batch, "total_weight", 1.0)) for batch in group]
    total = sum(weights)
    return [weight / total if total > 0 else 1 / len(group) for weight in weights]


class Waits:
    """Adds up the seconds that a consumer waits for an iterable's next value."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, values: Iterable[T]) -> Iterator[T]:
        """The values, each one's wait added to `seconds`; the wait for the end counts too."""
        began = time.perf_counter()
        for value in values:
            self.seconds += time.perf_counter() - began
            yield value
            began = time.perf_counter()
        self.seconds += time.perf_counter() - began


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch dataclass with every tensor in it, nested ones too, on `device`; through pinned memory to a GPU."""
    if isinstance(batch, torch.Tensor):
        if device.type == "cuda" and batch.device.type == "cpu":
            return batch.pin_memory().to(device, non_blocking=True)
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **moved)
    return batch
