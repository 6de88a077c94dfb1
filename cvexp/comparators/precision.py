"""The precision that scores are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """At least float32: in half precision two distances of 1.2 differ by a thousandth, and thresholds are finer than that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
