"""Why a score is what it is: everything that is asked of the same findings, each computed once and when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cvexp.metrics.confidence import ConfidenceCurves, confidence_curves
from cvexp.metrics.confusion import ConfusionMatrix, count_confusions
from cvexp.metrics.definitions import Definitions, compare
from cvexp.metrics.errors import ErrorTypes, find_errors
from cvexp.metrics.findings import Findings
from cvexp.metrics.image_scores import ImageScores, rank_images

IOU = 0.5


@dataclass
class Explanation:
    """What explains the score of some findings, all at IoU 0.5.

    Attributes:
        findings: the evaluated images.
        score_threshold: from which on a detection counts in the confusion matrix and in the ranking of images; None takes the
            one at which the mean F1 of the classes is best.
    """

    findings: Findings
    score_threshold: float | None = None

    @cached_property
    def definitions(self) -> Definitions:
        return compare(self.findings, IOU)

    @cached_property
    def errors(self) -> ErrorTypes:
        return find_errors(self.findings, IOU)

    @cached_property
    def confidence(self) -> ConfidenceCurves:
        return confidence_curves(self.findings, IOU)

    @property
    def shown_from(self) -> float:
        """The score threshold that is used; 0 where no F1 is above 0."""
        if self.score_threshold is not None:
            return self.score_threshold
        best = self.confidence.best_mean()[1]
        return best if best == best else 0.0

    @cached_property
    def confusion(self) -> ConfusionMatrix:
        return count_confusions(self.findings, self.shown_from, IOU)

    @cached_property
    def images(self) -> ImageScores:
        return rank_images(self.findings, self.shown_from, IOU)

    def numbers(self) -> dict[str, float]:
        """Flat: AP by every definition, counts and costs of the errors, the best F1 and its threshold."""
        best, score = self.confidence.best_mean()
        return {**self.definitions.numbers(), **self.errors.numbers(), "F1/best": best, "F1/best_score": score}
