"""What the loggers of an embedding model show besides scalars: the same few pairs of faces at every validation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cvexp.callbacks.dashboard import evenly_spread
from cvexp.loggers.shown import Captioned, audience, logged_step
from cvexp.types import FaceTruth, UserError
from cvexp.viz.faces import RIGHT, WRONG, pair


class FaceDashboard(Callback):
    """Sends ``val/pairs`` at each validation: two faces, the value between them, the answer and the verdict.

    The threshold is the one that the validation has just chosen. The metric has gathered all processes' embeddings already; the
    first one reads the images.

    Args:
        pairs: how many of one person, and as many of two, spread evenly over the list: the same at every validation.
        side: of a face, pixels.

    Raises:
        UserError: a number that means nothing.
    """

    kind: ClassVar[str] = "embedding"

    def __init__(self, pairs: int = 6, side: int = 120) -> None:
        for name, value, least in (("pairs", pairs, 0), ("side", side, 16)):
            if value < least:
                raise UserError(
                    f"callbacks.dashboard.{name}={value} is below {least}. Fix: callbacks.dashboard.{name}={least}"
                )
        self.pairs, self.side = pairs, side

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metric: Any = pl_module.metric
        result, loggers = metric.result, audience(trainer)
        if result is None or not loggers or not len(result.same):
            return
        source = trainer.datamodule.source("val")  # type: ignore[attr-defined]
        threshold = getattr(pl_module, "verification", {}).get("threshold")
        chosen = fixed_pairs(torch.as_tensor(result.same, dtype=torch.bool), self.pairs)
        shown = [judged_pair(result, metric.truth, source, i, threshold, self.side) for i in chosen]
        for logger in loggers if shown else ():
            logger.show_pictures("val/pairs", shown, logged_step(trainer))


def fixed_pairs(same: torch.Tensor, count: int) -> list[int]:
    """Positions in ``same`` (bool ``[N]``): at most ``count`` pairs of one person, then as many of two."""
    kinds = (same.nonzero().flatten(), (~same).nonzero().flatten())
    return [int(rows[place]) for rows in kinds for place in evenly_spread(count, len(rows))]


def judged_pair(result: Any, truth: FaceTruth, source: Any, i: int, threshold: float | None, side: int) -> Captioned:
    """Pair ``i`` of those that were judged, as a picture and in words; green where the verdict is right, red where it is wrong.

    Args:
        result: `cvexp.metrics.verification.VerificationResult`.
        threshold: in score units; None: no verdict.
    """
    listed = int(result.index[i])
    ids = [int(column[listed]) for column in (truth.pairs.first, truth.pairs.second)]
    places = [int((truth.image_ids == image_id).nonzero()) for image_id in ids]
    names = [truth.people[int(truth.labels[place])] for place in places]
    score, same = float(result.scores[i]), bool(result.same[i])
    shown = -score if result.falling else score
    accepted = None if threshold is None else score > threshold
    ink = None if accepted is None else RIGHT if accepted == same else WRONG
    answer = "same person" if same else "two people"
    verdict = (
        ""
        if accepted is None
        else f", taken for {'one' if accepted else 'two'}: {'right' if ink is RIGHT else 'wrong'}"
    )
    picture = pair(
        [source.read(place)[0] for place in places], names, f"{answer}, {result.measure} {shown:.4f}", side, ink
    )
    return Captioned(
        picture, f"{names[0]} (id {ids[0]}), {names[1]} (id {ids[1]}): {answer}; {result.measure} {shown:.4f}{verdict}"
    )
