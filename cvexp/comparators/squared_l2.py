"""Squared Euclidean distance of two embeddings, the measure of FaceNet (Schroff et al., CVPR 2015, section 3.1)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cvexp.comparators.comparator import Comparator
from cvexp.comparators.precision import wide
from cvexp.ops.distances import squared_l2


class SquaredL2(Comparator):
    """``|a - b|^2``, in 0..4 for unit vectors. Nothing is learned. Example: (1, 0) and (0.8, 0.6): 0.4.

    Args:
        dim: D, length of an embedding.
    """

    measure: ClassVar[str] = "squared distance"
    falling: ClassVar[bool] = True

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """``[..., D]`` and ``[..., D]`` (broadcast) to ``[...]``, the negative distance, at least float32."""
        a, b = wide(a), wide(b)
        return -(a - b).square().sum(dim=-1)

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, D]`` and ``[M, D]`` to ``[N, M]``, by one matrix product."""
        return -squared_l2(a, b)
