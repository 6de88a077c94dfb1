"""PairEvidence: the figures of any draw of pairs, equal to those of a list in which the pairs are repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_verification_metric import faces, filled

from cvexp.metrics.face_protocol import tar_name
from cvexp.metrics.pair_evidence import PairEvidence
from cvexp.metrics.significance import draws
from cvexp.metrics.verification import accuracy, roc
from cvexp.types import UserError


def example(scores: list[float], same: list[int], correct: list[int] | None = None, **given) -> PairEvidence:
    """The pairs of one fold."""
    columns = {
        "ids": np.arange(len(scores)),
        "fold": np.zeros(len(scores), np.int64),
        "fars": (0.4,),
        "fingerprint": "x",
    }
    flags = None if correct is None else np.array(correct, bool)
    return PairEvidence(scores=np.array(scores), same=np.array(same, bool), correct=flags, **(columns | given))


WORKED = example([-0.1, -0.2, -0.6, -0.5, -0.7, -0.9], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("weights", "measure", "expected"),
    [
        ([1, 1, 1, 1, 1, 1], "accuracy", 5 / 6),
        ([1, 1, 1, 1, 1, 1], "AUC", 8 / 9),
        ([1, 1, 1, 1, 1, 1], "TAR@4e-1", 1.0),  # one false accept of three: all same pairs are above .7
        ([1, 2, 0, 1, 1, 1], "accuracy", 1.0),  # the wrong one is not drawn
        ([1, 2, 0, 1, 1, 1], "AUC", 1.0),
        ([1, 0, 2, 1, 1, 1], "accuracy", 4 / 6),  # the wrong one twice
        ([1, 0, 2, 1, 1, 1], "AUC", 7 / 9),
        ([1, 0, 2, 2, 1, 0], "TAR@4e-1", 1 / 3),  # .5 counts twice, more than the one that is allowed
        ([0, 0, 0, 1, 1, 1], "AUC", math.nan),  # no same pair drawn
        ([0, 0, 0, 1, 1, 1], "accuracy", 1.0),
        ([1, 1, 1, 1, 1, 0], "TAR@4e-1", math.nan),  # 0.4 of two different pairs is not one false accept
        ([0, 0, 0, 0, 0, 0], "accuracy", math.nan),  # nothing drawn
    ],
)
def test_the_worked_example(weights: list[int], measure: str, expected: float) -> None:
    assert WORKED.values([weights], measure)[0] == pytest.approx(expected, nan_ok=True)


def test_equal_scores_are_accepted_together_and_count_half() -> None:
    evidence = example([0.5, 0.5, 0.1, 0.5, 0.2, 0.1], [1, 1, 1, 0, 0, 0])
    assert evidence.measures == ("AUC", "TAR@4e-1")  # without a threshold no accuracy
    assert evidence.values([[1] * 6], "AUC")[0] == pytest.approx((2 * 2.5 + 0.5) / 9)
    assert evidence.values([[1] * 6], "TAR@4e-1")[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_pairs_are_repeated_pairs(seed: int) -> None:
    """Against the plain functions of the verification; scores on a grid, hence ties of both kinds."""
    random = np.random.default_rng(seed)
    same = np.arange(60) % 3 > 0
    scores = np.round(random.normal(same * 1.0, 1.0), 1)
    correct = (scores > 0.5) == same
    evidence = example(scores.tolist(), same.tolist(), correct.tolist(), fars=(0.1, 0.3))
    for weights in draws(60, 10, seed):
        taken = np.repeat(np.arange(60), weights)
        curve = roc(scores[taken], same[taken])
        expected = {"accuracy": accuracy(scores[taken], same[taken], 0.5), "AUC": curve.auc()}
        expected |= {tar_name(far): curve.tar_at_far(far) for far in (0.1, 0.3)}
        assert set(expected) == set(evidence.measures)
        for measure, value in expected.items():
            assert evidence.values(weights[None], measure)[0] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("folds", [1, 10])  # a given threshold; each fold's from the others
def test_all_pairs_once_is_the_metric(folds: int) -> None:
    truth, embeddings = faces(folds=folds)
    metric = filled(truth, embeddings, fars=(0.2, 0.1))
    metric.threshold = -6.0 if folds == 1 else None
    numbers = metric.compute()
    evidence = metric.evidence
    assert evidence is not None
    assert evidence.measures == ("accuracy", "AUC", "TAR@2e-1", "TAR@1e-1")
    for measure in evidence.measures:
        assert evidence.values(np.ones((1, 60)), measure)[0] == pytest.approx(float(numbers[measure]), abs=1e-12)
    assert 0.5 < numbers["accuracy"] < 1


def test_the_interval_is_the_metrics_own() -> None:
    """Drawn in the same manner, so equal up to the noise of 4,000 draws."""
    truth, embeddings = faces(pairs=600, people=40)
    metric = filled(truth, embeddings, fars=(0.05,), resamples=4000)
    metric.threshold = -6.0
    numbers = metric.compute()
    evidence = metric.evidence
    assert evidence is not None
    weights = draws(600, 4000, 1, evidence.strata)
    assert (weights[:, evidence.same].sum(axis=1) == 300).all()  # drawn apart
    for measure in ("accuracy", "TAR@5e-2"):
        low, high = np.quantile(evidence.values(weights, measure), [0.025, 0.975])
        theirs = float(numbers[f"{measure}_low"]), float(numbers[f"{measure}_high"])
        assert (low, high) == pytest.approx(theirs, abs=0.01)
        assert high - low > 0.03


def test_a_threshold_chosen_on_the_pairs_gives_no_accuracy() -> None:
    metric = filled(*faces())
    assert metric.evidence is None  # nothing is computed yet
    metric.compute()
    assert metric.evidence is not None
    assert metric.evidence.measures == ("AUC",)  # 30 different pairs: no TAR at 1e-2, either


def test_pairs_of_one_kind_have_no_evidence() -> None:
    truth, embeddings = faces()
    truth.pairs.same = torch.ones_like(truth.pairs.same)
    metric = filled(truth, embeddings)
    metric.compute()
    assert metric.evidence is None


def test_the_fingerprint_is_of_the_pairs() -> None:
    truth, embeddings = faces()
    prints = []
    for seen in (embeddings, embeddings + 1):
        metric = filled(truth, seen)
        metric.compute()
        prints.append(metric.evidence.fingerprint)
    part = filled(truth, embeddings)
    part._rows.pop(int(truth.pairs.first[0]))  # an image that was not seen: fewer pairs
    part.compute()
    assert prints[0] == prints[1] != part.evidence.fingerprint
    assert len(part.evidence.ids) < 60


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = draws(6, 50)
    whole = WORKED.values(weights, "AUC")
    monkeypatch.setattr("cvexp.metrics.pair_evidence.AT_ONCE", 20)  # three draws at a time
    np.testing.assert_array_equal(WORKED.values(weights, "AUC"), whole)


@pytest.mark.parametrize(("weights", "measure"), [([[1] * 6], "EER"), ([[1] * 5], "AUC"), ([[1] * 5 + [-1]], "AUC")])
def test_what_makes_no_sense_is_refused(weights: list, measure: str) -> None:
    with pytest.raises(UserError, match="Fix: "):
        WORKED.values(weights, measure)
