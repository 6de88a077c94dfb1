"""What the processes of a training agree on in every step, over a connection between their CPUs.

Asking over the GPUs' own connection would make each step wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Trainer


class Agreement:
    """Made by all processes at the same place; with a single one everything is its own answer.

    Args:
        trainer: whose processes are connected already.
    """

    def __init__(self, trainer: Trainer | None = None) -> None:
        self.group: Any = None
        if trainer is not None and trainer.world_size > 1 and torch.distributed.is_initialized():
            gloo = torch.distributed.get_backend() == "gloo"
            self.group = torch.distributed.group.WORLD if gloo else torch.distributed.new_group(backend="gloo")

    def largest(self, value: float) -> float:
        """The largest of all processes' values."""
        return self._reduced(value, torch.distributed.ReduceOp.MAX) if self.group is not None else value

    def first(self, value: float) -> float:
        """The first process's value."""
        own = value if self.group is None or torch.distributed.get_rank() == 0 else 0.0
        return self._reduced(own, torch.distributed.ReduceOp.SUM) if self.group is not None else value

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, in their order: tensors and plain Python."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def _reduced(self, value: float, how: Any) -> float:
        found = torch.tensor(value, dtype=torch.float64)
        torch.distributed.all_reduce(found, how, group=self.group)
        return float(found)
