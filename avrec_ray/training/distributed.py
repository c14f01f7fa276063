"""The collectives that training needs. Without a process group they are the identity."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherWithGrad(torch.autograd.Function):
    """all_gather whose gradient is the sum over workers: plain all_gather has none (open_clip's loss.py)."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)  # autograd may share the one it passes
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(local: Tensor) -> Tensor:
    """Rows of all workers in rank order, with gradient. Every worker must pass the same number of rows."""
    if not dist.is_initialized():
        return local
    return cast(Tensor, _GatherWithGrad.apply(local))


def sum_of_workers(values: Tensor) -> Tensor:
    """The sum over all workers, which all must call; no gradient."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def largest_of_workers(values: Tensor) -> Tensor:
    """The maximum over all workers, which all must call; no gradient."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def device_of_collectives() -> torch.device:
    """Where tensors must lie to be sent: on the GPU under NCCL, which knows no other place."""
    nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def gather_equal(local: Tensor) -> Tensor:
    """Tensors of one shape from all workers, [W, ...] in rank order on the CPU; no gradient."""
    if not dist.is_initialized():
        return local.cpu().unsqueeze(0)
    sent = local.to(device_of_collectives()).contiguous()
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sent)
    return torch.stack(parts).cpu()


def of_first_worker(value: float) -> float:
    """Rank 0's number, which all workers must ask for; they wait for it here."""
    if not dist.is_initialized():
        return value
    sent = torch.tensor([value], dtype=torch.float64, device=device_of_collectives())
    dist.broadcast(sent, 0)
    return float(sent.item())


def world() -> tuple[int, int]:
    """(rank, number of workers); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
