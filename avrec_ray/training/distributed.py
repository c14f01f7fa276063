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


def world() -> tuple[int, int]:
    """(rank, number of workers); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
