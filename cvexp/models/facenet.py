"""FaceNet: A Unified Embedding for Face Recognition and Clustering. Schroff, Kalenichenko, Philbin, 2015, arXiv 1503.03832.

A network maps a face to a point on the unit sphere so that the squared distance of two points tells whether they show the same
person. It is trained on triplets: an anchor shall be nearer to every image of its person than to any image of another, by a
margin. Triplets are mined in the batch; negatives are semi-hard, farther than the positive but within the margin, because
the hardest ones collapse the embedding early in training.

Differences from the paper:
- any backbone whose last map is averaged; the paper's NN2 is ``inception_nn2``;
- the loss is averaged over the active triplets (the paper sums), so that its size does not depend on the batch;
- in tests a face may be averaged with its mirror image (``mirror``; the paper does not);
- a batch norm between the last layer and the sphere (``norm``), as in later face networks; off in the paper.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.comparators.comparator import Comparator
from cvexp.ops.dist import gather
from cvexp.ops.distances import squared_l2
from cvexp.ops.mining import pair_keys, semi_hard_pairs
from cvexp.types import Triplets, UserError

Miner = Callable[..., Triplets]
"""See `cvexp.ops.mining.Miner`."""


class FaceNet(nn.Module):
    """A face embedding trained with triplets (contract 8).

    Args:
        backbone: list of maps out; the last one is averaged over its places.
        miner: partial that takes the loss's ``margin``; see `cvexp.ops.mining`.
        loss: of the distances of triplets, see `cvexp.losses.triplet`.
        comparator: partial that takes ``dim``; how two embeddings are compared after training.
        num_classes: number of training identities; a triplet loss has no use for it.
        dim: D, length of an embedding (section 5.4: 128).
        dropout: of the averaged features.
        norm: a batch norm before the sphere.
        mirror: `embed` averages a face with its mirror image.
        image_size: side of the images, pixels.

    Raises:
        UserError: a dropout outside 0..1, a loss of something else than distances, or a comparator of features that are
            never negative.
    """

    kind = "embedding"
    class_parameters: tuple[str, ...] = ()  # the embedding knows no list of people; for init_from

    def __init__(
        self,
        backbone: nn.Module,
        miner: Callable[[float], Miner],
        loss: nn.Module,
        comparator: Callable[[int], Comparator],
        num_classes: int,
        dim: int = 128,
        dropout: float = 0.0,
        norm: bool = False,
        mirror: bool = False,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout} is not in 0..1. Fix: model.dropout=0.2")
        if getattr(loss, "space", "distance") != "distance":
            raise UserError(
                f"model.loss: {type(loss).__name__} is for {loss.space}, FaceNet's is of distances. Fix: model/loss=triplet"
            )
        self.backbone, self.miner, self.loss = backbone, miner(margin=loss.margin), loss
        self.image_size, self.mirror = image_size, mirror
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Linear(backbone.out_channels[-1], dim, bias=not norm)
        self.norm = nn.BatchNorm1d(dim) if norm else nn.Identity()
        self.comparator = comparator(dim)
        if not self.comparator.signed:
            raise UserError(
                f"model.comparator: {type(self.comparator).__name__} is for features that are not negative, FaceNet's have both"
                " signs. Fix: model/comparator=squared_l2, cosine or siamese"
            )
        self.register_buffer("draw", torch.zeros((), dtype=torch.int64))  # of random negatives; a resumed run goes on

    def features(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, H, W]`` to ``[B, D]``, not yet on the sphere."""
        pooled = self.backbone(images)[-1].mean(dim=(2, 3))
        return self.norm(self.embedding(self.dropout(pooled)))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, H, W]`` to unit vectors ``[B, D]``, at least float32."""
        return F.normalize(self.features(images).float())

    def embed(self, images: Tensor) -> Tensor:
        """What tests compare: `forward`, with ``mirror`` averaged with the mirror image's and normalised again."""
        embeddings = self(images)
        return F.normalize(embeddings + self(images.flip(-1))) if self.mirror else embeddings

    # -- training ------------------------------------------------------------------------------------------------------

    def losses(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        """The triplet loss of section 3.1 over this process' anchors and the images of all processes.

        Args:
            embeddings: unit vectors ``[B, D]`` of this process.
            labels, image_ids: int64 ``[B]``.

        Returns:
            ``triplet``: scalar. Averaged over the processes its gradient is that of one process with the whole batch.
        """
        references = gather(embeddings)
        triplets = self._mine(embeddings.detach(), labels, image_ids, references.detach())
        positive, negative = distances(triplets, squared_l2(embeddings, references))
        if self.training:
            self.draw += 1
        return {"triplet": self.loss(positive, negative, triplets.valid)}

    def mine(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> Triplets:
        """The triplets that `losses` of the same arguments is computed on; indices into the images of all processes."""
        embeddings = embeddings.detach()
        return self._mine(embeddings, labels, image_ids, gather(embeddings))

    def _mine(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor, references: Tensor) -> Triplets:
        others = gather(labels)
        keys = pair_keys(image_ids, gather(image_ids), self.draw)
        return self.miner(embeddings, labels, references, others, own_places(len(labels), labels.device), keys)

    @torch.no_grad()
    def statistics(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        """How training goes, in numbers that take no part in it; of this process' anchors.

        Returns:
            Scalars: ``triplets`` mined; ``active``, the share of them with a loss; ``semi_hard``, the share of the
            anchor-positive pairs that have a semi-hard negative; ``positive_distance`` and ``negative_distance``, mean
            squared distances of all pairs; ``spread``, the standard deviation of the embeddings in units of a sphere's
            (1: all over it, 0: collapsed to one point); ``margin``.
        """
        references, others = gather(embeddings), gather(labels)
        places = own_places(len(labels), labels.device)
        triplets = self._mine(embeddings, labels, image_ids, references)
        between = squared_l2(embeddings, references)
        positive, negative = distances(triplets, between)
        margin = self.loss.margin
        active = (triplets.valid & (positive - negative + margin > 0)).sum()
        same = labels[:, None] == others[None]
        pairs = same.scatter(1, places[:, None], False)
        semi_hard = semi_hard_pairs(embeddings, labels, references, others, places, margin)
        mined = triplets.valid.sum()
        return {
            "triplets": mined.float(),
            "active": active / mined.clamp(min=1),
            "semi_hard": semi_hard.sum() / pairs.sum().clamp(min=1),
            "positive_distance": mean_where(between, pairs),
            "negative_distance": mean_where(between, ~same),
            "spread": references.var(dim=0, unbiased=False).sum().sqrt(),
            "margin": between.new_tensor(margin),
        }


def own_places(count: int, device: torch.device) -> Tensor:
    """int64 ``[B]``: where this process' images stand among those of all processes."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(count, device=device) + rank * count


def distances(triplets: Triplets, between: Tensor) -> tuple[Tensor, Tensor]:
    """Anchor to positive and anchor to negative, ``[T]`` each, out of all distances ``[B, R]``."""
    return between[triplets.anchor, triplets.positive], between[triplets.anchor, triplets.negative]


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask``; 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
