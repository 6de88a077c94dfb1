"""The numbers of a comparison: each group's measure with its interval, its budget, and the differences of pairs.

One `Ranking` for each test set: scores on different images say nothing about one another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from cvexp.comparison.grouping import Group, check_by, differing, group_runs, test_sets
from cvexp.comparison.runs import Run
from cvexp.config import suggest
from cvexp.config.messages import listing
from cvexp.errors import UserError

if TYPE_CHECKING:
    from cvexp.metrics.evidence import Evidence
    from cvexp.metrics.significance import Difference, Estimate

HEADLINES = ("test/AP", "test/accuracy", "test/AUC", "test/AP50", "val/best")
"""What is compared where nothing is asked for: the first that half of the runs have, else the first that any has."""
LOWER = re.compile(r"(loss|seconds|error|EER|FMR|FNMR|FAR$|flops|memory|bytes|parameters|skipped)", re.IGNORECASE)
"""Measures of which less is better."""
PAIRS_OF_ALL = 8
"""So many groups are compared each with each, more only with the best."""
TOLERANCE = 1.1
"""Budgets within ten per cent are the same."""


@dataclass(frozen=True)
class Quantity:
    """Something a run costs.

    Attributes:
        key: of ``result.json``.
        label: heading of its column.
        scale: factor to the unit of the label.
        meaning: one sentence.
    """

    key: str
    label: str
    scale: float
    meaning: str


BUDGET = {
    "images": Quantity("train/images", "images seen", 1, "training images seen, with repetition"),
    "minutes": Quantity("train/seconds", "minutes", 1 / 60, "of training, on the machine of the run"),
    "parameters": Quantity("model/parameters", "parameters", 1, "of the whole model"),
    "gflops": Quantity("model/flops", "GFLOPs", 1e-9, "of one image at test, 2 x MAC"),
    "memory": Quantity("peak/memory_bytes", "memory, MiB", 2**-20, "the most that a process of the run held"),
    "gpu_memory": Quantity("peak/gpu_memory_bytes", "GPU memory, MiB", 2**-20, "the most that the run held there"),
    "ms": Quantity("test/seconds_per_image", "ms / image", 1e3, "network and post-process of the test pass"),
}


@dataclass(frozen=True)
class Spread:
    """A quantity over the runs of a group: mean, sample standard deviation (None with one run) and number of runs."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of the values that are there; None without any."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        mean = math.fsum(known) / len(known)
        square = math.fsum((value - mean) ** 2 for value in known)
        return cls(mean, math.sqrt(square / (len(known) - 1)) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Entry:
    """A group in a ranking.

    Attributes:
        group: its runs.
        values: the measure of each run; None where a run has none.
        estimate: None where no run has the measure.
        budget: by the names of `BUDGET`; what no run knows is missing.
        classes: the measure of each class, by name.
    """

    group: Group
    values: tuple[float | None, ...]
    estimate: Estimate | None
    budget: Mapping[str, Spread]
    classes: Mapping[str, Spread]

    @property
    def label(self) -> str:
        return self.group.label


@dataclass(frozen=True)
class Pair:
    """Two groups and how far they are apart (the first's value minus the second's)."""

    first: str
    second: str
    difference: Difference


@dataclass(frozen=True)
class Failure:
    """A job of a sweep that left no result.

    Attributes:
        label: its words.
        state: as ``out of memory``.
        message: why.
    """

    label: str
    state: str
    message: str = ""


@dataclass(frozen=True)
class Ranking:
    """Groups that were tested on the same images, the best first.

    Attributes:
        data: names of the data sets.
        test_set: hash of the tested part; None where no run tells.
        images: how many; None where it is not known.
        unit: what an interval is drawn over.
        measure: key of ``result.json``.
        lower: less is better.
        samples: of the bootstrap.
        entries: the groups.
        pairs: differences, Holm-adjusted together.
        differs: keys of the configuration that are not the same in all groups.
        notes: what has to be said beside the table.
    """

    data: str
    test_set: str | None
    images: int | None
    unit: str
    measure: str
    lower: bool
    samples: int
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    differs: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def title(self) -> str:
        count = "" if self.images is None else f", {self.images} {self.unit}"
        return f"{self.data}{count}"


def lower_is_better(measure: str) -> bool:
    """Whether less is better, by the measure's name."""
    parts = measure.split("/")
    return not parts[min(1, len(parts) - 1)].startswith("AP") and bool(LOWER.search(measure))  # not by a class's name


def rank_all(
    runs: Sequence[Run], measure: str = "", by: Sequence[str] = (), baseline: str = "", samples: int = 1000
) -> list[Ranking]:
    """A ranking for each test set.

    Args:
        runs: finished.
        measure: key of ``result.json``; empty: see `HEADLINES`.
        by: see `cvexp.comparison.grouping.group_runs`.
        baseline: label of the group that all others are compared with; empty: each with each.
        samples: of the bootstrap.

    Raises:
        UserError: an unknown measure, baseline or ``by``, or evidence that cannot be read.
    """
    if measure:
        check_measure(runs, measure)
    if by:
        check_by(runs, by)
    sets = [(part, _groups(part, by)) for part in test_sets(runs)]
    labels = [group.label for _, groups in sets for group in groups]
    if baseline and baseline not in labels:
        hint = suggest(baseline, labels)
        raise UserError(f"baseline={baseline}: no such group. {hint} Fix: one of {'; '.join(dict.fromkeys(labels))}")
    return [_rank(groups, measure or headline(part), baseline, samples) for part, groups in sets]


def _groups(runs: Sequence[Run], by: Sequence[str]) -> list[Group]:
    known = [name for name in by if any(name in (*run.choices, "model", "data") or name in _keys(run) for run in runs)]
    return group_runs(runs, known)


def _keys(run: Run) -> Mapping[str, Any]:
    from cvexp.comparison.grouping import decisive

    return decisive(run)


def headline(runs: Sequence[Run]) -> str:
    """What runs of one test set are compared by.

    Raises:
        UserError: they have no measure at all.
    """
    counts = {name: sum(run.number(name) is not None for run in runs) for name in HEADLINES}
    for fewest in (len(runs) / 2, 1):
        for name, count in counts.items():
            if count >= fewest:
                return name
    known = _measures(runs)
    raise UserError(
        f"{runs[0].folder}: its result.json has none of {', '.join(HEADLINES)}. Fix: measure=<one of its keys"
        f"{': ' + listing(known, 8) if known else ''}>"
    )


def check_measure(runs: Sequence[Run], measure: str) -> None:
    """
    Raises:
        UserError: no run has it.
    """
    known = _measures(runs)
    if measure not in known:
        hint = suggest(measure, known) or suggest(f"test/{measure}", known)
        raise UserError(
            f"measure={measure}: no run has it in its result.json; {hint} Fix: one of {listing(known, 24) or '(none)'}"
        )


def _measures(runs: Sequence[Run]) -> list[str]:
    return sorted({str(name) for run in runs for name in run.results if run.number(name) is not None})


def _rank(groups: Sequence[Group], measure: str, baseline: str, samples: int) -> Ranking:
    lower = lower_is_better(measure)
    runs = [run for group in groups for run in group.runs]
    evidence, said = usable_evidence(runs, measure, samples)
    entries = [_entry(group, measure, evidence, samples) for group in groups]
    entries.sort(key=lambda entry: _place(entry, lower))
    some = next((found for found in evidence.values() if found is not None), None)
    images = {run.number("test/images") for run in runs} - {None}
    units = len(some.ids) if some else int(images.pop() or 0) if len(images) == 1 else None
    return Ranking(
        data=" and ".join(dict.fromkeys(run.data for run in runs)),
        test_set=runs[0].test_set,
        images=units,
        unit=some.unit if some else "images",
        measure=measure,
        lower=lower,
        samples=samples,
        entries=tuple(entries),
        pairs=tuple(_pairs(entries, measure, evidence, baseline, samples)),
        differs=tuple(differing([group.settings for group in groups])),
        notes=tuple(said),
    )


def usable_evidence(runs: Sequence[Run], measure: str, samples: int) -> tuple[dict[Run, Evidence | None], list[str]]:
    """The evidence of each run for a measure, and what is to be said of what cannot be used.

    Only evidence of one fingerprint (the most frequent) is used: other truths cannot be paired. One that contradicts the run's
    ``result.json`` is of another evaluation.
    """
    said: list[str] = []
    fits = {run: _fitting(run, measure, samples, said) for run in runs}
    prints = [e.fingerprint for e in fits.values() if e is not None]
    if len(set(prints)) > 1:
        most = max(prints, key=prints.count)
        left = [run.folder.name for run, e in fits.items() if e is not None and e.fingerprint != most]
        fits = {run: e if e is not None and e.fingerprint == most else None for run, e in fits.items()}
        said.append(
            f"{len(left)} run(s) were measured against another truth (other difficult objects or ids): {', '.join(left[:5])};"
            " they have no interval here and are compared by their seeds alone."
        )
    return fits, said


def _fitting(run: Run, measure: str, samples: int, said: list[str]) -> Evidence | None:
    """The evidence of a run if it has the measure; ``said`` is told where it contradicts the result."""
    from cvexp.metrics.significance import estimate

    name = measure.removeprefix("test/") if measure.startswith("test/") else ""
    value = run.number(measure)
    if value is None or run.evidence is None or name not in run.evidence.measures:
        return None
    try:
        estimate([value], [run.evidence], name, samples)  # what it draws is kept for the group's
    except UserError as error:
        said.append(f"{run.folder}: its evidence.npz is left out: {error}")
        return None
    return run.evidence


def _entry(group: Group, measure: str, evidence: Mapping[Run, Evidence | None], samples: int) -> Entry:
    from cvexp.metrics.significance import estimate

    values = [run.number(measure) for run in group.runs]
    known = [(v, evidence[run]) for v, run in zip(values, group.runs, strict=True) if v is not None]
    short = measure.removeprefix("test/")
    made = estimate([v for v, _ in known], _all_or_none([e for _, e in known]), short, samples) if known else None
    budget = {name: Spread.of(_scaled(run, quantity) for run in group.runs) for name, quantity in BUDGET.items()}
    classes: dict[str, Spread | None] = {
        name: Spread.of(run.number(f"{measure}/{name}") for run in group.runs) for name in _class_names(group, measure)
    }
    return Entry(group, tuple(values), made, _known(budget), _known(classes))


def _all_or_none(evidences: Sequence[Evidence | None]) -> list[Evidence | None]:
    """A group half of whose runs have evidence is treated as one without: the interval would be of that half."""
    return list(evidences) if all(e is not None for e in evidences) else [None] * len(evidences)


def _scaled(run: Run, quantity: Quantity) -> float | None:
    value = run.number(quantity.key)
    return None if value is None or value < 0 else value * quantity.scale


def _class_names(group: Group, measure: str) -> list[str]:
    start = f"{measure}/"
    return sorted({name[len(start) :] for run in group.runs for name in run.results if name.startswith(start)})


def _known(found: Mapping[str, Spread | None]) -> dict[str, Spread]:
    return {name: spread for name, spread in found.items() if spread is not None}


def _place(entry: Entry, lower: bool) -> tuple[bool, float]:
    if entry.estimate is None:
        return True, 0.0
    return False, entry.estimate.value if lower else -entry.estimate.value


def _pairs(
    entries: Sequence[Entry], measure: str, evidence: Mapping[Run, Evidence | None], baseline: str, samples: int
) -> list[Pair]:
    """Each with each; with a baseline, or with many groups, each with that (else with the best)."""
    from cvexp.metrics.significance import adjusted, difference

    measured = [entry for entry in entries if entry.estimate is not None]
    chosen = list(combinations(measured, 2))
    centre = next((entry for entry in measured if entry.label == baseline), None)
    if centre is None and len(measured) > PAIRS_OF_ALL:
        centre = measured[0]
    if centre is not None:
        chosen = [(other, centre) for other in measured if other is not centre]
    short = measure.removeprefix("test/")
    found = adjusted([difference(*_told(a, evidence), *_told(b, evidence), short, samples) for a, b in chosen])
    return [Pair(a.label, b.label, _named(d, a.label, b.label)) for (a, b), d in zip(chosen, found, strict=True)]


def _named(found: Difference, first: str, second: str) -> Difference:
    """The verdict with the groups' names in it."""
    named = found.verdict.replace("the first is higher", f"{first} is higher")
    return replace(found, verdict=named.replace("the second is higher", f"{second} is higher"))


def _told(entry: Entry, evidence: Mapping[Run, Evidence | None]) -> tuple[list[float], list[Evidence | None]]:
    runs = [(v, evidence[run]) for v, run in zip(entry.values, entry.group.runs, strict=True) if v is not None]
    return [v for v, _ in runs], _all_or_none([e for _, e in runs])
