"""Selective search, "fast": OpenCV's implementation with the settings of R-CNN.

Uijlings, van de Sande, Gevers, Smeulders, "Selective Search for Object Recognition", IJCV 2013. Neighbouring segments that
are alike are merged until one is left, and every region on the way is a proposal: in two colour spaces (HSV, Lab), from two
segmentations (k = 50, 100), with two ideas of likeness (colour + texture + size + fill, and without colour).

The order is the paper's: by how late a region was merged, times a random number. OpenCV takes that from C's generator, which
is seeded here by the image, and puts the earliest merged regions first, where the paper has the latest: its order is turned
round. Where C's generator cannot be seeded (Windows), boxes are ordered here, the larger for the later merged.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from cvexp.data.proposals.opencv import ximgproc
from cvexp.data.proposals.proposer import Unlearnt, check_at_least, fingerprint, pixels, tidy
from cvexp.types import UserError

VERSION = 2
"""Counted up when other boxes come out at the same settings: what was kept is then made anew."""
TALLEST = 2
"""Height / width above which an image is not brought to the full width: a sliver would become a tower."""


@dataclass
class SelectiveSearch(Unlearnt):
    """Proposals of selective search.

    Args:
        width: the image is brought to it first, pixels, a high one to twice that height; None leaves it.
        min_side: boxes with a shorter side are left out, pixels at that width.
        k: of the segmentations; also their smallest segment, pixels.
        sigma: of the smoothing before, pixels.

    Raises:
        UserError: an argument cannot be used; OpenCV is missing.
    """

    name: ClassVar[str] = "selective_search"
    cached: ClassVar[bool] = True
    width: int | None = 500
    min_side: float = 20.0
    k: Sequence[int] = (50, 100)
    sigma: float = 0.8

    def __post_init__(self) -> None:
        sizes = {} if self.width is None else {"width": (self.width, 16)}
        check_at_least(self.name, **sizes, min_side=(self.min_side, 0), sigma=(self.sigma, 0.1))
        for k in self.k:
            check_at_least(self.name, k=(k, 1))
        if not self.k:
            raise UserError("data.proposals.k of selective_search is empty. Fix: k=[50,100]")
        ximgproc(self.name)

    def settings(self) -> dict[str, Any]:
        cv2, _ = ximgproc(self.name)
        versions = {"opencv": cv2.__version__, "seeded": _srand() is not None, "version": VERSION}
        return asdict(self) | {"k": [int(k) for k in self.k]} | versions

    def __call__(self, image: Tensor) -> Tensor:
        cv2, _ = ximgproc(self.name)
        rgb = pixels(image)
        height, width = rgb.shape[:2]
        if self.width is not None and width != self.width:
            factor = min(self.width / width, TALLEST * self.width / height)
            size = (max(round(width * factor), 1), max(round(height * factor), 1))
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        seed = int(fingerprint(image)[:7], 16)
        boxes = self._found(rgb, seed)
        scale = np.array([width / rgb.shape[1], height / rgb.shape[0]] * 2)
        wide = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= self.min_side
        return tidy(boxes[wide] * scale, height, width)

    def _found(self, rgb: np.ndarray, seed: int) -> np.ndarray:
        """float64 ``[R, 4]`` xyxy, ordered."""
        srand = _srand()
        if srand is not None:
            srand(seed)
        xywh = np.asarray(self._search(rgb).process(), dtype=np.float64).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        return boxes[::-1] if srand is not None else by_chance(boxes, seed)

    def _search(self, rgb: np.ndarray) -> Any:
        cv2, contributed = ximgproc(self.name)
        module = contributed.segmentation
        search = module.createSelectiveSearchSegmentation()
        search.setBaseImage(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        for space in (cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2Lab):
            search.addImage(cv2.cvtColor(rgb, space))
        for k in self.k:
            search.addGraphSegmentation(module.createGraphSegmentation(self.sigma, float(k), int(k)))
        for measures in (("Color", "Texture", "Size", "Fill"), ("Texture", "Size", "Fill")):
            parts = [getattr(module, f"createSelectiveSearchSegmentationStrategy{part}")() for part in measures]
            search.addStrategy(module.createSelectiveSearchSegmentationStrategyMultiple(*parts))
        return search


def by_chance(boxes: np.ndarray, seed: int) -> np.ndarray:
    """Boxes ``[R, 4]`` xyxy, whatever their order, in an order by chance in which large ones tend to be early.

    The largest has priority 1, the next 2 ...; each is multiplied by a random number, and the smallest product is the first.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    boxes = boxes[np.lexsort((*boxes.T, -areas))]
    keys = np.random.default_rng(seed).random(len(boxes)) * np.arange(1, len(boxes) + 1)
    return boxes[np.argsort(keys, kind="stable")]


@cache
def _srand() -> Callable[[int], Any] | None:
    """C's ``srand`` of this process, which OpenCV's ``rand`` follows; None where it cannot be reached."""
    try:
        return ctypes.CDLL(None).srand
    except (OSError, AttributeError, TypeError):
        return None
