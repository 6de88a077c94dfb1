"""A trial of a search reports its validations, and ends early where the study expects no more of it."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cvexp.callbacks.agreement import Agreement
from cvexp.callbacks.trial_file import STUDY_NAME, TrialFile, intermediate, need_optuna, open_storage, trial_id
from cvexp.errors import Pruned, UserError

log = logging.getLogger(__name__)


class Pruning(Callback):
    """After each validation tells the study the monitored value and asks whether the trial is to go on.

    Values are compared at the same number of the validation, 1, 2, ...: with epochs as the budget of each trial that is the
    same share of its training. Without ``trial.json`` in the folder, which a search writes, nothing happens. A study that cannot
    be reached costs a warning, not the training. The first process asks; all follow.

    Args:
        folder: of the run.
        monitor: the logged value.

    Attributes:
        validations: so far, those before an interruption included.

    Raises:
        Pruned: in `on_validation_end` of a trial that is to end.
    """

    def __init__(self, folder: str, monitor: str) -> None:
        self.folder, self.monitor = Path(folder), monitor
        self.validations = 0
        self._processes: Agreement | None = None
        self._trial: TrialFile | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """
        Raises:
            UserError: a ``trial.json`` that cannot be used, or no Optuna.
        """
        self._trial = None if trainer.fast_dev_run else TrialFile.read(self.folder)
        if self._trial is not None:
            need_optuna()
            self._processes = Agreement(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._trial is None or self._processes is None or trainer.sanity_checking:
            return
        self.validations += 1
        logged = trainer.callback_metrics.get(self.monitor)
        value = float("nan") if logged is None else float(logged)
        stop = self._asked(self._trial, value) if trainer.is_global_zero and value == value else False
        if self._processes.first(float(stop)):
            value = self._processes.first(value)
            raise Pruned(
                f"{self.folder}: pruned after validation {self.validations} with {self.monitor} {value:.4f}: other trials were"
                f" better by then. Fix: nothing; hydra.sweeper.pruner=null lets every trial train to its end",
                value,
            )

    def _asked(self, about: TrialFile, value: float) -> bool:
        """Reports the value, once for each validation, and asks whether to stop."""
        from optuna.exceptions import OptunaError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return _report_and_ask(self.folder / about.study, about, self.validations, value)
        except (SQLAlchemyError, OptunaError, UserError, KeyError, RuntimeError) as error:  # the last: Optuna 4.0
            log.warning(f"the search was not asked after validation {self.validations}: {error}")
            return False

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = int(state_dict["validations"])


def _report_and_ask(study: Path, about: TrialFile, step: int, value: float) -> bool:
    """Whether the trial is to end after this value; a step that was reported before an interruption is not reported again."""
    import optuna

    storage = open_storage(study)
    with closing(_Connections(storage)):
        identity = trial_id(storage, about.trial)
        if step not in intermediate(storage, about.trial):
            storage.set_trial_intermediate_value(identity, step, value)
        pruner = about.make_pruner()
        loaded = optuna.load_study(study_name=STUDY_NAME, storage=storage, pruner=pruner)
        return bool(pruner.prune(loaded, storage.get_trial(identity)))


class _Connections:
    """Those of a storage, which are closed between validations: a file system may not keep locks for hours."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage

    def close(self) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()
