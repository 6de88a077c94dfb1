"""TIDE: A General Toolbox for Identifying Object Detection Errors.

Source: Bolya, Foley, Hays, Hoffman, ECCV 2020, arXiv:2008.08115, sections 2.2 and 2.3. Every false positive gets one
type by its largest IoU with the objects of its own class (``same``) and of the others (``other``), and every object
that stays undetected is *missed* unless correcting a false positive would find it. An error type weighs what AP gains
when an oracle corrects its errors and nothing else.

With t_f = 0.5 and t_b = 0.1; ignored objects take no part:

| type | a false positive with | corrected by |
|---|---|---|
| classification | other >= t_f | giving it the class of that object |
| localisation | t_b <= same < t_f | giving it the box of that object |
| both | t_b <= other < t_f | removing it |
| duplicate | same >= t_f: a better-scored detection has the object | removing it |
| background | both below t_b | removing it |
| missed | (an object) not detected, and not the object of a classification or localisation error | not counting it |

If the object of a corrected detection is found already, or several corrected ones of the type want it, the
best-scored one gets it and the others are removed. Two summary costs: ``false_positives`` removes all of them,
``false_negatives`` counts no undetected object.

Worked example, one class: objects A and B; detections of score 0.9 on A (IoU 1), 0.8 on A again, 0.7 on B with IoU
0.4. AP50 = 51 / 101 (precision 1 up to recall 1/2). The second is a duplicate: removing it gains nothing. The third is a
localisation error: on B it is correct, precision 2/3 at recall 1, so AP50 = (51 + 50 * 2/3) / 101 and its dAP is
33.33 / 101 = 0.330. B is not missed, as that correction finds it.

The paper's conditions overlap and its text gives no precedence. Types are tried in `TOOL_ORDER`, that of the authors'
program, so that numbers can be compared with published ones: localisation, classification, duplicate, both, background.
`PAPER_ORDER` is that of the paper's list; in a crowd it calls a duplicate that also touches an object of another class
"both".

Differences from the authors' program: it lets classification and localisation errors compete for an object while only
one of the two types is corrected, and cuts a dAP below 0 to 0; here each type is corrected alone and keeps its sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cvexp.metrics.average_precision import average_precision
from cvexp.metrics.coco_matching import Matches, match_coco
from cvexp.metrics.findings import Bools, Findings, Floats, Ints, Overlaps
from cvexp.types import UserError

PAPER_ORDER = ("classification", "localisation", "both", "duplicate", "background")
TOOL_ORDER = ("localisation", "classification", "duplicate", "both", "background")
TYPES = (*PAPER_ORDER, "missed")
SUMMARY = ("false_positives", "false_negatives")


@dataclass(frozen=True)
class ErrorTypes:
    """Which detections and objects are wrong, in which way, and what it costs.

    Attributes:
        classes: the K class names.
        ap: COCO's AP at the IoU ``foreground``, mean of the classes with objects; NaN without objects.
        members: of each of `TYPES` the indices of its detections, of ``missed`` those of its objects; ascending.
        by_class: of each of `TYPES` int64 ``[K]``, how many; by predicted class, ``missed`` by true class.
        delta_ap: of each of `TYPES` and `SUMMARY` the AP with these errors corrected, less ``ap``.
        foreground, background: t_f and t_b.
    """

    classes: tuple[str, ...]
    ap: float
    members: dict[str, Ints]
    by_class: dict[str, Ints]
    delta_ap: dict[str, float]
    foreground: float
    background: float

    @property
    def counts(self) -> dict[str, int]:
        """How many errors of each of `TYPES`."""
        return {name: len(indices) for name, indices in self.members.items()}

    def numbers(self) -> dict[str, float]:
        """Flat: ``errors/<type>/count`` and ``errors/<type>/dAP``."""
        flat = {f"errors/{name}/count": float(count) for name, count in self.counts.items()}
        return flat | {f"errors/{name}/dAP": value for name, value in self.delta_ap.items()}


@dataclass(frozen=True)
class _Ranking:
    """What AP needs of the detections and objects; an oracle changes some of it."""

    scores: Floats
    labels: Ints
    correct: Bools
    dropped: Bools
    objects: Ints


def find_errors(
    findings: Findings, foreground: float = 0.5, background: float = 0.1, order: Sequence[str] = TOOL_ORDER
) -> ErrorTypes:
    """Gives every false positive one type and weighs the types.

    Args:
        findings: the evaluated images.
        foreground, background: the IoUs t_f and t_b, ``0 < t_b < t_f <= 1``.
        order: the five types of false positives; of several that fit, the first is taken.

    Raises:
        UserError: thresholds or order mean nothing.
    """
    _check(foreground, background, order)
    matches = match_coco(findings, foreground)
    same, same_gt, other, other_gt = _largest_overlaps(findings)
    fits = {
        "classification": other >= foreground,
        "localisation": (same >= background) & (same < foreground),
        "both": (other >= background) & (other < foreground),
        "duplicate": same >= foreground,
        "background": np.maximum(same, other) < background,
    }
    members, undecided = {}, matches.false
    for name in order:
        members[name] = np.flatnonzero(undecided & fits[name])
        undecided = undecided & ~fits[name]
    members = {name: members[name] for name in PAPER_ORDER}
    wanted = {
        "classification": other_gt[members["classification"]],
        "localisation": same_gt[members["localisation"]],
    }
    unfound = ~findings.gt_ignored & ~matches.found
    covered = np.isin(np.arange(len(unfound)), np.concatenate(list(wanted.values())))
    members["missed"] = np.flatnonzero(unfound & ~covered)
    ap, delta_ap = _weigh(findings, matches, members, wanted, unfound)
    by_class = {
        name: np.bincount(
            (findings.gt_labels if name == "missed" else findings.det_labels)[rows], minlength=len(findings.classes)
        ).astype(np.int64)
        for name, rows in members.items()
    }
    return ErrorTypes(findings.classes, ap, members, by_class, delta_ap, foreground, background)


def _check(foreground: float, background: float, order: Sequence[str]) -> None:
    if not 0 < background < foreground <= 1:
        raise UserError(
            f"error types with foreground IoU {foreground} and background IoU {background} mean nothing. "
            "Fix: choose 0 < background < foreground <= 1, as 0.1 and 0.5."
        )
    if sorted(order) != sorted(PAPER_ORDER):
        raise UserError(f"order of error types {list(order)}. Fix: give each of {list(PAPER_ORDER)} once.")


def _largest_overlaps(findings: Findings) -> tuple[Floats, Ints, Floats, Ints]:
    """Largest IoU ``[N]`` with a counted object of the same class and which ``[N]``; then of the other classes."""
    pairs = findings.overlaps
    pairs = pairs.where(~findings.gt_ignored[pairs.gt])
    same = findings.det_labels[pairs.det] == findings.gt_labels[pairs.gt]
    count = len(findings.det_labels)
    return *_largest(pairs.where(same), count), *_largest(pairs.where(~same), count)


def _largest(pairs: Overlaps, count: int) -> tuple[Floats, Ints]:
    """IoU and object of each detection's best pair, of equal ones the first; IoU 0 without a pair."""
    best, gt = np.zeros(count), np.zeros(count, np.int64)
    if len(pairs.det):
        first = np.flatnonzero(np.r_[True, pairs.det[1:] != pairs.det[:-1]])
        best[pairs.det[first]] = np.maximum.reduceat(pairs.iou, first)
        at_best = np.flatnonzero(pairs.iou == best[pairs.det])[::-1]
        gt[pairs.det[at_best]] = pairs.gt[at_best]  # written backwards: the first stays
    return best, gt


def _weigh(
    findings: Findings, matches: Matches, members: dict[str, Ints], wanted: dict[str, Ints], unfound: Bools
) -> tuple[float, dict[str, float]]:
    """AP as is, and of each type and summary cost the AP with the oracle's correction less that."""
    order = np.argsort(-findings.det_scores, kind="stable")
    as_is = _Ranking(
        findings.det_scores, findings.det_labels, matches.correct, matches.ignored, findings.objects.copy()
    )
    fixed = {name: _without(as_is, members[name]) for name in ("both", "duplicate", "background")}
    for name, gt in wanted.items():
        fixed[name] = _corrected(as_is, members[name], gt, matches.found, findings.gt_labels)
    fixed["missed"] = _uncounted(as_is, findings.gt_labels[members["missed"]])
    fixed["false_positives"] = _without(as_is, np.flatnonzero(matches.false))
    fixed["false_negatives"] = _uncounted(as_is, findings.gt_labels[unfound])
    present = np.flatnonzero(as_is.objects)
    ap = _mean_ap(as_is, order, present)
    return ap, {name: _mean_ap(fixed[name], order, present) - ap for name in (*TYPES, *SUMMARY)}


def _without(ranking: _Ranking, det: Ints) -> _Ranking:
    dropped = ranking.dropped.copy()
    dropped[det] = True
    return replace(ranking, dropped=dropped)


def _uncounted(ranking: _Ranking, labels: Ints) -> _Ranking:
    return replace(ranking, objects=ranking.objects - np.bincount(labels, minlength=len(ranking.objects)))


def _corrected(ranking: _Ranking, det: Ints, gt: Ints, found: Bools, gt_labels: Ints) -> _Ranking:
    """Each detection has its object, with its class, or is removed; ``det`` ascends, so the best-scored is first."""
    free = ~found[gt]
    obj, first = np.unique(gt[free], return_index=True)
    winners = det[free][first]
    fixed = _without(ranking, np.setdiff1d(det, winners))
    labels, correct = ranking.labels.copy(), ranking.correct.copy()
    labels[winners], correct[winners] = gt_labels[obj], True
    return replace(fixed, labels=labels, correct=correct)


def _mean_ap(ranking: _Ranking, order: Ints, classes: Ints) -> float:
    """Mean AP of some classes. One whose objects are all uncounted has AP 0 with detections, without it is left out.

    Args:
        ranking: the N detections in any order.
        order: int64 ``[N]``, by falling score.
        classes: their labels.
    """
    ranked = order[~ranking.dropped[order]]
    ranked = ranked[np.argsort(ranking.labels[ranked], kind="stable")]
    ends = np.searchsorted(ranking.labels[ranked], np.arange(len(ranking.objects) + 1))
    aps = []
    for k in classes.tolist():
        correct = ranking.correct[ranked[ends[k] : ends[k + 1]]]
        if ranking.objects[k]:
            aps.append(average_precision(correct, int(ranking.objects[k]), "coco101"))
        elif len(correct):
            aps.append(0.0)
    return float(np.mean(aps)) if aps else float("nan")
