"""COCO's matching at one IoU threshold, of all images and classes at once: which detection has which object.

Lin et al., "Microsoft COCO", ECCV 2014, arXiv:1405.0312, as pycocotools does it. The number itself comes from the engine
(`cvexp.metrics.coco_engine`); this says of every detection and object what became of it.

Worked example, t = 0.5: d1 (score 0.9) overlaps g1 by 0.8; d2 (0.8) overlaps g1 by 0.7 and g2 by 0.6. d1 takes g1, d2 what
is left of its objects, g2: both are correct.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cvexp.metrics.findings import Bools, Findings, Ints


@dataclass(frozen=True)
class Matches:
    """COCO's matching at one IoU threshold, all images and classes at once.

    Attributes:
        correct: bool ``[N]``, true positives.
        ignored: bool ``[N]``, matched to an ignored object: neither true nor false.
        gt: int64 ``[N]``, the matched object where ``correct``; elsewhere it means nothing.
        found: bool ``[M]``, objects that a detection has.
    """

    correct: Bools
    ignored: Bools
    gt: Ints
    found: Bools

    @property
    def false(self) -> Bools:
        """bool ``[N]``, false positives."""
        return ~self.correct & ~self.ignored


def match_coco(findings: Findings, iou_threshold: float = 0.5) -> Matches:
    """COCO's greedy matching, of all sizes.

    Within an image and class each detection, best first, takes the *free* counted object it overlaps most, if
    IoU >= ``iou_threshold``; of equal IoUs the later object, as the official code does. One that gets none but lies on
    an ignored object (intersection / area of the detection >= ``iou_threshold``) is ignored.
    """
    pairs = findings.overlaps
    fits = (pairs.iou >= _at_least(iou_threshold)) & ~findings.gt_ignored[pairs.gt]
    pairs = pairs.where(fits & (findings.det_labels[pairs.det] == findings.gt_labels[pairs.gt]))
    order = np.lexsort((-pairs.gt, -pairs.iou, pairs.det))
    correct, found = np.zeros(len(findings.det_labels), bool), np.zeros(len(findings.gt_labels), bool)
    gt = np.zeros(len(correct), np.int64)
    det, obj = first_come(pairs.det[order], pairs.gt[order])
    correct[det], gt[det], found[obj] = True, obj, True
    return Matches(correct, on_ignored(findings, iou_threshold) & ~correct, gt, found)


def first_come(det: Ints, gt: Ints) -> tuple[Ints, Ints]:
    """One-to-one from pairs ``[P]`` in order of preference: a pair is kept if neither of its two is taken already."""
    taken_det: set[int] = set()
    taken_gt: set[int] = set()
    kept = []
    for n, (d, g) in enumerate(zip(det.tolist(), gt.tolist(), strict=True)):
        if d not in taken_det and g not in taken_gt:
            taken_det.add(d)
            taken_gt.add(g)
            kept.append(n)
    return det[kept], gt[kept]


def on_ignored(findings: Findings, iou_threshold: float) -> Bools:
    """bool ``[N]``: intersection / area of the detection with an ignored object of its class reaches the threshold."""
    lying = np.zeros(len(findings.det_labels), bool)
    if not findings.gt_ignored.any():
        return lying
    # Overlaps are by the detection's area for crowds alone; here they are for every ignored object.
    as_crowds = np.array_equal(findings.gt_crowd, findings.gt_ignored)
    pairs = findings.overlaps if as_crowds else replace(findings, gt_crowd=findings.gt_ignored).overlaps
    hit = (pairs.iou >= _at_least(iou_threshold)) & findings.gt_ignored[pairs.gt]
    lying[pairs.det[hit & (findings.det_labels[pairs.det] == findings.gt_labels[pairs.gt])]] = True
    return lying


def _at_least(iou_threshold: float) -> float:
    """What an IoU must reach; the official code's bound, so that identical boxes match at 1."""
    return min(iou_threshold, 1 - 1e-10)
