"""Weights & Biases without surprises: never a prompt, never a hang; offline when there is nobody to log in as."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

Mode = Literal["online", "offline", "disabled"]


def wandb(
    folder: str,
    project: str = "cvexp",
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    entity: str | None = None,
    mode: Mode | None = None,
) -> WandbLogger:
    """A W&B logger.

    Args:
        folder: of the run; an offline run is kept below it.
        project, name, group, tags, entity: W&B's.
        mode: None takes ``WANDB_MODE``, else online with stored credentials, else offline.
    """
    import wandb as library

    os.environ.setdefault("WANDB_SILENT", "true")
    chosen = mode or os.environ.get("WANDB_MODE") or _reachable(library)
    settings: dict[str, Any] = {
        "project": project, "name": name, "group": group, "tags": list(tags), "entity": entity,
        "dir": folder, "settings": library.Settings(init_timeout=30, console="off"),
    }  # fmt: skip
    Path(folder).mkdir(parents=True, exist_ok=True)
    if chosen == "online":
        try:
            return _started(WandbLogger(save_dir=folder, mode="online", **settings))
        except (library.errors.CommError, library.errors.AuthenticationError, library.errors.UsageError) as error:
            rank_zero_info(f"W&B cannot be reached ({error}); this run is logged offline.")
            chosen = "offline"
    logger = _started(WandbLogger(save_dir=folder, mode=chosen, **settings))
    if chosen == "offline":
        _say_how_to_sync(logger)
    return logger


def _reachable(library: Any) -> Mode:
    try:
        return "online" if library.login(prompt=False, verify=False) else "offline"
    except Exception:  # no key, no terminal, no network: all mean the same to a run
        return "offline"


def _started(logger: WandbLogger) -> WandbLogger:
    _ = logger.experiment  # starts the run now, so that a refusal is met here and not in the first step
    return logger


@rank_zero_only
def _say_how_to_sync(logger: WandbLogger) -> None:
    rank_zero_info(f"W&B: offline. To upload this run later: wandb sync {Path(logger.experiment.dir).parent}")
