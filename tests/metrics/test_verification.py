"""ROC, thresholds, View 2 and intervals: worked numbers, plain loops, and input that has no answer."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from cvexp.metrics.verification import (
    Roc,
    accuracy,
    accuracy_interval,
    allowed,
    best_threshold,
    correct_calls,
    far_threshold,
    roc,
    tar_interval,
    too_few,
    view2,
)
from cvexp.types import UserError

SAME, DIFFERENT = [0.1, 0.2, 0.6], [0.5, 0.7, 0.9]
"""Distances of the worked example."""


def worked() -> tuple[np.ndarray, np.ndarray]:
    return -np.array(SAME + DIFFERENT), np.array([True] * 3 + [False] * 3)


def random_pairs(seed: int, same: int = 40, different: int = 60, steps: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Scores on few steps, so that many are equal, within and across the kinds."""
    random = np.random.default_rng(seed)
    scores = np.concatenate([random.normal(1, 1, same), random.normal(0, 1, different)])
    order = random.permutation(same + different)
    return (np.round(scores * steps / 5) / steps)[order], (np.arange(same + different) < same)[order]


def thresholds_to_try(scores: np.ndarray) -> list[float]:
    """All that can make a difference, from everybody to nobody."""
    values = sorted(set(scores.tolist()))
    return [values[0] - 1, *[(a + b) / 2 for a, b in pairwise(values)], values[-1] + 1]


# --- ROC -------------------------------------------------------------------------------------------------------------


def test_worked_example() -> None:
    curve = roc(*worked())
    assert curve.false_accepts.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert curve.true_accepts.tolist() == [0, 1, 2, 2, 3, 3, 3]
    assert curve.thresholds[1:-1] == pytest.approx([-0.15, -0.35, -0.55, -0.65, -0.8])
    assert curve.far[3] == pytest.approx(1 / 3)
    assert curve.tar[3] == pytest.approx(2 / 3)
    assert curve.eer() == pytest.approx(1 / 3)
    assert curve.auc() == pytest.approx(8 / 9)
    assert (curve.same, curve.different) == (3, 3)


def test_eer_lies_on_the_line_between_two_points() -> None:
    # One same and two different pairs in the order d s d: the ROC goes (0, 0), (.5, 0), (.5, 1), (1, 1); it meets
    # FAR = 1 - TAR on the upright piece at FAR .5.
    assert roc([2.0, 3.0, 1.0], [True, False, False]).eer() == pytest.approx(0.5)
    # Ties: one score has one same and one different pair, of 2 and 2. (0, .5) -> (.5, 1): FAR = 1 - TAR at (.25, .75).
    assert roc([3.0, 2.0, 2.0, 1.0], [True, True, False, False]).eer() == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(5))
def test_equals_plain_loops(seed: int) -> None:
    scores, same = random_pairs(seed)
    curve = roc(scores, same)
    a, b = scores[same], scores[~same]
    assert len(curve.far) == len(set(scores.tolist())) + 1 < len(scores), "there are ties"
    for far, tar, threshold in zip(curve.far, curve.tar, curve.thresholds, strict=True):
        assert far == np.mean(b > threshold)
        assert tar == np.mean(a > threshold)
    assert curve.auc() == pytest.approx(np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b]), abs=1e-12)
    rates = [(np.mean(b > t), np.mean(a > t)) for t in thresholds_to_try(scores)]
    for wanted in (0.02, 0.05, 0.1, 0.5, 0.999):
        assert curve.tar_at_far(wanted) == max(tar for far, tar in rates if far <= wanted)
        chosen = far_threshold(scores, same, wanted)
        assert np.mean(b > chosen) <= wanted
        assert np.mean(a > chosen) == curve.tar_at_far(wanted)


def test_perfect_reversed_and_constant() -> None:
    same = np.array([True, True, False, False])
    assert (roc([4.0, 3, 2, 1], same).auc(), roc([4.0, 3, 2, 1], same).eer()) == (1, 0)
    assert (roc([1.0, 2, 3, 4], same).auc(), roc([1.0, 2, 3, 4], same).eer()) == (0, 1)
    constant = roc([1.0] * 4, same)
    assert (constant.auc(), constant.eer(), constant.tar_at_far(0.5)) == (0.5, 0.5, 0)
    assert constant.far.tolist() == [0, 1], "equal scores are accepted or refused together"


def test_neighbouring_numbers_are_told_apart() -> None:
    """Between two neighbouring floats there is no middle: the threshold must not refuse what it should accept."""
    low = 1.0
    high = float(np.nextafter(low, 2))
    threshold = best_threshold([high, low], [True, False])
    assert accuracy([high, low], [True, False], threshold) == 1


def test_far_needs_one_false_accept() -> None:
    scores, same = random_pairs(0, different=60)
    curve = roc(scores, same)
    assert math.isnan(curve.tar_at_far(1 / 61))  # 60 pairs: not one may be accepted, a figure would be worth nothing
    assert math.isnan(curve.threshold_at_far(1 / 61))
    assert curve.tar_at_far(1 / 60) >= 0
    assert tar_interval(scores, same, 1 / 61) == pytest.approx((math.nan, math.nan), nan_ok=True)


@pytest.mark.parametrize(
    ("far", "different", "count"),
    [
        (0.29, 100, 29),  # 28.999999999999996 in floating point
        (0.01, 500, 5),
        (0.001, 500, 0),
        (1e-3, 2700, 2),  # View 2's nine folds: 2.7 pairs
        (1 - 1e-12, 10, 9),  # nearly all is not all
        (0.5, 0, 0),  # nobody to accept
    ],
)
def test_allowed_false_accepts(far: float, different: int, count: int) -> None:
    assert allowed(far, different) == count


@pytest.mark.parametrize("far", [0, 1, -0.1, 1.5, math.nan])
def test_no_rate(far: float) -> None:
    with pytest.raises(UserError, match=r"metric.fars: .* Fix: "):
        allowed(far, 100)


# --- thresholds ------------------------------------------------------------------------------------------------------


def test_best_threshold_is_the_middle_of_the_widest_stretch() -> None:
    # Accuracy 5/6 both between .2 and .5 and between .6 and .7; the first stretch is wider.
    assert best_threshold(*worked()) == pytest.approx(-0.35)
    # The score 2 belongs to one pair of each kind, so that leaving it on either side costs one: from 1 to 3 nothing changes.
    assert best_threshold([4, 3, 2, 2, 1, 0], [True, True, True, False, False, False]) == pytest.approx(2.0)
    # two stretches of the same width: the lower one
    assert best_threshold([6.0, 5, 4, 3], [True, False, True, False]) == pytest.approx(3.5)


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better(seed: int) -> None:
    scores, same = random_pairs(seed)
    best = accuracy(scores, same, best_threshold(scores, same))
    assert best == max(np.mean((scores > t) == same) for t in thresholds_to_try(scores))


@pytest.mark.parametrize(
    ("same", "expected"),
    [
        ([True, True, False, True], 0.75),  # reversed scores, mostly same: everybody is accepted
        ([False, True, False, False], 0.75),  # mostly different: nobody
        ([True, True, False, False], 0.5),  # as good as nothing
    ],
)
def test_best_is_all_or_nobody(same: list[bool], expected: float) -> None:
    scores = np.array([1.0, 1.0, 1.0, 1.0])
    assert accuracy(scores, same, best_threshold(scores, same)) == expected


def test_a_score_on_the_threshold_is_refused() -> None:
    """LFW's rule: same if the distance is *below* the threshold."""
    assert correct_calls([0.5, 0.5], [True, False], 0.5).tolist() == [False, True]
    assert math.isnan(accuracy([], [], 0.5))


# --- View 2 ----------------------------------------------------------------------------------------------------------


def test_view2_takes_each_threshold_from_the_other_folds() -> None:
    # Two folds. The first is best cut at 1.5, the second at 11.5; each is judged with the other's.
    scores = np.array([2.0, 1, 12, 11])
    found = view2(scores, [True, False, True, False], [0, 0, 1, 1])
    assert found.thresholds.tolist() == [11.5, 1.5]
    assert found.accuracies.tolist() == [0.5, 0.5]  # all refused, all accepted
    assert found.correct.tolist() == [False, True, True, False]


def test_view2_equals_a_plain_loop() -> None:
    scores, same = random_pairs(3, 150, 150)
    fold = np.arange(300) % 10 * 7  # any numbers
    found = view2(scores, same, fold)
    accuracies = []
    for f in sorted(set(fold.tolist())):
        rest = fold != f
        accuracies.append(np.mean((scores[~rest] > best_threshold(scores[rest], same[rest])) == same[~rest]))
    assert found.accuracies.tolist() == accuracies
    assert found.accuracy == pytest.approx(np.mean(accuracies))
    mean = sum(accuracies) / 10
    deviation = math.sqrt(sum((a - mean) ** 2 for a in accuracies) / 9)
    assert found.standard_error == pytest.approx(deviation / math.sqrt(10)) != 0


def test_view2_of_separated_and_of_constant_distances() -> None:
    same, fold = np.arange(60) % 2 == 0, np.arange(60) // 6
    perfect = view2(np.where(same, 1.0, -1.0), same, fold)
    assert (perfect.accuracy, perfect.standard_error) == (1, 0)
    constant = view2(np.zeros(60), same, fold)
    assert (constant.accuracy, constant.standard_error) == (0.5, 0)


# --- intervals -------------------------------------------------------------------------------------------------------


def resampled_tars(scores: np.ndarray, same: np.ndarray, far: float, samples: int) -> np.ndarray:
    """The bootstrap as one would write it down."""
    random = np.random.default_rng(5)
    a, b = scores[same], scores[~same]
    tars = []
    for _ in range(samples):
        drawn = np.concatenate([random.choice(a, len(a)), random.choice(b, len(b))])
        kinds = np.arange(len(scores)) < len(a)
        tars.append(roc(drawn, kinds).tar_at_far(far))
    return np.array(tars)


@pytest.mark.parametrize("far", [0.02, 0.1])
def test_interval_is_that_of_drawing_pairs(far: float) -> None:
    scores, same = random_pairs(1, 200, 100, steps=200)
    low, high = tar_interval(scores, same, far, resamples=20_000)
    expected = np.quantile(resampled_tars(scores, same, far, 3000), [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.02)
    assert low < roc(scores, same).tar_at_far(far) < high
    assert high - low > 0.1, "so that a tolerance of 0.02 means something"


def test_accuracy_interval_is_that_of_drawing_pairs() -> None:
    scores, same = random_pairs(2, 100, 300)
    correct = correct_calls(scores, same, 0.05)
    low, high = accuracy_interval(correct, same, resamples=20_000)
    random = np.random.default_rng(7)
    a, b = correct[same], correct[~same]
    drawn = [(random.choice(a, 100).sum() + random.choice(b, 300).sum()) / 400 for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.006)
    assert low < correct.mean() < high


def test_intervals_are_the_same_every_time() -> None:
    scores, same = random_pairs(0)
    assert tar_interval(scores, same, 0.1) == tar_interval(scores, same, 0.1)
    assert tar_interval(scores, same, 0.1) != tar_interval(scores, same, 0.1, seed=1)
    order = np.random.default_rng(0).permutation(len(scores))
    assert tar_interval(scores[order], same[order], 0.1) == tar_interval(scores, same, 0.1)


def test_intervals_of_certain_figures_are_points() -> None:
    same = np.arange(40) < 20
    assert tar_interval(np.where(same, 1.0, 0.0), same, 0.1) == (1, 1)
    assert accuracy_interval(np.ones(40, dtype=bool), same) == (1, 1)
    assert accuracy_interval([True, True], [True, True]) == (1, 1)  # one kind only
    assert all(map(math.isnan, accuracy_interval([], [])))


@pytest.mark.parametrize(
    ("far", "different", "words"),
    [
        (0.01, 1000, None),  # ten false accepts
        (0.01, 999, "rests on 9 of 999 different pairs"),
        (
            0.01,
            500,
            "TAR at FAR 0.01 rests on 5 of 500 different pairs, its 95 % interval is 0.21 to 0.35: at least 10",
        ),
        (
            0.001,
            500,
            "TAR at FAR 0.001 cannot be told from 500 different pairs: one false accept needs 1,000, a figure",
        ),
        (0.001, 0, "from 0 different pairs"),
    ],
)
def test_too_few(far: float, different: int, words: str | None) -> None:
    sentence = too_few(far, different, (0.21, 0.35))
    assert sentence is None if words is None else words in str(sentence)
    assert sentence is None or "nan" not in sentence


def test_too_few_without_an_interval() -> None:
    assert "interval" not in str(too_few(0.01, 500))


# --- hostile input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [roc, best_threshold, lambda s, k: tar_interval(s, k, 0.1)])
@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([0.1, 0.2], [True, True], r"2 pairs of one person and 0 of two.*Fix: "),  # no different pair
        ([0.1, 0.2], [False, False], r"0 pairs of one person and 2 of two.*Fix: "),  # no same pair
        ([], [], r"0 pairs of one person and 0 of two.*Fix: "),  # no pair
        ([0.1, math.nan, 0.2], [True, False, True], r"pair 2 of 3: the score is nan. Fix: "),
        ([0.1, -math.inf], [True, False], r"pair 2 of 2: the score is -inf. Fix: "),
        ([0.1, 0.2], [True], r"scores of shape \(2,\) for \(1,\) pairs. Fix: "),
        ([[0.1, 0.2]], [[True, False]], r"Fix: give one score per pair"),
    ],
)
def test_no_answer(function, scores, same, message) -> None:
    with pytest.raises(UserError, match=message):
        function(scores, same)


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ([0, 0, 0, 0], r"1 fold\(s\) of pairs.*Fix: "),  # the threshold would come from the test fold
        ([0, 0, 1, 1], r"0 pairs of one person and 2 of two"),  # the other fold has one kind
    ],
)
def test_folds_without_a_threshold(fold: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        view2([1.0, 2, 3, 4], [True, True, False, False], fold)


def test_large_counts_are_exact() -> None:
    """Products of the numbers of pairs stay whole numbers far above 32 bits."""
    count = 3_000_000
    curve = Roc(np.array([0, count, count]), np.array([0, 0, count]), np.array([2.0, 1, 0]), count, count)
    assert curve.auc() == 0
    curve = Roc(np.array([0, 0, count]), np.array([0, count, count]), np.array([2.0, 1, 0]), count, count)
    assert curve.auc() == 1
