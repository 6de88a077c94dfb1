"""The flat arrays that every analysis reads: order, limits, overlaps."""

from __future__ import annotations

import numpy as np
import torch
from coco_oracle import detections, ground_truth, random_set
from torchvision.ops import box_iou

from cvexp.metrics.findings import Findings


def test_detections_stand_by_image_and_falling_score_and_other_images_are_left_out() -> None:
    gt = ground_truth([7, 3, 5], [(7, 0, 0, 10, 10, 0, 0, 0), (3, 0, 0, 10, 10, 1, 1, 0), (5, 0, 0, 9, 9, 1, 0, 1)])
    found = detections(
        [(7, 0, 0, 10, 10, 0.5, 0), (3, 0, 0, 5, 10, 0.2, 1), (7, 5, 0, 15, 10, 0.9, 0), (5, 0, 0, 1, 1, 0.9, 0),
         (3, 1, 0, 5, 10, 0.2, 1)]
    )  # fmt: skip
    findings = Findings.gather(gt, [7, 3], *found.columns())
    assert findings.image_ids.tolist() == [3, 7]
    assert findings.det_image.tolist() == [0, 0, 1, 1]
    assert findings.det_scores.tolist() == [0.2, 0.2, 0.9, 0.5]
    assert findings.det_boxes[:2, 0].tolist() == [0, 1]  # equal scores keep the detector's order
    assert findings.gt_image.tolist() == [0, 1]
    assert findings.gt_ignored.tolist() == [True, False]
    assert findings.objects.tolist() == [1, 0, 0]
    ranked, objects = findings.of_class(1)
    assert (ranked.tolist(), objects) == ([0, 1], 0)
    counted = Findings.gather(gt, [7, 3], *found.columns(), difficult="count")
    assert counted.objects.tolist() == [1, 1, 0]


def test_limit_is_per_image_and_class() -> None:
    gt = ground_truth([0, 1], [])
    rows = [(i, 0, 0, 10, 10, (k + 1) / 10, label) for i in (0, 1) for label in (0, 2) for k in range(4)]
    findings = Findings.gather(gt, [0, 1], *detections(rows).columns(), limit=3)
    assert len(findings.det_scores) == 12
    assert sorted(set(findings.det_scores.tolist())) == [0.2, 0.3, 0.4]


def test_overlaps_equal_torchvision_and_crowds_are_seen_from_the_detection() -> None:
    gt, found = random_set(3)
    findings = Findings.gather(gt, gt.image_ids.numpy(), *found.columns(), limit=None)
    dense = np.zeros((len(findings.det_image), len(findings.gt_image)))
    pairs = findings.overlaps
    dense[pairs.det, pairs.gt] = pairs.iou
    a, b = torch.from_numpy(findings.det_boxes), torch.from_numpy(findings.gt_boxes)
    expected = box_iou(a, b).numpy()
    inter = expected / (1 + expected) * ((a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)).numpy()
    of_crowds = inter / (a[:, 2:] - a[:, :2]).prod(1)[:, None].numpy()
    expected = np.where(findings.gt_crowd, of_crowds, expected)
    expected[findings.det_image[:, None] != findings.gt_image] = 0
    assert findings.gt_crowd.any()
    np.testing.assert_allclose(dense, expected, rtol=1e-9, atol=1e-12)


def test_nothing_at_all() -> None:
    gt = ground_truth([], [])
    findings = Findings.gather(gt, [], *detections([]).columns())
    assert len(findings.overlaps.iou) == 0
    assert findings.objects.tolist() == [0, 0, 0]
    assert findings.sizes.shape == (0, 2)
