"""torchmetrics' metric agrees with ours, which equals the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from coco_oracle import coco_fixture, ground_truth, random_set, voc_fixture

from cvexp.metrics.detection import DetectionMAP
from cvexp.metrics.torchmetrics_map import TorchmetricsMAP
from cvexp.types import Detection, UserError

pytest.importorskip("faster_coco_eval")
pytest.importorskip("pycocotools")


def both(gt, found, backend="faster_coco_eval", **settings):
    ids = gt.image_ids.tolist()
    for metric in (DetectionMAP(**settings), TorchmetricsMAP(**settings, backend=backend)):
        metric.set_ground_truth(gt)
        metric.update(ids, [found.of(i) for i in ids])
        metric.update(ids[:2], [found.of(i) for i in ids[:2]])  # again: must not count twice
        yield metric.compute(), metric.result


@pytest.mark.parametrize("backend", ["faster_coco_eval", "pycocotools"])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: random_set(5), {}),  # absent class, crowds, ties
        (lambda: random_set(6), {"difficult": "count"}),
        (lambda: random_set(6), {"max_detections": (2, 20, 200), "iou_thresholds": (0.5, 0.6)}),
        (voc_fixture, {}),
        (coco_fixture, {}),
    ],
)
def test_agrees(make, settings, backend, capfd):
    (ours, result), (theirs, their_result) = both(*make(), backend, **settings)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert float(theirs[name]) == pytest.approx(float(value), abs=1e-6, nan_ok=True), name
    assert 0 < ours["AP"] < 1
    np.testing.assert_allclose(their_result.precision, result.precision, atol=1e-6)
    assert capfd.readouterr().out == ""


def test_nothing_seen_and_nothing_there():
    metric = TorchmetricsMAP()
    assert metric.compute()["AP"].isnan()
    metric.set_ground_truth(ground_truth([1], []))
    assert metric.compute()["images"] == 0
    metric.update([1], [Detection.empty()])
    numbers = metric.compute()
    assert numbers["images"] == 1
    assert numbers["AP"].isnan()
    assert numbers["AP/a"].isnan()


def test_no_detection_is_zero():
    metric = TorchmetricsMAP()
    metric.set_ground_truth(ground_truth([1], [(1, 0, 0, 9, 9, 1, 0, 0)]))
    metric.update([1], [Detection.empty()])
    assert [metric.compute()[n].item() for n in ("AP", "AR1", "AP/b")] == [0, 0, 0]


def test_refusals(monkeypatch):
    with pytest.raises(UserError, match=r"three max_detections, not \[1, 100\]"):
        TorchmetricsMAP(max_detections=(1, 100))
    metric = TorchmetricsMAP()
    with pytest.raises(UserError, match=r"no ground truth"):
        metric.update([1], [Detection(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1).long())])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match=r"one process only; use metric=coco"):
        metric.compute()
