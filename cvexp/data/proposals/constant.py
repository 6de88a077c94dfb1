"""One set of boxes for all images: R-CNN minus R.

Lenc and Vedaldi, "R-CNN minus R", BMVC 2015: is segmentation needed at all? Proposals are the typical boxes of the training
set, found by k-means of their place and shape relative to the image; the network corrects them.

Difference from the paper: boxes are ordered, the one that covers most of the training objects first, then the one that covers
most of the rest; so any first n are a set of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from cvexp.data.proposals.proposer import check_at_least, tidy
from cvexp.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from cvexp.ops.clusters import cluster_boxes
from cvexp.types import GroundTruth, UserError

ORDERED_BY = 10_000
"""Training objects that decide about the order; more would not change it, and their overlaps fill the memory."""


@dataclass
class Constant:
    """The same boxes, relative to the image's size, for every image.

    Args:
        n: number of boxes.
        seed: of the clustering.

    Raises:
        UserError: an argument cannot be used.
    """

    name: ClassVar[str] = "constant"
    cached: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    n: int = 3000
    seed: int = 0
    boxes: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_at_least(self.name, n=(self.n, 1), seed=(self.seed, 0))

    def settings(self) -> dict[str, Any]:
        return {"n": self.n, "seed": self.seed}

    def fit(self, truth: GroundTruth) -> None:
        """Clusters the training objects, difficult ones and crowds left out.

        Raises:
            UserError: there is no object to learn from.
        """
        kept = ~(truth.difficult | truth.crowd)
        size = truth.sizes[truth.image_index[kept]].flip(1).repeat(1, 2)  # width, height, width, height
        relative = truth.boxes[kept] / size
        if not len(relative):
            raise UserError(
                "data.proposals=constant: the training images have no object to learn the boxes from."
                " Fix: data.proposals=sliding_window, or other training images"
            )
        centres = cluster_boxes(xyxy_to_cxcywh(relative), self.n, self.seed)
        boxes = cxcywh_to_xyxy(centres).clamp(0, 1).float()
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]
        every = relative[:: -(-len(relative) // ORDERED_BY)].float()
        self.boxes = boxes[torch.from_numpy(by_coverage(boxes, every))]

    def state(self) -> dict[str, Any]:
        """``boxes``: R rows of x1, y1, x2, y2 in 0..1; empty before `fit`."""
        return {} if self.boxes is None else {"boxes": self.boxes.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        if not state:
            self.boxes = None
            return
        try:
            boxes = torch.tensor(state["boxes"], dtype=torch.float32)
            usable = (
                boxes.ndim == 2 and boxes.shape[1] == 4 and len(boxes) and bool(((boxes >= 0) & (boxes <= 1)).all())
            )
        except (KeyError, TypeError, ValueError, RuntimeError):
            usable = False
        if not usable or not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            raise UserError(
                "the checkpoint has no boxes for data.proposals=constant. Fix: the data.proposals that it was trained with"
            )
        self.boxes = boxes

    def __call__(self, image: Tensor) -> Tensor:
        if self.boxes is None:
            raise UserError(
                "data.proposals=constant has not seen the training objects yet. Fix: fit(ground truth of the training images)"
                " or load_state(checkpoint) first"
            )
        height, width = image.shape[-2:]
        return tidy(self.boxes.numpy() * np.array([width, height, width, height], dtype=np.float32), height, width)


def by_coverage(boxes: Tensor, objects: Tensor, threshold: float = 0.5) -> np.ndarray:
    """An order of boxes: each next one covers most of the objects that those before do not.

    When all that can be covered are, it begins again with all of them; boxes that cover nothing come last.

    Args:
        boxes: ``[R, 4]`` xyxy.
        objects: ``[M, 4]`` xyxy in the same unit.
        threshold: a box covers an object from this IoU.

    Returns:
        int64 ``[R]``, each index once.

    Example:
        >>> objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]])
        >>> by_coverage(torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 9], [0, 0, 10, 10]]), objects).tolist()
        [1, 0, 2]
    """
    covers = np.concatenate([(box_iou(part, objects) >= threshold).numpy() for part in boxes.split(512)])
    order: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        chosen = _round(covers[left])
        if not chosen:
            break
        order += left[chosen].tolist()
        left = np.delete(left, chosen)
    return np.array([*order, *left.tolist()], dtype=np.int64)


def _round(covers: np.ndarray) -> list[int]:
    """Greedy cover: rows of bool ``[R, M]`` in the order of what each adds, until nothing is added."""
    gain, open_ = covers.sum(axis=1), np.ones(covers.shape[1], dtype=bool)
    chosen: list[int] = []
    while len(covers) and gain[best := int(gain.argmax())] > 0:
        new = covers[best] & open_
        open_ &= ~new
        gain = gain - covers[:, new].sum(axis=1)
        chosen.append(best)
    return chosen
