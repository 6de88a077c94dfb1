"""How a training knows that it is a trial of a search: ``trial.json`` in its folder, and the study beside the other trials.

Needs Optuna only where a study is opened, and torch nowhere: a sweep that starts trainings reads this too.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cvexp.errors import UserError

FILE = "trial.json"
STUDY = "study.db"
STUDY_NAME = "cvexp"
PRUNERS = ("median", "halving")
PATIENCE = 60.0
"""Seconds to wait while another process writes into the study."""


@dataclass(frozen=True)
class TrialFile:
    """What ``trial.json`` says.

    Attributes:
        study: the database, relative to the folder of the training.
        trial: number of the trial, from 0.
        pruner: one of `PRUNERS`; None: the trial only reports.
        after_trials: as many trials must have ended before one is pruned (``median``).
        after_validations: as many validations a trial has in any case.
    """

    study: str
    trial: int
    pruner: str | None = "median"
    after_trials: int = 5
    after_validations: int = 1

    def write(self, folder: Path) -> None:
        """Writes ``trial.json``, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{FILE}.part"
        part.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        part.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> TrialFile | None:
        """The file of a training's folder; None without one.

        Raises:
            UserError: it is none of this kind, or its study is gone.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
            found._check()
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: says of no trial ({error}). Fix: sweep=<folder of the search> writes it anew"
            ) from None
        if not (folder / found.study).is_file():
            raise UserError(
                f"{path}: its study {found.study} is gone. Fix: put it back, or remove {FILE} and train alone"
            )
        return found

    def _check(self) -> None:
        """
        Raises:
            ValueError: a value that cannot be.
        """
        whole = (self.trial, self.after_trials, self.after_validations)
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in whole):
            raise ValueError(f"{whole} are not whole numbers from 0")
        if self.pruner is not None and self.pruner not in PRUNERS:
            raise ValueError(f"there is no pruner {self.pruner!r}")
        if not isinstance(self.study, str):
            raise ValueError(f"study {self.study!r} is no path")

    def make_pruner(self) -> Any:
        """Optuna's pruner: ``median`` (worse than half of the others had been) or ``halving`` (arXiv 1810.05934)."""
        from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

        if self.pruner == "median":
            return MedianPruner(n_startup_trials=self.after_trials, n_warmup_steps=self.after_validations)
        if self.pruner == "halving":
            return SuccessiveHalvingPruner(min_resource=max(self.after_validations, 1))
        return NopPruner()


def need_optuna() -> None:
    """
    Raises:
        UserError: Optuna is not installed.
    """
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UserError("a search needs Optuna, which is not installed. Fix: pip install 'cvexp[sweep]'")


def open_storage(path: Path) -> Any:
    """Optuna's storage in a SQLite file, whatever signs are in its path; several processes may have it open.

    Raises:
        UserError: the file is no study, or its folder has no room, rights or locks.
    """
    need_optuna()
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.storages.RDBStorage(f"sqlite:///{STUDY}", engine_kwargs={"creator": _Connect(path)})
    except (SQLAlchemyError, sqlite3.Error, RuntimeError) as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: BaseException) -> UserError:
    """What to tell where a study cannot be read or written."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{path}: the study cannot be read or written ({reason}). Fix: free space and rights in its folder; on a file"
        " system without locks move the sweep to another"
    )


@dataclass(frozen=True)
class _Connect:
    path: Path

    def __call__(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=PATIENCE, check_same_thread=False)


def intermediate(storage: Any, trial: int) -> Mapping[int, float]:
    """What a trial has reported: its value by the number of the validation.

    Raises:
        KeyError: the study has no such trial.
    """
    return dict(storage.get_trial(trial_id(storage, trial)).intermediate_values)


def trial_id(storage: Any, trial: int) -> int:
    """The id, by which a storage knows a trial, of a trial's number.

    Raises:
        KeyError: the study has no such trial.
    """
    study = storage.get_study_id_from_name(STUDY_NAME)
    return int(storage.get_trial_id_from_study_id_trial_number(study, trial))
