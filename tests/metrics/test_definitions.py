"""One result by every definition of AP, the table of it and the figures that explain it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from coco_oracle import coco_fixture, detections, ground_truth, pycocotools, random_set, voc_fixture

from cvexp.metrics.average_precision import classifier_curve
from cvexp.metrics.definition_curves import draw_classifier_and_detector, draw_definitions
from cvexp.metrics.definitions import NAMES, compare
from cvexp.metrics.findings import Findings
from cvexp.metrics.voc_matching import voc_match
from cvexp.types import UserError
from cvexp.viz.figures import save_figures


def worked_example() -> Findings:
    """Class a: four objects, ranked right, wrong, right, right, wrong. Class b: one object, IoU exactly 0.5. c: none."""
    places = [(20 * k, 0, 20 * k + 10, 10) for k in range(4)]
    objects = [(0, *box, 0, 0, 0) for box in places] + [(1, 0, 0, 10, 10, 1, 0, 0), (1, 50, 0, 60, 10, 1, 1, 0)]
    ranked = [places[0], (200, 0, 210, 10), places[1], places[2], places[2]]
    found = [(0, *box, 0.9 - 0.1 * n, 0) for n, box in enumerate(ranked)]
    found += [(1, 0, 0, 10, 5, 0.9, 1), (1, 0, 0, 9, 9, 0.3, 2)]
    return Findings.gather(ground_truth([0, 1], objects), [0, 1], *detections(found).columns())


def fixture(source: object, **gather: object) -> Findings:
    gt, found = source() if callable(source) else random_set(source)
    return Findings.gather(gt, gt.image_ids.numpy(), *found.columns(), **gather)


def test_worked_example_by_every_definition() -> None:
    found = compare(worked_example())
    expected = {
        # class a as in the table of average_precision; b: VOC needs more than 0.5; c has no objects
        "voc07": [6.75 / 11, 0],
        "voc10": [0.625, 0],
        "coco101": [63.5 / 101, 1],
        "step": [0.60416667, 0],
        "lecture": [0.57291667, 0],
    }
    assert list(found.ap) == list(NAMES) == list(expected)
    for name, aps in expected.items():
        assert found.ap[name][:2] == pytest.approx(aps, abs=1e-8)
        assert math.isnan(found.ap[name][2])
        assert found.mean(name) == pytest.approx(sum(aps) / 2, abs=1e-8)  # class c is left out
        assert found.numbers()[f"definitions/{name}"] == found.mean(name)
    assert len(found.numbers()) == 5
    assert found.objects.tolist() == [4, 1, 0]  # without the difficult one
    assert found.widest() == 1  # from 0 to 1


def test_table() -> None:
    found = compare(worked_example())
    assert found.header()[:3] == ("class", "objects", "VOC07 11-point")
    rows = found.rows()
    assert [row[:2] for row in rows] == [("a", 4), ("b", 1), ("mean", 5)]
    assert all(len(row) == len(found.header()) == 7 for row in rows)
    assert rows[0][2:] == pytest.approx((6.75 / 11, 0.625, 63.5 / 101, 0.60416667, 0.57291667), abs=1e-8)
    assert rows[-1][2:] == tuple(found.mean(name) for name in NAMES)


def test_without_objects_there_is_no_number() -> None:
    found = compare(Findings.gather(ground_truth([0], []), [0], *detections([(0, 0, 0, 9, 9, 0.5, 0)]).columns()))
    assert all(math.isnan(value) for value in found.numbers().values())
    assert [row[:2] for row in found.rows()] == [("mean", 0)]
    with pytest.raises(UserError, match=r"no class has objects.*Fix:"):
        found.widest()


def test_no_detections_score_zero() -> None:
    gt = ground_truth([0], [(0, 0, 0, 9, 9, 0, 0, 0)])
    assert set(compare(Findings.gather(gt, [0], *detections([]).columns())).numbers().values()) == {0.0}


def test_threshold_is_checked() -> None:
    with pytest.raises(UserError, match=r"threshold is 75.*Fix:"):
        compare(worked_example(), 75)


@pytest.mark.parametrize("source", [coco_fixture, voc_fixture, 5], ids=lambda s: getattr(s, "__name__", str(s)))
@pytest.mark.parametrize(("iou", "t"), [(0.5, 0), (0.75, 5)])
def test_cocos_column_is_pycocotools_mean(source: object, iou: float, t: int) -> None:
    gt, found = source() if callable(source) else random_set(source)
    precision = pycocotools(gt, found).eval["precision"][t, :, :, 0, -1]
    assert compare(fixture(source), iou).mean("coco101") == pytest.approx(precision[precision > -1].mean(), abs=1e-12)


def test_means_of_the_real_detections() -> None:
    """Difficult objects counted, boxes as written: the official code's AP50; and what the choice of ruler moves."""
    assert compare(fixture(voc_fixture, difficult="count")).mean("coco101") == pytest.approx(0.610030, abs=5e-7)
    assert compare(fixture(coco_fixture)).mean("coco101") == pytest.approx(0.696973, abs=5e-7)


@pytest.mark.parametrize("source", [coco_fixture, voc_fixture], ids=lambda s: getattr(s, "__name__", str(s)))
def test_areas_stand_in_the_order_they_must(source: object) -> None:
    """The same true and false positives: straight lines lose to steps, steps lose to the envelope, in every class."""
    ap = compare(fixture(source)).ap
    present = ~np.isnan(ap["step"])
    for lower, upper in pairwise(("lecture", "step", "voc10")):
        assert (ap[lower][present] <= ap[upper][present] + 1e-12).all()
        assert (ap[lower][present] < ap[upper][present] - 1e-6).any()


def texts(figure: object) -> str:
    """Everything that is written on the figure."""
    parts = []
    for axes in figure.axes:
        legend = axes.get_legend()
        parts += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(t.get_text() for t in axes.texts)]
        parts += [t.get_text() for t in axes.get_yticklabels()]
        parts += [t.get_text() for t in legend.get_texts()] if legend else []
    return "\n".join(parts)


def test_figure_of_the_worked_example_tells_the_areas_and_the_end_of_recall() -> None:
    figure = draw_definitions(worked_example(), label=0)
    written = texts(figure)
    assert "class a at IoU 0.5" in written
    for number in ("0.573", "0.604", "0.614", "0.625", "0.629"):
        assert number in written
    assert "3 of 4 objects" in written
    eleven = next(line for line in figure.axes[0].lines if line.get_gid() == "voc07")
    assert eleven.get_ydata().tolist() == [1] * 3 + [0.75] * 5 + [0] * 3
    zigzag = next(line for line in figure.axes[0].lines if line.get_gid() == "lecture")
    assert zigzag.get_xdata().tolist() == [0, 0.25, 0.25, 0.5, 0.75, 0.75]
    assert zigzag.get_ydata()[0] == 1


def test_default_class_is_the_one_that_differs_most() -> None:
    assert "class b" in texts(draw_definitions(worked_example()))


@pytest.mark.parametrize("source", [coco_fixture, 0], ids=lambda s: getattr(s, "__name__", str(s)))
def test_figures_are_written_even_of_many_classes(source: object, tmp_path) -> None:
    files = save_figures(draw_definitions(fixture(source)), tmp_path / "definitions")
    assert [file.suffix for file in files] == [".png", ".svg"]
    assert all(file.stat().st_size > 10_000 for file in files)


@pytest.mark.parametrize(
    ("objects", "found"),
    [
        ([(0, 0, 0, 9, 9, 0, 0, 0)], []),  # nothing detected
        ([(0, 0, 0, 9, 9, 0, 0, 0)], [(0, 50, 50, 60, 60, 0.5, 0)]),  # nothing right
        ([(0, 0, 0, 9, 9, 0, 0, 0)], [(0, 0, 0, 9, 9, 0.5, 0)]),  # everything right
    ],
)
def test_figures_of_extreme_results(objects: list, found: list, tmp_path) -> None:
    gt = ground_truth([0], objects, ("$a_", "b", "c"))  # a name that is no formula
    findings = Findings.gather(gt, [0], *detections(found).columns())
    assert save_figures(draw_definitions(findings), tmp_path / "one")[0].exists()
    detector, classifier = voc_match(findings, 0), classifier_curve([0.9, 0.1], [1, 0])
    assert save_figures(draw_classifier_and_detector(classifier, detector), tmp_path / "two")[0].exists()


def test_figures_need_objects() -> None:
    with pytest.raises(UserError, match=r"class 'c' has no objects.*Fix:"):
        draw_definitions(worked_example(), label=2)
    with pytest.raises(UserError, match=r"no class 7.*Fix:"):
        draw_definitions(worked_example(), label=7)
    with pytest.raises(UserError, match=r"detector has no objects.*Fix:"):
        draw_classifier_and_detector(classifier_curve([0.9], [1]), voc_match(worked_example(), 2))


def test_a_classifier_ends_at_its_share_and_a_detector_stops() -> None:
    curve = classifier_curve([0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 1, 0])
    figure = draw_classifier_and_detector(curve, voc_match(worked_example(), 0))
    classifier, detector = (next(x for x in axes.lines if x.get_gid() == "curve") for axes in figure.axes)
    assert (classifier.get_xdata()[-1], classifier.get_ydata()[-1]) == (1, 0.6)
    assert (detector.get_xdata()[-1], detector.get_ydata()[-1]) == (0.75, 0.6)
    assert (detector.get_xdata()[0], detector.get_ydata()[0]) == (0, 1)
    written = texts(figure)
    assert "0.600" in written  # the share
    assert "1 of 4 objects" in written  # never found
