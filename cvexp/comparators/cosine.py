"""Cosine of the angle between two embeddings: DeepFace's inner product of unit vectors (Taigman et al., CVPR 2014, 4.1)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cvexp.comparators.comparator import Comparator
from cvexp.comparators.precision import wide


class Cosine(Comparator):
    """``a b / (|a| |b|)``, in -1..1; of unit vectors ``1 - |a - b|^2 / 2``. A vector of zeros has the cosine 0 with all.

    Args:
        dim: D, length of an embedding.
    """

    measure: ClassVar[str] = "cosine"

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """``[..., D]`` and ``[..., D]`` (broadcast) to ``[...]``, at least float32."""
        return (F.normalize(wide(a), dim=-1) * F.normalize(wide(b), dim=-1)).sum(dim=-1)

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, D]`` and ``[M, D]`` to ``[N, M]``, by one matrix product."""
        with torch.autocast(a.device.type, enabled=False):
            return F.normalize(wide(a)) @ F.normalize(wide(b)).T
