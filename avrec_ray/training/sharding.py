"""How a step module is spread over workers, and how its tensors come back together.

`ddp` copies the weights to every worker. `fsdp` (torch's fully_shard) leaves each worker a part of every weight, of its
gradient and of the optimiser's moments, and brings a block's weights together when it is computed. Checkpoints hold
whole tensors under the module's own names in both cases, so that a run may go on with another strategy or another
number of workers.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

SMALLEST_SHARDED_BLOCK = 1_000_000
"""Weights of a block below which it is not worth a gather of its own; the step's root takes them together."""


def shard(step: nn.Module, device: torch.device, smallest: int = SMALLEST_SHARDED_BLOCK) -> nn.Module:
    """Spread a step module over all workers, in place; returns it.

    Blocks are the elements of module lists (transformer layers): they are used through their forward alone. What is
    left goes to the root, which keeps its weights together between forward and backward. Scalars, which fully_shard
    does not take, stay whole on every worker; `average_whole_gradients` is for them.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    scalars = {p for p in step.parameters() if p.ndim == 0}
    for module in list(step.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                if sum(p.numel() for p in block.parameters()) >= smallest:
                    fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(step, mesh=mesh, reshard_after_forward=False, ignored_params=scalars)
    return step


def deferred_sync(step: nn.Module, defer: bool) -> AbstractContextManager[None]:
    """Around forward and backward: gradients stay on this worker, to be added to by the next batch."""
    if not defer:
        return nullcontext()
    if isinstance(step, DistributedDataParallel):
        return cast(AbstractContextManager[None], step.no_sync())
    return _without_reduction(step) if isinstance(step, FSDPModule) else nullcontext()


@contextmanager
def _without_reduction(step: FSDPModule) -> Iterator[None]:
    step.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        step.set_requires_gradient_sync(True)


@torch.no_grad()
def average_whole_gradients(step: nn.Module) -> None:
    """The mean over workers of the gradients of a sharded module's whole weights, as the sharded ones have it already.

    A weight without gradient on every worker keeps none.
    """
    if not isinstance(step, FSDPModule):
        return
    for p in step.parameters():
        if p.requires_grad and not isinstance(p, DTensor):
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            sent = torch.cat([grad.flatten(), grad.new_tensor([p.grad is not None])])
            dist.all_reduce(sent)
            p.grad = (sent[:-1] / dist.get_world_size()).view_as(p) if sent[-1] else None


@torch.no_grad()
def clip_gradients(step: nn.Module, longest: float) -> float:
    """Shorten the gradient to the norm `longest` where it is longer, and give the norm it had, over all its parts."""
    grads = [p.grad for p in step.parameters() if p.grad is not None]
    sharded = [grad for grad in grads if isinstance(grad, DTensor)]
    if not sharded:
        return float(nn.utils.clip_grad_norm_(step.parameters(), longest).item())
    rest = [grad for grad in grads if not isinstance(grad, DTensor)]
    norms = [
        cast(DTensor, nn.utils.get_total_norm(sharded)).full_tensor(),
        nn.utils.get_total_norm(rest).to(sharded[0].device),
    ]
    norm = float(torch.stack(norms).norm().item())
    if norm > longest:
        for grad in grads:
            grad.mul_(longest / (norm + 1e-6))
    return norm


def whole(value: Tensor) -> Tensor:
    """A copy on the CPU, its parts brought together; every worker must ask for the same ones in the same order."""
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.detach().to("cpu", copy=True).contiguous()


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor laid out as `like` is: on its device, and sharded where it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()` with whole tensors on the CPU."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def assembled(module: nn.Module, twin: nn.Module | None) -> nn.Module:
    """The weights of a sharded module in its whole `twin`; the module itself on workers that have none."""
    state = whole_state(module)
    if twin is None:
        return module
    load_whole_state(twin, state)
    return twin


@torch.no_grad()
def load_whole_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole tensors into a module that may be sharded; names and shapes were checked before."""
    for name, value in module.state_dict().items():
        value.copy_(placed_like(state[name].to(value.dtype), value))


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors, whole, as "<weight>.<moment>"; independent of the order of weights in its groups."""
    return {
        f"{name}.{moment}": whole(value)
        for name, weight in module.named_parameters()
        for moment, value in optimizer.state.get(weight, {}).items()
    }


def load_optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put back what `optimizer_state` gave, and the groups' numbers."""
    weights = dict(module.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, moment = key.rpartition(".")
        weight = weights[name]
        # A moment has its weight's shape; a count of steps is a number, which AdamW keeps on the CPU.
        kept = placed_like(value, weight) if value.shape == weight.shape and moment != "step" else value
        optimizer.state[weight][moment] = kept
    for position, group in enumerate(optimizer.param_groups):
        group.update(groups[min(position, len(groups) - 1)])  # only a sharded module has one for scalars


def group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimiser's groups without their weights: plain values."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
