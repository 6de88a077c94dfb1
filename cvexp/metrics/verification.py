"""Is it the same person? ROC, thresholds and accuracies of scored pairs, as the face papers report them.

Source: Huang et al., "Labeled Faces in the Wild", UMass TR 07-49, 2007 (View 1 and View 2); Schroff et al., FaceNet, CVPR
2015, arXiv 1503.03832 (VAL at FAR). Plain functions on numpy arrays; a **score is larger the more alike** two faces are.

Conventions:

- A pair is called the same person if ``score > threshold``. A threshold lies half-way between two neighbouring scores, so
  equal scores are accepted or refused together.
- FAR is the share of the different pairs that are accepted, TAR that of the same pairs, FRR = 1 - TAR.
- **TAR at FAR f** is the largest TAR whose FAR does not exceed f: at most ``floor(f * different pairs)`` false accepts, no
  interpolation. It is NaN where not even one false accept is allowed.
- **EER**: where FAR = FRR, on the straight line between the two neighbouring points of the ROC.
- **AUC**: the share of (same, different) pairs that are in the right order, ties counted one half.
- **Intervals** are percentiles of bootstrap samples in which same and different pairs are drawn apart. They treat pairs as
  independent; pairs that share a face make the truth somewhat wider.

Worked example: distances .1 .2 .6 of same and .5 .7 .9 of different pairs, scores their negatives. A threshold between -.6
and -.5 accepts .1, .2 and .5: FAR 1/3, TAR 2/3, so EER = 1/3. Eight of the nine (same, different) pairs are in order: AUC 8/9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvexp.types import UserError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]
Interval: TypeAlias = tuple[float, float]

LEVEL = 0.95
ENOUGH = 10
"""With fewer false accepts than this a TAR at FAR is too rough to compare by."""


@dataclass(frozen=True)
class Roc:
    """The ROC, from "accept nobody" to "accept everybody": one point per distinct score and one more.

    Attributes:
        false_accepts: int64 ``[P]``, different pairs with ``score > threshold``.
        true_accepts: int64 ``[P]``, same pairs.
        thresholds: float64 ``[P]``, falling.
        same, different: the numbers of pairs.
    """

    false_accepts: Ints
    true_accepts: Ints
    thresholds: Floats
    same: int
    different: int

    @property
    def far(self) -> Floats:
        """float64 ``[P]``, rising from 0 to 1."""
        return self.false_accepts / self.different

    @property
    def tar(self) -> Floats:
        """float64 ``[P]``, rising from 0 to 1."""
        return self.true_accepts / self.same

    def auc(self) -> float:
        """Share of the (same, different) pairs in the right order, ties one half: the area under the ROC."""
        heights = (
            self.true_accepts[1:] + self.true_accepts[:-1]
        )  # twice the mean height: whole numbers, nothing is rounded
        return float(np.sum(np.diff(self.false_accepts) * heights)) / (2 * self.same * self.different)

    def eer(self) -> float:
        """The error rate where FAR = FRR."""
        gap = self.far - (1 - self.tar)  # rises strictly from -1 to 1
        k = int(np.searchsorted(gap, 0))
        part = -gap[k - 1] / (gap[k] - gap[k - 1])
        return float(self.far[k - 1] + part * (self.far[k] - self.far[k - 1]))

    def tar_at_far(self, far: float) -> float:
        """The largest TAR whose FAR does not exceed ``far``; NaN where ``far * different < 1``."""
        k = self._last(far)
        return float(self.tar[k]) if k is not None else math.nan

    def threshold_at_far(self, far: float) -> float:
        """The threshold that `tar_at_far` belongs to; NaN like it."""
        k = self._last(far)
        return float(self.thresholds[k]) if k is not None else math.nan

    def _last(self, far: float) -> int | None:
        limit = allowed(far, self.different)
        return int(np.searchsorted(self.false_accepts, limit, side="right")) - 1 if limit else None


@dataclass(frozen=True)
class View2:
    """Accuracy over folds, each judged with the threshold of the others.

    Attributes:
        accuracies: float64 ``[F]``.
        thresholds: float64 ``[F]``, of each fold from the other folds alone.
        correct: bool ``[N]``, which pairs were judged rightly.
    """

    accuracies: Floats
    thresholds: Floats
    correct: Flags

    @property
    def accuracy(self) -> float:
        """Mean over the folds."""
        return float(self.accuracies.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean: ``std(ddof=1) / sqrt(F)``, what the papers write behind ±."""
        return float(self.accuracies.std(ddof=1)) / math.sqrt(len(self.accuracies))


def roc(scores: ArrayLike, same: ArrayLike) -> Roc:
    """The ROC of scores ``[N]`` of pairs that are of one person, or not, bool ``[N]``.

    Raises:
        UserError: a score is not finite, or all pairs are of one kind.
    """
    values, of_same, of_different = _counted(scores, same)
    true_accepts = np.concatenate([[0], np.cumsum(of_same[::-1])])
    false_accepts = np.concatenate([[0], np.cumsum(of_different[::-1])])
    below_all = np.nextafter(values[0], -np.inf)
    thresholds = np.concatenate([[values[-1]], _between(values[:-1], values[1:])[::-1], [below_all]])
    return Roc(false_accepts, true_accepts, thresholds, int(of_same.sum()), int(of_different.sum()))


def best_threshold(scores: ArrayLike, same: ArrayLike) -> float:
    """The threshold of best accuracy: the middle of the widest stretch without a loss, of equally wide ones the lowest.

    Where it is best to accept everybody (nobody), it lies just below the lowest (on the highest) score.

    Raises:
        UserError: as `roc`.
    """
    values, of_same, of_different = _counted(scores, same)
    # Cut k refuses the k lowest values.
    correct = np.concatenate([[0], np.cumsum(of_different - of_same)]) + of_same.sum()
    best = np.flatnonzero(correct == correct.max())
    inner = best[(best > 0) & (best < len(values))]
    if not inner.size:
        return float(values[-1] if best[-1] else np.nextafter(values[0], -np.inf))
    runs = np.split(inner, np.flatnonzero(np.diff(inner) > 1) + 1)
    low = np.array([values[run[0] - 1] for run in runs])
    high = np.array([values[run[-1]] for run in runs])
    widest = int(np.argmax(high - low))
    return float(_between(low, high)[widest])


def far_threshold(scores: ArrayLike, same: ArrayLike, far: float) -> float:
    """The threshold of the largest TAR whose FAR does not exceed ``far``; NaN where there are too few different pairs."""
    return roc(scores, same).threshold_at_far(far)


def correct_calls(scores: ArrayLike, same: ArrayLike, threshold: float) -> Flags:
    """bool ``[N]``: which pairs ``score > threshold`` judges rightly."""
    scores, same = _checked(scores, same)
    return (scores > threshold) == same


def accuracy(scores: ArrayLike, same: ArrayLike, threshold: float) -> float:
    """The share of the pairs that ``score > threshold`` judges rightly; NaN without pairs."""
    correct = correct_calls(scores, same, threshold)
    return float(correct.mean()) if correct.size else math.nan


def view2(scores: ArrayLike, same: ArrayLike, fold: ArrayLike) -> View2:
    """LFW's View 2: every fold is judged with the best threshold of the others.

    Args:
        scores: ``[N]``.
        same: bool ``[N]``.
        fold: int ``[N]``, any numbers.

    Raises:
        UserError: fewer than two folds; pairs of one kind only in the folds that a threshold comes from.
    """
    scores, same = _checked(scores, same)
    fold = np.asarray(fold)
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise UserError(
            f"{len(numbers)} fold(s) of pairs: each fold's threshold comes from the others. Fix: give a list of several "
            "folds (LFW's pairs.txt has ten), or a threshold for a list of one."
        )
    thresholds = np.array([best_threshold(scores[fold != f], same[fold != f]) for f in numbers])
    correct = (scores > thresholds[np.searchsorted(numbers, fold)]) == same
    return View2(np.array([correct[fold == f].mean() for f in numbers]), thresholds, correct)


def tar_interval(scores: ArrayLike, same: ArrayLike, far: float, resamples: int = 1000, seed: int = 0) -> Interval:
    """The 95 % bootstrap interval of TAR at FAR; NaN like the figure itself.

    A sample is not drawn pair by pair, which would give the same distribution: the limit is the ``m + 1``-th largest of D
    scores drawn with replacement, whose position follows from a beta distribution, and the number of drawn same pairs above
    it is binomial. So the cost does not depend on the number of pairs.

    Raises:
        UserError: as `roc`.
    """
    scores, same = _checked(scores, same)
    _both(same)
    falling, rising = np.sort(scores[~same])[::-1], np.sort(scores[same])
    count, limit = len(falling), allowed(far, len(falling))
    if not limit:
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    position = (count * random.beta(limit + 1, count - limit, resamples)).astype(np.int64)
    thresholds = falling[np.minimum(position, count - 1)]
    share = 1 - np.searchsorted(rising, thresholds, side="right") / len(rising)
    return _percentiles(random.binomial(len(rising), share) / len(rising))


def accuracy_interval(correct: ArrayLike, same: ArrayLike, resamples: int = 1000, seed: int = 0) -> Interval:
    """The 95 % bootstrap interval of an accuracy at fixed thresholds.

    Args:
        correct: bool ``[N]``, which pairs were judged rightly; drawn with replacement their number is binomial.
        same: bool ``[N]``.
        resamples: number of bootstrap samples.
        seed: of the samples.
    """
    correct, same = np.asarray(correct, dtype=bool), np.asarray(same, dtype=bool)
    if not correct.size:
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    parts = [correct[kind] for kind in (same, ~same) if kind.any()]
    drawn = np.stack([random.binomial(len(part), part.mean(), resamples) for part in parts])
    return _percentiles(drawn.sum(axis=0) / len(correct))


def allowed(far: float, different: int) -> int:
    """How many false accepts a FAR allows.

    Raises:
        UserError: ``far`` is not between 0 and 1.
    """
    if not 0 < far < 1:
        raise UserError(f"metric.fars: {far} is no false accept rate. Fix: give numbers between 0 and 1, such as 0.01.")
    wanted = math.floor(far * different * (1 + 1e-9))  # 0.29 * 100 is 28.999999999999996
    return min(wanted, max(different - 1, 0))


def too_few(far: float, different: int, interval: Interval | None = None) -> str | None:
    """A sentence where fewer than ten false accepts carry a TAR at FAR, else None.

    Args:
        far: the false accept rate.
        different: number of different pairs.
        interval: of the TAR, as `tar_interval` gives it, to be named.
    """
    limit = allowed(far, different)
    if limit >= ENOUGH:
        return None
    if not limit:
        return (
            f"TAR at FAR {far:g} cannot be told from {different:,} different pairs: one false accept needs "
            f"{math.ceil(1 / far - 1e-6):,}, a figure to compare by {math.ceil(ENOUGH / far - 1e-6):,}"
        )
    spread = f", its 95 % interval is {interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
    return (
        f"TAR at FAR {far:g} rests on {limit} of {different:,} different pairs{spread}: at least {ENOUGH} are needed for a "
        "figure to compare by"
    )


def _checked(scores: ArrayLike, same: ArrayLike) -> tuple[Floats, Flags]:
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same, dtype=bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise UserError(f"scores of shape {scores.shape} for {same.shape} pairs. Fix: give one score per pair.")
    finite = np.isfinite(scores)
    if not finite.all():
        n = int(np.argmin(finite))
        raise UserError(
            f"pair {n + 1} of {len(scores):,}: the score is {scores[n]}. Fix: the network puts out NaN or infinity; lower "
            "optimizer.lr or set trainer.precision=32-true, or take an earlier checkpoint."
        )
    return scores, same


def _both(same: Flags) -> None:
    count = int(same.sum())
    if not 0 < count < len(same):
        raise UserError(
            f"{count:,} pairs of one person and {len(same) - count:,} of two: nothing can be told apart. Fix: give a list "
            "that has both kinds; in a run of few batches raise trainer.limit_val_batches or trainer.limit_test_batches."
        )


def _counted(scores: ArrayLike, same: ArrayLike) -> tuple[Floats, Ints, Ints]:
    """The distinct scores ``[U]``, rising, and how many same and different pairs have each."""
    scores, same = _checked(scores, same)
    _both(same)
    values, place = np.unique(scores, return_inverse=True)
    of_same = np.bincount(place[same], minlength=len(values))
    return values, of_same, np.bincount(place[~same], minlength=len(values))


def _between(low: Floats, high: Floats) -> Floats:
    """The middle of each gap; never ``high`` itself, which would have to be accepted."""
    middle = low + (high - low) / 2
    return np.where(middle < high, middle, low)


def _percentiles(values: NDArray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
