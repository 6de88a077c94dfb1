"""The collectives that models use: a normaliser's mean, and the batch of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of processes; 1 where none were started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_mean(count: Tensor) -> Tensor:
    """Mean of a batch's normaliser over all processes, at least 1.

    A loss is its sum over this process' samples divided by this: gradients averaged over the processes are then those of one
    process with the whole batch.

    Args:
        count: scalar, such as the number of sampled anchors.

    Returns:
        Scalar without gradient; ``count`` itself (at least 1) in a single process.
    """
    count = count.detach().clone()
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    return count.clamp(min=1.0)


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, differentiable.

    Each process' loss may look at the rows of all: the gradient of its own rows is then the sum of what all losses say about
    them. Divided by `global_mean` and averaged over the processes, that is the gradient of one process with the whole
    batch. The way back is a collective too: **every** process must run it, one without a single pair or triplet as well (its
    loss is then a sum of nothing that hangs on ``x``, not a constant).

    Args:
        x: ``[B, ...]``, the same shape and type in every process.

    Returns:
        ``[W * B, ...]`` for W processes; ``x`` itself where there is one. Integers have no gradient.
    """
    return x if world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[dist.get_rank()]
