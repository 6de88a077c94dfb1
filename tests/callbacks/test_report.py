"""What the callback tells the page: the metric's settings, the run, and what the model says of its own work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cvexp.callbacks import report
from cvexp.callbacks.report import Report
from cvexp.data.shapes import ShapesData
from cvexp.metrics.detection import DetectionMAP
from cvexp.models.sliding_window import SlidingWindow
from cvexp.types import Detection


def test_the_page_is_told_what_an_image_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ShapesData(train_size=2, val_size=2, test_size=2)
    metric = DetectionMAP()
    truth = data.source("test").ground_truth()
    metric.set_ground_truth(truth)
    metric.update([0, 1], [Detection(truth.boxes[:1].float(), torch.ones(1), truth.labels[:1]), Detection.empty()])
    metric.compute()
    told: dict[str, object] = {}
    monkeypatch.setattr(report, "write_report", lambda *_, **given: told.update(given) or {})
    model = SlidingWindow(3, channels=(4, 4, 4), hidden=8, image_size=96)
    trainer = SimpleNamespace(
        is_global_zero=True, fast_dev_run=False, sanity_checking=False, datamodule=data, loggers=[]
    )
    Report(str(tmp_path / "run")).on_test_end(trainer, SimpleNamespace(metric=metric, model=model))
    assert told["title"] == "SlidingWindow on ShapesData (test)"
    facts = told["facts"]
    assert facts["possible boxes"] == "21,678,336"
    assert facts["windows per image"] == f"{model.work(96, 96)['windows_per_image']:,}"
    assert (facts["split"], facts["folder"]) == ("test", "run")
