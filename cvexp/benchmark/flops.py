"""Floating-point operations of one pass: a multiplication with its addition is two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry


@dataclass(frozen=True)
class Flops:
    """What a pass computes.

    Attributes:
        total: 2 x MAC of convolutions and matrix products; nothing else is counted.
        by_operator: the same by operator, as ``{"aten.convolution": 1234}``.
        unknown: operators of other libraries whose work is not in it, as ``torchvision::roi_align``.
    """

    total: int
    by_operator: dict[str, int]
    unknown: tuple[str, ...]


def count_flops(model: nn.Module, images: Tensor, **extras: Any) -> Flops:
    """Counts one pass of ``model`` over uint8 ``[B, 3, H, W]`` and what else it needs, at that very size.

    Example: a 3x3 convolution from 3 to 8 channels with 10x10 outputs is 2 * 3 * 3 * 3 * 8 * 100 = 43,200.
    """
    foreign = _Foreign()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, foreign:
        model(images, **extras)
    found = {str(operator): int(count) for operator, count in counter.get_flop_counts().get("Global", {}).items()}
    return Flops(counter.get_total_flops(), found, tuple(sorted(foreign.names)))


class _Foreign(TorchDispatchMode):
    """Notes the operators that are neither torch's own nor known to the counter."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own = func.namespace in ("aten", "prim", "prims")
        if not own and func._overloadpacket not in flop_registry:
            self.names.add(f"{func.namespace}::{func._opname}")
        return func(*args, **(kwargs or {}))
