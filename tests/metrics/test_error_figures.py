"""Figures of errors: that they show the numbers they were given, in time for every number of classes."""

from __future__ import annotations

import numpy as np
import pytest
from coco_oracle import detections, ground_truth, random_set
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from cvexp.metrics.coco_engine import CocoResult, evaluate
from cvexp.metrics.confidence import confidence_curves
from cvexp.metrics.confusion import ConfusionMatrix, count_confusions
from cvexp.metrics.error_figures import draw_ap_by_size, draw_confusion, draw_error_types, draw_f1_curves
from cvexp.metrics.errors import SUMMARY, TYPES, find_errors
from cvexp.metrics.findings import Findings
from cvexp.viz.figures import save_figures


def findings(seed: int = 0) -> Findings:
    gt, found = random_set(seed)
    return Findings.gather(gt, gt.image_ids, *found.columns())


def nothing() -> Findings:
    return Findings.gather(ground_truth([0], []), [0], *detections([]).columns())


def result(gt_and_found: tuple) -> CocoResult:
    gt, found = gt_and_found
    return evaluate(gt, gt.image_ids, *found.columns())


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def matrix(classes: int, **changes) -> ConfusionMatrix:
    counts = np.diag(np.arange(classes + 1) + 3)
    counts[-1, -1] = 0
    for place, count in changes.pop("cells", {}).items():
        counts[place] = count
    return ConfusionMatrix(tuple(f"class {k}" for k in range(classes)), counts, 0.25, 0.5, **changes)


def assert_nothing_is_cut_off(figure: Figure) -> None:
    figure.canvas.draw()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert -0.02 <= box.x0 <= box.x1 <= width + 0.02
    assert -0.02 <= box.y0 <= box.y1 <= height + 0.02


def test_f1_of_every_class_and_the_mean_in_bold() -> None:
    curves = confidence_curves(findings())
    figure = draw_f1_curves(curves)
    axes = figure.axes[0]
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    best, at = curves.best_mean()
    assert labels[0] == f"{best:.3f} at {at:.3f}  mean"
    assert sorted(x.split()[-1] for x in labels[1:]) == ["a", "b", "c", "d"]
    assert texts(figure) == [f"{best:.3f} at {at:.3f}"]
    assert "1 of the classes" in axes.get_xlabel()  # e has no objects
    lines = {line.get_label(): line for line in axes.lines}
    bold = lines[labels[0]]
    np.testing.assert_array_equal(bold.get_ydata(), curves.mean_f1)
    assert bold.get_linewidth() > max(line.get_linewidth() for name, line in lines.items() if name != labels[0])
    for name in labels[1:]:
        np.testing.assert_array_equal(lines[name].get_ydata(), curves.f1["abcde".index(name[-1])])
    assert_nothing_is_cut_off(figure)


def test_without_anything_right_there_is_no_best_threshold() -> None:
    gt = ground_truth([0], [(0, 0, 0, 10, 10, 0, 0, 0)], ("pay $ here $",))
    figure = draw_f1_curves(confidence_curves(Findings.gather(gt, [0], *detections([]).columns())))
    assert texts(figure) == []
    assert_nothing_is_cut_off(figure)


@pytest.mark.parametrize("classes", [1, 3, 20, 80])
def test_the_matrix_is_readable_for_any_number_of_classes(classes: int) -> None:
    figure = draw_confusion(matrix(classes, cells={(0, classes): 7, (classes, 0): 9}))
    axes = figure.axes[0]
    shown = min(classes, 30)
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == shown + 1
    assert [t.get_text() for t in axes.get_yticklabels()][-1] == "invented"
    assert [t.get_text() for t in axes.get_xticklabels()][-1] == "missed"
    assert ("30 of 80" in axes.get_xlabel()) == (classes == 80)
    step = np.diff(axes.get_yticks())
    assert step[-1] > 1.2  # the background stands apart
    assert step[:-1] == pytest.approx(1)
    assert_nothing_is_cut_off(figure)


def test_counts_are_written_where_they_belong() -> None:
    figure = draw_confusion(matrix(3, cells={(0, 1): 12, (2, 3): 8, (3, 0): 25_000}))
    axes = figure.axes[0]
    columns, rows = axes.get_xticks(), axes.get_yticks()
    place = {
        (int(np.argmin(abs(rows - t.get_position()[1]))), int(np.argmin(abs(columns - t.get_position()[0])))): t
        for t in axes.texts
    }
    assert {at: t.get_text() for at, t in place.items()} == {
        (0, 0): "3", (0, 1): "12", (1, 1): "4", (2, 2): "5", (2, 3): "8", (3, 0): "25k",
    }  # fmt: skip
    # white on a full row, dark on a part of one
    assert to_rgb(place[1, 1].get_color()) == (1, 1, 1)
    assert to_rgb(place[0, 0].get_color()) != (1, 1, 1)
    mesh = axes.collections[0]
    drawn = mesh.get_array().reshape(5, 5)
    np.testing.assert_allclose(drawn[[0, 0, 2], [0, 1, 4]], [3 / 15, 12 / 15, 8 / 13])
    assert drawn.mask[3].all()
    assert drawn.mask[:, 3].all()


def test_of_many_classes_the_most_confused_are_shown() -> None:
    figure = draw_confusion(matrix(9, cells={(2, 7): 4, (8, 1): 1, (3, 3): 99}), limit=2)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["class 2", "class 7", "invented"]
    assert "4 of the 5 confusions" in axes.get_xlabel()


def test_bars_of_all_types() -> None:
    errors = find_errors(findings())
    figure = draw_error_types(errors)
    left, right = figure.axes
    assert [t.get_text() for t in left.texts] == [f"{100 * errors.delta_ap[n]:.2f}" for n in (*TYPES, *SUMMARY)]
    assert [bar.get_width() for bar in left.patches] == pytest.approx(
        [100 * errors.delta_ap[n] for n in (*TYPES, *SUMMARY)]
    )
    assert [bar.get_width() for bar in right.patches] == list(errors.counts.values())
    assert [t.get_text() for t in right.get_yticklabels()] == list(TYPES)
    assert f"AP50 {100 * errors.ap:.1f}" in figure.get_suptitle()
    assert_nothing_is_cut_off(figure)


def test_marks_of_all_sizes() -> None:
    r = result(random_set(0))
    figure = draw_ap_by_size(r, iou=0.5)
    axes = figure.axes[0]
    names = [t.get_text() for t in axes.get_yticklabels()]
    order = np.argsort(-r.average_precision(0.5)[:4], kind="stable")
    assert names == ["mean of 4", *("abcde"[k] for k in order)]
    lines = {line.get_label(): line for line in axes.lines}
    for size in ("all", "small", "medium", "large"):
        ap = r.average_precision(0.5, size)
        np.testing.assert_allclose(lines[size].get_xdata()[1:], ap[order])
        np.testing.assert_allclose(lines[size].get_xdata()[0], np.nanmean(ap))
    assert_nothing_is_cut_off(figure)


def test_nothing_is_said_to_be_nothing(tmp_path) -> None:
    figures = {
        "f1": draw_f1_curves(confidence_curves(nothing())),
        "confusion": draw_confusion(count_confusions(nothing())),
        "size": draw_ap_by_size(result((ground_truth([0], []), detections([])))),
    }
    assert [texts(figure) for figure in figures.values()] == [
        ["no objects in the evaluated images"], ["no objects and no detections"], ["no objects in the evaluated images"],
    ]  # fmt: skip
    types = draw_error_types(find_errors(nothing()))
    assert texts(types) == ["not defined"] * 8 + ["0"] * 6
    assert "no objects" in types.get_suptitle()
    assert all(path.stat().st_size > 1000 for path in save_figures(types, tmp_path / "errors"))
