"""Who is it? The rank of a face's mate among strangers, and verification over all pairs of many images.

Source: Kemelmacher-Shlizerman et al., "The MegaFace Benchmark", CVPR 2016, arXiv 1512.00596: a probe is looked for in a
gallery that holds one other photo of the same person, its mate, and many strangers; CMC(r) is the share of (probe, mate)
pairs whose mate is among the first r. Strangers with the mate's own score stand before it, so a network that puts all faces
on one point identifies nobody.

Every image of a person with two or more is a probe, each of the others in turn its mate. Scores are made in blocks of rows
and not kept; all figures are exact.

Worked example: mates at the ranks 1, 1, 2, 5: CMC(1) = .5, CMC(2) = CMC(4) = .75, CMC(5) = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cvexp.metrics.verification import Flags, Floats, Ints, allowed
from cvexp.types import UserError

Matrix: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``[N, D]`` and ``[M, D]`` to scores ``[N, M]``, larger more alike: ``Comparator.matrix``."""

BLOCK = 1 << 20
"""Scores that are held at once."""


@dataclass(frozen=True)
class Identification:
    """Where the mates stand.

    Attributes:
        ranks: int64 ``[R]``, of the mate of every (probe, mate) pair, from 1; other photos of the person are not in the way.
        nearest: bool ``[Q]``, for every probe: the most alike of all other images, without distractors, is of the same person.
        nearest_of_all: bool ``[Q]``, the same among the distractors, too.
    """

    ranks: Ints
    nearest: Flags
    nearest_of_all: Flags

    @property
    def rank1(self) -> float:
        """Share of the probes whose nearest image is of the same person; NaN without probes."""
        return float(self.nearest.mean()) if self.nearest.size else math.nan

    @property
    def rank1_distractors(self) -> float:
        """The same among the distractors, too."""
        return float(self.nearest_of_all.mean()) if self.nearest_of_all.size else math.nan


def identify(
    matrix: Matrix, embeddings: Tensor, labels: Tensor, distractors: Tensor | None = None, *, others: bool = True
) -> Identification:
    """Looks for every image among the images of other people and the distractors.

    Args:
        matrix: gives the scores.
        embeddings: ``[I, D]``.
        labels: int64 ``[I]``, the person of each.
        distractors: ``[N, D]``, images of further people, nobody's mate.
        others: False: the gallery is the mate and the distractors alone, as in MegaFace.

    Raises:
        UserError: a score is not finite.
    """
    gallery = embeddings if distractors is None else torch.cat([embeddings, distractors.to(embeddings)])
    people = labels.numpy()
    person = np.concatenate([people, np.full(len(gallery) - len(people), -1)])
    _, place, counts = np.unique(people, return_inverse=True, return_counts=True)
    ranks, nearest = [np.zeros(0, np.int64)], [np.zeros((2, 0), dtype=bool)]
    for rows, scores in _blocks(matrix, embeddings, gallery, np.flatnonzero(counts[place] > 1)):
        own = person[None] == people[rows, None]
        strangers = np.where(own, -np.inf, scores)
        own[np.arange(len(rows)), rows] = False  # a probe is not its own mate
        best = np.where(own, scores, -np.inf).max(axis=1)
        nearest.append(np.stack([best > strangers[:, : len(people)].max(axis=1), best > strangers.max(axis=1)]))
        strangers = np.sort(strangers if others else strangers[:, len(people) :], axis=1)
        for row, mates, values in zip(strangers, own, scores, strict=True):
            ranks.append(1 + len(row) - np.searchsorted(row, values[mates], side="left"))
    return Identification(np.concatenate(ranks), *np.concatenate(nearest, axis=1))


def cmc(ranks: ArrayLike, up_to: int) -> Floats:
    """Cumulative match characteristic, float64 ``[up_to]``: the share of the mates at rank 1, 2, ... or before.

    Raises:
        UserError: ``up_to`` or a rank below 1.
    """
    ranks = np.asarray(ranks, dtype=np.int64)
    if up_to < 1 or (ranks < 1).any():
        raise UserError(f"CMC up to {up_to} of ranks from {ranks.min(initial=1)}. Fix: ranks are counted from 1.")
    if not ranks.size:
        return np.full(up_to, math.nan)
    return np.cumsum(np.bincount(np.minimum(ranks, up_to + 1), minlength=up_to + 2)[1 : up_to + 1]) / len(ranks)


@dataclass(frozen=True)
class AllPairs:
    """The ROC of all pairs of many images, kept as what lies above each same pair.

    Attributes:
        not_below: int64 ``[S]``, different pairs with at least the score of each same pair.
        above: int64 ``[S]``, with a larger one.
        different: number of different pairs.
    """

    not_below: Ints
    above: Ints
    different: int

    @property
    def same(self) -> int:
        """Number of same pairs."""
        return len(self.above)

    def auc(self) -> float:
        """Share of the (same, different) pairs in the right order, ties one half; NaN without both kinds."""
        if not (self.same and self.different):
            return math.nan
        return 1 - int(self.not_below.sum() + self.above.sum()) / (2 * self.same * self.different)

    def tar_at_far(self, far: float) -> float:
        """The largest TAR whose FAR does not exceed ``far``; NaN where ``far * different < 1``."""
        limit = allowed(far, self.different)
        return float((self.not_below <= limit).mean()) if limit and self.same else math.nan


def all_pairs(matrix: Matrix, embeddings: Tensor, labels: Tensor) -> AllPairs:
    """Verifies every image ``[I, D]`` with every other, whose people are int64 ``[I]``.

    The scores are made twice, first for the same pairs and then for the different ones, so that memory holds a block.

    Raises:
        UserError: a score is not finite.
    """
    same = np.sort(np.concatenate([np.zeros(0, np.float32), *_triangle(matrix, embeddings, labels, same=True)]))
    not_below, above, different = np.zeros(len(same), np.int64), np.zeros(len(same), np.int64), 0
    for scores in _triangle(matrix, embeddings, labels, same=False):
        scores.sort()
        different += len(scores)
        not_below += len(scores) - np.searchsorted(scores, same, side="left")
        above += len(scores) - np.searchsorted(scores, same, side="right")
    return AllPairs(not_below, above, different)


def _triangle(matrix: Matrix, embeddings: Tensor, labels: Tensor, same: bool) -> Iterator[NDArray]:
    """The scores of the same, or the different, pairs, each once, block by block."""
    people = labels.numpy()
    step = _step(len(people))
    for start in range(0, len(people), step):
        scores = _scores(matrix, embeddings[start : start + step], embeddings[start:])
        wanted = (people[start : start + step, None] == people[None, start:]) == same
        yield scores[np.triu(wanted, 1)]


def _blocks(matrix: Matrix, images: Tensor, gallery: Tensor, rows: Ints) -> Iterator[tuple[Ints, NDArray]]:
    """Some images' scores with the whole gallery, a block of rows at a time, and which rows these are."""
    step = _step(len(gallery))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        yield part, _scores(matrix, images[torch.from_numpy(part)], gallery)


def _step(columns: int) -> int:
    return max(BLOCK // max(columns, 1), 1)


def _scores(matrix: Matrix, images: Tensor, gallery: Tensor) -> NDArray:
    scores = matrix(images, gallery).numpy()
    if not np.isfinite(scores).all():
        raise UserError(
            "a score of two images is NaN or infinite. Fix: lower optimizer.lr or set trainer.precision=32-true, or take an "
            "earlier checkpoint."
        )
    return scores
