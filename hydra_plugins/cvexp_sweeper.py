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
        from cvexp.sweeps.controller import run_grid

        return run_grid(self, arguments)
