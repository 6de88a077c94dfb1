"""Selective search without OpenCV, for small images: hierarchical grouping of segments.

Uijlings, van de Sande, Gevers, Smeulders, "Selective Search for Object Recognition", IJCV 2013: neighbouring regions that
are alike in colour, texture, size and fit are merged, two at a time, until one is left; every region on the way is a
proposal. It is done in several colour spaces and with several ideas of likeness, because no one of them finds everything.

Differences from the paper:

- The first segments are grown along the minimum spanning tree of the pixels, a quarter of their edges, by the rule of
  Felzenszwalb and Huttenlocher (IJCV 2004), which looks at all edges.
- Gradients of eight directions are those of x and y turned, as a Gaussian's can be.
- The order is not by chance: a box comes early if several groupings found it, or nearly so, and if its region stood apart
  from its neighbours: likeness of its parts to each other, less that of the region to what it was merged with.
- A larger image is shrunk first (``longest``).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor
from torchvision.ops import box_iou

from cvexp.data.proposals.proposer import Unlearnt, check_at_least, pixels, tidy
from cvexp.types import UserError

COLOUR_BINS, TEXTURE_BINS, DIRECTIONS = 25, 10, 8
"""Bins of a channel's histogram, of a direction's, and directions."""
MEASURES = ("colour", "texture", "size", "fill")
SPACES = ("rgb", "hsv", "lab")
NEARLY = 0.8
"""Boxes that overlap by more than this IoU vote for each other."""
VERSION = 1
"""Counted up when other boxes come out at the same settings: what was kept is then made anew."""


@dataclass
class Regions:
    """The segments of an image, and room for what they are merged into.

    Attributes:
        size: float64 ``[N]``, pixels.
        boxes: int64 ``[N, 4]`` xyxy.
        colour: float64 ``[N, 3 * 25]``, sums to 1 in each row.
        texture: float64 ``[N, 3 * 8 * 10]``, the same.
        pairs: int64 ``[E, 2]``, neighbours.
        area: pixels of the image.
    """

    size: np.ndarray
    boxes: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    pairs: np.ndarray
    area: int


def colours(rgb: np.ndarray, space: str) -> np.ndarray:
    """An image in a colour space.

    Args:
        rgb: float ``[H, W, 3]`` in 0..255.
        space: ``rgb``, ``hsv`` or ``lab`` (CIE L*a*b* of sRGB).

    Returns:
        float64 ``[H, W, 3]``, each channel in 0..255.
    """
    if space == "hsv":
        return _hsv(rgb / 255.0) * 255.0
    if space == "lab":
        return _lab(rgb / 255.0)
    return rgb.astype(np.float64)


def _hsv(rgb: np.ndarray) -> np.ndarray:
    """Hue, saturation, value in 0..1 of RGB in 0..1."""
    high, low = rgb.max(axis=2), rgb.min(axis=2)
    spread = high - low
    safe = np.where(spread > 0, spread, 1.0)
    red, green, blue = np.moveaxis(rgb, 2, 0)
    by_green_or_blue = np.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sector = np.where(high == red, (green - blue) / safe, by_green_or_blue)
    hue = np.where(spread > 0, sector / 6.0 % 1.0, 0.0)
    return np.stack([hue, spread / np.where(high > 0, high, 1.0), high], axis=2)


_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """L* (0..100) stretched to 0..255, a* and b* plus 128, of sRGB in 0..1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116), 2, 0)
    return np.clip(np.stack([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], axis=2), 0, 255)


def grow(image: np.ndarray, k: float, min_size: int) -> np.ndarray:
    """Segments of an image: two join if the edge between them is no weaker than what holds each of them together.

    Args:
        image: float ``[H, W, C]``, smoothed.
        k: the larger, the larger the segments (Felzenszwalb's threshold function k / size).
        min_size: smaller segments join the neighbour that is nearest in colour, pixels.

    Returns:
        int64 ``[H, W]`` in 0..N-1.
    """
    return cut(tree(image), image.shape[0] * image.shape[1], k, min_size).reshape(image.shape[:2])


Tree = tuple[np.ndarray, np.ndarray, np.ndarray]
"""First pixel, second pixel and length of the edges of a minimum spanning tree, the shortest first."""


def tree(image: np.ndarray) -> Tree:
    """The minimum spanning tree of the pixels of float ``[H, W, C]``, each with its eight neighbours."""
    height, width = image.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    sides = (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    )
    first = np.concatenate([index[a].ravel() for a, _ in sides])
    second = np.concatenate([index[b].ravel() for _, b in sides])
    length = np.concatenate([np.sqrt(((image[a] - image[b]) ** 2).sum(axis=2)).ravel() for a, b in sides])
    graph = coo_array((length + 1e-9, (first, second)), shape=(index.size, index.size))  # a zero would be no edge
    found = minimum_spanning_tree(graph.tocsr()).tocoo()
    order = np.argsort(found.data, kind="stable")
    return found.row[order], found.col[order], found.data[order]


def cut(edges: Tree, count: int, k: float, min_size: int) -> np.ndarray:
    """Segment of each of ``count`` pixels, int64 in 0..N-1; see `grow`."""
    first, second, length = (column.tolist() for column in edges)
    parent, size, limit = list(range(count)), [1] * count, [float(k)] * count

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    left: list[tuple[int, int]] = []
    for a, b, w in zip(first, second, length, strict=True):
        i, j = root(a), root(b)
        if w <= limit[i] and w <= limit[j]:
            parent[j] = i
            size[i] += size[j]
            limit[i] = w + k / size[i]
        else:
            left.append((a, b))
    for a, b in left:
        i, j = root(a), root(b)
        if size[i] < min_size or size[j] < min_size:
            parent[j] = i
            size[i] += size[j]
    return np.unique([root(i) for i in range(count)], return_inverse=True)[1]


def regions_of(labels: np.ndarray, image: np.ndarray, texture: np.ndarray) -> Regions:
    """What grouping needs to know of segments.

    Args:
        labels: int ``[H, W]`` in 0..N-1, none left out.
        image: float ``[H, W, 3]`` in 0..255, for the histograms of colour.
        texture: int ``[H, W, 3 * 8]``, the bin of each directed gradient, of `texture_bins`.
    """
    flat, count = labels.ravel(), int(labels.max()) + 1
    size = np.bincount(flat, minlength=count).astype(np.float64)
    rows, columns = np.divmod(np.arange(flat.size), labels.shape[1])
    boxes = np.empty((count, 4), dtype=np.int64)
    boxes[:, :2], boxes[:, 2:] = flat.size, 0
    for axis, values in enumerate((columns, rows)):
        np.minimum.at(boxes[:, axis], flat, values)
        np.maximum.at(boxes[:, axis + 2], flat, values + 1)
    bins = np.minimum(image * (COLOUR_BINS / 255.0), COLOUR_BINS - 1).astype(np.int64)
    return Regions(
        size=size,
        boxes=boxes,
        colour=_histograms(flat, bins.reshape(flat.size, -1), COLOUR_BINS, count),
        texture=_histograms(flat, texture.reshape(flat.size, -1), TEXTURE_BINS, count),
        pairs=_neighbours(labels, count),
        area=flat.size,
    )


def _histograms(flat: np.ndarray, bins: np.ndarray, number: int, count: int) -> np.ndarray:
    """``[N, C * number]`` of segments ``[P]`` and bins ``[P, C]``; each row sums to 1."""
    channels = bins.shape[1]
    cell = (flat[:, None] * channels + np.arange(channels)) * number + bins
    found = np.bincount(cell.ravel(), minlength=count * channels * number).reshape(count, -1).astype(np.float64)
    return found / found.sum(axis=1, keepdims=True)


def _neighbours(labels: np.ndarray, count: int) -> np.ndarray:
    """int64 ``[E, 2]``: segments that touch, each pair once, the smaller number first."""
    a = np.concatenate([labels[:, :-1].ravel(), labels[:-1].ravel()])
    b = np.concatenate([labels[:, 1:].ravel(), labels[1:].ravel()])
    touching = a != b
    low, high = np.minimum(a, b)[touching], np.maximum(a, b)[touching]
    return np.stack(np.divmod(np.unique(low.astype(np.int64) * count + high), count), axis=1)


def texture_bins(image: np.ndarray) -> np.ndarray:
    """Gaussian derivatives (sigma 1) of each channel in eight directions, as bins.

    Args:
        image: float ``[H, W, 3]``.

    Returns:
        int64 ``[H, W, 3 * 8]`` in 0..9; the bins divide the range from 0 to the image's largest.
    """
    x = gaussian_filter(image, (1, 1, 0), order=(0, 1, 0))
    y = gaussian_filter(image, (1, 1, 0), order=(1, 0, 0))
    angles = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
    turned = np.maximum(x[..., None] * np.cos(angles) + y[..., None] * np.sin(angles), 0.0)
    top = turned.max()
    bins = np.minimum(turned * (TEXTURE_BINS / top), TEXTURE_BINS - 1) if top > 0 else turned
    return bins.astype(np.int64).reshape(*image.shape[:2], -1)


def s_colour(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection of histograms ``[..., n]`` that sum to 1: 1 for the same, 0 for strangers. `s_texture` is the same."""
    return np.minimum(a, b).sum(axis=-1)


s_texture = s_colour


def s_size(a: np.ndarray, b: np.ndarray, area: float) -> np.ndarray:
    """Small regions merge early: 1 - (size(a) + size(b)) / area of the image, all in pixels.

    Example:
        >>> s_size(10, 30, 100)
        0.6
    """
    return 1.0 - (a + b) / area


def s_fill(a: np.ndarray, b: np.ndarray, box_area: np.ndarray, area: float) -> np.ndarray:
    """Regions that fit into each other merge: 1 - (area of their common box - size(a) - size(b)) / area, in pixels.

    Example:
        >>> s_fill(10, 30, 60, 100)  # 20 pixels of the box belong to neither
        0.8
    """
    return 1.0 - (box_area - a - b) / area


class Grouping:
    """Merges the two most alike neighbours until one region is left.

    Args:
        regions: the segments.
        measures: what likeness is the sum of, of `MEASURES`.

    Attributes:
        boxes: int64 ``[2N - 1, 4]`` xyxy: segments, then merged regions in the order of merging.
        born, died: float64 ``[2N - 1]``: likeness of the parts when they were merged; likeness of the region to its partner
            when it was merged away (0 for the last one).
    """

    def __init__(self, regions: Regions, measures: Sequence[str]) -> None:
        n = len(regions.size)
        self.measures, self.area = tuple(measures), float(regions.area)
        self.size = _room(regions.size, n)
        self.boxes = _room(regions.boxes, n)
        histograms = [getattr(regions, name) for name in ("colour", "texture") if name in measures]
        self.histograms = _room(np.concatenate([*histograms, np.zeros((n, 0))], axis=1), n)
        self.born, self.died = np.full(2 * n - 1, float(len(measures))), np.zeros(2 * n - 1)
        self._run(n, regions.pairs)

    def likeness(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``[E]`` of the regions ``a`` and ``b`` ``[E]``: the sum of the measures."""
        total = s_colour(self.histograms[a], self.histograms[b])  # of both histograms side by side
        if "size" in self.measures:
            total = total + s_size(self.size[a], self.size[b], self.area)
        if "fill" in self.measures:
            low = np.minimum(self.boxes[a, :2], self.boxes[b, :2])
            high = np.maximum(self.boxes[a, 2:], self.boxes[b, 2:])
            total = total + s_fill(self.size[a], self.size[b], (high - low).prod(axis=-1), self.area)
        return total

    def _run(self, n: int, pairs: np.ndarray) -> None:
        neighbours: list[set[int]] = [set() for _ in range(2 * n - 1)]
        for a, b in pairs.tolist():
            neighbours[a].add(b)
            neighbours[b].add(a)
        alike = self.likeness(pairs[:, 0], pairs[:, 1])
        queue = [(-s, a, b) for s, (a, b) in zip(alike.tolist(), pairs.tolist(), strict=True)]
        heapq.heapify(queue)
        gone = [False] * (2 * n - 1)
        new = n
        while queue:
            s, a, b = heapq.heappop(queue)
            if gone[a] or gone[b]:
                continue
            gone[a] = gone[b] = True
            self.died[[a, b]] = self.born[new] = -s
            self._merge(a, b, new)
            around = sorted(i for i in neighbours[a] | neighbours[b] if not gone[i])
            neighbours[new] = set(around)
            if around:
                for i, likeness in zip(
                    around, self.likeness(np.full(len(around), new), np.array(around)).tolist(), strict=True
                ):
                    neighbours[i].add(new)
                    heapq.heappush(queue, (-likeness, i, new))
            new += 1

    def _merge(self, a: int, b: int, new: int) -> None:
        size = self.size[a] + self.size[b]
        self.histograms[new] = (self.size[a] * self.histograms[a] + self.size[b] * self.histograms[b]) / size
        self.size[new] = size
        self.boxes[new, :2] = np.minimum(self.boxes[a, :2], self.boxes[b, :2])
        self.boxes[new, 2:] = np.maximum(self.boxes[a, 2:], self.boxes[b, 2:])


def _room(rows: np.ndarray, n: int) -> np.ndarray:
    """Rows with room for ``n - 1`` more."""
    return np.concatenate([rows, np.zeros((n - 1, *rows.shape[1:]), dtype=rows.dtype)])


@dataclass
class Segments(Unlearnt):
    """Proposals by hierarchical grouping, NumPy and SciPy alone.

    Args:
        spaces: colour spaces, of ``rgb``, ``hsv``, ``lab``.
        k: sizes of the first segments, see `grow`.
        groupings: what likeness is the sum of, in turn, each of ``colour``, ``texture``, ``size``, ``fill``.
        sigma: of the smoothing before segments are grown, pixels.
        min_size: smallest first segment, pixels.
        min_side: boxes with a shorter side are left out, pixels of the image that is looked at.
        longest: a larger side is shrunk to this first, pixels.
        same: of boxes that overlap by more than this IoU the better one stays.

    Raises:
        UserError: an argument cannot be used.
    """

    name: ClassVar[str] = "segments"
    cached: ClassVar[bool] = True
    spaces: Sequence[str] = ("lab", "hsv")
    k: Sequence[float] = (50.0,)
    groupings: Sequence[Sequence[str]] = (MEASURES, ("texture", "size", "fill"))
    sigma: float = 0.8
    min_size: int = 20
    min_side: float = 8.0
    longest: int = 160
    same: float = 0.9

    def __post_init__(self) -> None:
        limits = {"sigma": (self.sigma, 0), "min_size": (self.min_size, 1), "min_side": (self.min_side, 0)}
        check_at_least(self.name, **limits, longest=(self.longest, 8), same=(self.same, 0))
        for k in self.k:
            check_at_least(self.name, k=(k, 0))
        names = [name for grouping in self.groupings for name in grouping]
        for key, found, known in (("spaces", self.spaces, SPACES), ("groupings", names, MEASURES)):
            for name in found:
                if name not in known:
                    raise UserError(f"data.proposals.{key}: there is no {name!r}. Fix: choose from {', '.join(known)}")
        if not (self.spaces and self.k and self.groupings and all(self.groupings)):
            raise UserError(
                "data.proposals of segments: spaces, k and groupings need an entry each. Fix: leave them out"
            )

    def settings(self) -> dict[str, Any]:
        plain = {"spaces": list(self.spaces), "k": [float(k) for k in self.k]}
        return asdict(self) | plain | {"groupings": [list(names) for names in self.groupings], "version": VERSION}

    def __call__(self, image: Tensor) -> Tensor:
        rgb = pixels(image)
        height, width = rgb.shape[:2]
        small = shrunk(rgb.astype(np.float64), self.longest)
        scale = np.array([width / small.shape[1], height / small.shape[0]] * 2)
        found = [group for space in self.spaces for group in self._groupings(colours(small, space))]
        boxes = np.concatenate([group.boxes for group in found])
        apart = np.concatenate([group.born - group.died for group in found])
        large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= self.min_side)
        chosen = large[ranked(boxes[large].astype(np.float64), apart[large], self.same)]
        return tidy(boxes[chosen] * scale, height, width)

    def _groupings(self, image: np.ndarray) -> list[Grouping]:
        """Every grouping in one colour space."""
        edges, texture = tree(gaussian_filter(image, (self.sigma, self.sigma, 0))), texture_bins(image)
        shape = image.shape[:2]
        labels = [cut(edges, shape[0] * shape[1], k, self.min_size).reshape(shape) for k in self.k]
        regions = [regions_of(each, image, texture) for each in labels]
        return [Grouping(each, measures) for each in regions for measures in self.groupings]


def shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """float ``[H, W, 3]`` with no side over ``longest``, each pixel the mean of those it stands for, or the image itself."""
    height, width = image.shape[:2]
    if max(height, width) <= longest:
        return image
    factor = longest / max(height, width)
    size = [max(round(side * factor), 1) for side in (height, width)]
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return np.ascontiguousarray(F.interpolate(tensor, size=size, mode="area")[0].permute(1, 2, 0).numpy())


def ranked(boxes: np.ndarray, apart: np.ndarray, same: float) -> np.ndarray:
    """The order of boxes, near copies of better ones left out.

    A box's score is the sum of ``apart`` (not below 0) over all boxes that are nearly it, itself among them.

    Args:
        boxes: ``[R, 4]`` xyxy.
        apart: ``[R]``, how much each region stood apart.
        same: a box is a copy of a better one above this IoU.

    Returns:
        int64 ``[N]``, indices, the best first.
    """
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    votes = (overlap > NEARLY) @ np.maximum(apart, 0.0)
    kept, copy = [], np.zeros(len(boxes), dtype=bool)
    for i in np.argsort(-votes, kind="stable"):
        if not copy[i]:
            kept.append(i)
            copy |= overlap[i] > same
    return np.array(kept, dtype=np.int64)
