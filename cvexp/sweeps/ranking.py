"""The jobs of a sweep side by side: which words make the difference, who is best, what seeds do to it."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cvexp.resume import decides
from cvexp.sweeps.ledger import FINISHED, PRUNED, Job, Ledger

GIB = 2**30
MISSING = "-"
"""Where a job does not have a word that others have."""
_HEADLINES = ("test/AP", "test/accuracy", "test/AUC")


@dataclass(frozen=True)
class SeedGroup:
    """Finished jobs that differ in nothing but their seed.

    Attributes:
        jobs: by number.
        mean, std: of their values; the standard deviation of a sample (divided by n - 1).
        test_mean, test_std: of their test scores; None where one has none.
    """

    jobs: tuple[Job, ...]
    mean: float
    std: float
    test_mean: float | None = None
    test_std: float | None = None


@dataclass(frozen=True)
class Ranking:
    """A sweep as its ledger says it stands.

    Attributes:
        folder: of the sweep.
        jobs: by number.
        monitor: the value by which jobs are ranked.
        mode: ``max`` or ``min``.
        wanted: trials of a search; None of a grid.
        log: keys that a search goes through by orders of magnitude; None where that is not known.
    """

    folder: Path
    jobs: tuple[Job, ...]
    monitor: str = "val/AP"
    mode: str = "max"
    wanted: int | None = None
    log: tuple[str, ...] | None = None

    @classmethod
    def of(cls, ledger: Ledger) -> Ranking:
        """That of a ledger, now."""
        about = ledger.about()
        mode = "min" if about.get("mode") == "min" else "max"
        monitor, wanted, log = str(about.get("monitor", "val/AP")), about.get("n_trials"), about.get("log")
        return cls(ledger.folder, tuple(ledger.jobs()), monitor, mode, wanted, None if log is None else tuple(log))

    @cached_property
    def ranked(self) -> tuple[Job, ...]:
        """The best first; then those that were pruned, then those without a value, by number."""
        return tuple(sorted(self.jobs, key=self._place))

    def _place(self, job: Job) -> tuple[int, float, int]:
        value = value_of(job)
        if value is None or job.state not in (FINISHED, PRUNED):
            return 2, 0.0, job.number
        return int(job.state == PRUNED), -value if self.mode == "max" else value, job.number

    @property
    def best(self) -> Job | None:
        """The best that has finished; None before."""
        first = self.ranked[0] if self.ranked else None
        return first if first and first.state == FINISHED and value_of(first) is not None else None

    @cached_property
    def states(self) -> Mapping[str, int]:
        """How many jobs are in each state."""
        return Counter(job.state for job in self.jobs)

    # -- words ---------------------------------------------------------------------------------------------------------

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """Keys of the words in which jobs differ, in the order of the words.

        Not those that some jobs lack and that make no other result: they were typed when the sweep went on.
        """
        rows = [words_of(job) for job in self.jobs]
        keys = dict.fromkeys(key for row in rows for key in row)
        differ = [key for key in keys if len({row.get(key) for row in rows}) > 1]
        return tuple(key for key in differ if decides(key) or all(key in row for row in rows))

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The `varied` keys, each as short as it is still told from the others: ``lr`` for ``optimizer.lr``."""
        parts = {key: key.replace("/", ".").split(".") for key in self.varied}
        ends = {key: [".".join(part[-n:]) for n in range(1, len(part) + 1)] for key, part in parts.items()}
        times = Counter(end for key in self.varied for end in ends[key])
        return {key: next((end for end in ends[key] if times[end] == 1), key) for key in self.varied}

    def changed(self, job: Job) -> dict[str, str]:
        """A job's values of the `varied` keys, as they were typed."""
        words = words_of(job)
        return {key: words.get(key, MISSING) for key in self.varied}

    def command(self, job: Job) -> str:
        """The command line that trains as a job did, to copy."""
        words = [*job.words, *(["hydra.mode=RUN"] if any(word.startswith("search=") for word in job.words) else [])]
        return "python -m cvexp.train " + shlex.join(words)

    def predict_command(self, job: Job) -> str | None:
        """The command line that uses a job's best checkpoint; None without one."""
        path = self.folder / str(job.number) / "checkpoints" / "best.ckpt"
        if not path.is_file():
            return None
        faces = any(name.endswith("/AUC") for name in job.result)
        source = "<face> against=<another face>" if faces else "<image, folder, video or camera>"
        return f"python -m cvexp.predict {shlex.quote(f'ckpt={path}')} source={source}"

    # -- scores --------------------------------------------------------------------------------------------------------

    @cached_property
    def test_name(self) -> str | None:
        """The test's own name of the monitored value, or the first headline that jobs have; None where none was tested."""
        tested = {name for job in self.jobs for name in job.result if name.startswith("test/")}
        wanted = (self.monitor.replace("val/", "test/", 1), *_HEADLINES)
        return next((name for name in wanted if name in tested), None)

    def test_score(self, job: Job) -> float | None:
        return None if self.test_name is None else number(job.result.get(self.test_name))

    @cached_property
    def seeds(self) -> tuple[SeedGroup, ...]:
        """Groups of at least two finished jobs that differ in their seed alone, the best mean first."""
        if "seed" not in self.varied:
            return ()
        groups: dict[Any, list[Job]] = {}
        for job in self.jobs:
            if job.state == FINISHED and value_of(job) is not None:
                words = tuple(sorted(item for item in words_of(job).items() if item[0] != "seed"))
                groups.setdefault(words, []).append(job)
        found = [self._group(jobs) for jobs in groups.values() if len(jobs) > 1]
        return tuple(sorted(found, key=lambda group: group.mean, reverse=self.mode == "max"))

    def _group(self, jobs: Sequence[Job]) -> SeedGroup:
        values = [value for value in map(value_of, jobs) if value is not None]
        tested = [score for score in map(self.test_score, jobs) if score is not None]
        test = (statistics.mean(tested), statistics.stdev(tested)) if len(tested) == len(jobs) else (None, None)
        return SeedGroup(tuple(jobs), statistics.mean(values), statistics.stdev(values), *test)


def words_of(job: Job) -> dict[str, str]:
    """The words of a job by their keys, without ``+``."""
    pairs = (word.partition("=") for word in job.words)
    return {key.lstrip("+"): value for key, _, value in pairs}


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def value_of(job: Job) -> float | None:
    """The finite number by which a job is ranked; None where it has none."""
    return number(job.value)


def short(text: str, digits: int = 4) -> str:
    """A word's value for a table: numbers with a few digits, ``0.00012345678`` as ``0.0001235``."""
    try:
        found = float(text)
    except ValueError:
        return text
    return format(found, f".{digits}g") if math.isfinite(found) and not text.lstrip("-").isdecimal() else text
