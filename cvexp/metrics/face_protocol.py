"""The figures of a face data set: its list of pairs, all pairs of its images, and who is nearest to whom.

What is measured and named here: `cvexp.metrics.verification` and `cvexp.metrics.identification` say how. Everything is a
number under a name, NaN where it cannot be had, and sentences about what the numbers cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cvexp.metrics.identification import Matrix, all_pairs, cmc, identify
from cvexp.metrics.verification import (
    Flags,
    Floats,
    Ints,
    Roc,
    accuracy,
    accuracy_interval,
    best_threshold,
    correct_calls,
    roc,
    tar_interval,
    too_few,
    view2,
)
from cvexp.types import FaceTruth, Pairs, UserError

if TYPE_CHECKING:
    from cvexp.comparators.comparator import Comparator

Numbers: TypeAlias = dict[str, float]

CMC_RANKS = (1, 10)
COLLAPSED = "all pairs have the same score: the embeddings have collapsed onto one point"


@dataclass(frozen=True)
class VerificationResult:
    """What a verification found, for plots and for the notes to a reader.

    Attributes:
        name: of the list of pairs.
        index: int64 ``[N]``, positions in that list of the pairs that were judged.
        scores: float64 ``[N]``.
        same: bool ``[N]``.
        roc: None without pairs of both kinds.
        threshold: in score units (View 2: the mean of the folds'), or None.
        chosen: where the threshold comes from, in words.
        measure: what a user is shown, such as ``squared distance``.
        falling: the measure is the score's negative.
        tars: FAR -> TAR and its interval, NaN where there are too few pairs.
        notes: sentences about what the figures cannot tell.
    """

    name: str
    index: Ints
    scores: Floats
    same: Flags
    roc: Roc | None
    threshold: float | None
    chosen: str
    measure: str
    falling: bool
    tars: dict[float, tuple[float, float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shown(self) -> Floats:
        """float64 ``[N]``: the measure of each pair."""
        return -self.scores if self.falling else self.scores


Outcome: TypeAlias = tuple[Numbers, VerificationResult]


@dataclass(frozen=True)
class Verdict:
    """How well one threshold, or one per fold, separates the pairs.

    Attributes:
        numbers: ``accuracy`` ... or ``best_accuracy``.
        threshold: in score units; None where there is none.
        chosen: where it comes from.
        note: what the numbers cannot tell, or empty.
    """

    numbers: Numbers
    threshold: float | None
    chosen: str
    note: str = ""


def judge_pairs(
    pairs: Pairs,
    index: Ints,
    scores: Floats,
    comparator: Comparator,
    threshold: float | None,
    fars: Sequence[float],
    resamples: int,
) -> Outcome:
    """Accuracy, threshold, AUC, EER and TAR at FAR of a list of pairs.

    Args:
        pairs: the whole list.
        index: int64 ``[N]``, the positions in it of the pairs that have a score.
        scores: ``[N]``.
        comparator: names the measure.
        threshold: in score units; None takes the best on the pairs. Several folds take theirs from each other.
        fars: the false accept rates at which TAR is wanted.
        resamples: bootstrap samples behind the intervals.

    Raises:
        UserError: a score is not finite.
    """
    same = pairs.same.numpy()[index]
    curve = roc(scores, same) if _both(same) else None
    verdict = _verdict(pairs, index, scores, same, threshold, resamples)
    numbers, notes = dict(verdict.numbers), [verdict.note] if verdict.note else []
    numbers["threshold"] = math.nan if verdict.threshold is None else comparator.shown(verdict.threshold)
    numbers |= {"AUC": curve.auc() if curve else math.nan, "EER": curve.eer() if curve else math.nan}
    tars = {far: _tar(curve, scores, same, far, resamples) for far in fars}
    for far, values in tars.items():
        name = tar_name(far)
        numbers |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        notes += _kept(too_few(far, curve.different, values[1:])) if curve else []
    notes += [COLLAPSED] if curve and len(curve.thresholds) == 2 else []
    left_out = len(pairs) - len(index)
    if left_out:
        notes.insert(0, f"{left_out:,} of {len(pairs):,} pairs are left out: not all their images were seen")
    numbers |= {"pairs": float(len(index)), "pairs_left_out": float(left_out)}
    return numbers, VerificationResult(
        pairs.name, index, scores, same, curve, verdict.threshold, verdict.chosen,
        comparator.measure, comparator.falling, tars, notes,
    )  # fmt: skip


def judge_all_pairs(
    embeddings: Tensor, labels: Tensor, matrix: Matrix, fars: Sequence[float], notes: list[str]
) -> Numbers:
    """AUC and TAR at FAR of every image ``[I, D]`` with every other.

    There are far more pairs than in a list, so FAR goes one power of ten further.

    Args:
        embeddings: ``[I, D]``.
        labels: int64 ``[I]``.
        matrix: gives the scores.
        fars: the false accept rates.
        notes: gets a sentence for each rate with too few pairs.
    """
    found = all_pairs(matrix, embeddings, labels)
    numbers = {"all_pairs/AUC": found.auc()}
    for far in (*fars, min(fars) / 10) if fars else ():
        numbers[f"all_pairs/{tar_name(far)}"] = found.tar_at_far(far)
        notes += [f"over all pairs of images, {note}" for note in _kept(too_few(far, found.different))]
    return numbers


def judge_identification(embeddings: Tensor, labels: Tensor, distractors: Tensor, matrix: Matrix) -> Numbers:
    """``rank1``, ``rank1_distractors`` (with any), ``CMC@1`` and ``CMC@10``; see `cvexp.metrics.identification`.

    Args:
        embeddings: ``[I, D]`` of the tested people.
        labels: int64 ``[I]``.
        distractors: ``[N, D]`` of strangers in the gallery.
        matrix: gives the scores.
    """
    found = identify(matrix, embeddings, labels, distractors)
    numbers = {"rank1": found.rank1}
    if len(distractors):
        numbers["rank1_distractors"] = found.rank1_distractors
    curve = cmc(found.ranks, max(CMC_RANKS))
    return numbers | {f"CMC@{rank}": float(curve[rank - 1]) for rank in CMC_RANKS}


def tar_name(far: float) -> str:
    """``TAR@1e-2``."""
    return f"TAR@{np.format_float_scientific(far, precision=6, trim='-', exp_digits=1)}"


def check_truth(truth: FaceTruth) -> None:
    """Refuses a truth that contradicts itself.

    Raises:
        UserError: what is wrong and with which value.
    """
    ids = truth.image_ids
    if not len(ids) == len(truth.labels) == len(truth.distractor):
        raise UserError(
            f"{len(ids)} images with {len(truth.labels)} labels and {len(truth.distractor)} distractor flags. Fix: one each."
        )
    values, counts = ids.unique(return_counts=True)
    if (counts > 1).any():
        raise UserError(f"image id {values[counts > 1][0]} stands for several images. Fix: one id per image.")
    if ((truth.labels < 0) | (truth.labels >= len(truth.people))).any():
        low, high = truth.labels.min(), truth.labels.max()
        raise UserError(f"labels {low}..{high} for {len(truth.people)} people. Fix: labels count the people from 0.")
    _check_pairs(truth.pairs, ids, truth.distractor)


def _check_pairs(pairs: Pairs, ids: Tensor, distractor: Tensor) -> None:
    if not len(pairs.first) == len(pairs.second) == len(pairs.same) == len(pairs.fold):
        raise UserError(f"{pairs.name}: the columns of the pairs differ in length. Fix: one entry per pair in each.")
    used = torch.cat([pairs.first, pairs.second])
    for wrong, what in ((~torch.isin(used, ids), "no image"), (torch.isin(used, ids[distractor]), "a distractor")):
        if wrong.any():
            raise UserError(
                f"{pairs.name}: image id {used[wrong][0]} of a pair is {what} of the split. Fix: correct the list, or give "
                "the images that it names."
            )


def _verdict(
    pairs: Pairs, index: Ints, scores: Floats, same: Flags, threshold: float | None, resamples: int
) -> Verdict:
    if len(pairs.fold.unique()) > 1:
        return _of_folds(pairs.fold.numpy()[index], scores, same, resamples)
    if not _both(same):
        given = threshold is not None
        names = ("accuracy", "accuracy_low", "accuracy_high") if given else ("best_accuracy",)
        note = f"{len(same):,} pairs, all of one kind: no accuracy and no curve"
        return Verdict(dict.fromkeys(names, math.nan), threshold, "given" if given else "", note)
    if threshold is None:
        best = best_threshold(scores, same)
        note = "best_accuracy is optimistic: its threshold was chosen on the same pairs"
        return Verdict({"best_accuracy": accuracy(scores, same, best)}, best, "best on these pairs", note)
    return Verdict(_with_interval(correct_calls(scores, same, threshold), same, resamples), threshold, "given")


def _of_folds(fold: Ints, scores: Floats, same: Flags, resamples: int) -> Verdict:
    rest = [same[fold != number] for number in np.unique(fold)]
    if len(rest) < 2 or not all(map(_both, rest)):
        names = ("accuracy", "accuracy_low", "accuracy_high", "accuracy_se")
        note = f"{len(same):,} pairs lie in too few folds to choose a threshold on the others: no accuracy"
        return Verdict(dict.fromkeys(names, math.nan), None, "", note)
    found = view2(scores, same, fold)
    numbers = _with_interval(found.correct, same, resamples)
    numbers |= {"accuracy": found.accuracy, "accuracy_se": found.standard_error}
    return Verdict(numbers, float(found.thresholds.mean()), f"mean over {len(rest)} folds, each from the others")


def _with_interval(correct: Flags, same: Flags, resamples: int) -> Numbers:
    low, high = accuracy_interval(correct, same, resamples)
    return {"accuracy": float(correct.mean()), "accuracy_low": low, "accuracy_high": high}


def _tar(curve: Roc | None, scores: Floats, same: Flags, far: float, resamples: int) -> tuple[float, float, float]:
    if curve is None:
        return math.nan, math.nan, math.nan
    return curve.tar_at_far(far), *tar_interval(scores, same, far, resamples)


def _both(same: Flags) -> bool:
    return bool(same.any() and not same.all())


def _kept(sentence: str | None) -> list[str]:
    return [sentence] if sentence else []
