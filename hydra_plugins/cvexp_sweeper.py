"""cvexp's sweepers, where Hydra looks for plugins and nowhere else; what they do is in `cvexp.sweeps`.

Hydra imports this file at every start, ``--help`` included: nothing heavy here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Ledgered(Sweeper):
    """What both have: the launcher that was chosen, and the states that are started again."""

    def __init__(self, retry: Sequence[str] = ("failed",)) -> None:
        self.retry = tuple(retry)
        self.config: DictConfig | None = None
        self.launcher: Any = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )


class Grid(_Ledgered):
    """Every combination of what is swept, each once, however often the sweep is interrupted.

    Args:
        retry: states that are started again when the sweep is resumed, beside those that never ended.
        params: further words, as ``{"seed": "1,2,3"}``; those typed win.
    """

    def __init__(self, retry: Sequence[str] = ("failed",), params: Mapping[str, str] | None = None) -> None:
        super().__init__(retry)
        self.params = dict(params or {})

    def sweep(self, arguments: list[str]) -> Any:
        from cvexp.config import report_errors
        from cvexp.sweeps.controller import run_grid

        return report_errors(run_grid)(self, arguments)


class Search(_Ledgered):
    """Values asked of Optuna, in a study that continues and prunes.

    Args:
        n_trials: jobs in all, those of earlier sessions included.
        n_jobs: at a time, for a launcher that runs several.
        sampler: ``tpe`` or ``random``.
        startup_trials: by chance, before ``tpe`` learns.
        seed: of the sampler.
        pruner: ``median``, ``halving`` or null.
        prune_after_trials: as many must have ended before one is pruned.
        prune_after_validations: as many a trial has in any case.
        max_failures: jobs in a row that may fail.
        retry: states that are started again.
        params: what is searched, as ``{"optimizer.lr": "tag(log,interval(1e-4,1e-1))"}``; what is typed wins.
    """

    def __init__(
        self,
        n_trials: int = 20,
        n_jobs: int = 1,
        sampler: str = "tpe",
        startup_trials: int = 8,
        seed: int = 0,
        pruner: str | None = "median",
        prune_after_trials: int = 5,
        prune_after_validations: int = 1,
        max_failures: int = 5,
        retry: Sequence[str] = ("failed",),
        params: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(retry)
        self.params = dict(params or {})
        self.settings = {
            "n_trials": n_trials, "n_jobs": n_jobs, "sampler": sampler, "startup_trials": startup_trials, "seed": seed,
            "pruner": pruner, "prune_after_trials": prune_after_trials, "prune_after_validations": prune_after_validations,
            "max_failures": max_failures,
        }  # fmt: skip

    def sweep(self, arguments: list[str]) -> Any:
        from cvexp.config import report_errors
        from cvexp.sweeps.search import run_search

        return report_errors(run_search)(self, arguments)
