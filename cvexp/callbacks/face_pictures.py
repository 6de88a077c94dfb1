"""After the test of an embedding model: the ROC, a map of the embeddings, the worst pairs, and what the figures cannot tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console
from torch import Tensor

from cvexp.loggers.shown import Captioned, audience, logged_step
from cvexp.metrics.roc_curves import draw_roc
from cvexp.types import FaceTruth, UserError
from cvexp.viz import save
from cvexp.viz.embedding_map import draw_embedding_map
from cvexp.viz.faces import BLACK, PALE, RIGHT, WRONG, column, pair, strip


class FacePictures(Callback):
    """Writes ``roc.png``, ``embedding_map.png`` and ``pairs.png`` into ``folder``; loggers that show pictures get them too.

    Args:
        folder: of the run.
        pairs: how many of each kind ``pairs.png`` shows: of one person the farthest apart, of two people the nearest.

    Raises:
        UserError: no pairs asked for.
    """

    kind: ClassVar[str] = "embedding"

    def __init__(self, folder: str, pairs: int = 6) -> None:
        if pairs < 1:
            raise UserError(f"pairs={pairs} of the worst pairs is below 1. Fix: pairs=6")
        self.folder, self.pairs = Path(folder), pairs

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metric: Any = pl_module.metric
        embeddings = metric.gathered()  # every process must ask
        result = metric.result
        if result is None or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        source, truth = data.source(data.tested), metric.truth
        rows = (embeddings.isfinite().all(dim=1) & ~truth.distractor).nonzero().flatten()
        labels, faces = truth.labels[rows], Faces(source, rows.tolist())
        written = [
            draw_roc(result, self.folder / "roc.png"),
            draw_embedding_map(embeddings[rows], labels, truth.people, self.folder / "embedding_map.png", faces),
        ]
        if len(result.scores):
            written.append(self.folder / "pairs.png")
            save(worst_pairs(result, truth, source, self.pairs), written[-1])
        for logger in audience(trainer):
            for path in written:
                logger.show_pictures(
                    f"test/{path.stem}", [Captioned(Image.open(path), path.name)], logged_step(trainer)
                )
        for note in result.notes:
            Console().print(f"note: {note}", style="yellow", soft_wrap=True, highlight=False)


@dataclass
class Faces:
    """The images of some positions in a source, each read when it is asked for."""

    source: Any
    positions: list[int]

    def __getitem__(self, row: int) -> Tensor:
        image: Tensor = self.source.read(self.positions[row])[0]
        return image


def worst_pairs(result: Any, truth: FaceTruth, source: Any, count: int) -> Image.Image:
    """The pairs of one person that look least alike, and those of two people that look most alike; mistakes in red.

    Args:
        result: of the metric, see `cvexp.metrics.verification.VerificationResult`.
        source: ``source.read(i)`` gives the image of ``truth.image_ids[i]``.
        count: of each kind.
    """
    same = np.asarray(result.same, dtype=bool)
    order = np.argsort(result.scores, kind="stable")
    kinds = (
        ("one person, least alike", order[same[order]][:count]),
        ("different people, most alike", order[~same[order]][::-1][:count]),
    )
    place = {image_id: i for i, image_id in enumerate(truth.image_ids.tolist())}
    sides = []
    for title, chosen in kinds:
        pairs = [_pair(result, truth, source, place, int(i)) for i in chosen]
        if pairs:
            sides.append(column(pairs, [(title, BLACK), (_mistakes(result, same, title.startswith("one")), PALE)]))
    where = "no threshold" if result.threshold is None else f"threshold {_shown(result, result.threshold):.4g}"
    return column([strip(sides)], [(f"{result.name}: {len(same):,} pairs, {result.measure}, {where}", BLACK)])


def _mistakes(result: Any, same: np.ndarray, kind: bool) -> str:
    """How many of a kind lie on the wrong side of the threshold."""
    of_kind = same if kind else ~same
    if result.threshold is None:
        return f"of {int(of_kind.sum()):,}"
    wrong = int(((result.scores > result.threshold) != same)[of_kind].sum())
    return f"{wrong:,} of {int(of_kind.sum()):,} on the wrong side"


def _shown(result: Any, score: float) -> float:
    return -score if result.falling else score


def _pair(result: Any, truth: FaceTruth, source: Any, place: dict[int, int], i: int) -> Image.Image:
    """The two faces of judged pair ``i`` with their names and the value between them."""
    listed = int(result.index[i])
    positions = [place[int(side[listed])] for side in (truth.pairs.first, truth.pairs.second)]
    names = [truth.people[int(truth.labels[p])] for p in positions]
    score = float(result.scores[i])
    right = None if result.threshold is None else (score > result.threshold) == bool(result.same[i])
    ink = None if right is None else RIGHT if right else WRONG
    images = [source.read(p)[0] for p in positions]
    return pair(images, names, f"{result.measure} {_shown(result, score):.4f}", 120, ink)
