"""The report of a detection result: ``report.html`` with every table and picture, and the pictures as files beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from PIL import Image
from torch import Tensor

import cvexp
from cvexp.metrics.coco_engine import CocoResult
from cvexp.metrics.confidence import ConfidenceCurves
from cvexp.metrics.curves import pr_figure
from cvexp.metrics.definition_curves import draw_definitions
from cvexp.metrics.definitions import Definitions
from cvexp.metrics.error_figures import draw_ap_by_size, draw_confusion, draw_error_types, draw_f1_curves
from cvexp.metrics.errors import TYPES
from cvexp.metrics.explanation import IOU, Explanation
from cvexp.metrics.findings import Findings, Ints
from cvexp.report.html import Page
from cvexp.report.parts import (
    Column,
    Facts,
    Figure,
    Gallery,
    KeyFigure,
    KeyFigures,
    Notes,
    Part,
    Picture,
    Section,
    Table,
    Text,
    Tone,
)
from cvexp.viz import draw_boxes
from cvexp.viz.figures import save_figures

ReadImage = Callable[[int], tuple[Tensor, str]]
"""Position in `Findings.image_ids` to the image, uint8 RGB ``[3, H, W]``, and its name."""

MEANINGS = {
    "AP": "mean precision over recall, classes and ten IoU thresholds: COCO's main number",
    "AP50": "the same where a box need only overlap by half: finding counts, fitting hardly",
    "AP75": "the same at IoU 0.75: boxes must fit",
    "AR100": "share of the objects that is found at all, mean of ten IoU thresholds",
}
ERROR_MEANINGS = {
    "classification": "right place, wrong class",
    "localisation": "right class, box too far off (IoU 0.1 to 0.5)",
    "both": "wrong class and box too far off",
    "duplicate": "object was found already by a surer detection",
    "background": "there is nothing of any class",
    "missed": "objects that nothing points to",
}
PICTURE_SIDE = 360


@dataclass(frozen=True)
class Galleries:
    """Which images are shown, and how they are had.

    Attributes:
        read: gives an image.
        worst, best: how many of each.
    """

    read: ReadImage
    worst: int = 12
    best: int = 6


def write_report(
    explanation: Explanation,
    result: CocoResult,
    folder: Path,
    *,
    title: str,
    facts: Mapping[str, Any],
    mask_result: CocoResult | None = None,
    galleries: Galleries | None = None,
) -> dict[str, Path]:
    """Writes ``report.html`` and ``figures/*.png``, ``*.svg`` into ``folder``.

    Args:
        explanation: of the same detections as ``result``.
        result: COCO's evaluation by boxes.
        folder: of the run.
        title: of the page.
        facts: settings under which the numbers hold, shown at the top.
        mask_result: the evaluation by masks, where there is one.
        galleries: worst and best images; None: none.

    Returns:
        The PNG of each figure by its name.

    Raises:
        UserError: a file cannot be written.
    """
    drawings = draw_figures(explanation, result)
    files = {name: save_figures(drawing, folder / "figures" / name) for name, drawing in drawings.items()}
    for ending in ("png", "svg") if "definitions" not in drawings else ():
        (folder / "figures" / f"definitions.{ending}").unlink(missing_ok=True)  # of a former evaluation in this folder
    svgs = {name: svg for name, (_, svg) in files.items()}
    evaluation_page(explanation, result, svgs, title, facts, mask_result, galleries).write(folder / "report.html")
    return {name: png for name, (png, _) in files.items()}


def evaluation_page(
    explanation: Explanation,
    result: CocoResult,
    svgs: Mapping[str, Path],
    title: str,
    facts: Mapping[str, Any],
    mask_result: CocoResult | None = None,
    galleries: Galleries | None = None,
) -> Page:
    """The page; ``svgs`` are the figures' files by name, other arguments as those of `write_report`."""
    sections = [
        _summary(explanation, result, mask_result, facts),
        _classes(explanation, result),
        _definitions(explanation, svgs),
        _curves(explanation.confidence, svgs),
        _errors(explanation, svgs),
        _confusions(explanation, svgs),
        Section("Sizes", [Figure(svgs["sizes"], _size_caption(result), name="sizes")]),
    ]
    if galleries is not None:
        sections += _galleries(explanation, galleries)
    objects = int(explanation.findings.objects.sum())
    subtitle = f"{result.images} images, {objects} objects, {len(result.classes)} classes"
    return Page(title, subtitle, sections, footer=f"cvexp {cvexp.__version__}")


def draw_figures(explanation: Explanation, result: CocoResult) -> dict[str, Drawing]:
    """The report's figures by name."""
    thresholds = list(result.iou_thresholds)
    drawings = {
        "pr_curves": pr_figure(result, iou=IOU if IOU in thresholds else thresholds[0]),
        "f1_confidence": draw_f1_curves(explanation.confidence),
        "confusion": draw_confusion(explanation.confusion),
        "errors": draw_error_types(explanation.errors),
        "sizes": draw_ap_by_size(result),
    }
    if explanation.findings.objects.any():
        found = explanation.definitions
        drawings["definitions"] = draw_definitions(explanation.findings, _telling(found), definitions=found)
    return drawings


def _telling(found: Definitions, enough: int = 20) -> int:
    """The class on which the definitions differ most; of those with enough objects for a curve, where there are any."""
    spread = np.where(found.objects >= enough, found.spread(), np.nan)
    return found.widest() if np.isnan(spread).all() else int(np.nanargmax(spread))


# -- sections ----------------------------------------------------------------------------------------------------------


def _summary(
    explanation: Explanation, result: CocoResult, mask_result: CocoResult | None, facts: Mapping[str, Any]
) -> Section:
    numbers = result.summary()
    largest = f"AR{result.max_detections[-1]}"
    meanings = MEANINGS | {largest: MEANINGS["AR100"]}
    figures = [KeyFigure(numbers[name], name, meanings[name]) for name in ("AP", "AP50", "AP75", largest)]
    best, score = explanation.confidence.best_mean()
    shown = f", for a user who shows scores from {score:.2f} on" if score == score else ""
    figures.append(KeyFigure(best, "best F1", f"precision and recall in one number{shown}"))
    parts: list[Part] = [KeyFigures(figures)]
    if mask_result is not None:
        by_mask = mask_result.summary()
        parts.append(
            KeyFigures([KeyFigure(by_mask[n], f"mask {n}", "by IoU of masks") for n in ("AP", "AP50", "AP75", largest)])
        )
    absent = [name for name, count in zip(result.classes, explanation.findings.objects, strict=True) if not count]
    if absent:
        parts.append(Notes([f"without objects here, so left out of every mean: {', '.join(absent)}"]))
    twelve = {name: value for name, value in numbers.items() if "/" not in name}
    columns = [Column("number"), Column("boxes", ".3f")] + ([] if mask_result is None else [Column("masks", ".3f")])
    rows = [[n, v, *([] if mask_result is None else [mask_result.summary()[n]])] for n, v in twelve.items()]
    parts.append(Table(columns, rows, "COCO's numbers", half=True))
    parts.append(Facts(facts, half=True))
    return Section("Summary", parts)


def _classes(explanation: Explanation, result: CocoResult) -> Section:
    """AP by class and size with objects, best F1 and its score."""
    sizes = {size: result.average_precision(area=size) for size in ("small", "medium", "large")}
    ap, ap50, ap75 = result.average_precision(), result.average_precision(0.5), result.average_precision(0.75)
    confidence = explanation.confidence
    columns = [
        Column("class"), Column("objects"), Column("AP", ".3f", MEANINGS["AP"], best="max", bar=1.0),
        Column("AP50", ".3f", MEANINGS["AP50"], best="max"), Column("AP75", ".3f", MEANINGS["AP75"], best="max"),
        *(Column(f"AP {size}", ".3f") for size in sizes), Column("best F1", ".3f", best="max"),
        Column("at score", ".2f", "the threshold that gives the best F1"),
    ]  # fmt: skip
    rows = [
        [name, int(explanation.findings.objects[k]), ap[k], ap50[k], ap75[k], *(sizes[s][k] for s in sizes),
         confidence.best_f1[k], confidence.best_score[k]]
        for k, name in enumerate(result.classes)
    ]  # fmt: skip
    return Section("Classes", [Table(columns, rows, "AP is the mean of the IoU thresholds unless one is named")])


def _definitions(explanation: Explanation, svgs: Mapping[str, Path]) -> Section:
    found = explanation.definitions
    *rows, mean = found.rows()
    columns = [Column(found.header()[0]), Column("objects"), *(Column(name, ".4f") for name in found.header()[2:])]
    parts: list[Part] = [
        Text(
            "The same detections, measured by five definitions of average precision at IoU 0.5. VOC wants IoU > 0.5 and looks"
            " only at the object a box overlaps most; COCO wants IoU >= 0.5 and lets a box take the best object that is still"
            " free. The lecture's area and the step sum use the raw curve, the others its envelope."
        ),
        Table(columns, rows, "average precision by definition", total=mean),
    ]
    if "definitions" in svgs:
        parts.append(
            Figure(
                svgs["definitions"],
                "Why they differ, on the class where they differ most (of 20 objects or more).",
                name="definitions",
            )
        )
    return Section("Definitions of AP", parts)


def _curves(confidence: ConfidenceCurves, svgs: Mapping[str, Path]) -> Section:
    best, score = confidence.best_mean()
    text = (
        f"One threshold for all classes: the mean F1 is best, {best:.3f}, at score {score:.2f}."
        if best > 0
        else "No F1 is above 0."
    )
    return Section(
        "Curves",
        [
            Figure(svgs["pr_curves"], "Precision over recall; the area below a curve is its AP.", name="pr_curves"),
            Figure(svgs["f1_confidence"], f"F1 over the score from which on detections are shown. {text}", name="f1_confidence"),
        ],
    )  # fmt: skip


def _errors(explanation: Explanation, svgs: Mapping[str, Path]) -> Section:
    errors = explanation.errors
    rows = [[name, ERROR_MEANINGS[name], errors.counts[name], errors.delta_ap[name]] for name in TYPES]
    rows.append(["all false positives", "summary: none of them", None, errors.delta_ap["false_positives"]])
    rows.append(["all missed objects", "summary: none of them", None, errors.delta_ap["false_negatives"]])
    columns = [Column("error"), Column("what it is"), Column("how many"), Column("AP it costs", ".4f", bar=1.0)]
    now = f", now {errors.ap:.3f}," if errors.ap == errors.ap else ""
    text = (
        f"Every false positive has one type; an object that nothing points to is missed. The cost is by how much AP at IoU 0.5"
        f"{now} would rise if these errors and no others were corrected (TIDE, arXiv:2008.08115); costs do not"
        " add up."
    )
    names = explanation.findings.classes
    per_class = [
        [name, *(int(errors.by_class[kind][k]) for kind in TYPES)] for k, name in enumerate(names)
    ]  # fmt: skip
    return Section(
        "Errors",
        [
            Text(text),
            Figure(svgs["errors"], "What each kind of error costs, and how many there are.", name="errors"),
            Table(columns, rows, "errors by type"),
            Table(["class", *TYPES], per_class, "errors by class: of the detection, missed ones of the object"),
        ],
    )


def _confusions(explanation: Explanation, svgs: Mapping[str, Path]) -> Section:
    found = explanation.confusion
    parts: list[Part] = [
        Figure(
            svgs["confusion"],
            f"Truth in rows, detections from score {found.score_threshold:.2f} on in columns, at IoU {found.iou_threshold:g}."
            " The last row has detections of nothing, the last column missed objects.",
            name="confusion",
        )
    ]
    pairs = found.worst_pairs()
    if pairs:
        parts.append(Table(["is", "was called", "how often"], pairs, "most frequent confusions of two classes"))
    return Section("Confusions", parts)


def _size_caption(result: CocoResult) -> str:
    small, large = (f"{limit**0.5:g}" for limit in result.size_limits)
    return f"AP by the size of objects: small up to {small} x {small} pixels, large from {large} x {large} on."


# -- pictures of images ------------------------------------------------------------------------------------------------


def _galleries(explanation: Explanation, galleries: Galleries) -> list[Section]:
    scores, threshold = explanation.images, explanation.shown_from
    sections = []
    kinds: tuple[tuple[str, Tone, Ints], ...] = (
        ("Worst images", "bad", scores.worst(galleries.worst)),
        ("Best images", "good", scores.best(galleries.best)),
    )
    for name, tone, positions in kinds:
        pictures = []
        for position in positions.tolist():
            image, title = galleries.read(position)
            counts = (scores.correct[position], scores.invented[position], scores.missed[position])
            caption = f"{title}: {counts[0]} right, {counts[1]} wrong, {counts[2]} missed"
            drawn = pair(explanation.findings, position, image, threshold)
            pictures.append(
                Picture(_jpeg(drawn), caption, f"F1 {scores.score[position]:.2f}", tone, f"image-{position}")
            )
        about = f"Truth at the left, detections with score >= {threshold:.2f} at the right; ranked by the image's F1."
        sections.append(Section(name, [Gallery(pictures, about)]))
    return sections


def pair(findings: Findings, position: int, image: Tensor, threshold: float, side: int = PICTURE_SIDE) -> Image.Image:
    """Truth (left) and detections from ``threshold`` on (right) of one image."""
    gt = findings.gt_image == position
    det = (findings.det_image == position) & (findings.det_scores >= threshold)
    as_tensor = torch.from_numpy
    left = draw_boxes(
        image, as_tensor(findings.gt_boxes[gt]), as_tensor(findings.gt_labels[gt]), findings.classes, side=side
    )
    right = draw_boxes(
        image, as_tensor(findings.det_boxes[det]), as_tensor(findings.det_labels[det]), findings.classes,
        as_tensor(findings.det_scores[det]), side=side,
    )  # fmt: skip
    both = Image.new("RGB", (left.width + right.width + 4, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 4, 0))
    return both


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
