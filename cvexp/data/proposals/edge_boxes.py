"""Edge boxes: OpenCV's implementation on edges that need no model file.

Zitnick and Dollár, "Edge Boxes: Locating Object Proposals from Edges", ECCV 2014: a window holds an object if many contours
lie wholly inside it, less those that cross its border.

Difference from the paper: edges are those of Sobel's gradient of the smoothed image, thinned across their direction; the
paper's come from a structured forest, a file of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from cvexp.data.proposals.opencv import ximgproc
from cvexp.data.proposals.proposer import Unlearnt, check_at_least, pixels, tidy

VERSION = 1
"""Counted up when other boxes come out at the same settings: what was kept is then made anew."""


@dataclass
class EdgeBoxes(Unlearnt):
    """Proposals of edge boxes.

    Args:
        number: largest number of boxes.
        alpha: IoU of neighbouring windows that are tried.
        beta: of two boxes that overlap by more than this IoU the better one stays.
        sigma: of the smoothing before edges are looked for, pixels.
        gain: factor of the gradient (0..1 a pixel), so that an edge of a photograph is about 1.
        min_side: boxes with a shorter side are left out, pixels.

    Raises:
        UserError: an argument cannot be used; OpenCV is missing.
    """

    name: ClassVar[str] = "edge_boxes"
    cached: ClassVar[bool] = True
    number: int = 2000
    alpha: float = 0.65
    beta: float = 0.75
    sigma: float = 3.0
    gain: float = 4.0
    min_side: float = 8.0

    def __post_init__(self) -> None:
        check_at_least(self.name, number=(self.number, 1), alpha=(self.alpha, 0.01), beta=(self.beta, 0.01))
        check_at_least(self.name, sigma=(self.sigma, 0.1), gain=(self.gain, 0.01), min_side=(self.min_side, 0))
        ximgproc(self.name)

    def settings(self) -> dict[str, Any]:
        cv2, _ = ximgproc(self.name)
        return asdict(self) | {"opencv": cv2.__version__, "version": VERSION}

    def __call__(self, image: Tensor) -> Tensor:
        _, contributed = ximgproc(self.name)
        rgb = pixels(image)
        height, width = rgb.shape[:2]
        strength, direction = edges(rgb, self.sigma, self.gain)
        finder = contributed.createEdgeBoxes(alpha=self.alpha, beta=self.beta, maxBoxes=self.number)
        xywh = np.asarray(finder.getBoundingBoxes(strength, direction)[0], dtype=np.float64).reshape(-1, 4)
        return tidy(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1), height, width, self.min_side)


def edges(rgb: np.ndarray, sigma: float, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Strength and direction of the edges of uint8 ``[H, W, 3]``.

    Each pixel takes the channel with the steepest gradient; it is an edge where neither neighbour across the edge is steeper.

    Returns:
        float32 ``[H, W]`` in 0..1, and the direction across the edge, float32 ``[H, W]`` in 0..pi (y points down).
    """
    cv2, _ = ximgproc("edge_boxes")
    smooth = cv2.GaussianBlur(rgb.astype(np.float32) / 255, (0, 0), sigma)
    x, y = (cv2.Sobel(smooth, cv2.CV_32F, *order, scale=0.25) for order in ((1, 0), (0, 1)))
    steepest = np.hypot(x, y).argmax(axis=2)[..., None]
    x, y = (np.take_along_axis(each, steepest, axis=2)[..., 0] for each in (x, y))
    steep = np.hypot(x, y)
    unit = np.maximum(steep, 1e-9)
    rows, columns = np.mgrid[: rgb.shape[0], : rgb.shape[1]].astype(np.float32)
    neighbours = [
        cv2.remap(steep, columns + side * x / unit, rows + side * y / unit, cv2.INTER_LINEAR) for side in (1, -1)
    ]
    thin = np.where((steep >= neighbours[0]) & (steep >= neighbours[1]), steep, 0)
    return np.clip(thin * gain, 0, 1).astype(np.float32), (np.arctan2(y, x) % np.pi).astype(np.float32)
