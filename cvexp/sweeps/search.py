"""A search: values asked of Optuna, one job each, the job's best validation told back; all of it in a study that continues.

The study (``study.db``) says what was asked and told, the ledger what became of each job. A trial is in both before its job is
started, and is told after the job's end is in the ledger: so a search that is killed at any moment finds each trial as one that
is to be started, to be continued, or to be told. The sampler is made anew for every question, from the seed and the number of
the trial: a search that was killed asks what it would have asked.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from cvexp.callbacks.trial_file import (
    PRUNERS,
    STUDY,
    STUDY_NAME,
    TrialFile,
    need_optuna,
    open_storage,
    trial_id,
    unusable,
)
from cvexp.errors import UserError
from cvexp.sweeps.controller import Sweep, conducted, job_identity
from cvexp.sweeps.ledger import FAILED, FINISHED, NOT_FINITE, OUT_OF_MEMORY, PRUNED, Job, Ledger

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

SAMPLERS = ("tpe", "random")
TORN = "torn"
"""State of a trial that was killed while its values were asked for."""
_FIX = "'optimizer.lr=tag(log,interval(1e-4,1e-1))', model.size=tiny,paper"


# -- what is searched in ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """What is searched in.

    Attributes:
        fixed: words that every job has.
        varied: Optuna's distribution by key; categories are texts as they would be typed.
    """

    fixed: tuple[str, ...]
    varied: Mapping[str, Any]

    def words(self, params: Mapping[str, Any]) -> list[str]:
        """The words of a job with these values."""
        return [*self.fixed, *(f"{key}={_typed(params[key])}" for key in self.varied)]


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def read_space(params: Mapping[str, Any], arguments: Sequence[str], config_loader: Any = None) -> Space:
    """The space of the words typed and of those of ``hydra.sweeper.params``; of one key the typed one holds.

    ``a,b`` and ``choice(a,b)`` are categories, ``range(1,5)`` whole numbers or steps (its end is left out, as in any sweep),
    ``interval(a,b)`` all between, ``int(interval(a,b))`` the whole ones; ``tag(log,...)`` searches in orders of magnitude.

    Raises:
        UserError: words that Hydra cannot read, nothing to search in, a seed that is searched, or a space that is none.
    """
    need_optuna()
    typed = {_key(word) for word in arguments}
    preset = [
        f"{key}={'null' if text is None else text}" for key, text in params.items() if _key(str(key)) not in typed
    ]
    try:
        overrides = OverridesParser.create(config_loader=config_loader).parse_overrides([*preset, *arguments])
    except HydraException as error:
        raise UserError(f"hydra.sweeper.params: {str(error).splitlines()[0]}. Fix: as {_FIX}") from error
    fixed = tuple(str(o.input_line) for o in overrides if not o.is_sweep_override())
    varied = {o.get_key_element(): _distribution(o) for o in overrides if o.is_sweep_override()}
    if not varied:
        raise UserError(
            f"hydra/sweeper=search: nothing to search in. Fix: values to choose from, as {_FIX}; or search=yolo"
        )
    if "seed" in varied:
        raise UserError(
            "a search for the best seed finds luck. Fix: seed=0, and repeat the best job with seed=1,2,3 in a sweep of its own"
        )
    return Space(fixed, varied)


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~").strip()


def _distribution(override: Override) -> Any:
    """
    Raises:
        UserError: bounds that hold nothing, or a logarithm of what is not above 0.
    """
    from optuna.distributions import CategoricalDistribution

    value, line = override.value(), override.input_line
    try:
        if isinstance(value, RangeSweep | IntervalSweep):
            return _numbers(value)
        words = list(override.sweep_string_iterator())
        if not words:
            raise ValueError("there is none of that name")
        if isinstance(value, ChoiceSweep) and value.shuffle:
            words = sorted(words)  # a search has its own order; the same after a restart
        return CategoricalDistribution(list(dict.fromkeys(words)))
    except ValueError as error:
        raise UserError(f"{line}: {error}. Fix: as {_FIX}") from error


def _numbers(value: RangeSweep | IntervalSweep) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    is_log = "log" in value.tags
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or low >= high:
            raise ValueError(f"there is nothing between {low} and {high}")
        whole = "int" in value.tags or isinstance(low, int)
        if not whole:
            return FloatDistribution(float(low), float(high), log=is_log)
        return IntDistribution(math.ceil(low), math.floor(high), log=is_log)
    steps = list(value.range())
    if not steps:
        raise ValueError("an empty range")
    low, high = min(steps), max(steps)
    if isinstance(value.start, int) and isinstance(value.step, int):
        return IntDistribution(int(low), int(high), log=is_log, step=1 if is_log else abs(value.step))
    if is_log:
        raise ValueError("steps and a logarithm exclude each other; use interval")
    return FloatDistribution(float(low), float(high), step=abs(float(value.step)))


# -- how -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How a search is conducted; the values of ``conf/hydra/sweeper/search.yaml``.

    Attributes:
        n_trials: jobs that say something of their values, those of earlier sessions included; a `FAILED` one does not.
        n_jobs: jobs at a time, for a launcher that runs several.
        sampler: one of `SAMPLERS`.
        startup_trials: drawn by chance before ``tpe`` learns from them.
        seed: of the sampler.
        pruner: one of `PRUNERS`, or None.
        prune_after_trials: as many trials must have ended before one is pruned.
        prune_after_validations: as many validations a trial has in any case.
        max_failures: in a row, which end the search.

    Raises:
        UserError: a value that cannot be.
    """

    n_trials: int = 20
    n_jobs: int = 1
    sampler: str = "tpe"
    startup_trials: int = 8
    seed: int = 0
    pruner: str | None = "median"
    prune_after_trials: int = 5
    prune_after_validations: int = 1
    max_failures: int = 5

    def __post_init__(self) -> None:
        least = {"n_trials": 1, "n_jobs": 1, "startup_trials": 0, "seed": 0, "max_failures": 1}
        for name, low in (least | {"prune_after_trials": 0, "prune_after_validations": 0}).items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                key = f"hydra.sweeper.{name}"
                raise UserError(f"{key}={value} is no whole number from {low}. Fix: {key}={low + 1}")
        for name, known in (("sampler", SAMPLERS), ("pruner", (*PRUNERS, None))):
            if getattr(self, name) not in known:
                choices = ", ".join("null" if choice is None else choice for choice in known)
                raise UserError(f"hydra.sweeper.{name}={getattr(self, name)} is unknown. Fix: one of {choices}")

    def make_sampler(self, trial: int) -> Any:
        """The sampler that is asked for the trial of this number, always the same one."""
        import numpy as np
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import RandomSampler, TPESampler

        seed = int(np.random.SeedSequence([self.seed, trial]).generate_state(1)[0])
        if self.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=self.startup_trials, constant_liar=self.n_jobs > 1)


# -- the study -------------------------------------------------------------------------------------------------------------


def open_study(folder: Path, mode: str, fixed: str) -> tuple[Study, Any]:
    """The study in a sweep's folder, made where there is none, and its storage.

    Args:
        folder: of the sweep.
        mode: ``max`` or ``min``.
        fixed: by what the words that all jobs have are known again.

    Raises:
        UserError: the file is no study of a search, or one of other words or of another direction.
    """
    import optuna

    path = folder / STUDY
    if not path.exists():
        _create_study(path, mode, fixed)
    storage = open_storage(path)
    try:
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    except KeyError:
        raise UserError(f"{path}: no study of a search. Fix: move it away, or another folder") from None
    directions = [direction.name.lower()[:3] for direction in study.directions]
    if directions != [mode]:
        raise UserError(
            f"{path}: was begun with monitor_mode={directions[0]}, now it is {mode}. Fix: leave it as it was,"
            " or begin a new search"
        )
    if study.user_attrs.get("fixed") != fixed:
        raise UserError(
            f"{path}: was begun with other words, {study.user_attrs.get('fixed')}, now they are {fixed}."
            " Fix: the words it began with, or a new search: the values of both would be mixed"
        )
    return study, storage


def _create_study(path: Path, mode: str, fixed: str) -> None:
    """Makes the file beside its place and moves it there whole."""
    import optuna

    part = path.with_name(f".{STUDY}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    storage = open_storage(part)
    direction = optuna.study.StudyDirection.MAXIMIZE if mode == "max" else optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(study_name=STUDY_NAME, storage=storage, direction=direction)
    study.set_user_attr("fixed", fixed)
    storage.remove_session()
    storage.engine.dispose()
    part.replace(path)


@dataclass
class Search:
    """Asks, starts and tells until there are as many trials as wanted.

    Args:
        sweep: whose jobs they are.
        study: what was asked and told.
        storage: the study's.
        space: what is searched in.
        settings: how.
    """

    sweep: Sweep
    study: Study
    storage: Any
    space: Space
    settings: Settings
    _started: set[int] = field(default_factory=set)  # trials that this process has started, each once

    def run(self) -> str:
        """Goes on to the end.

        Returns:
            Why it ended early; empty when it did not.
        """
        failures = 0
        while batch := self._batch():
            self._started |= {trial.number for trial in batch}
            for job in self.sweep.start(self._register(batch)):
                failures = 0 if self._tell(job) else failures + 1
                if failures >= self.settings.max_failures:
                    return f"{failures} jobs in a row have failed, the last one (job {job.number}) with: {job.message}"
        return ""

    # -- asking --------------------------------------------------------------------------------------------------------

    def _batch(self) -> list[FrozenTrial]:
        """The next trials to start: first those that were running when the search was killed, then new ones."""
        trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if _is_running(trial) and trial.number not in self._started]
        whole = [trial for trial in running if set(trial.params) == set(self.space.varied) or self._job(trial.number)]
        for trial in running:
            if trial not in whole:
                self._fail(trial.number, TORN, "the search was killed while it was asked for")
        wanted = self.settings.n_trials - sum(_counts(trial) for trial in self.study.get_trials(deepcopy=False))
        batch = whole[: self.settings.n_jobs]
        return batch + [self._ask() for _ in range(min(wanted, self.settings.n_jobs - len(batch)))]

    def _ask(self) -> FrozenTrial:
        """
        Raises:
            UserError: categories that differ from those of earlier trials.
        """
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.settings.make_sampler(number)
        try:
            number = self.study.ask(fixed_distributions=dict(self.space.varied)).number
        except ValueError as error:
            self._fail(number, TORN, str(error))
            raise UserError(
                f"{self.sweep.folder / STUDY}: the choices of a search cannot change ({error}). Fix: the values it began with,"
                " or a new search"
            ) from error
        return self.study.get_trials(deepcopy=False)[number]

    def _register(self, trials: Sequence[FrozenTrial]) -> list[Job]:
        """The jobs of trials, in the ledger and with their file in their folder."""
        jobs = []
        for trial in trials:
            known = self._job(trial.number)
            words = list(known.words) if known else self.space.words(trial.params)
            jobs += self.sweep.ledger.register([words], [f"trial {trial.number}"], [trial.number])
        how = self.settings
        for job, trial in zip(jobs, trials, strict=True):
            folder = self.sweep.folder / str(job.number)
            TrialFile(
                f"../{STUDY}", trial.number, how.pruner, how.prune_after_trials, how.prune_after_validations
            ).write(folder)
        return jobs

    def _job(self, trial: int) -> Job | None:
        return next((job for job in self.sweep.ledger.jobs() if job.trial == trial), None)

    # -- telling -------------------------------------------------------------------------------------------------------

    def _tell(self, job: Job) -> bool:
        """Tells the study what became of a job.

        Returns:
            Whether that says something of its values; not when it has failed, or stopped without an end.
        """
        from optuna.trial import TrialState

        number, value = int(job.trial or 0), job.value
        if job.state == FINISHED and value is not None and math.isfinite(value):
            self.study.tell(number, value, state=TrialState.COMPLETE)
        elif job.state == PRUNED:
            self.study.tell(number, state=TrialState.PRUNED)
        elif job.state in (OUT_OF_MEMORY, NOT_FINITE):
            self._fail(number, job.state, job.message)
        elif job.state == FINISHED:
            self._fail(number, FAILED, "its result.json has no val/best")
            return False
        elif job.state == FAILED:
            self._fail(number, FAILED, job.message)
            return False
        else:  # a job that has not ended: its trial stays open, for a search that goes on
            return False
        return True

    def _fail(self, trial: int, state: str, message: str) -> None:
        """A trial without a value; what it was is noted, and the sampler learns nothing from it."""
        from optuna.trial import TrialState

        identity = trial_id(self.storage, trial)
        self.storage.set_trial_user_attr(identity, "state", state)
        self.storage.set_trial_user_attr(identity, "message", message[:500])
        self.study.tell(trial, state=TrialState.FAIL)


def _is_running(trial: FrozenTrial) -> bool:
    return trial.state.name in ("RUNNING", "WAITING")


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of ``n_trials``."""
    return trial.state.name != "FAIL" or trial.user_attrs.get("state") in (OUT_OF_MEMORY, NOT_FINITE)


# -- the sweeper -----------------------------------------------------------------------------------------------------------


def run_search(sweeper: Any, arguments: Sequence[str]) -> float | None:
    """A search from the words of a command; the job function of Hydra's plugin `hydra_plugins.cvexp_sweeper.Search`.

    Returns:
        The best value; None when no job has one.

    Raises:
        UserError: words that are no search, or too many failures in a row.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from cvexp.sweeps.board import show_sweep

    settings = Settings(**sweeper.settings)
    space = read_space(sweeper.params, arguments, sweeper.hydra_context.config_loader)
    mode, fixed = str(sweeper.config.monitor_mode), job_identity(space.fixed, set())

    def check(ledger: Ledger) -> None:
        if any(job.trial is None for job in ledger.jobs()):
            raise UserError(f"{ledger.folder}: a sweep without a search. Fix: another hydra.sweep.dir")
        if (ledger.folder / STUDY).exists():
            open_study(ledger.folder, mode, fixed)

    with conducted(sweeper, check) as sweep:
        logarithmic = [_key(key) for key, spread in space.varied.items() if getattr(spread, "log", False)]
        sweep.ledger.note(n_trials=settings.n_trials, log=logarithmic)
        try:
            study, storage = open_study(sweep.folder, mode, fixed)
            ended = Search(sweep, study, storage, space, settings).run()
        except SQLAlchemyError as error:
            raise unusable(sweep.folder / STUDY, error) from error
        show_sweep(sweep.ledger)
    if ended:
        raise UserError(
            f"{sweep.folder}: {ended}. Fix: what it says; then sweep={sweep.folder} goes on with the search"
        )
    values = [job.value for job in sweep.ledger.jobs() if job.state == FINISHED and job.value is not None]
    return (max if mode == "max" else min)(values, default=None)
