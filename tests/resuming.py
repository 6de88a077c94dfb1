"""Runs that are cut off at a chosen moment and go on; what of two runs is compared bit for bit."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

# Three epochs of four steps with a validation after each; saved within epochs after every third step.
QUICK = (
    "model.size=tiny",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "callbacks.pictures=null",
    "callbacks.last.steps=3",
    "data.num_workers=0",
)
BOXES = (
    *("data=shapes", "data.train_size=16", "data.val_size=4", "data.test_size=4", "data.batch_size=4"),
    "callbacks.report=null",
)
FACES = (
    "data=drawn_faces",
    "data.train_identities=8",
    "data.val_identities=4",
    "data.test_identities=4",
    "data.train_images=8",
    "data.val_images=4",
    "data.test_images=4",
    "data.batch_size=16",
    "data.pairs=20",
    "metric.resamples=20",
)
MODELS = {
    "yolo": ("model=yolo", *BOXES),
    "faster_rcnn_fpn": ("model=faster_rcnn_fpn", *BOXES),
    "facenet": ("model=facenet", *FACES, "model/miner=random_negative"),  # draws from the process's random numbers
}


class CutError(Exception):
    """In place of a kill: nothing is saved on its way out."""


class CutOff(Callback):
    """Ends the process's work at a moment, as a kill would; or sends it a signal.

    Args:
        moment: name of a hook.
        step: optimizer steps that are done then.
        signal: number of a signal; 0: no signal but an end.
    """

    def __init__(self, moment: str, step: int, signal: int = 0) -> None:
        self.moment, self.step, self.signal = moment, step, signal
        setattr(self, moment, self._cut)

    def _cut(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step < self.step:
            return
        if not self.signal:
            raise CutError(self.moment)
        os.kill(os.getpid(), self.signal)
        self.step = 10**9  # once


def train_here(folder: Path, *overrides: str) -> dict[str, Any]:
    """`cvexp.train.train` with the composed configuration of these words."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from cvexp.config import conf_dir
    from cvexp.train import train

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return train(hydra.compose("train", [*overrides, f"paths.output={folder}"]))


def cut_words(moment: str, step: int, signal: int = 0) -> list[str]:
    """Overrides that add a `CutOff`."""
    node = f"{{_target_:resuming.CutOff,moment:{moment},step:{step},signal:{int(signal)}}}"
    return [f"+callbacks.cut={node}", "allow_targets=[resuming]"]


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    """The filled fields of each row of ``metrics.csv``, but for clock times."""
    with (folder / "metrics.csv").open() as stream:
        found = csv.DictReader(stream)
        return [{k: value for k, value in row.items() if value and not k.startswith("time/")} for row in found]


def unequal(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two checkpoints differ; clocks and places of files are left out."""
    if path.endswith(("elapsed", "_path", "dirpath", "best_k_models", "current_score", ".config")):
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            if key not in a or key not in b:
                yield f"{path}.{key}: only in one"
            else:
                yield from unequal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from unequal(x, y, f"{path}.{index}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield path
    elif a != b and not (a != a and b != b):
        yield f"{path}: {a} and {b}"
