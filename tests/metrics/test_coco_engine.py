"""The engine equals the official code bit for bit, and the worked numbers of COCO's rules."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from coco_oracle import (
    NUMBERS,
    coco_fixture,
    detections,
    ground_truth,
    pycocotools,
    random_masks,
    random_set,
    voc_fixture,
)

from cvexp.metrics.coco_engine import CocoResult, check_settings, evaluate, settings_in_words
from cvexp.types import UserError

BOX = (0, 0, 100, 10)  # shortened to length L its IoU is L / 100


def run(gt, found, **settings) -> CocoResult:
    return evaluate(gt, gt.image_ids, *found.columns(), **settings)


def assert_equals_official(result: CocoResult, official) -> None:
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(result, name), official.eval[name], err_msg=name)
    expected = [float("nan") if x == -1 else x for x in official.stats.tolist()]
    ours = result.summary()
    np.testing.assert_array_equal([ours[n] for n in NUMBERS], expected)


def test_random_set_holds_what_the_comparison_is_about():
    gt, found = random_set(0)
    with_objects, with_detections = set(gt.image_ids[gt.image_index].tolist()), set(found.image.tolist())
    ids = gt.image_ids.tolist()
    assert gt.crowd.any()
    assert gt.difficult.any()
    assert set(ids) - with_objects - with_detections  # an image without anything
    assert with_detections - with_objects
    assert with_objects - with_detections
    assert set(range(5)) - set(gt.labels.tolist()) == {4}  # a class without objects
    assert 1 in gt.labels  # a class that is never detected
    assert 1 not in found.labels
    assert len(np.unique(found.scores)) < len(found.scores) / 4  # ties
    assert ((found.image == ids[0]) & (found.labels == 0)).sum() > 100
    assert ids != sorted(ids)


@pytest.mark.parametrize("difficult", ["ignore", "count"])
@pytest.mark.parametrize("seed", range(8))
def test_bit_equal_on_random_sets(seed, difficult):
    gt, found = random_set(seed)
    assert_equals_official(run(gt, found, difficult=difficult), pycocotools(gt, found, difficult=difficult))


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_bit_equal_too(seed):
    # by IoU of masks; areas of detections are those of their masks; crowds, difficult objects and empty masks included
    gt, found = random_set(seed)
    masks = random_masks(seed, gt, found)
    assert gt.crowd.any()
    result = run(gt, found, det_masks=masks)
    assert_equals_official(result, pycocotools(gt, found, masks=masks))
    assert result.summary() != run(gt, found).summary()
    assert 0 < result.summary()["AP"] < 1


def test_other_sizes_are_bit_equal():
    gt, found = random_set(5)
    result = run(gt, found, size_limits=(20.0**2, 60.0**2))
    assert_equals_official(result, pycocotools(gt, found, size_limits=(400, 3600)))
    assert result.summary()["APs"] != run(gt, found).summary()["APs"]


def test_masks_on_one_side_only_mean_nothing():
    gt, found = random_set(0)
    masks = random_masks(0, gt, found)
    gt.masks = None
    with pytest.raises(UserError, match=r"the annotations have no masks.*Fix: data.masks=true"):
        run(gt, found, det_masks=masks)


def test_bit_equal_on_a_part_of_the_images():
    gt, found = random_set(1)
    part = gt.image_ids[::3].tolist()
    result = evaluate(gt, part, *found.columns())
    assert_equals_official(result, pycocotools(gt, found, image_ids=part))
    assert result.images == len(part)
    assert result.summary() != run(gt, found).summary()


def test_order_and_repetition_of_the_ids_do_not_matter():
    gt, found = random_set(2)
    ids = gt.image_ids.tolist()
    np.testing.assert_array_equal(evaluate(gt, ids[::-1] + ids, *found.columns()).precision, run(gt, found).precision)


def test_any_int64_is_an_image_id():
    # negative and huge ids: neither the engine's checks nor a float64 column may touch them
    gt, found = random_set(3)
    ids = gt.image_ids.tolist()
    new = {i: 2**60 + 3 * i if i % 2 else -i for i in ids}
    order = sorted(ids, key=new.__getitem__)
    assert order != sorted(ids)
    gt.image_ids = torch.tensor([new[i] for i in ids])
    distinct = np.unique(found.scores + np.arange(len(found.scores)) * 1e-6)  # without ties the order of ids is moot
    found.scores = np.random.default_rng(0).permutation(distinct)
    renamed = evaluate(gt, gt.image_ids, np.array([new[i] for i in found.image]), *found.columns()[1:])
    gt.image_ids = torch.tensor(ids)
    np.testing.assert_array_equal(renamed.precision, run(gt, found).precision)


def test_coco_fixture():
    # published example of the official code: 100 images, 80 classes, real detections
    gt, found = coco_fixture()
    result = run(gt, found)
    assert_equals_official(result, pycocotools(gt, found))
    expected = [0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363]
    expected += [0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744]
    assert [result.summary()[n] for n in NUMBERS] == pytest.approx(expected, abs=5e-7)


def test_voc_fixture():
    # VOC objects and a real detector, difficult objects counted as the reference did
    gt, found = voc_fixture()
    numbers = run(gt, found, difficult="count").summary()
    reference = {"AP": 0.346958, "AP50": 0.610030, "AP75": 0.353714, "AR100": 0.522570}
    assert {n: numbers[n] for n in reference} == pytest.approx(reference, abs=5e-7)
    assert_equals_official(run(gt, found), pycocotools(gt, found))  # and with difficult ignored
    assert run(gt, found).summary()["AP"] != numbers["AP"]


def at_half(objects, found, **settings) -> dict[str, float]:
    """One image, one class, one IoU threshold 0.5. Objects: (box, difficult, crowd); found: (box, score)."""
    gt = ground_truth([1], [(1, *box, 0, *flags) for box, *flags in objects], ("a",))
    rows = detections([(1, *box, score, 0) for box, score in found])
    return run(gt, rows, iou_thresholds=[0.5], **settings).summary()


def shift(dx: float, box=BOX) -> tuple[float, ...]:
    return (box[0] + dx, box[1], box[2] + dx, box[3])


FOUR = [(shift(200 * n), 0, 0) for n in range(4)]
MISS = shift(5000)


@pytest.mark.parametrize(
    ("objects", "found", "ap", "ar"),
    [
        # ranked TP FP TP TP FP of four objects: COCO's 101 points give 63.5 / 101
        (FOUR, [(shift(0), 0.9), (MISS, 0.8), (shift(200), 0.7), (shift(400), 0.6), (MISS, 0.5)], 63.5 / 101, 0.75),
        # perfect ranking, everything found
        (FOUR, [(shift(200 * n), 0.9 - n / 10) for n in range(4)], 1.0, 1.0),
        # duplicate (IoU .9 then .8): TP then FP; the envelope forgives an FP after full recall
        ([(BOX, 0, 0)], [((0, 0, 90, 10), 0.8), ((0, 0, 80, 10), 0.7)], 1.0, 1.0),
        # the same duplicate does cost when an object is found after it: TP FP TP -> 51 points of 1, 50 of 2/3
        (FOUR[:2], [(BOX, 0.9), (BOX, 0.8), (shift(200), 0.7)], (51 + 50 * 2 / 3) / 101, 1.0),
        # best free object, not best object: d2 overlaps the taken g1 by .7 and g2 by .6 -> TP, TP (VOC: TP, FP)
        ([((0, 0, 70, 10), 0, 0), ((40, 0, 100, 10), 0, 0)], [((0, 0, 56, 10), 0.9), ((0, 0, 100, 10), 0.8)], 1.0, 1.0),
        # strictness: IoU exactly 0.5 is correct (VOC: wrong); below it is not
        ([((0, 0, 10, 10), 0, 0)], [((0, 0, 10, 20), 0.9)], 1.0, 1.0),
        ([((0, 0, 10, 10), 0, 0)], [((0, 0, 10, 20.001), 0.9)], 0.0, 0.0),
        # no detections: 0, not NaN
        (FOUR, [], 0.0, 0.0),
        # no objects: NaN, not 0
        ([], [(BOX, 0.9)], float("nan"), float("nan")),
        # nothing at all
        ([], [], float("nan"), float("nan")),
        # only a difficult object: as no object
        ([(BOX, 1, 0)], [(BOX, 0.9)], float("nan"), float("nan")),
        # a difficult object absorbs two better scored detections; without it AP would be 1/3
        ([(BOX, 1, 0), (shift(200), 0, 0)], [(BOX, 0.9), (BOX, 0.8), (shift(200), 0.7)], 1.0, 1.0),
        # so does a crowd
        ([(BOX, 0, 1), (shift(200), 0, 0)], [(BOX, 0.9), (BOX, 0.8), (shift(200), 0.7)], 1.0, 1.0),
        # overlap with an ignored object is over the detection's area: a tenth of it, inside, is still absorbed
        ([(BOX, 1, 0), (shift(200), 0, 0)], [((0, 0, 10, 10), 0.9), (shift(200), 0.7)], 1.0, 1.0),
        # ... but a detection that is mostly outside is a false positive: FP TP -> 1/2
        ([(BOX, 1, 0), (shift(200), 0, 0)], [((0, 0, 100, 30), 0.9), (shift(200), 0.7)], 0.5, 1.0),
    ],
)
def test_matching_rules(objects, found, ap, ar):
    numbers = at_half(objects, found)
    assert [numbers["AP"], numbers["AR100"]] == pytest.approx([ap, ar], abs=1e-12, nan_ok=True)


def test_one_pair_of_iou_077_is_right_at_six_of_ten_thresholds():
    gt = ground_truth([1], [(1, *BOX, 0, 0, 0)], ("a",))
    numbers = run(gt, detections([(1, 0, 0, 77, 10, 0.9, 0)])).summary()
    assert [numbers[n] for n in ("AP", "AP50", "AP75", "AR1")] == pytest.approx([0.6, 1.0, 1.0, 0.6], abs=1e-12)


def test_difficult_counted_as_normal():
    objects, found = [(BOX, 1, 0), (shift(200), 0, 0)], [(shift(200), 0.7)]
    assert at_half(objects, found)["AR100"] == 1.0
    assert at_half(objects, found, difficult="count")["AR100"] == 0.5


def test_classes_without_objects_are_nan_and_left_out_of_the_mean():
    gt = ground_truth([1], [(1, *BOX, 0, 0, 0), (1, *shift(200), 1, 0, 0)], ("right", "missed", "absent"))
    numbers = run(gt, detections([(1, *BOX, 0.9, 0), (1, *BOX, 0.9, 2)])).summary()
    assert numbers["AP"] == pytest.approx(0.5, abs=1e-12)  # 1/3 with the absent class as 0
    assert [numbers["AP/right"], numbers["AP50/right"]] == pytest.approx([1.0, 1.0], abs=1e-12)
    assert (numbers["AP/missed"], numbers["AP50/missed"]) == (0.0, 0.0)
    assert np.isnan([numbers["AP/absent"], numbers["AP50/absent"]]).all()


def test_per_class_numbers_average_to_the_mean():
    result = run(*random_set(4))
    numbers = result.summary()
    for name in ("AP", "AP50"):
        per_class = [v for key, v in numbers.items() if key.startswith(f"{name}/")]
        assert len(per_class) == 5
        assert np.nanmean(per_class) == pytest.approx(numbers[name], abs=1e-12)
    assert list(numbers)[:12] == NUMBERS


def test_curves_are_read_from_the_same_array():
    result = run(*random_set(4))
    recall, precision, score = result.curves(0.75)
    assert recall.shape == (101,)
    assert precision.shape == score.shape == (5, 101)
    assert precision[:4].mean() == pytest.approx(result.summary()["AP75"], abs=1e-12)
    assert np.isnan(precision[4]).all()  # the class without objects
    assert (np.diff(precision[:4]) <= 0).all()
    with pytest.raises(UserError, match=r"no PR curve at IoU 0.42.*0.50, 0.55.*metric.iou_thresholds"):
        result.curves(0.42)


def test_no_images_no_detections_no_objects():
    gt, _ = random_set(0)
    none = detections([])
    assert evaluate(gt, [], *none.columns()).images == 0
    assert np.isnan(list(evaluate(gt, [], *none.columns()).summary().values())).all()
    numbers = run(gt, none).summary()
    assert [numbers[n] for n in NUMBERS] == [0.0] * 12
    empty_set = ground_truth([1, 2], [])
    assert np.isnan(list(run(empty_set, detections([(1, *BOX, 0.9, 0)])).summary().values())).all()


def test_limits_name_the_recalls_and_bound_the_detections():
    # 150 false positives above the only hit: out of reach for a limit of 100, not for 200
    gt = ground_truth([1], [(1, *BOX, 0, 0, 0)], ("a",))
    found = detections([*[(1, *shift(1000 + n), 0.9, 0) for n in range(150)], (1, *BOX, 0.1, 0)])
    assert run(gt, found).summary()["AR100"] == 0.0
    numbers = run(gt, found, max_detections=(1, 10, 200)).summary()
    assert numbers["AR200"] == 1.0
    assert numbers["AP"] == pytest.approx(1 / 151, abs=1e-12)
    assert "AR100" not in numbers


def test_only_the_asked_thresholds():
    # AP50 without 0.5 among the thresholds has nothing to average
    numbers = run(*random_set(0), iou_thresholds=(0.75,)).summary()
    assert np.isnan(numbers["AP50"])
    assert numbers["AP"] == numbers["AP75"] == run(*random_set(0)).summary()["AP75"]


def test_fifty_images_with_a_hundred_detections_in_a_second_and_in_silence(capfd):
    rng = np.random.default_rng(0)
    box = lambda: (*(corner := rng.uniform(0, 50, 2)), *(corner + rng.uniform(12, 40, 2)))  # noqa: E731
    gt = ground_truth(list(range(50)), [(n // 2, *box(), n % 3, 0, 0) for n in range(100)])
    found = detections([(n // 100, *box(), rng.random(), n % 3) for n in range(5000)])
    run(gt, detections([]))  # import
    start = time.perf_counter()
    result = run(gt, found)
    assert time.perf_counter() - start < 1
    assert 0 < result.summary()["AP50"] < 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"difficult": "drop"}, r"metric.difficult is 'drop'; use 'ignore' or 'count'"),
        ({"max_detections": ()}, r"metric.max_detections is \[\]"),
        ({"max_detections": (100, 10)}, r"metric.max_detections is \[100, 10\]; give positive ascending"),
        ({"max_detections": (0, 10)}, r"metric.max_detections is \[0, 10\]"),
        ({"iou_thresholds": (50,)}, r"metric.iou_thresholds is \[50.0\]; give values in \(0, 1\]"),
        ({"size_limits": (9216, 1024)}, r"metric.size_limits is \[9216, 1024\]; give two ascending areas"),
        ({"iou_thresholds": ()}, r"metric.iou_thresholds is \[\]"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(UserError, match=message):
        run(*random_set(0), **settings)


def test_annotations_that_mean_nothing():
    objects = [(1, *BOX, 3, 0, 0)]
    with pytest.raises(UserError, match=r"labels of the ground truth are 3..3, but there are 3 classes: 0..2"):
        run(ground_truth([1], objects), detections([]))
    with pytest.raises(UserError, match=r"class name 'a' appears twice"):
        run(ground_truth([1], [], ("a", "b", "a")), detections([]))
    with pytest.raises(UserError, match=r"two images of the ground truth have the same id"):
        run(ground_truth([1, 1], []), detections([]))
    with pytest.raises(UserError, match=r"a box or area of the ground truth is NaN or infinite"):
        run(ground_truth([1], [(1, 0, 0, np.nan, 1, 0, 0, 0)]), detections([]))
    with pytest.raises(UserError, match=r"image id 7 \(and 1 more\) is not in the ground truth of 1 images"):
        evaluate(ground_truth([1], []), [9, 1, 7], *detections([]).columns())


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        (None, "IoU 0.50:0.05:0.95"),
        ((0.5,), "IoU 0.5;"),
        ((0.3, 0.75), "IoU 0.3, 0.75;"),
        ((0.5, 0.55, 0.9), "IoU 0.5, 0.55, 0.9;"),  # not even
    ],
)
def test_settings_in_words(thresholds, words):
    limits, ious = check_settings((1, 10, 300), thresholds, "count")
    line = settings_in_words(limits, ious, "count", (400, 3600))
    assert words in line
    assert "at most 300 detections per image and class (AR at 1, 10, 300)" in line
    assert "small up to 20\u00b2, large from 60\u00b2 px; difficult objects counted" in line
