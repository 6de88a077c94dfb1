"""``debug=targets``: draws what the loss of one training batch is computed on, and trains nothing.

A model that looks well and learns nothing often has objects that no anchor, cell or proposal is trained on: they are too
small, too narrow, or two share a cell. The pictures show every object with its priors, and name those that have none. An
embedding model's batch is drawn by `cvexp.callbacks.triplets`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from cvexp.callbacks.triplets import draw_triplets
from cvexp.types import Assignment, Batch, FaceBatch, UserError
from cvexp.viz import Roles, Sorted, save, sort_priors, target_panel


def draw_targets(
    make_trainer: Callable[[], Trainer],
    task: LightningModule,
    data: LightningDataModule,
    folder: str,
    images: int | None = 16,
    side: int = 800,
) -> dict[str, float]:
    """A recipe that stops before training: the first batch, as the loader gives it, with what its loss is computed on.

    Args:
        folder: of the run; ``targets_<name>_<k>.png`` is written for each assignment and image.
        images: at most so many of the batch (of an embedding model: triplets) are drawn; None draws all. The counts are those
            of the whole batch.
        side: of a drawn image, the longer one, pixels.

    Returns:
        Counts over the batch: ``targets/<name>/positive``, ``negative``, ``unsampled``, ``ignored``, ``objects`` (to be
        trained on) and ``missing`` (those of them without any positive). Of faces: see `draw_triplets`.

    Raises:
        UserError: the model does not say what its loss is computed on, or not in the agreed form.
    """
    batch: Batch | FaceBatch = next(iter(data.train_dataloader()))
    task.train()  # as in training: a detector may take more proposals then
    if isinstance(batch, FaceBatch):
        return draw_triplets(task, batch, Path(folder), images, side)
    classes: list[str] = task.classes  # type: ignore[assignment]
    results: dict[str, float] = {}
    table = Table("", *Roles._fields, "objects", "missing", title="targets of one training batch")
    notes = []
    for assignment in assignments(task.model, batch):
        rows = [sort_priors(assignment, i, target) for i, target in enumerate(batch.targets)]
        counts = count(rows)
        results |= {f"targets/{assignment.name}/{name}": value for name, value in counts.items()}
        table.add_row(assignment.name, *(f"{value:,}" for value in counts.values()))
        notes.append(_name_missing(batch, rows, classes))
        _draw(batch, rows, classes, Path(folder), images, side)
    console = Console()
    console.print(table)
    for note in filter(None, notes):
        console.print(note, style="red", soft_wrap=True, highlight=False)
    drawn = len(batch) if images is None else min(images, len(batch))
    places = Path(folder) / "targets_*.png"
    console.print(f"nothing trained; {drawn} of {len(batch)} images drawn: {places}", soft_wrap=True, highlight=False)
    return results


def assignments(model: object, batch: Batch) -> list[Assignment]:
    """The model's own word on a batch.

    Raises:
        UserError: it has none, or one whose shapes do not fit the batch.
    """
    ask = getattr(model, "assignments", None)
    if ask is None:
        raise UserError(
            f"debug=targets: {type(model).__name__} has no assignments(images, targets). Fix: let it return a list of"
            " cvexp.types.Assignment, as YOLOv1 does"
        )
    found = ask(batch.images, batch.targets, **batch.extras)
    for assignment in found:
        shapes = {tuple(part.shape) for part in vars(assignment.match).values()} | {tuple(assignment.boxes.shape[:2])}
        if len(shapes) > 1 or len(assignment.boxes) != len(batch):
            raise UserError(
                f"debug=targets: {assignment.name}: boxes {tuple(assignment.boxes.shape)} and the parts of the match"
                f" {sorted(shapes)} are not [{len(batch)}, P]. Fix: one row per image, one column per prior"
            )
    return list(found)


def count(rows: list[Sorted]) -> dict[str, int]:
    """Priors by role, objects to be trained on, and how many of them have no positive, over the images of a batch."""
    counts = {name: sum(int(getattr(row.roles, name).sum()) for row in rows) for name in Roles._fields}
    trained = sum(int((~row.ignored_objects).sum()) for row in rows)
    return counts | {"objects": trained, "missing": sum(len(row.missing) for row in rows)}


def _draw(batch: Batch, rows: list[Sorted], classes: list[str], folder: Path, images: int | None, side: int) -> None:
    """``targets_<name>_<k>.png``, k from 1 with leading zeros; nothing for an empty batch."""
    digits = len(str(len(batch)))
    for k, (image, target, row) in enumerate(zip(batch.images[:images], batch.targets, rows, strict=False), start=1):
        height, width = image.shape[-2:]
        title = f"{row.name}: image {k} of {len(batch)} (id {target.image_id}), {width}x{height} px"
        save(target_panel(image, target, row, classes, title, side), folder / f"targets_{row.name}_{k:0{digits}}.png")


def _name_missing(batch: Batch, rows: list[Sorted], classes: list[str]) -> str:
    """``no anchor: sheep 3 (image 1, 4), dog 1 (image 2)``; empty where every object has a positive."""
    found: dict[str, list[int]] = defaultdict(list)
    for k, (target, row) in enumerate(zip(batch.targets, rows, strict=True), start=1):
        for i in row.missing:
            found[classes[int(target.labels[i])]].append(k)
    texts = [f"{name} {len(ks)} (image {', '.join(map(str, sorted(set(ks))))})" for name, ks in sorted(found.items())]
    return f"no {rows[0].one}: {', '.join(texts)}" if texts else ""
