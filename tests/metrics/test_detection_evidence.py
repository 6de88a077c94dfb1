"""DetectionEvidence: AP of any draw of images, equal to the official evaluation of a set in which they are repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from coco_oracle import Detections, coco_fixture, detections, ground_truth, pycocotools, random_set

from cvexp.metrics.coco_matching import match_coco
from cvexp.metrics.detection import DetectionMAP
from cvexp.metrics.detection_evidence import DetectionEvidence, match_at
from cvexp.metrics.findings import Findings
from cvexp.types import GroundTruth, UserError

TEN = np.linspace(0.5, 0.95, 10)
EXACT = {"rtol": 0, "atol": 1e-12}


def evidence_of(gt: GroundTruth, found: Detections, *, difficult: str = "ignore", iou: np.ndarray = TEN):
    return DetectionEvidence.of(Findings.gather(gt, gt.image_ids, *found.columns(), difficult=difficult), iou, 100)


def figures(evidence: DetectionEvidence, weights: np.ndarray) -> np.ndarray:
    """AP, AP50 and AP75, ``[B, 3]``."""
    return np.stack([evidence.values(weights, measure) for measure in ("AP", "AP50", "AP75")], axis=1)


def repeated(gt: GroundTruth, found: Detections, weights: np.ndarray) -> tuple[GroundTruth, Detections]:
    """A data set that really holds each image as often as it is drawn; copies have neighbouring ids."""
    ids = gt.image_ids.tolist()
    order = np.argsort(ids)  # weights belong to ascending ids
    copies = [(ids[n], 1000 * ids[n] + c) for n, times in zip(order, weights, strict=True) for c in range(int(times))]
    rows, objects, area = [], [], []
    owner = gt.image_ids[gt.image_index]
    for old, new in copies:
        for n in (owner == old).nonzero().flatten().tolist():
            objects.append((new, *gt.boxes[n].tolist(), int(gt.labels[n]), bool(gt.difficult[n]), bool(gt.crowd[n])))
            area.append(float(gt.area[n]))
        own = found.image == old
        rows += [
            (new, *b, s, k) for b, s, k in zip(found.boxes[own], found.scores[own], found.labels[own], strict=True)
        ]
    return ground_truth([new for _, new in copies], objects, gt.classes, area), detections(rows)


def without_ties_in_an_image(found: Detections) -> Detections:
    """Equal scores are left between images only."""
    nth = {}
    scores = found.scores.copy()
    for n, key in enumerate(zip(found.image.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)):
        nth[key] = nth.get(key, 0) + 1
        scores[n] += 0.01 * nth[key] / (1 + len(scores))
    return Detections(found.image, found.boxes, scores, found.labels)


# --- worked numbers --------------------------------------------------------------------------------------------------

TWO = ground_truth([1, 2], [(1, 0, 0, 10, 10, 0, 0, 0), (2, 0, 0, 10, 10, 0, 0, 0)], ("a", "b"))
TWO_FOUND = detections([(1, 0, 0, 10, 10, 0.9, 0), (2, 50, 50, 60, 60, 0.95, 0)])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1], 51 / 101 * 0.5),  # ranked FP, TP of two objects: precision 1/2 at the recalls 0 to 0.50
        ([2, 0], 1.0),  # image 1 alone, twice
        ([0, 2], 0.0),  # image 2 alone: its object is not found
        ([2, 1], 67 / 101 * 2 / 3),  # FP, TP, TP of three objects: 2/3 at the recalls 0 to 0.66
        ([1, 2], 34 / 101 * 1 / 3),  # FP, FP, TP of three: 1/3 at the recalls 0 to 0.33
        ([0.5, 0.5], 51 / 101 * 0.5),  # weights need not be whole: as [1, 1]
        ([0, 0], math.nan),  # nothing drawn
    ],
)
def test_the_worked_example(weights: list[float], expected: float) -> None:
    assert figures(evidence_of(TWO, TWO_FOUND), np.array([weights]))[0] == pytest.approx([expected] * 3, nan_ok=True)


def test_a_class_without_objects_in_a_draw_leaves_the_mean() -> None:
    gt = ground_truth([1, 2], [(1, 0, 0, 10, 10, 0, 0, 0), (2, 0, 0, 10, 10, 1, 0, 0)], ("a", "b", "never"))
    evidence = evidence_of(gt, detections([(1, 0, 0, 10, 10, 0.9, 0)]))  # b is never detected
    assert evidence.values([[1, 1], [3, 0], [0, 1]], "AP") == pytest.approx([0.5, 1, 0])


@pytest.mark.parametrize(
    "found",
    [
        detections([]),  # nothing detected
        detections([(1, 300, 300, 310, 310, 0.9, 0)]),  # nothing correct
    ],
)
def test_without_a_correct_detection_ap_is_zero(found: Detections) -> None:
    evidence = evidence_of(TWO, found)
    assert len(evidence.image) == 0  # nothing of it can change a number
    assert evidence.values([[1, 1]], "AP").tolist() == [0]


def test_without_an_object_there_is_no_ap() -> None:
    evidence = evidence_of(ground_truth([1, 2], []), TWO_FOUND)
    assert np.isnan(figures(evidence, np.ones((2, 2)))).all()


# --- the official evaluation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficult", ["ignore", "count"])
@pytest.mark.parametrize("seed", range(6))
def test_all_images_once_is_the_metric(seed: int, difficult: str) -> None:
    """Crowds, difficult objects, ties within and between images, empty images, more than 100 detections."""
    gt, found = random_set(seed)
    metric = DetectionMAP(difficult=difficult)
    metric.set_ground_truth(gt)
    ids = gt.image_ids.tolist()
    metric.update(ids, [found.of(i) for i in ids])
    numbers = metric.compute()
    evidence = metric.evidence
    assert evidence is not None
    ours = figures(evidence, np.ones((1, len(ids))))[0]
    np.testing.assert_allclose(ours, [float(numbers[name]) for name in evidence.measures], **EXACT)
    np.testing.assert_allclose(ours, pycocotools(gt, found, difficult=difficult).stats[:3], **EXACT)
    assert 0.02 < ours[0] < 0.98


@pytest.mark.parametrize("seed", range(8))
def test_drawn_images_are_repeated_images(seed: int) -> None:
    """Scores of different images are equal again and again; classes leave draws; crowds and difficult objects."""
    gt, found = random_set(seed, images=8)
    found = without_ties_in_an_image(found)
    weights = np.random.default_rng(seed).multinomial(8, np.full(8, 1 / 8), 4)
    ours = figures(evidence_of(gt, found), weights)
    for row, drawn in zip(ours, weights, strict=True):
        np.testing.assert_allclose(row, pycocotools(*repeated(gt, found, drawn)).stats[:3], **EXACT)
    assert len(np.unique(ours[:, 0])) == 4  # the draws differ


def test_of_ties_in_an_image_all_copies_of_the_first_come_first() -> None:
    """One image drawn twice, TP and FP of equal score: TP TP FP FP here, TP FP TP FP officially (precision 2/3)."""
    gt = ground_truth([1], [(1, 0, 0, 10, 10, 0, 0, 0)], ("a",))
    found = detections([(1, 0, 0, 10, 10, 0.5, 0), (1, 50, 50, 60, 60, 0.5, 0)])
    assert evidence_of(gt, found).values([[2]], "AP") == pytest.approx([1])
    official = pycocotools(*repeated(gt, found, np.array([2]))).stats[0]
    assert official == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_real_detections() -> None:
    gt, found = coco_fixture()
    ours = figures(evidence_of(gt, found), np.ones((1, 100)))[0]
    np.testing.assert_allclose(ours, pycocotools(gt, found).stats[:3], **EXACT)


def crowded(seed: int) -> Findings:
    """Objects so close together that detections compete for them, crowds among them; whole pixels, hence equal IoUs."""
    random = np.random.default_rng(seed)
    boxes = np.concatenate([random.integers(0, 9, (80, 2)), random.integers(12, 18, (80, 2))], axis=1)
    objects = [(n % 3, *box, n % 2, 0, random.random() < 0.1) for n, box in enumerate(boxes.tolist())]
    near = boxes[random.integers(0, 80, 300)] + random.integers(-2, 3, (300, 4))
    rows = [(n % 3, *box, round(random.random(), 1), n % 2) for n, box in enumerate(near.tolist())]
    gt = ground_truth([0, 1, 2], objects, ("a", "b"))
    return Findings.gather(gt, gt.image_ids, *detections(rows).columns())


@pytest.mark.parametrize("seed", range(6))
def test_matching_at_ten_thresholds_is_ten_matchings(seed: int) -> None:
    findings = crowded(seed)
    correct, ignored = match_at(findings, TEN)
    for row, iou in enumerate(TEN):
        one = match_coco(findings, float(iou))
        assert (correct[row] == one.correct).all()
        assert (ignored[row] == one.ignored).all()
    assert correct[0].sum() > 50
    assert 0 < correct[5].sum() < correct[0].sum()  # at IoU 0.75
    assert ignored.any()


# --- draws in chunks, settings, errors -------------------------------------------------------------------------------


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = evidence_of(*random_set(1))
    weights = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), 23)
    whole = evidence.values(weights, "AP")
    monkeypatch.setattr("cvexp.metrics.detection_evidence.AT_ONCE", 500)  # a few draws at a time
    assert evidence.values(weights, "AP").tolist() == whole.tolist()
    assert evidence.values(weights[:0], "AP").shape == (0,)


def test_measures_are_those_of_the_thresholds() -> None:
    gt, found = random_set(0)
    assert evidence_of(gt, found, iou=np.array([0.5])).measures == ("AP", "AP50")
    assert evidence_of(gt, found, iou=np.array([0.6, 0.75])).measures == ("AP", "AP75")


@pytest.mark.parametrize(
    ("weights", "measure", "words"),
    [
        ([[1.0] * 12], "AR100", "AP, AP50, AP75"),  # a measure that is not there
        ([1.0] * 12, "AP", r"shape \(12,\)"),  # one draw without its own row
        ([[1.0] * 11], "AP", r"\[draws, 12\]"),  # of another test set
        ([[-1.0] + [1.0] * 11], "AP", "negative"),
        ([[math.nan] + [1.0] * 11], "AP", "not finite"),
    ],
)
def test_what_makes_no_sense_is_refused(weights: list, measure: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        evidence_of(*random_set(0)).values(weights, measure)


def test_the_fingerprint_is_of_truth_and_settings_not_of_detections() -> None:
    gt, found = random_set(0)
    other = Detections(found.image, found.boxes + 1, found.scores / 2, found.labels)
    same = evidence_of(gt, found).fingerprint
    assert evidence_of(gt, other).fingerprint == same
    moved = ground_truth(
        gt.image_ids.tolist(),
        [(int(i), *b.tolist(), int(k), bool(d), bool(c)) for i, b, k, d, c in zip(
            gt.image_ids[gt.image_index], gt.boxes + 1, gt.labels, gt.difficult, gt.crowd, strict=True)],
        gt.classes, gt.area.tolist(),
    )  # fmt: skip
    findings = Findings.gather(gt, gt.image_ids[1:], *found.columns())
    changed = [
        evidence_of(moved, found).fingerprint,  # other boxes
        evidence_of(gt, found, difficult="count").fingerprint,  # other objects count
        evidence_of(gt, found, iou=TEN[:1]).fingerprint,  # other thresholds
        DetectionEvidence.of(findings, TEN, 100).fingerprint,  # an image less
    ]
    assert len({same, *changed}) == 5


def test_a_metric_without_images_has_no_evidence() -> None:
    metric = DetectionMAP()
    assert metric.evidence is None
    metric.set_ground_truth(random_set(0)[0])
    metric.compute()
    assert metric.evidence is None
    metric.update([int(metric._gt.image_ids[0])], [random_set(0)[1].of(int(metric._gt.image_ids[0]))])
    metric.compute()
    assert metric.evidence is not None
    assert torch.equal(torch.from_numpy(metric.evidence.ids), metric._gt.image_ids[:1])
