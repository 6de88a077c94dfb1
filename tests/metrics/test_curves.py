"""The PR figure: what it shows, and that a reader never meets half a file."""

from __future__ import annotations

import numpy as np
import pytest
from coco_oracle import detections, ground_truth, random_set
from matplotlib.figure import Figure
from PIL import Image

from cvexp.metrics.coco_engine import CocoResult, evaluate
from cvexp.metrics.curves import draw_pr_curves
from cvexp.types import UserError


def result(classes: int = 5) -> CocoResult:
    gt, found = random_set(0, classes=classes)
    return evaluate(gt, gt.image_ids, *found.columns())


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k)))
    return saved


def test_shows_every_class_with_its_ap_and_the_mean(tmp_path, figures):
    r = result()
    path = draw_pr_curves(r, tmp_path / "new" / "pr.png", title="tiny on shapes")
    assert min(Image.open(path).size) > 500
    axes = figures[0].axes[0]
    numbers = r.summary()
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels[0] == f"{numbers['AP50']:.3f}  mean (mAP)"
    assert sorted(labels[1:]) == sorted(f"{numbers[f'AP50/{c}']:.3f}  {c}" for c in "abcd")  # e has no objects
    assert "1 of the classes" in axes.get_xlabel()
    assert axes.get_ylabel().startswith("precision")
    assert axes.get_title() == "tiny on shapes at IoU 0.50 (12 images)"
    # the area under a drawn curve is its AP: beyond the last point precision is 0
    for line in axes.lines:
        assert f"{np.sum(line.get_ydata()) / 101:.3f}" == line.get_label().split()[0]


def test_another_threshold(tmp_path, figures):
    r = result()
    draw_pr_curves(r, tmp_path / "pr.png", iou=0.75)
    assert figures[0].legends[0].get_texts()[0].get_text() == f"{r.summary()['AP75']:.3f}  mean (mAP)"
    with pytest.raises(UserError, match=r"no PR curve at IoU 0.3"):
        draw_pr_curves(r, tmp_path / "pr.png", iou=0.3)


def test_without_objects_it_says_so(tmp_path, figures):
    draw_pr_curves(evaluate(ground_truth([1], []), [1], *detections([]).columns()), tmp_path / "pr.png")
    assert [t.get_text() for t in figures[0].axes[0].texts] == ["no objects in the evaluated images"]


def test_many_classes_and_odd_names(tmp_path, figures):
    # a dollar starts mathematics, an underscore hides a legend entry
    names = ["_hidden", "cost $_{", *[f"class {k}" for k in range(78)]]
    gt = ground_truth([1], [(1, 50 * k, 0, 50 * k + 40, 40, k, 0, 0) for k in range(80)], tuple(names))
    draw_pr_curves(evaluate(gt, [1], *detections([(1, 0, 0, 40, 40, 0.9, 0)]).columns()), tmp_path / "pr.png")
    assert len(figures[0].legends[0].get_texts()) == 81


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    path = draw_pr_curves(result(), tmp_path / "pr.png")
    before = path.read_bytes()

    def broken(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        draw_pr_curves(result(), path, iou=0.75)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["pr.png"]
