"""The only collective in models: normalisers of a batch that is spread over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def global_mean(count: Tensor) -> Tensor:
    """The mean of a scalar over all processes; the scalar itself with one.

    Dividing each process's loss by the *mean* count makes the mean gradient of DDP equal to that of one big batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return count
    total = count.detach().clone().to(torch.float32)
    dist.all_reduce(total)
    return total / dist.get_world_size()
