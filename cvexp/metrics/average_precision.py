"""The area under a precision-recall curve, by each definition that published APs were computed with.

Sources: `voc07` and `voc10` Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, and the
devkits of 2007 and 2010; `coco101` Lin et al., "Microsoft COCO", ECCV 2014, arXiv:1405.0312, and pycocotools; `step` is
the "average precision" of information retrieval; `trapezoid` the area under the curve as a lecture draws it.

A detector's ranked list gives one point per detection: recall = true positives / objects, precision = true positives /
detections so far. All five definitions start from these points and differ in what they draw through them.

Worked example: four objects, ranked right, wrong, right, right, wrong. Recall 1/4 1/4 2/4 3/4 3/4, precision 1, 1/2,
2/3, 3/4, 3/5. One object is never found, so nothing lies beyond recall 3/4.

==========  =================================================================  ===================
trapezoid   straight lines from (0, 1) through all points                      0.57291667
step        (1 + 2/3 + 3/4) / 4: precision at each object found                0.60416667
voc07       best precision at recall >= 0, 0.1, ..., 1: (3 + 5 * 3/4) / 11     0.61363636
voc10       area under the envelope: 1/4 * 1 + 2/4 * 3/4                       0.625
coco101     envelope at recall 0, 0.01, ..., 1: (26 + 50 * 3/4) / 101          0.62871287
==========  =================================================================  ===================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cvexp.metrics.findings import Floats
from cvexp.types import UserError

# The devkit's own expression. Three of its values are one bit above 0.3, 0.6 and 0.7, and recall 3/10 is below that:
# three of ten objects found with full precision score 3/11 and not 4/11. Published numbers contain this.
VOC07_RECALLS = np.arange(0, 1.1, 0.1)
COCO_RECALLS = np.linspace(0, 1, 101)


def ranked_curve(correct: ArrayLike, objects: int) -> tuple[Floats, Floats]:
    """Recall and precision after each of N detections.

    Args:
        correct: bool ``[N]``, best-scored first: true positive or false positive. Detections that count as neither are
            left out.
        objects: how many objects there are to find.

    Returns:
        recall and precision, float64 ``[N]``; recall is NaN without objects.

    Raises:
        UserError: there are more true positives than objects.
    """
    found = np.cumsum(np.asarray(correct, dtype=bool), dtype=np.float64)
    if found.size and found[-1] > objects > 0:
        raise UserError(
            f"{found[-1]:.0f} detections are marked as correct, but there are only {objects} objects. "
            "Fix: mark one detection of each object as correct, and every further one of it as wrong."
        )
    recall = found / objects if objects else np.full(found.shape, np.nan)
    return recall, found / np.arange(1, len(found) + 1)


def average_precision(correct: ArrayLike, objects: int, convention: str = "voc10") -> float:
    """AP of one class's ranked detections, see `ranked_curve`; NaN without objects, 0 without detections.

    Raises:
        UserError: ``convention`` is none of `CONVENTIONS`.
    """
    if convention not in CONVENTIONS:
        raise UserError(f"no definition of AP is named {convention!r}. Fix: use one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[convention](*ranked_curve(correct, objects)) if objects else float("nan")


def trapezoid(recall: Floats, precision: Floats) -> float:
    """Area under straight lines from (0, 1) through the points; nothing beyond the last recall."""
    heights = np.r_[1.0, precision]
    return float((np.diff(recall, prepend=0.0) * (heights[1:] + heights[:-1]) / 2).sum())


def step(recall: Floats, precision: Floats) -> float:
    """Sum of recall gained times the precision where it is gained: the mean of precision over the objects."""
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def voc07(recall: Floats, precision: Floats) -> float:
    """Mean of the best precision at recall >= 0, 0.1, ..., 1, where 0 stands for recalls that are not reached."""
    return float(voc07_samples(recall, precision).mean())


def voc10(recall: Floats, precision: Floats) -> float:
    """Area under the envelope, every point used; the rule of VOC 2010 and later."""
    return float((np.diff(recall, prepend=0.0) * envelope(precision)).sum())


def coco101(recall: Floats, precision: Floats) -> float:
    """Mean of the envelope at 101 recalls, bit-equal to pycocotools' AP of one class at one threshold."""
    return float(coco101_samples(recall, precision).mean())


def envelope(precision: Floats) -> Floats:
    """Float64 ``[N]``: the best precision at this point or any later one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def voc07_samples(recall: Floats, precision: Floats) -> Floats:
    """Float64 ``[11]``: what `voc07` averages, the envelope at `VOC07_RECALLS`."""
    return _read(recall, precision, VOC07_RECALLS)


def coco101_samples(recall: Floats, precision: Floats) -> Floats:
    """Float64 ``[101]``: what `coco101` averages, the envelope at `COCO_RECALLS`.

    pycocotools adds 2.2e-16 to every denominator of precision. From 2 on it is lost by rounding; what remains is that
    a perfect first detection has a precision one bit below 1.
    """
    precision = precision.copy()
    precision[:1] /= 1 + np.spacing(1)
    return _read(recall, precision, COCO_RECALLS)


def _read(recall: Floats, precision: Floats, at: Floats) -> Floats:
    """The envelope where each recall is first reached, 0 where it never is."""
    return np.r_[envelope(precision), 0.0][np.searchsorted(recall, at, side="left")]


CONVENTIONS: dict[str, Callable[[Floats, Floats], float]] = {
    "voc07": voc07,
    "voc10": voc10,
    "coco101": coco101,
    "step": step,
    "trapezoid": trapezoid,
}


@dataclass(frozen=True)
class ClassifierCurve:
    """The curve of a classifier: it ranks *all* samples, so it reaches recall 1, unlike a detector.

    Attributes:
        recall, precision: float64 ``[T + 1]``, from (0, 1) to exactly (1, ``share``); one point for each of T scores.
        share: the share of positives, which is the precision when everything is called positive.
        trapezoid: area under straight lines through the points.
        step: sum of recall gained times precision, the "average precision".
    """

    recall: Floats
    precision: Floats
    share: float
    trapezoid: float
    step: float


def classifier_curve(scores: ArrayLike, labels: ArrayLike) -> ClassifierCurve:
    """The precision-recall curve of N classified samples; samples of equal score enter it together.

    Worked example: by falling score the labels are 1, 0, 1, 1, 0. The curve is (0, 1), (1/3, 1), (1/3, 1/2),
    (2/3, 2/3), (1, 3/4), (1, 3/5): it ends at the share of positives, and ``step`` is (1 + 2/3 + 3/4) / 3 = 0.80555556.

    Args:
        scores: ``[N]``, finite; high means positive.
        labels: ``[N]``, 1 or True for positive samples, else 0.

    Raises:
        UserError: lengths differ, a score is not finite, a label is neither 0 nor 1, or no sample is positive.
    """
    scores, positive = _checked(np.asarray(scores, np.float64), np.asarray(labels))
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # of each group of equal scores
    found = np.cumsum(positive[order], dtype=np.float64)[last]
    recall, precision = found / found[-1], found / (last + 1)
    return ClassifierCurve(
        np.r_[0.0, recall],
        np.r_[1.0, precision],
        float(precision[-1]),
        trapezoid(recall, precision),
        step(recall, precision),
    )


def _checked(scores: Floats, labels: np.ndarray) -> tuple[Floats, np.ndarray]:
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise UserError(f"{scores.shape} scores and {labels.shape} labels. Fix: give one score and one label a sample.")
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UserError(f"score {bad} is {scores[bad]}: it has no rank. Fix: give finite scores.")
    if not np.isin(labels, (0, 1)).all():
        bad = labels[~np.isin(labels, (0, 1))][0]
        raise UserError(f"a label is {bad}. Fix: give 1 for positive samples and 0 for all others.")
    if not labels.any():
        raise UserError(f"none of {len(labels)} labels is positive: recall is not defined. Fix: add positive samples.")
    return scores, labels.astype(bool)
