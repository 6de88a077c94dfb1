"""``debug=targets`` of an embedding model: the triplets that the loss of one training batch is computed on, counted and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cvexp.types import FaceBatch, UserError
from cvexp.viz import save
from cvexp.viz.faces import BETWEEN, BLACK, PALE, RIGHT, WRONG, column, distance_histogram, note, strip, tile

ROWS = 5
"""Triplets on a page."""
KINDS = {"easy": RIGHT, "semi-hard": BETWEEN, "hard": WRONG}
"""By what the negative is: beyond the margin (loss 0), farther than the positive but within it, nearer than the positive."""


@dataclass
class Mined:
    """The valid triplets of a batch, by falling loss, on the CPU.

    Attributes:
        anchor, positive, negative: int64 ``[T]`` into the batch.
        near, far: ``[T]``, squared distances anchor to positive and anchor to negative.
        margin: of the loss.
    """

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    near: Tensor
    far: Tensor
    margin: float

    def __len__(self) -> int:
        return len(self.anchor)

    @property
    def loss(self) -> Tensor:
        """``[T]``: ``[d(a, p) - d(a, n) + margin]_+``."""
        return (self.near - self.far + self.margin).clamp(min=0)

    @cached_property
    def kinds(self) -> list[str]:
        """``easy``, ``semi-hard`` or ``hard``, one for each triplet.

        Example: margin 0.2, d(a, p) = 0.4: a negative at 0.8 is easy, at 0.59 semi-hard, at 0.4 or 0.08 hard.
        """
        places = (self.far >= self.near + self.margin).int() - (self.far <= self.near).int()
        names = ("semi-hard", "easy", "hard")  # 0, 1, -1
        return [names[place] for place in places.tolist()]


def draw_triplets(
    task: LightningModule, batch: FaceBatch, folder: Path, images: int | None, side: int
) -> dict[str, float]:
    """Mines one batch as a training step does, without a gradient; see `cvexp.callbacks.targets.draw_targets`.

    ``triplets_<k>.png`` shows rows of anchor, positive and negative, ``distances.png`` all distances of the batch.

    Args:
        task: in training mode; ``task.classes`` names the people.
        images: triplets drawn at most, spread evenly from the largest loss to the smallest; None draws all.
        side: of the pages without their text, pixels: three faces beside each other.

    Returns:
        ``targets/triplets/...``: ``pairs`` (anchor with positive), ``mined``, of them ``easy, semi_hard, hard``; shares
        ``active`` and ``semi_hard_pairs``; ``positive_distance, negative_distance, spread``.

    Raises:
        UserError: the model does not say which triplets it mines, or in another form.
    """
    model: Any = task.model
    for name in ("mine", "statistics"):
        if not hasattr(model, name):
            raise UserError(
                f"debug=targets: {type(model).__name__} has no {name}(embeddings, labels, image_ids), so there are no triplets"
                " to draw. Fix: take a model that is trained on triplets, as model=facenet"
            )
    with torch.no_grad():
        embeddings = model(batch.images)
        known = {k: float(v) for k, v in model.statistics(embeddings, batch.labels, batch.image_ids).items()}
        triplets = model.mine(embeddings, batch.labels, batch.image_ids)
    between = squared_distances(embeddings)
    mined = sort_triplets(triplets, between, known["margin"])
    same = batch.labels[:, None] == batch.labels[None]
    pairs = same & ~torch.eye(len(batch), dtype=torch.bool)
    results = _counts(mined, int(pairs.sum()), known)
    people = len(batch.labels.unique())
    _print(results, f"{len(batch)} images of {people} people; margin {mined.margin:g}")
    upper = torch.ones_like(same).triu(diagonal=1)
    title = f"squared distances in one training batch, {len(batch)} images of {people} people"
    picture = distance_histogram(between[same & upper], between[~same & upper], title, mined.margin)
    save(picture, folder / "distances.png")
    _draw(batch, mined, task.classes, folder, images, side)  # type: ignore[arg-type]
    return {f"targets/triplets/{name}": value for name, value in results.items()}


def squared_distances(embeddings: Tensor) -> Tensor:
    """Of all rows ``[B, D]``: ``[B, B]``, at least float32; exactly 0 on the diagonal."""
    rows = embeddings.detach().float().cpu()
    return torch.stack([(rows - row).square().sum(dim=1) for row in rows])


def sort_triplets(triplets: Any, between: Tensor, margin: float) -> Mined:
    """The valid ones by falling loss; equal ones stay in the miner's order.

    Raises:
        UserError: an anchor that is its own positive.
    """
    valid = triplets.valid.cpu()
    anchor, positive, negative = (part.cpu()[valid] for part in (triplets.anchor, triplets.positive, triplets.negative))
    if (anchor == positive).any():
        raise UserError(
            "debug=targets: the miner made an anchor its own positive. Fix: leave out pairs of an image with itself"
        )
    near, far = between[anchor, positive], between[anchor, negative]
    order = (near - far).argsort(descending=True, stable=True)
    return Mined(anchor[order], positive[order], negative[order], near[order], far[order], margin)


def _counts(mined: Mined, pairs: int, known: dict[str, float]) -> dict[str, float]:
    kinds = mined.kinds
    counts = {"pairs": pairs, "mined": len(mined)}
    counts |= {kind.replace("-", "_"): kinds.count(kind) for kind in KINDS}
    shares = {"active": known["active"], "semi_hard_pairs": known["semi_hard"]}
    return counts | shares | {name: known[name] for name in ("positive_distance", "negative_distance", "spread")}


def _print(results: dict[str, float], title: str) -> None:
    table = Table("", "", title=f"triplets of one training batch: {title}", show_header=False)
    table.columns[1].justify = "right"
    for label, value in (
        ("anchor-positive pairs", f"{results['pairs']:,}"),
        ("mined triplets", f"{results['mined']:,}"),
        ("  hard, semi-hard, easy", ", ".join(f"{results[name]:,}" for name in ("hard", "semi_hard", "easy"))),
        ("share of them with a loss (active)", f"{results['active']:.1%}"),
        ("share of the pairs with a semi-hard negative", f"{results['semi_hard_pairs']:.1%}"),
        ("mean squared distance within a person", f"{results['positive_distance']:.4f}"),
        ("mean squared distance between people", f"{results['negative_distance']:.4f}"),
        ("spread (1: whole sphere, 0: collapsed)", f"{results['spread']:.3f}"),
    ):
        table.add_row(label, value)
    Console().print(table)


def _draw(batch: FaceBatch, mined: Mined, classes: list[str], folder: Path, images: int | None, side: int) -> None:
    """The pages, and where they are."""
    console = Console()
    wanted = min(len(mined), len(mined) if images is None else images)
    chosen = torch.linspace(0, max(len(mined) - 1, 0), wanted).round().long().tolist()
    pages = [chosen[i : i + ROWS] for i in range(0, len(chosen), ROWS)]
    face = max((side - 40) // 3, 40)
    for k, page in enumerate(pages, start=1):
        rows = [_row(batch, mined, i, classes, face) for i in page]
        heading = [
            (f"triplets, page {k} of {len(pages)}", BLACK),
            (f"{wanted} of {len(mined):,} mined, by falling loss; margin {mined.margin:g}", PALE),
        ]
        save(column(rows, heading), folder / f"triplets_{k:0{len(str(len(pages)))}}.png")
    if not len(mined):
        console.print(
            "no triplet was mined: no image has another of its person in the batch, or no negative fits the miner's rule",
            style="red", soft_wrap=True, highlight=False,
        )  # fmt: skip
    drawn = f"{wanted} of {len(mined):,} triplets drawn: {folder / 'triplets_*.png'}, " if wanted else ""
    console.print(f"nothing trained; {drawn}distances: {folder / 'distances.png'}", soft_wrap=True, highlight=False)


def _row(batch: FaceBatch, mined: Mined, i: int, classes: list[str], face: int) -> Image.Image:
    """Anchor, positive and negative of triplet ``i`` with names and distances, and what it costs."""
    kind = mined.kinds[i]
    roles = (
        (mined.anchor[i], "anchor", None),
        (mined.positive[i], f"positive, d(a, p) {mined.near[i]:.3f}", RIGHT),
        (mined.negative[i], f"negative, d(a, n) {mined.far[i]:.3f}", KINDS[kind]),
    )
    tiles = [tile(batch.images[j], [classes[int(batch.labels[j])], text], face, ink) for j, text, ink in roles]
    gap = float(mined.far[i] - mined.near[i])
    lines = [(kind, KINDS[kind]), (f"loss {mined.loss[i]:.3f}", BLACK), (f"d(a, n) - d(a, p) {gap:+.3f}", PALE)]
    return strip([*tiles, note(lines, 200, face)])
