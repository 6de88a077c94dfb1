"""A map of an embedding: the faces of some people, brought to the plane by principal component analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray
from torch import Tensor

from cvexp.types import UserError
from cvexp.viz.figures import save_figure

PEOPLE, PER_PERSON, THUMB = 12, 40, 34
"""People on the map, images of each, and side of a thumbnail in points."""
MARKERS = "os^Dv<>P*Xph"


def principal_plane(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """The two directions of largest variance.

    Args:
        embeddings: ``[N, D]``, N at least 1.

    Returns:
        Coordinates float64 ``[N, 2]`` around the mean, the largest of each axis positive, and the share of the variance that each
        axis explains, float64 ``[2]``; zeros where there is no variance.
    """
    centred = embeddings.detach().double().cpu()
    centred = centred - centred.mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    scaled = torch.nn.functional.pad(u * s, (0, max(2 - len(s), 0)))[:, :2]
    share = torch.nn.functional.pad(s.square() / s.square().sum().clamp(min=1e-300), (0, max(2 - len(s), 0)))[:2]
    sign = scaled.gather(0, scaled.abs().argmax(dim=0)[None]).sign()  # an SVD's own signs are arbitrary
    return scaled * torch.where(sign == 0, 1, sign), share


def frequent(labels: Tensor, people: int = PEOPLE) -> list[int]:
    """The labels ``[N]`` that occur most, at most so many; of equals the smaller number first."""
    values, counts = labels.unique(return_counts=True)
    return values[torch.argsort(-counts, stable=True)][:people].tolist()


def draw_embedding_map(
    embeddings: Tensor,
    labels: Tensor,
    people: Sequence[str],
    path: Path | str,
    images: Mapping[int, Tensor] | Sequence[Tensor] | Tensor | None = None,
    *,
    title: str = "Embeddings of the people with most images",
) -> Path:
    """Draws the people with most images, and writes the PNG in one step.

    The plane is that of the people who are drawn, so that it separates them as well as any plane can.

    Args:
        embeddings: ``[N, D]``; rows that are not finite are left out (images that were not seen).
        labels: int64 ``[N]``, index into ``people``; those below 0 are left out.
        people: names.
        path: the file to write; its folder is made, a former file is replaced only by a complete one.
        images: ``images[n]`` is uint8 RGB ``[3, H, W]`` and lies under the point of row n where there is room; a mapping may lack
            some.
        title: of the picture.

    Raises:
        UserError: embeddings and labels that do not belong together.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(labels):
        raise UserError(
            f"embeddings {list(embeddings.shape)} for {len(labels)} labels. Fix: [N, D] and one label each."
        )
    embeddings, labels = embeddings.detach().cpu(), labels.cpu()
    usable = embeddings.isfinite().all(dim=1) & (labels >= 0) & bool(embeddings.shape[1])
    figure = Figure(figsize=(10.5, 7.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title.replace("$", r"\$"), fontsize=12)
    if usable.any():
        _draw(axes, embeddings, labels, usable, people, images)
    else:
        axes.text(0.5, 0.5, "no embeddings", ha="center", va="center", color="0.4")
    return save_figure(figure, path)


def _draw(axes: Axes, embeddings: Tensor, labels: Tensor, usable: Tensor, people: Sequence[str], images: Any) -> None:
    chosen = frequent(labels[usable])
    groups = [(usable & (labels == label)).nonzero().flatten()[:PER_PERSON] for label in chosen]
    points, share = principal_plane(embeddings[torch.cat(groups)])
    colours, size = [_colour(k) for k in range(len(groups))], 44 if images is None else 14
    split = points.split([len(group) for group in groups])
    for k, (label, at) in enumerate(zip(chosen, split, strict=True)):
        name = f"{people[label]}  ({int((labels[usable] == label).sum())})".replace("$", r"\$").replace("_", " ")
        axes.scatter(
            *at.T.numpy(), s=size, color=[colours[k]], marker=MARKERS[k % len(MARKERS)], label=name, alpha=0.85, linewidth=0.5,
            edgecolor="white", zorder=3,
        )  # fmt: skip
    axes.margins(0.09)
    axes.set_xlabel(f"first principal component ({share[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({share[1]:.0%})")
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(
        loc="outside right upper",
        fontsize=8.5,
        frameon=False,
        title="person (images)",
        markerscale=(44 / size) ** 0.5,
    )
    if images is not None:
        rows = [(row, colours[k]) for k, group in enumerate(groups) for row in group.tolist()]
        _draw_thumbnails(axes, rows, points, images)


def _draw_thumbnails(axes: Axes, rows: list[tuple[int, tuple[float, ...]]], points: Tensor, images: Any) -> None:
    """A face on its point, unless one that is drawn already would lie under it: then the point stays a point."""
    axes.figure.draw_without_rendering()  # places the axes
    pixels = axes.transData.transform(points.numpy())
    apart = 0.95 * THUMB * axes.figure.dpi / 72
    placed: list[int] = []
    for n, (row, colour) in enumerate(rows):
        crowded = (np.abs(pixels[placed] - pixels[n]).max(axis=1) < apart).any() if placed else False
        if crowded or (isinstance(images, Mapping) and row not in images):
            continue
        placed.append(n)
        picture = _pixels(images[row])
        thumbnail = OffsetImage(picture, zoom=THUMB / max(picture.shape[:2]), interpolation="bilinear")
        frame = {"edgecolor": colour, "linewidth": 1.8}
        axes.add_artist(AnnotationBbox(thumbnail, tuple(points[n].tolist()), pad=0.12, bboxprops=frame, zorder=2.5))


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    return image.permute(1, 2, 0).cpu().numpy()


def _colour(index: int) -> tuple[float, ...]:
    """Twelve colours that are told apart on white; more people take them again with another marker."""
    twelve = (
        "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf",
        "#8c564b", "#e377c2", "#6b6b6b", "#a6a300", "#0b3d91", "#006d4f",
    )  # fmt: skip
    text = twelve[index % len(twelve)]
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
