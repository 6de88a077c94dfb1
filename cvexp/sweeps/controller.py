"""The sweep itself: which jobs there are, which of them are to be started, and what came of all.

What a job does is `cvexp.sweeps.job`; what is known of it stands in the ledger alone. So nothing here has to survive: a sweep
that goes on reads the ledger, looks at the folders of those that never said how they ended, and starts the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvexp import launch
from cvexp.errors import UserError
from cvexp.resume import decides, last_checkpoint, locked, only_one
from cvexp.sweeps.ledger import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    NOT_FINITE,
    OUT_OF_MEMORY,
    PENDING,
    RUNNING,
    STATES,
    Job,
    Ledger,
    identity,
)  # fmt: skip
from cvexp.sweeps.outcome import result_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A sweep that this process conducts.

    Attributes:
        ledger: of its jobs.
        launcher: Hydra's, which runs each job somewhere.
        retry: states that are started again.
        typed: words of the command.
        compose: makes the configuration of a job's words, as the launcher will; None: nothing is tried beforehand.
    """

    ledger: Ledger
    launcher: Any
    retry: tuple[str, ...]
    typed: frozenset[str] = frozenset()
    compose: Callable[[list[str]], Any] | None = None

    @property
    def folder(self) -> Path:
        return self.ledger.folder

    def to_start(self, jobs: Sequence[Job]) -> list[Job]:
        """Those of the jobs that are neither a result nor in the hands of a living process."""
        return [job for job in jobs if job.state in (PENDING, INTERRUPTED, *self.retry)]

    def start(self, jobs: Sequence[Job]) -> list[Job]:
        """Runs those of the jobs that are `to_start`, by the launcher, and returns all as they stand afterwards."""
        waiting = self.to_start(jobs)
        for job in waiting:
            if job.state in self.retry:
                self.ledger.mark(job.number, PENDING)  # a job that has ended would not begin
        waiting = [job for job in waiting if self._composes(job)]
        for group in _blocks(waiting) if isinstance(self.launcher, BasicLauncher) else filter(None, [waiting]):
            self.launcher.launch([self._words(job) for job in group], initial_job_idx=group[0].number)
        settle(self.ledger)
        return [self.ledger.job(job.number) for job in jobs]

    def _composes(self, job: Job) -> bool:
        """Whether there is a configuration of the job's words; where not, it has failed, and the others go on."""
        try:
            if self.compose is not None:
                self.compose(self._words(job))
        except (HydraException, OmegaConfBaseException) as error:
            message = " ".join(str(error).splitlines()[:3])
            log.error(f"job {job.number} cannot be composed: {message}")
            self.ledger.end(job.number, FAILED, message=message)
            return False
        return True

    def _words(self, job: Job) -> list[str]:
        return [*filter(self._trusts, job.words), f"hydra.sweep.subdir={job.number}"]

    def _trusts(self, word: str) -> bool:
        """Not words of the ledger, which may be somebody else's, by which other code would run."""
        bare = _bare(word)
        return not bare.startswith(("hydra", "allow_targets")) or bare in map(_bare, self.typed)


def _bare(word: str) -> str:
    return word.replace(" ", "").lstrip("+~")


def _blocks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs whose numbers follow each other, so that the launcher counts as the ledger does."""
    block: list[Job] = []
    for job in jobs:
        if block and job.number != block[-1].number + 1:
            yield block
            block = []
        block.append(job)
    if block:
        yield block


@contextmanager
def conducted(sweeper: Any, check: Callable[[Ledger], None] | None = None) -> Iterator[Sweep]:
    """The sweep of a sweeper's configuration, held by this process alone; its jobs' states are those of their folders.

    Args:
        sweeper: with ``config``, ``launcher`` and ``retry``, as Hydra has set it up.
        check: refuses what is no continuation of this ledger, before anything is written.

    Raises:
        UserError: another process conducts it, each of several processes would, or a state that does not exist is to be started
            again.
        SystemExit, KeyboardInterrupt: it was asked to stop.
    """
    launch.refuse_sweeps()
    unknown = [state for state in sweeper.retry if state not in STATES]
    if unknown:
        raise UserError(
            f"hydra.sweeper.retry: there is no state '{unknown[0]}'. Fix: some of {FAILED}, {OUT_OF_MEMORY}, {NOT_FINITE}"
        )
    folder = Path(str(sweeper.config.hydra.sweep.dir)).absolute()
    with only_one(folder):
        ledger = Ledger(folder)
        if check is not None:
            check(ledger)
        OmegaConf.save(sweeper.config, folder / "multirun.yaml")
        ledger.note(
            words=noted_words(sweeper.config),
            monitor=str(sweeper.config.monitor),
            mode=str(sweeper.config.monitor_mode),
        )
        wait_for_orphans(ledger)
        settle(ledger)
        try:
            compose = partial(sweeper.hydra_context.config_loader.load_sweep_config, sweeper.config)
            typed = frozenset(noted_words(sweeper.config))
            yield Sweep(ledger, sweeper.launcher, tuple(sweeper.retry), typed, compose)
        except (SystemExit, KeyboardInterrupt):
            settle(ledger)
            done = sum(job.has_ended for job in ledger.jobs())
            log.info(
                f"the sweep was stopped; {done} of {len(ledger.jobs())} jobs have ended. To go on: python -m cvexp.train"
                f" sweep={launch.quoted(str(folder))}"
            )
            raise


def noted_words(config: Any) -> list[str]:
    """The words of the whole sweep as they were typed."""
    parts: Any = OmegaConf.to_container(
        config.hydra.overrides, resolve=False
    )  # an interpolation in a word is left alone
    return [*parts["hydra"], *parts["task"]]


# -- a grid ----------------------------------------------------------------------------------------------------------------


def run_grid(sweeper: Any, arguments: Sequence[str]) -> list[float | None]:
    """Every combination; the job function of Hydra's plugin `hydra_plugins.cvexp_sweeper.Grid`.

    Returns:
        The best validation score of each job, None where it has none.

    Raises:
        SystemExit: 1, when all is done and some jobs have failed.
        UserError: words that are no jobs of a sweep that goes on.
    """
    from cvexp.sweeps.board import show_sweep

    parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
    words = [f"{key}={value}" for key, value in sweeper.params.items()]
    overrides = parser.parse_overrides([*words, *arguments])
    _refuse_intervals(overrides)
    jobs = BasicSweeper.split_arguments(overrides, None)[0]
    swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    keys = [job_identity(job, swept) for job in jobs]

    def check(ledger: Ledger) -> None:
        known = ledger.jobs()
        if known and not ledger.knows(keys):
            raise UserError(
                f"{ledger.folder}: none of its {len(known)} jobs is among the {len(jobs)} of these words; its first:"
                f" {' '.join(known[0].words)}. Fix: the words it began with, or leave out hydra.sweep.dir for a new sweep"
            )

    with conducted(sweeper, check) as sweep:
        ledger = sweep.ledger
        found = ledger.register(jobs, keys)
        waiting = len(sweep.to_start(found))
        if waiting < len(found):
            log.info(f"{len(found) - waiting} of {len(found)} jobs are not started again; {waiting} to go")
        ended = sweep.start(found)
        show_sweep(ledger)
    if any(job.state == FAILED for job in ended):
        raise SystemExit(1)
    return [job.value for job in ended]


def _refuse_intervals(overrides: Sequence[Override]) -> None:
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(
                f"{override.input_line}: an interval has no end of values. Fix: choose some, as {override.key_or_group}="
                "1e-3,1e-2, or search in it: hydra/sweeper=search"
            )


def job_identity(words: Sequence[str], swept: set[str]) -> str:
    """By what a job is known again: its words, without those that change nothing of its result and are not swept."""
    return identity([word for word in words if word.partition("=")[0] in swept or decides(word)])


# -- what became of those that could not say so ------------------------------------------------------------------------------


def settle(ledger: Ledger) -> None:
    """Puts right what the ledger says of jobs whose process is gone; a result in a job's folder is one."""
    for job in ledger.jobs():
        folder = ledger.folder / str(job.number)
        if job.state not in (RUNNING, INTERRUPTED, PENDING) or locked(folder):
            continue
        result, at = result_of(folder)
        if result and job.state != PENDING:
            ledger.end(job.number, FINISHED, result=result, at=at)
        elif job.state == RUNNING:
            ledger.end(job.number, INTERRUPTED, message="its process was killed", at=_last_save(folder, job))


def _last_save(folder: Path, job: Job) -> float | None:
    """When a killed job saved for the last time: what it did afterwards is lost, and nobody knows how long it lived."""
    began = job.started or 0.0
    return max(began, last_checkpoint(folder).stat().st_mtime) if last_checkpoint(folder).is_file() else began


def wait_for_orphans(ledger: Ledger) -> None:
    """Waits for the processes of a conductor that was killed: they notice, save and end within half a minute."""
    end = time.monotonic() + launch.LOST + 15
    told = False
    while time.monotonic() < end:
        left = [job for job in ledger.jobs() if job.state == RUNNING and locked(ledger.folder / str(job.number))]
        if not left:
            return
        if not told:
            numbers = ", ".join(str(job.number) for job in left)
            log.info(f"waiting for the end of job {numbers}, which a former process has started")
            told = True
        time.sleep(0.5)
    log.info(f"job {', '.join(str(job.number) for job in left)} still goes on and is left alone")
