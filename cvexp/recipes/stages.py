"""Stages without gradients: each leaves an artefact in the run's folder, and one whose artefact is there is skipped.

With several processes every one of them works on its share of the images; rows are brought together in the order of the
processes, so that a stage comes to the same result whatever their number, and the first process alone writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from cvexp.callbacks.atomic_io import AtomicIO
from cvexp.types import UserError

Artefact = dict[str, Any]
SECONDS = "stage_seconds"
"""Of making an artefact; stands in its file and in no artefact."""


class Stages:
    """The artefacts of a run.

    Args:
        folder: of the run; they lie in ``stages`` below it.
        step: a dry run (``trainer.fast_dev_run``): nothing is read or written.

    Attributes:
        seconds: what each stage took, whenever it was done.
    """

    def __init__(self, folder: str | Path, step: bool = False) -> None:
        self.folder, self.step = Path(folder) / "stages", step
        self.seconds: dict[str, float] = {}

    def path(self, name: str) -> Path:
        """Where the artefact of a stage lies."""
        return self.folder / f"{name}.pt"

    def artefact(self, name: str, make: Callable[[], Artefact]) -> Artefact:
        """The result of a stage: read where it is there, else made and written whole or not at all.

        ``make`` runs in every process and must come to the same result in all of them; its value is then the artefact.

        Args:
            name: of the stage, also the file's.
            make: tensors, numbers and text by name.

        Raises:
            UserError: a file that cannot be read.
        """
        path = self.path(name)
        there = all(
            gathered([not self.step and path.is_file()])
        )  # a file system may be slower for one than for another
        if there:
            rank_zero_info(f"stage {name}: done before ({path})")
            found = self._read(path)
            self.seconds[name] = float(found.pop(SECONDS, 0.0))
            return found
        start = time.perf_counter()
        rank_zero_info(f"stage {name}: begins")
        found = make()
        self.seconds[name] = time.perf_counter() - start
        if not self.step and processes()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            torch.save(found | {SECONDS: self.seconds[name]}, part)
            part.replace(path)
        meet()
        rank_zero_info(f"stage {name}: {self.seconds[name]:.1f} s")
        return found

    def kept(self, name: str) -> Artefact | None:
        """The result of a stage that was done before, else None; nothing is made, and no process waits for another.

        Raises:
            UserError: a file that cannot be read.
        """
        path = self.path(name)
        return self._read(path) if not self.step and path.is_file() else None

    @staticmethod
    def _read(path: Path) -> Artefact:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a broken file provokes in the unpickler, whose own advice is no good
            raise UserError(
                f"{path}: cannot be read ({type(error).__name__}). Fix: remove it; its stage is then done again"
            ) from None
        if not isinstance(found, Mapping):
            raise UserError(f"{path}: is no artefact of a stage. Fix: remove it; its stage is then done again")
        return dict(found)


def join(trainer: Trainer) -> None:
    """Makes the connection between the processes of a run, which a fit makes otherwise: for recipes that begin without one."""
    if trainer.world_size > 1 and not dist.is_initialized():
        trainer.strategy.setup_environment()


def processes() -> tuple[int, int]:
    """Rank and number of the processes of this run, once they are connected (by a fit, or `join`)."""
    connected = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)


def meet() -> None:
    """Waits for all processes."""
    if processes()[1] > 1:
        dist.barrier()


def share(count: int) -> range:
    """The images of this process, of ``count``: every so-manieth."""
    rank, world = processes()
    return range(rank, count, world)


def gathered(rows: Sequence[Any]) -> list[Any]:
    """The rows of all processes, on each of them; process after process."""
    if processes()[1] == 1:
        return list(rows)
    every: list[Any] = [None] * processes()[1]
    dist.all_gather_object(every, list(rows))
    return [row for rows_of_one in every for row in rows_of_one]


def in_order(found: Mapping[int, Any]) -> list[Any]:
    """What all processes found for their images (`share`), by the number of the image: the same for any number of them."""
    return [row for _, row in sorted(gathered(list(found.items())), key=lambda pair: pair[0])]


def keep(trainer: Trainer, task: LightningModule, name: str = "best.ckpt") -> Path | None:
    """Writes ``checkpoints/<name>`` with the task's weights, for a model that stages have changed after or without a fit.

    Returns:
        The file; None for a dry run or one without checkpoints.
    """
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    if trainer.fast_dev_run or folder is None:
        return None
    path = Path(folder) / name
    if processes()[0] == 0:
        content: dict[str, Any] = {"pytorch-lightning_version": lightning.__version__, "epoch": 0, "global_step": 0}
        if path.is_file():  # of the fit
            content = torch.load(path, map_location="cpu", weights_only=True)
        content["state_dict"] = state_of(task.state_dict())
        task.on_save_checkpoint(content)
        AtomicIO().save_checkpoint(content, path)
    meet()
    return path


def state_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, for an artefact."""
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
