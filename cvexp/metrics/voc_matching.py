"""Which detections are right: VOC's rule and COCO's, side by side.

Sources: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, and its devkit; Lin et al.,
"Microsoft COCO", ECCV 2014, arXiv:1405.0312, and pycocotools.

Both go through a class's detections by falling score and let every object be found once. They differ in three things:

====================  ==============================================  =============================================
                      VOC (`voc_match`)                               COCO (`coco_match`)
====================  ==============================================  =============================================
which object          the one it overlaps most, taken or not          the one it overlaps most of those still free
how much overlap      IoU > t                                         IoU >= t
ignored objects       compete like any other; a detection that        tried when no counted object fits, and by the
                      overlaps one most is neither right nor wrong    share of the *detection* that lies inside
====================  ==============================================  =============================================

Worked example, t = 0.5: d1 (score 0.9) overlaps g1 by 0.8; d2 (0.8) overlaps g1 by 0.7 and g2 by 0.6. VOC: d1 is right,
d2 wrong, for its best object g1 is taken. COCO: both are right, d2 finds g2.

IoUs are those of boxes, whether there are masks or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvexp.metrics.coco_matching import Matches, match_coco
from cvexp.metrics.findings import Bools, Findings, Floats, Ints
from cvexp.types import UserError


@dataclass(frozen=True)
class Ranking:
    """The n detections of one class that count, by falling score over the whole data set.

    Attributes:
        det: int64 ``[n]``, their indices in the findings.
        correct: bool ``[n]``, true positive or false positive; those that are neither are left out.
        objects: how many objects count.
    """

    det: Ints
    correct: Bools
    objects: int


def voc_match(
    findings: Findings,
    label: int,
    iou_threshold: float = 0.5,
    *,
    legacy_plus_one: bool = False,
    difficult: str = "ignore",
) -> Ranking:
    """The devkit's rule; crowds, which VOC does not have, are treated like its difficult objects.

    A detection takes the object of its image and class with the largest IoU, the first of equals, be it difficult or
    taken. IoU <= t: wrong. A difficult one: neither. A free one: right. A taken one: wrong.

    Args:
        findings: as gathered; the devkit has no limit of detections, so gather with ``limit=None`` to be true to it.
        label: the class.
        iou_threshold: t, in (0, 1]; the overlap must be *larger*.
        legacy_plus_one: a box of integer corners, both inside it, is x2 - x1 + 1 wide, as in the devkit.
        difficult: ``"ignore"``, or ``"count"`` as if they were normal objects; says so for itself, whatever
            ``findings.gt_ignored`` says.

    Raises:
        UserError: a threshold outside (0, 1], an unknown ``difficult`` or ``label``.
    """
    _check(findings, label, iou_threshold)
    if difficult not in ("ignore", "count"):
        raise UserError(f"difficult is {difficult!r}. Fix: use 'ignore' or 'count'.")
    ignored = findings.gt_crowd | findings.gt_difficult if difficult == "ignore" else findings.gt_crowd
    ranked, _ = findings.of_class(label)
    rank, gt = _pairs(findings, ranked, label)
    iou = _iou(findings, ranked[rank], gt, float(legacy_plus_one))
    best = _best_of_each(rank, gt, iou)
    best = best[iou[best] > iou_threshold]
    hit = np.full(len(ranked), -1, np.int64)  # the object each detection takes
    hit[rank[best]] = gt[best]
    neither = (hit >= 0) & np.append(ignored, False)[hit]
    objects, first = np.unique(hit, return_index=True)
    correct = np.zeros(len(ranked), bool)
    correct[first[objects >= 0]] = True
    counted = int((~ignored & (findings.gt_labels == label)).sum())
    return Ranking(ranked[~neither], correct[~neither], counted)


def coco_match(
    findings: Findings, label: int, iou_threshold: float = 0.5, *, matches: Matches | None = None
) -> Ranking:
    """COCO's rule for objects of all sizes, as pycocotools; what ``findings.gt_ignored`` marks are its crowds.

    A detection takes the free object with the largest IoU >= t, the last of equals. If none is left, but enough of it
    lies inside an ignored object (intersection / area of the detection >= t), it is neither right nor wrong; else wrong.

    Args:
        findings: as gathered.
        label: the class.
        iou_threshold: t, in (0, 1].
        matches: of ``match_coco(findings, iou_threshold)``, where it is known already: it is that of all classes.

    Raises:
        UserError: a threshold outside (0, 1], an unknown ``label``.
    """
    _check(findings, label, iou_threshold)
    matches = match_coco(findings, iou_threshold) if matches is None else matches
    ranked, objects = findings.of_class(label)
    ranked = ranked[~matches.ignored[ranked]]
    return Ranking(ranked, matches.correct[ranked], objects)


def _best_of_each(rank: Ints, gt: Ints, iou: Floats) -> Ints:
    """Positions of the pair with the largest IoU of each detection, the first object of equals."""
    order = np.lexsort((gt, -iou, rank))
    return order[np.unique(rank[order], return_index=True)[1]]


def _pairs(findings: Findings, ranked: Ints, label: int) -> tuple[Ints, Ints]:
    """Every ranked detection with every object of its image and class: position in ``ranked``, index of the object."""
    mine = np.flatnonzero(findings.gt_labels == label)
    images, image = findings.gt_image[mine], findings.det_image[ranked]
    start = np.searchsorted(images, image, side="left")
    count = np.searchsorted(images, image, side="right") - start
    rank = np.repeat(np.arange(len(ranked)), count)
    within = np.arange(len(rank)) - np.repeat(np.cumsum(count) - count, count)
    return rank, mine[np.repeat(start, count) + within]


def _iou(findings: Findings, det: Ints, gt: Ints, extra: float) -> Floats:
    """Float64 ``[P]``: IoU of pairs of boxes whose sides are longer by ``extra`` pixels than their corners tell."""
    a, b = findings.det_boxes[det], findings.gt_boxes[gt]
    inter = _area(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra)
    union = _area(a[:, 2:] - a[:, :2] + extra) + _area(b[:, 2:] - b[:, :2] + extra) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _area(sides: Floats) -> Floats:
    return sides.clip(min=0).prod(axis=1)


def _check(findings: Findings, label: int, iou_threshold: float) -> None:
    if not 0 < iou_threshold <= 1:
        raise UserError(f"the IoU threshold is {iou_threshold}. Fix: give one in (0, 1], such as 0.5.")
    if not 0 <= label < len(findings.classes):
        raise UserError(f"there is no class {label}. Fix: give a label in 0..{len(findings.classes) - 1}.")
