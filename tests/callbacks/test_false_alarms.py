"""Every model with its own settings, at its small size: nothing is raised, and the alarms do not change the training."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from kinds import models_of
from omegaconf import DictConfig

from cvexp.train import train

QUICK = (
    "model.size=tiny",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
    "trainer.enable_checkpointing=false",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.check_val_every_n_epoch=100",
    "trainer.max_epochs=-1",
    "data.num_workers=0",
    "callbacks.pictures=null",
    "budget.minutes=null",
)
SHAPES = ("data=shapes", "data.train_size=64", "data.val_size=8", "data.test_size=8", "data.batch_size=8")
FACES = ("data=drawn_faces", "data.train_identities=16", "data.batch_size=32")
OWN = {"sliding_window": ("recipe.every=8",)}  # its rounds are parts of the epochs, which are not limited here
TRAINED = [(name, (*SHAPES, *OWN.get(name, ()))) for name in models_of("detection")] + [("facenet", FACES)]
ALARMS = ("not_finite", "learning_rate", "starving", "positives", "health")


def alarms(
    compose: Callable[..., DictConfig], folder: Path, model: str, data: tuple[str, ...], *more: str
) -> list[str]:
    """What is raised in a training; what waits for data on a busy machine is not the model's."""
    train(compose(f"model={model}", *QUICK, *data, "callbacks.starving=null", *more))
    file = folder / "alarms.txt"
    return file.read_text().splitlines() if file.exists() else []


FEW = [
    pytest.param(*row, marks=() if row[0] in ("yolo", "faster_rcnn_fpn", "facenet") else pytest.mark.slow)
    for row in TRAINED
]


@pytest.mark.parametrize(("model", "data"), FEW, ids=[name for name, _ in TRAINED])
def test_first_steps(model: str, data: tuple[str, ...], tmp_path: Path, compose: Callable[..., DictConfig]) -> None:
    """Four steps, in which positives are looked at three times and numbers every time."""
    assert alarms(compose, tmp_path, model, data, "trainer.max_steps=4", "trainer.log_every_n_steps=1") == []


@pytest.mark.slow
@pytest.mark.parametrize(("model", "data"), TRAINED, ids=[name for name, _ in TRAINED])
def test_a_training(model: str, data: tuple[str, ...], tmp_path: Path, compose: Callable[..., DictConfig]) -> None:
    """Fourteen points of the loss: a rise, a swing or growing weights would be seen."""
    assert alarms(compose, tmp_path, model, data, "trainer.max_steps=280") == []


@pytest.mark.slow
@pytest.mark.parametrize(("model", "rate"), [("yolo", 0.1), ("yolo", 1.0), ("faster_rcnn_fpn", 0.1)])
def test_a_rate_a_hundred_times_too_high(
    model: str, rate: float, tmp_path: Path, compose: Callable[..., DictConfig]
) -> None:
    (text,) = alarms(compose, tmp_path, model, SHAPES, "trainer.max_steps=200", f"optimizer.lr={rate}")
    assert f"optimizer.lr={rate / 10:g} (here {rate:g})" in text


def test_alarms_change_nothing(tmp_path: Path, compose: Callable[..., DictConfig]) -> None:
    """The loss of every step, to the last digit, with them and without."""
    rows = []
    for name, without in (("with", ()), ("without", tuple(f"callbacks.{a}=null" for a in ALARMS if a != "health"))):
        folder = tmp_path / name
        words = ["model=yolo", *QUICK, *SHAPES, "trainer.max_steps=6", "trainer.log_every_n_steps=1", *without]
        cfg = compose(*words)
        cfg.paths.output = str(folder)
        train(cfg)
        with (folder / "metrics.csv").open(newline="") as stream:
            rows.append([row["train/loss"] for row in csv.DictReader(stream) if row["train/loss"]])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6
