"""What every comparator is: two embeddings in, a score out that is larger the more alike they are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cvexp.types import UserError

CHUNK = 1 << 22
"""Elements of the differences that `Comparator.matrix` holds at once."""


class Comparator(nn.Module):
    """Base of the comparators; a subclass implements `score`, and `fit` where there is something to learn.

    What is fitted lives in buffers or parameters, and so in the checkpoint.

    Args:
        dim: D, length of an embedding.

    Attributes:
        measure: what a user is shown: ``squared distance``, ``cosine`` ...
        falling: True where a *small* value of that measure means the same person (its score is then the value's negative).
        signed: whether components of an embedding may be negative.
    """

    measure: ClassVar[str]
    falling: ClassVar[bool] = False
    signed: ClassVar[bool] = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise UserError(f"model.comparator: embeddings of length {dim}. Fix: model.dim must be at least 1")
        self.dim = dim

    def fit(self, a: Tensor, b: Tensor, same: Tensor) -> None:
        """Learns from pairs ``[N, D]``, ``[N, D]`` and whether they are of one person, bool ``[N]``. Nothing by default."""

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        """``[..., D]`` and ``[..., D]`` (broadcast) to ``[...]``; larger means more alike."""
        raise NotImplementedError

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """Scores of every row of ``a`` ``[N, D]`` with every row of ``b`` ``[M, D]``: ``[N, M]``."""
        rows = max(CHUNK // max(b.numel(), 1), 1)
        parts = [self.score(part[:, None], b[None]) for part in a.split(rows)]
        return torch.cat(parts) if parts else a.new_zeros(0, len(b))

    def shown(self, score: float) -> float:
        """A score (or threshold) as the measure that a user is shown."""
        return -score if self.falling else score
