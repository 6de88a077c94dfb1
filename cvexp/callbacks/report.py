"""After the test: a page that says what the score is made of, its figures as files, and the same figures for the loggers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from cvexp.callbacks.dashboard import name_of
from cvexp.loggers.shown import Captioned, audience, logged_step
from cvexp.metrics.findings import Findings
from cvexp.metrics.work import work_of
from cvexp.report.evaluation import Galleries, ReadImage, write_report
from cvexp.types import UserError

CAPTIONS = {
    "pr_curves": "precision over recall of each class",
    "f1_confidence": "F1 over the score threshold",
    "confusion": "truth and prediction, with background",
    "errors": "what each kind of error costs",
    "sizes": "AP by size of the objects",
    "definitions": "one curve by every definition of AP",
}


class Report(Callback):
    """Writes ``report.html``, ``figures/*.png`` and ``figures/*.svg`` into ``folder``.

    Args:
        folder: of the run.
        score_threshold: from which on a detection counts in the confusion matrix and among the images; None takes the one with
            the best mean F1.
        worst, best: how many images are shown of each.

    Raises:
        UserError: a number that means nothing.
    """

    kind: ClassVar[str] = "detection"

    def __init__(self, folder: str, score_threshold: float | None = None, worst: int = 12, best: int = 6) -> None:
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise UserError(
                f"callbacks.report.score_threshold={score_threshold} is outside 0..1."
                " Fix: callbacks.report.score_threshold=0.25, or null"
            )
        for name, count in (("worst", worst), ("best", best)):
            if count < 0:
                raise UserError(f"callbacks.report.{name}={count} is below 0. Fix: callbacks.report.{name}=0")
        self.folder, self.score_threshold = Path(folder), score_threshold
        self.worst, self.best = worst, best

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metric = pl_module.metric
        explanation, result = getattr(metric, "explanation", None), getattr(metric, "result", None)
        if not trainer.is_global_zero or trainer.fast_dev_run or explanation is None or result is None:
            return
        explanation.score_threshold = self.score_threshold
        data = trainer.datamodule  # type: ignore[attr-defined]
        galleries = Galleries(reader(data.source(data.tested), explanation.findings), self.worst, self.best)
        model = type(pl_module.model).__name__
        work = work_of(pl_module.model, data.source(data.tested))
        pictures = write_report(
            explanation, result, self.folder,
            title=f"{model} on {type(data).__name__} ({data.tested})",
            facts={"measured by": metric.settings, "split": data.tested, "folder": self.folder.name}
            | {name.replace("_", " "): in_words(value) for name, value in work.items()},
            mask_result=getattr(metric, "mask_result", None), galleries=galleries,
        )  # fmt: skip
        for logger in audience(trainer):
            for name, path in pictures.items():
                with Image.open(path) as picture:
                    shown = Captioned(picture.convert("RGB"), CAPTIONS[name])
                logger.show_pictures(f"test/report/{name}", [shown], logged_step(trainer))


def in_words(value: float) -> str:
    """``8,830,125,000``, ``299.5``."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def reader(source: object, findings: Findings) -> ReadImage:
    """Reads the images of a source by their position in ``findings``."""
    ids = source.ground_truth().image_ids.tolist()  # type: ignore[attr-defined]
    positions = {image_id: position for position, image_id in enumerate(ids)}

    def read(index: int) -> tuple[Tensor, str]:
        position = positions[int(findings.image_ids[index])]
        image, target = source.read(position)  # type: ignore[attr-defined]
        return image, name_of(source, position, target.image_id)

    return read
