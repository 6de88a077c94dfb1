"""Which triplets of a batch are trained on (FaceNet, Schroff et al., CVPR 2015, arXiv 1503.03832, section 3.2).

Every anchor and every other image of its person make a pair; each pair gets one negative, an image of another person among
the references. The rules differ in what negative: `SemiHard` ones are farther than the positive but within the margin, so
there is something to learn and yet their order is right already. `Hardest` ones are the nearest; at the start of training
they collapse the embedding to a point.

All are found at once: with the distances of an anchor's negatives sorted, those of a pair's negatives that a rule allows are a
contiguous range of the row, whose ends are two binary searches. Nothing is larger than anchors times references.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from cvexp.ops.distances import squared_l2
from cvexp.ops.sampling import random_keys
from cvexp.types import Triplets, UserError

Choose = Literal["random", "closest"]
Fallback = Literal["skip", "furthest"]


def pair_keys(anchor_ids: Tensor, positive_ids: Tensor, draw: Tensor) -> Tensor:
    """A number for each anchor and positive, equally distributed over 0..1, that depends on the two images and the draw alone.

    One process and many thus choose the same negatives, and a resumed run goes on as an uninterrupted one.

    Args:
        anchor_ids: int64 ``[B]``, image ids.
        positive_ids: int64 ``[R]``, image ids.
        draw: int64 ``[]``, the number of the draw.

    Returns:
        float32 ``[B, R]``; (a, b) and (b, a) have different numbers.
    """
    pairs = anchor_ids[:, None] * 0x2545F4914F6CDD1D + positive_ids[None]  # int64 wraps around
    return random_keys(pairs.flatten(), draw, 1).view(pairs.shape)


class Miner:
    """Base of the miners; a subclass says which range of an anchor's negatives each pair may have.

    Args:
        margin: of the triplet loss, in squared distance; 0.2 in FaceNet.

    Raises:
        UserError: the margin is not above 0.
    """

    def __init__(self, margin: float = 0.2) -> None:
        if not margin > 0:
            raise UserError(f"model.miner.margin={margin} is not a number above 0. Fix: model.miner.margin=0.2")
        self.margin = margin

    @torch.no_grad()
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor,
        reference_labels: Tensor,
        own: Tensor,
        keys: Tensor | None = None,
    ) -> Triplets:
        """One slot for every anchor and reference: ``T = B * R``, anchors first; valid where both make a pair with a negative.

        Args:
            embeddings: ``[B, D]``, the anchors; squared distances are compared.
            labels: int64 ``[B]``, identities.
            references: ``[R, D]``, where positives and negatives come from (the embeddings of all processes).
            reference_labels: int64 ``[R]``.
            own: int64 ``[B]``, where each anchor stands among the references: it is no positive of its own.
            keys: float ``[B, R]`` in 0..1, what is random (see `pair_keys`); None draws from torch's generator.
        """
        rows = _Rows.of(embeddings, labels, references, reference_labels, own)
        low, high = self.range(rows)
        if keys is None:
            keys = torch.rand(rows.distances.shape, device=embeddings.device)
        place = low + torch.minimum((self.place(keys) * (high - low)).long(), high - low - 1)
        negative = rows.order.gather(1, place.clamp(0, max(len(references) - 1, 0)))
        # A distance that is not a number counts as a triplet, so that the loss shows it instead of leaving it out.
        broken = rows.distances.isnan() & (rows.negatives > 0)
        anchor, positive = torch.meshgrid(
            torch.arange(len(embeddings), device=own.device),
            torch.arange(len(references), device=own.device),
            indexing="ij",
        )
        valid = rows.pairs & ((high > low) | broken)
        return Triplets(anchor.flatten(), positive.flatten(), negative.flatten(), valid.flatten())

    def range(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        """First and last (exclusive) place in the sorted row of the negatives that a pair may have, int64 ``[B, R]`` each."""
        raise NotImplementedError

    def place(self, keys: Tensor) -> Tensor:
        """Where in its range each pair's negative is taken, 0..1; anywhere by default."""
        return keys


class SemiHard(Miner):
    """``d(a, p) < d(a, n) < d(a, p) + margin`` in squared distances, for all anchor-positive pairs.

    Args:
        margin: see `Miner`.
        choose: ``random``: any of them alike; ``closest``: the one nearest to the anchor.
        fallback: for a pair without any: ``skip`` leaves it out; ``furthest`` takes the farthest of all negatives where none is
            farther than the positive (the rule of TensorFlow Addons). Where there are farther ones, all of them beyond
            the margin, nothing is left to learn and the pair is left out either way.

    Raises:
        UserError: an unknown choice or fallback, or a margin that is not above 0.

    Example: d(a, p) = 0.4 and negatives at (2, 0.8, 0.58578644, 0.08): the third, as 0.4 < 0.58578644 < 0.6.
    """

    def __init__(self, margin: float = 0.2, choose: Choose = "random", fallback: Fallback = "skip") -> None:
        super().__init__(margin)
        for name, value, known in (("choose", choose, get_args(Choose)), ("fallback", fallback, get_args(Fallback))):
            if value not in known:
                raise UserError(
                    f"model.miner.{name}={value} is not one of: {', '.join(known)}. Fix: model.miner.{name}={known[0]}"
                )
        self.choose, self.fallback = choose, fallback

    def range(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        low, high = rows.semi_hard(self.margin)
        if self.fallback == "furthest":
            nearer = (low == rows.negatives) & (rows.negatives > 0)  # all of them
            low, high = torch.where(nearer, rows.negatives - 1, low), torch.where(nearer, rows.negatives, high)
        return low, high

    def place(self, keys: Tensor) -> Tensor:
        return keys if self.choose == "random" else torch.zeros_like(keys)


class RandomNegative(Miner):
    """Any negative, all alike: most of them are solved soon and teach nothing.

    Args:
        margin: does not matter to the choice; here so that miners can be exchanged.
    """

    def range(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(rows.order), rows.negatives.expand_as(rows.order)


class Hardest(Miner):
    """The negative nearest to the anchor: from random weights the embedding collapses, the loss stays at the margin.

    Args:
        margin: does not matter to the choice; here so that miners can be exchanged.
    """

    def range(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(rows.order), rows.negatives.clamp(max=1).expand_as(rows.order)


@torch.no_grad()
def semi_hard_pairs(
    embeddings: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor, own: Tensor, margin: float = 0.2
) -> Tensor:
    """bool ``[B, R]``: the anchor-positive pairs that have a semi-hard negative. Arguments as of `Miner`."""
    rows = _Rows.of(embeddings, labels, references, reference_labels, own)
    low, high = rows.semi_hard(margin)
    return rows.pairs & (high > low)


class _Rows(NamedTuple):
    """What the rules look at.

    Attributes:
        distances: ``[B, R]``, squared.
        pairs: bool ``[B, R]``: anchor and positive.
        sorted: ``[B, R]``, the distances of each anchor's negatives in ascending order, then infinity.
        order: int64 ``[B, R]``, the references that they belong to.
        negatives: int64 ``[B, 1]``, number of the anchor's negatives.
    """

    distances: Tensor
    pairs: Tensor
    sorted: Tensor
    order: Tensor
    negatives: Tensor

    @classmethod
    def of(cls, embeddings: Tensor, labels: Tensor, references: Tensor, reference_labels: Tensor, own: Tensor) -> _Rows:
        distances = squared_l2(embeddings, references)
        same = labels[:, None] == reference_labels[None]
        pairs = same.scatter(1, own[:, None], False)
        ascending, order = distances.masked_fill(same, torch.inf).sort(dim=1, stable=True)
        return cls(distances, pairs, ascending, order, (~same).sum(dim=1, keepdim=True))

    def semi_hard(self, margin: float) -> tuple[Tensor, Tensor]:
        """Range of ``d(a, p) < d(a, n) < d(a, p) + margin``; empty where the first place is not below the last."""
        low = torch.searchsorted(self.sorted, self.distances, right=True)  # the first beyond the positive
        return low, torch.searchsorted(self.sorted, self.distances + margin)  # the first that keeps the margin
