"""How sure is a figure, and is a difference real? Intervals over test units and spread over seeds, taken together.

Two things are left to chance when a network is trained and tested: the seed of the training, and which images (or pairs of
faces) happened to be in the test set. A difference is called real if other seeds *and* other test units would show it, too.

Sources: the bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, percentile interval and paired
resampling; degrees of freedom: Welch, Biometrika 34, 1947, and Satterthwaite, Biometrics Bulletin 2, 1946; several
comparisons: Holm, Scand. J. Statistics 6, 1979.

**The interval of a figure**: the percentiles of its bootstrap draws, moved by twice the bias of the draws. AP is higher the
fewer images there are (the envelope takes the best of what chance offers): a test set's AP lies above that of all images, and
a draw's, with fewer distinct images, above the test set's by about as much. What is unbiased, as accuracy, is not moved.

The difference of two means over seeds, ``a - b``:

- **Units**: all networks are judged on the same bootstrap draws. The standard deviation of the difference over the draws is
  ``se_units``; what is easy or hard for both sides cancels. Other test sets on the two sides: drawn apart, nothing cancels.
- **Seeds**: ``se_seeds^2 = s_a^2 / n_a + s_b^2 / n_b`` with the standard deviations over the seeds. Seeds are *not* paired:
  the same number starts two architectures from weights that have nothing in common.
- **Together**: what an image does to one seed and not to another is in both. With ``r`` the variance, over the draws, of a
  seed's distance from the mean of its side (divided by n - 1 and n), summed over the sides,
  ``se^2 = max(se_units^2 + se_seeds^2 - r, se_units^2, se_seeds^2)``. Without ``- r`` it would be counted twice, and true
  differences would be missed.
- **Test**: Student's t with Welch and Satterthwaite's degrees of freedom ``se^4 / sum of (s^2 / n)^2 / (n - 1)``; the units
  count as known. In simulations two equal models are called different in 1.7 % to 6.5 % of the cases (2 to 5 seeds, 100
  images).

With one seed on a side nobody knows what another seed would give: the test is then about *these two trained networks*.

Worked example, seeds only: a = .50 .52 .54, b = .45 .46 .47. a - b = .06; s_a^2 / 3 = 1.3333e-4, s_b^2 / 3 = 0.3333e-4;
se = .0129099, df = (1.6667e-4)^2 / ((1.3333e-4)^2 / 2 + (0.3333e-4)^2 / 2) = 2.9412, t = 4.6476, p = 0.0197.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy.special import stdtr, stdtrit

from cvexp.metrics.evidence import Evidence
from cvexp.metrics.findings import Floats, Ints
from cvexp.types import UserError

LEVEL = 0.95
ALPHA = 1 - LEVEL
TOLERANCE = 1e-4
"""Between a run's figure and what its evidence gives: another implementation of a measure may round otherwise."""
FEW = 20
"""With fewer units the bootstrap says less than it seems to."""

Evidences: TypeAlias = Sequence[Evidence | None]


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        value: mean over the seeds.
        low, high: 95 % interval over the units of the test set, for these trained networks; None without evidence.
        std: over the seeds, ddof 1; None with one.
        seeds: how many.
    """

    value: float
    low: float | None
    high: float | None
    std: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """What can be said of ``a - b``.

    Attributes:
        value: difference of the means over the seeds.
        low, high: 95 % interval; None where nothing is known of its uncertainty.
        p: two-sided, of no difference; None like the interval.
        p_adjusted: the same until `adjusted` corrects it for the number of comparisons.
        se_units: standard error from the choice of the test units; None without evidence.
        se_seeds: standard error from the seeds; None with one seed on a side.
        df: degrees of freedom of the t test; infinite with evidence alone.
        paired: both sides were judged on the same draws.
        real: ``p_adjusted`` < 0.05; only then is a difference to be claimed.
        verdict: plain sentences on what the evidence does and does not allow.
        unit: what was drawn, as ``images``.
        units: how many of them were tested, of the smaller side; None without evidence.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    se_units: float | None
    se_seeds: float | None
    df: float
    paired: bool
    real: bool
    verdict: str
    unit: str = "test units"
    units: int | None = None


@dataclass(frozen=True)
class _Spread:
    """Variances of a difference.

    Attributes:
        units: from the test units; None: unknown.
        seeds: from the seeds; None: unknown.
        both: what is contained in both.
        df: of ``seeds`` alone: their variance squared divided by this is the degrees of freedom.
        paired: on the same draws.
    """

    units: float | None
    seeds: float | None
    both: float
    df: float
    paired: bool

    @property
    def total(self) -> float | None:
        known = [part for part in (self.units, self.seeds) if part is not None]
        return max(sum(known) - self.both, *known) if known else None

    @property
    def freedom(self) -> float:
        """Welch and Satterthwaite's, at least one."""
        return max(1.0, float((self.total or 0.0) ** 2 / self.df)) if self.df > 0 else math.inf


def draws(units: int, samples: int, seed: int = 0, strata: Ints | None = None) -> Ints:
    """Bootstrap samples: int64 ``[B, U]``, how often each of ``units`` is drawn when as many are drawn with replacement.

    Args:
        units: their number U.
        samples: number of draws B.
        seed: of the draws; equal ones give equal draws.
        strata: int ``[U]``: units of different numbers are drawn apart, each as often as there are.

    Raises:
        UserError: no unit or no sample.
    """
    if units < 1 or samples < 1:
        raise UserError(
            f"{samples} bootstrap samples of {units} units. Fix: at least one of each; 1000 samples are usual."
        )
    random = np.random.default_rng(seed)
    drawn = np.zeros((samples, units), np.int64)
    groups = np.zeros(units, np.int64) if strata is None else strata
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        drawn[:, own] = random.multinomial(len(own), np.full(len(own), 1 / len(own)), samples)
    return drawn


def estimate(
    values: Sequence[float], evidences: Evidences, measure: str, samples: int = 1000, seed: int = 0
) -> Estimate:
    """Mean and spread over seeds, and the interval of the mean over the test's units.

    Args:
        values: of each seed, as in its result.json.
        evidences: of each seed, or None; the interval needs all of them, all of one test set.
        measure: name in the evidence, as ``AP``.
        samples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        UserError: no value, not one evidence (or None) per value, or an evidence that contradicts its value.
    """
    figures = _figures(values, evidences)
    resampled = _resampled(figures, evidences, measure, samples, seed)
    low = high = None
    if resampled is not None and len({evidence.fingerprint for evidence in evidences if evidence}) == 1:
        low, high = _interval(float(figures.mean()), resampled.mean(axis=0))
    std = float(figures.std(ddof=1)) if len(figures) > 1 else None
    return Estimate(float(figures.mean()), low, high, std, len(figures))


def difference(
    a_values: Sequence[float],
    a_evidences: Evidences,
    b_values: Sequence[float],
    b_evidences: Evidences,
    measure: str,
    samples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Whether a differs from b; see above. Several comparisons at once: `adjusted` them afterwards.

    Args:
        a_values, b_values: of each seed, as in its result.json.
        a_evidences, b_evidences: of each seed, or None.
        measure: name in the evidence, as ``AP``.
        samples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        UserError: as `estimate`.
    """
    a, b = _figures(a_values, a_evidences), _figures(b_values, b_evidences)
    sides = [_resampled(a, a_evidences, measure, samples, seed), _resampled(b, b_evidences, measure, samples, seed)]
    spread = _spread(a, b, sides, [*a_evidences, *b_evidences])
    value = float(a.mean() - b.mean())
    total = spread.total
    low = high = p = None
    if total is not None:
        error = math.sqrt(total)
        reach = t_quantile((1 + LEVEL) / 2, spread.freedom) * error
        low, high = value - reach, value + reach
        p = two_sided_p(value / error, spread.freedom) if error > 0 else float(value == 0)
    units, seeds = (None if part is None else math.sqrt(part) for part in (spread.units, spread.seeds))
    known = [evidence for evidence in (*a_evidences, *b_evidences) if evidence is not None]
    found = Difference(
        value, low, high, p, p, units, seeds, spread.freedom, spread.paired, p is not None and p < ALPHA, "",
        known[0].unit if known else "test units", min((len(evidence.ids) for evidence in known), default=None),
    )  # fmt: skip
    return replace(found, verdict=_verdict(found))


def adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences as one family: `holm`'s p, and what follows from it for ``real`` and ``verdict``."""
    new = holm([d.p if d.p is not None else math.nan for d in differences])
    return [_with_p(d, p) for d, p in zip(differences, new, strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: with all of them held against 0.05, the chance of *any* false one stays below 0.05.

    The smallest of m is multiplied by m, the next by m - 1, ...; none is smaller than one before it, none above 1. NaN stays
    NaN and does not count. Example: 0.01, 0.04, 0.03 become 0.03, 0.06, 0.06.
    """
    p = np.asarray(ps, np.float64)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN sorts last
    out = np.full(len(p), np.nan)
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return out.tolist()


def t_quantile(probability: float, df: float) -> float:
    """Of Student's t; with infinite ``df`` of the normal distribution."""
    return float(stdtrit(min(df, 1e9), probability))


def two_sided_p(t: float, df: float) -> float:
    """The probability of a t at least that far from 0."""
    return float(2 * stdtr(min(df, 1e9), -abs(t)))


def _figures(values: Sequence[float], evidences: Evidences) -> Floats:
    figures = np.asarray(values, np.float64)
    if not len(figures) or len(figures) != len(evidences):
        raise UserError(
            f"{len(figures)} figures with {len(evidences)} evidences. Fix: give one or more runs, with one evidence (or "
            "None) each."
        )
    if not np.isfinite(figures).all():
        raise UserError(f"the figures {figures.tolist()} are not all numbers. Fix: leave out the runs without one.")
    return figures


def _resampled(figures: Floats, evidences: Evidences, measure: str, samples: int, seed: int) -> Floats | None:
    """``[n, B]``, each seed's figure of each draw; None where one of them has no evidence of this measure.

    A draw without a figure (no object in it) is NaN.
    """
    rows = []
    for figure, evidence in zip(figures, evidences, strict=True):
        if evidence is None or measure not in evidence.measures or len(evidence.ids) < 2:
            return None
        own, drawn = _drawn_values(evidence, measure, samples, seed)
        if not abs(own - figure) <= TOLERANCE:
            raise UserError(
                f"the evidence gives {measure} {own:.5f}, but the run's result is {figure:.5f}: they are of different "
                "evaluations. Fix: write both anew with python -m cvexp.evaluate ckpt=<the run's checkpoint>, or delete its "
                "evidence.npz."
            )
        rows.append(drawn)
    resampled = np.array(rows)
    return resampled if np.isfinite(resampled.sum(axis=0)).sum() > samples / 2 else None


def _interval(value: float, drawn: Floats) -> tuple[float, float]:
    """Percentiles of the draws ``[B]``, moved by twice their bias; it holds ``value``, and shares stay shares."""
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2]) - 2 * (drawn.mean() - value)
    if drawn.min() >= 0 and drawn.max() <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return min(float(low), value), max(float(high), value)


def _drawn_values(evidence: Evidence, measure: str, samples: int, seed: int) -> tuple[float, Floats]:
    """The figure of the units as they are, and of the draws ``[B]``; kept with the evidence, for the next comparison."""
    kept = vars(evidence).setdefault("_drawn_values", {})
    key = (measure, samples, seed)
    if key not in kept:
        units = len(evidence.ids)
        drawn = draws(units, samples, seed, evidence.strata)
        figures = evidence.values(np.concatenate([np.ones((1, units), np.int64), drawn]), measure)
        kept[key] = float(figures[0]), figures[1:]
    return kept[key]


def _spread(a: Floats, b: Floats, sides: Sequence[Floats | None], evidences: Evidences) -> _Spread:
    known = [evidence for evidence in evidences if evidence is not None]
    paired = len({evidence.fingerprint for evidence in known}) == 1
    each = [figures.var(ddof=1) / len(figures) if len(figures) > 1 else math.nan for figures in (a, b)]
    seeds = sum(each) if min(len(a), len(b)) > 1 else None
    df = 0.0 if seeds is None else sum(v**2 / (len(f) - 1) for v, f in zip(each, (a, b), strict=True))
    units, both = _of_units(sides, paired)
    return _Spread(units, seeds, both if seeds is not None else 0.0, df, paired and units is not None)


def _of_units(sides: Sequence[Floats | None], paired: bool) -> tuple[float | None, float]:
    """The variance of the difference over the draws (None: unknown), and how much of it is in the seeds' spread, too."""
    if any(side is None for side in sides):
        return None, 0.0
    a, b = (side for side in sides if side is not None)
    both = _seed_by_unit(a) + _seed_by_unit(b)
    if paired:
        return float(np.nanvar(a.mean(axis=0) - b.mean(axis=0), ddof=1)), both
    return float(sum(np.nanvar(side.mean(axis=0), ddof=1) for side in (a, b))), both


def _seed_by_unit(drawn: Floats) -> float:
    """What units do to single seeds, as variance of the mean over the seeds ``[n, B]``; 0 with one seed."""
    seeds = len(drawn)
    if seeds < 2:
        return 0.0
    return float(np.nanvar(drawn - drawn.mean(axis=0), axis=1, ddof=1).sum()) / (seeds - 1) / seeds


def _with_p(found: Difference, p: float) -> Difference:
    if found.p is None:
        return found
    changed = replace(found, p_adjusted=p, real=p < ALPHA)
    return replace(changed, verdict=_verdict(changed))


def _verdict(found: Difference) -> str:
    if found.p_adjusted is None:
        return (
            "Nothing can be told: one seed on a side and no evidence of both. Fix: run seed=1,2,3, and write evidence.npz with "
            "python -m cvexp.evaluate ckpt=<the run's checkpoint>."
        )
    unpaired = found.se_units is not None and not found.paired
    few = found.se_units is not None and (found.units or 0) < FEW
    sentences = [
        _finding(found, found.p_adjusted),
        _scope(found),
        f"The two sides were tested on different {found.unit} or settings, so nothing cancels." if unpaired else "",
        f"Fewer than {FEW} {found.unit}: take it with caution." if few else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _finding(found: Difference, p: float) -> str:
    """Which is higher, and whether it is real."""
    shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
    if not found.real:
        return f"No difference can be told (p {shown})."
    return f"Real: the {'first' if found.value > 0 else 'second'} is higher by {abs(found.value):.4g} (p {shown})."


def _scope(found: Difference) -> str:
    """What the finding holds for, and what would allow more."""
    if found.se_seeds is None:
        return (
            "It holds for these trained networks alone: with one seed on a side nobody knows how much another seed would "
            "change. Fix: run seed=1,2,3."
        )
    if found.se_units is None:
        return f"It holds for other seeds on this test set; without evidence of both nothing is known of other {found.unit}."
    doubt = "more seeds (seed=1,2,3,4,5)" if found.se_seeds > found.se_units else f"more test {found.unit}"
    helps = "" if found.real else f" What would help most: {doubt}."
    return f"It holds for other seeds and for other {found.unit} of the same kind.{helps}"
