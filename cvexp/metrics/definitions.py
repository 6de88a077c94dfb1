"""One detection result by every definition of AP: how much of a difference between two papers is the ruler.

VOC 2007 and VOC 2010 count with VOC's matching (IoU > t), COCO with its own (IoU >= t), see `cvexp.metrics.voc_matching`;
``step`` and the lecture's area with VOC's matching, so that they differ from the two VOC numbers by the area alone, see
`cvexp.metrics.average_precision`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvexp.metrics.average_precision import average_precision
from cvexp.metrics.coco_matching import match_coco
from cvexp.metrics.findings import Findings, Floats, Ints
from cvexp.metrics.voc_matching import coco_match, voc_match
from cvexp.types import UserError

NAMES = {
    "voc07": "VOC07 11-point",
    "voc10": "VOC10+ all-point",
    "coco101": "COCO 101-point",
    "step": "step",
    "lecture": "lecture area",
}
_AREAS = {"voc07": "voc07", "voc10": "voc10", "step": "step", "lecture": "trapezoid"}  # those with VOC's matching


@dataclass(frozen=True)
class Definitions:
    """AP of K classes at one IoU threshold, by each definition in `NAMES`.

    Attributes:
        classes: the K class names.
        iou: the threshold.
        objects: int64 ``[K]``, objects that are neither difficult nor crowds: those that VOC counts.
        ap: definition -> float64 ``[K]``; NaN for a class without objects.
    """

    classes: tuple[str, ...]
    iou: float
    objects: Ints
    ap: dict[str, Floats]

    def mean(self, definition: str) -> float:
        """mAP over the classes with objects; NaN if there are none."""
        present = self.ap[definition][~np.isnan(self.ap[definition])]
        return float(present.mean()) if present.size else float("nan")

    def numbers(self) -> dict[str, float]:
        """The mAPs as ``definitions/voc07``, ``definitions/voc10`` and so on."""
        return {f"definitions/{name}": self.mean(name) for name in self.ap}

    def header(self) -> tuple[str, ...]:
        """The names of the columns of `rows`."""
        return ("class", "objects", *(NAMES[name] for name in self.ap))

    def rows(self) -> list[tuple[str, int, *tuple[float, ...]]]:
        """Class, objects and AP by each definition: a row for each class with objects, then one of the means."""
        table = np.stack(list(self.ap.values()))
        present = np.flatnonzero(~np.isnan(table).all(axis=0))
        rows = [(self.classes[k], int(self.objects[k]), *table[:, k].tolist()) for k in present]
        return [*rows, ("mean", int(self.objects.sum()), *map(self.mean, self.ap))]

    def spread(self) -> Floats:
        """Float64 ``[K]``: largest AP less smallest of each class; NaN where a definition has none."""
        table = np.stack(list(self.ap.values()))
        return table.max(axis=0) - table.min(axis=0)

    def widest(self) -> int:
        """Label of the class on which the definitions differ most, the first of equals.

        Raises:
            UserError: no class has objects.
        """
        spread = self.spread()
        if np.isnan(spread).all():
            raise UserError("no class has objects in the evaluated images. Fix: evaluate images with objects.")
        return int(np.nanargmax(spread))


def compare(findings: Findings, iou: float = 0.5, *, legacy_plus_one: bool = False) -> Definitions:
    """AP of every class by every definition.

    Args:
        findings: as gathered. VOC's definitions leave difficult objects out, whatever the findings say; COCO's counts
            them if the findings do, so that it is the AP that the metric reports.
        iou: the threshold of all of them: VOC's IoU > iou, COCO's IoU >= iou.
        legacy_plus_one: the devkit's boxes, x2 - x1 + 1 wide, for VOC's matching.

    Raises:
        UserError: a threshold outside (0, 1].
    """
    columns: dict[str, list[float]] = {name: [] for name in NAMES}
    objects = []
    matches = match_coco(findings, iou)
    for label in range(len(findings.classes)):
        voc = voc_match(findings, label, iou, legacy_plus_one=legacy_plus_one)
        coco = coco_match(findings, label, iou, matches=matches)
        objects.append(voc.objects)
        columns["coco101"].append(average_precision(coco.correct, coco.objects, "coco101"))
        for name, area in _AREAS.items():
            columns[name].append(average_precision(voc.correct, voc.objects, area))
    ap = {name: np.array(column, np.float64) for name, column in columns.items()}
    return Definitions(findings.classes, iou, np.array(objects, np.int64), ap)
