"""Jobs of a sweep that left no result, as its ledger tells: they belong to a comparison, too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cvexp.comparison.grouping import said
from cvexp.comparison.ranking import Failure
from cvexp.comparison.runs import DEEPEST, LEDGER, Run, Unfinished
from cvexp.config.messages import one_line
from cvexp.errors import UserError


def find_failures(paths: Sequence[Path], runs: Sequence[Run]) -> tuple[list[Failure], set[Path]]:
    """The jobs without a result of the sweeps at and below the paths.

    Args:
        runs: the finished ones; a job that has left a result is none of these, whatever its ledger says.

    Returns:
        The jobs, and their folders (resolved).
    """
    done = {run.folder.resolve() for run in runs}
    failures, folders = [], set()
    for folder in dict.fromkeys(_sweeps(paths)):
        found, reason = _jobs(folder)
        if reason:
            failures.append(Failure(one_line(str(folder)), "its ledger cannot be read", reason))
        for number, failure in found:
            place = (folder / str(number)).resolve()
            if place not in done:
                failures.append(failure)
                folders.add(place)
    return failures, folders


def _sweeps(paths: Sequence[Path]) -> Iterable[Path]:
    for path in paths:
        for depth in range(DEEPEST):
            yield from sorted(found.parent for found in path.glob("*/" * depth + LEDGER))


def _jobs(folder: Path) -> tuple[list[tuple[int, Failure]], str]:
    from cvexp.sweeps.ledger import FINISHED, Ledger

    try:
        jobs = Ledger.existing(folder).jobs()
    except (UserError, ValueError, TypeError) as error:
        return [], one_line(str(error))[:300]
    found = []
    for job in jobs:
        if job.state != FINISHED:
            label = " ".join(said(word) for word in job.words) or f"job {job.number}"
            state = f"{folder.name}/{job.number}: {one_line(job.state).replace('_', ' ')}"
            found.append((job.number, Failure(label, state, one_line(job.message)[:300])))
    return found, ""


def without(unfinished: Sequence[Unfinished], folders: set[Path]) -> list[Unfinished]:
    """Folders that are not told of by a ledger already."""
    return [one for one in unfinished if one.folder.resolve() not in folders]
