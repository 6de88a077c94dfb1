"""Weights & Biases without surprises: never a prompt, never a hang; offline when there is nobody to log in as."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

Mode = Literal["online", "offline", "disabled"]
INIT_TIMEOUT = 30
"""Seconds to wait for W&B's server before the run is logged offline."""


def wandb(
    folder: str,
    project: str = "cvexp",
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    entity: str | None = None,
    mode: Mode | None = None,
) -> WandbLogger:
    """A W&B logger whose run has begun, so that a refusal is met here and not in the first step.

    Args:
        folder: of the run; an offline run is kept below it.
        project, name, group, tags, entity: W&B's.
        mode: None takes ``WANDB_MODE``, else online with stored credentials, else offline.
    """
    settings = {"project": project, "name": name, "group": group, "tags": list(tags), "entity": entity, "dir": folder}
    return WandbLogger(project=project, save_dir=folder, experiment=_begin(settings, mode))


@rank_zero_only
def _begin(settings: dict[str, Any], mode: Mode | None) -> Any:
    """The run; the first process decides between online and offline for all."""
    import wandb as library

    os.environ.setdefault("WANDB_SILENT", "true")
    Path(settings["dir"]).mkdir(parents=True, exist_ok=True)
    settings = settings | {"settings": library.Settings(init_timeout=INIT_TIMEOUT, console="off")}
    chosen = mode or os.environ.get("WANDB_MODE") or _reachable(library)
    if chosen == "online":
        try:
            return library.init(mode="online", **settings)
        except (library.errors.CommError, library.errors.AuthenticationError, library.errors.UsageError) as error:
            rank_zero_info(f"W&B cannot be reached ({str(error).splitlines()[0]}); this run is logged offline.")
            chosen = "offline"
    run = library.init(mode=chosen, **settings)
    if chosen == "offline":
        rank_zero_info(f"W&B: offline. To upload this run later: wandb sync {Path(run.dir).parent}")
    return run


def _reachable(library: Any) -> Mode:
    try:
        return "online" if library.login(prompt=False, verify=False) else "offline"
    except Exception:  # no key, no terminal, no network: all mean the same to a run
        return "offline"
