"""What a verification's figures rest on, pair by pair, so that they can be computed again with other pairs drawn.

**What is drawn are pairs, same and different ones apart**, as for the intervals of `cvexp.metrics.verification`, so that the
interval beside a figure and the one of a comparison agree. Drawing people instead would be right where people take part in
many pairs, but a pair of two people would be drawn as often as the product of both says: where most people take part in one
or two pairs, as in LFW's list, the variance of pairs that are all but independent would come out up to three times too
large. Pairs that share a face make the truth somewhat wider than the interval.

Thresholds stay as they are: the given one, or each fold's from the others.

Worked example: distances .1 .2 .6 of same and .5 .7 .9 of different pairs, scores their negatives, threshold -.4. Five of six
are right, AUC 8/9. With .2 drawn twice and .6 not: accuracy 1, AUC 1; with .6 twice and .2 not: 4/6 and 7/9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvexp.metrics.detection_evidence import check_measure, checked_weights
from cvexp.metrics.face_protocol import VerificationResult, tar_name
from cvexp.metrics.findings import Bools, Floats, Ints
from cvexp.metrics.verification import allowed, correct_calls, view2
from cvexp.types import Pairs

AT_ONCE = 3_000_000
"""Numbers in the largest array of a chunk of draws: 24 MB, and a few of them at a time."""


@dataclass(frozen=True, eq=False)
class PairEvidence:
    """N judged pairs of faces; more alike have larger scores.

    Attributes:
        ids: int64 ``[N]``, positions in the split's list of pairs, ascending.
        scores: float64 ``[N]``.
        same: bool ``[N]``, pairs of one person.
        fold: int64 ``[N]``; the accuracy is the mean over the folds.
        correct: bool ``[N]``, judged rightly; None where there is no accuracy.
        fars: the false accept rates of TAR@FAR.
        fingerprint: of the list and the ids; equal ones may be compared pair by pair.
    """

    kind: ClassVar[str] = "verification"
    unit: ClassVar[str] = "pairs"

    ids: Ints
    scores: Floats
    same: Bools
    fold: Ints
    correct: Bools | None
    fars: tuple[float, ...]
    fingerprint: str

    @classmethod
    def of(
        cls, pairs: Pairs, result: VerificationResult, threshold: float | None, fars: Sequence[float]
    ) -> Self | None:
        """The evidence of what a metric has computed; None without pairs of both kinds.

        Args:
            pairs: the split's whole list.
            result: of `cvexp.metrics.face_protocol.judge_pairs`.
            threshold: that was given; None: it was chosen on the same pairs, and there is no accuracy.
            fars: the false accept rates.
        """
        if result.roc is None:
            return None
        fold = pairs.fold.numpy()[result.index]
        correct = _correct(len(pairs.fold.unique()) > 1, fold, result, threshold)
        print_ = _fingerprint(pairs, result.index)
        return cls(result.index, result.scores, result.same, fold, correct, tuple(map(float, fars)), print_)

    @property
    def strata(self) -> Ints:
        """int64 ``[N]``: same and different pairs are drawn apart."""
        return self.same.astype(np.int64)

    @property
    def measures(self) -> tuple[str, ...]:
        """``accuracy`` where there is one, ``AUC``, and ``TAR@1e-2`` ... where there are enough different pairs."""
        different = int((~self.same).sum())
        tars = (tar_name(far) for far in self.fars if allowed(far, different))
        return (*(() if self.correct is None else ("accuracy",)), "AUC", *tars)

    def values(self, weights: ArrayLike, measure: str) -> Floats:
        """A figure of every draw.

        Args:
            weights: ``[B, N]``, how often each pair is drawn; not negative.
            measure: one of ``measures``.

        Returns:
            float64 ``[B]``; NaN where a draw lacks a kind of pairs, a fold, or enough different pairs.

        Raises:
            UserError: another measure, or weights of another shape.
        """
        check_measure(measure, self.measures)
        drawn = checked_weights(weights, len(self.ids))
        step = max(1, AT_ONCE // max(1, len(self.ids)))
        chunks = [drawn[b : b + step] for b in range(0, len(drawn), step)]
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is the NaN that is meant
            return np.concatenate([np.zeros(0), *(self._figure(chunk, measure) for chunk in chunks)])

    def arrays(self) -> dict[str, NDArray]:
        """What a file holds."""
        correct = {} if self.correct is None else {"correct": self.correct}
        return {
            "ids": self.ids, "scores": self.scores, "same": self.same, "fold": self.fold.astype(np.int32),
            "fars": np.array(self.fars, np.float64), "fingerprint": np.array(self.fingerprint), **correct,
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The reverse of `arrays`.

        Raises:
            KeyError, ValueError: an array is missing, or contradicts the others.
        """
        ids, fold = (arrays[name].astype(np.int64) for name in ("ids", "fold"))
        scores, same, correct = np.asarray(arrays["scores"], np.float64), arrays["same"], arrays.get("correct")
        columns = [ids, fold, scores, same, *([] if correct is None else [correct])]
        flags = [same, *([] if correct is None else [correct])]
        problems = {
            "columns that differ in length": any(column.shape != (len(ids),) for column in columns),
            "flags that are none": any(column.dtype != np.bool_ for column in flags),
            "ids that do not ascend": bool((np.diff(ids, axis=0) <= 0).any()),
            "a score that is not finite": not np.isfinite(scores).all(),
            "pairs of one kind only": not same.any() or bool(same.all()),
            "a false accept rate outside 0 to 1": not ((arrays["fars"] > 0) & (arrays["fars"] < 1)).all(),
        }
        for problem, found in problems.items():
            if found:
                raise ValueError(problem)
        return cls(ids, scores, same, fold, correct, tuple(arrays["fars"].tolist()), str(arrays["fingerprint"]))

    def _figure(self, drawn: Floats, measure: str) -> Floats:
        if measure == "accuracy":
            return self._accuracy(drawn)
        same, different = self._by_score(drawn)
        if measure == "AUC":
            below = np.cumsum(different, axis=1) - different / 2  # ties one half
            return (same * below).sum(axis=1) / (same.sum(axis=1) * different.sum(axis=1))
        far = next(far for far in self.fars if tar_name(far) == measure)
        return _tar(same[:, ::-1], different[:, ::-1], far)

    def _accuracy(self, drawn: Floats) -> Floats:
        assert self.correct is not None
        folds = [self.fold == number for number in np.unique(self.fold)]
        of_folds = [(drawn[:, fold] @ self.correct[fold]) / drawn[:, fold].sum(axis=1) for fold in folds]
        return np.mean(of_folds, axis=0)

    def _by_score(self, drawn: Floats) -> tuple[Floats, Floats]:
        """The drawn same and different pairs of each distinct score, rising: ``[B, V]`` each."""
        order = np.argsort(self.scores, kind="stable")
        ranked = self.scores[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        same = self.same[order]
        drawn = drawn[:, order]
        return np.add.reduceat(drawn * same, starts, axis=1), np.add.reduceat(drawn * ~same, starts, axis=1)


def _tar(same: Floats, different: Floats, far: float) -> Floats:
    """TAR at FAR ``[B]`` from drawn pairs by falling score; NaN where not one false accept is allowed."""
    of_different = different.sum(axis=1)
    limits = np.array([allowed(far, int(count)) for count in of_different])
    accepted = (np.cumsum(different, axis=1) <= limits[:, None]).sum(axis=1)  # so many scores may be accepted
    true = np.pad(np.cumsum(same, axis=1), ((0, 0), (1, 0)))[np.arange(len(same)), accepted]
    return np.where(limits > 0, true / same.sum(axis=1), np.nan)


def _correct(folds: bool, fold: Ints, result: VerificationResult, threshold: float | None) -> Bools | None:
    """bool ``[N]``, which pairs are judged rightly; None where `judge_pairs` gives no ``accuracy``."""
    if not folds:
        return None if threshold is None else correct_calls(result.scores, result.same, threshold)
    return None if result.threshold is None else view2(result.scores, result.same, fold).correct


def _fingerprint(pairs: Pairs, index: Ints) -> str:
    digest = hashlib.sha256(b"verification")
    for column in (pairs.first, pairs.second, pairs.same, pairs.fold):
        digest.update(column.numpy()[index].tobytes())
    digest.update(index.tobytes())
    return digest.hexdigest()
