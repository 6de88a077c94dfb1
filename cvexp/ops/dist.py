"""The only collective that models use."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


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
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1.0)
