"""Runs of several stages, killed in each of them and resumed by the command; two processes against one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.slow
WORDS = (
    *(
        "model.size=tiny",
        "data=shapes",
        "data.val_size=4",
        "data.test_size=8",
        "data.batch_size=8",
        "budget.minutes=null",
    ),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.report=null"),
    "callbacks.pictures=null",
)
KINDS = {  # what is small about each
    "rcnn": ("model=rcnn", "data.train_size=24"),
    "sppnet": ("model=sppnet", "data.train_size=24"),
    "dpm": ("model=dpm", "data.train_size=12", "recipe.relabels=2", "recipe.mining=1", "recipe.root_mining=1"),
}
STAGES = {
    "rcnn": ("features_0000", "norm", "svm", "boxes"),
    "sppnet": ("features_0000", "svm"),
    "dpm": ("components", "roots", "parts", "latent_1", "boxes"),
}
SAME = {  # largest difference over the largest weight: gradients are summed in another order
    "rcnn": {"head.classify.weight": 1e-5, "head.box_weight": 1e-3},
    "sppnet": {"head.classify.weight": 1e-5, "head.box_weight": 1e-3},
    "dpm": {"root": 1e-4, "parts": 1e-4},
}


def started(folder: Path, model: str, *words: str) -> subprocess.Popen:
    """A run in its folder, proposals beside it."""
    places = (f"paths.output={folder}", f"paths.cache={folder.parent / 'cache'}")
    with (folder.parent / f"{folder.name}.txt").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "cvexp.train", *KINDS[model], *WORDS, *places, *words],
            stdout=said, stderr=said, start_new_session=True, env=os.environ,
        )  # fmt: skip


def ended(folder: Path, model: str, *words: str) -> None:
    """The same, to its end."""
    code = started(folder, model, *words).wait(600)
    assert code == 0, (folder.parent / f"{folder.name}.txt").read_text()[-3000:]


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of an uninterrupted run of each model, made when it is first asked for."""

    class Runs(dict):
        def __missing__(self, model: str) -> Path:
            folder = tmp_path_factory.mktemp(model) / "whole"
            ended(folder, model)
            return self.setdefault(model, folder)

    return Runs()


@pytest.mark.parametrize(("model", "after"), [(model, stage) for model, stages in STAGES.items() for stage in stages])
def test_killed_in_a_stage_and_resumed_is_the_same_bit_for_bit(model: str, after: str, whole: dict[str, Path]) -> None:
    folder = whole[model].parent / f"killed_after_{after}"
    process = started(folder, model)
    artefact = folder / "stages" / f"{after}.pt"
    end = time.monotonic() + 300
    while not artefact.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert artefact.is_file()
    ended(folder, model, f"resume={folder}")
    first, second = weights(whole[model]), weights(folder)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    scores = [json.loads((run / "result.json").read_text())["test/AP50"] for run in (whole[model], folder)]
    assert scores[0] == scores[1]


def assert_two_equal_one(model: str, folder: Path, same: dict[str, float], *words: str) -> None:
    for name, devices in (("one", 1), ("two", 2)):
        ended(folder / name, model, f"trainer.devices={devices}", "callbacks.ema=null", *words)
    one, two = weights(folder / "one"), weights(folder / "two")
    for name, share in same.items():
        first, second = one[f"model.{name}"], two[f"model.{name}"]
        assert float(first.abs().max()) > 0
        assert float((first - second).abs().max()) < share * float(first.abs().max()), name


@pytest.mark.parametrize("model", list(KINDS))
def test_two_processes_equal_one(model: str, tmp_path: Path) -> None:
    assert_two_equal_one(model, tmp_path, SAME[model])


@pytest.mark.parametrize("model", ["rcnn", "sppnet"])
def test_machines_of_two_processes_are_those_of_one(model: str, tmp_path: Path) -> None:
    """On equal features: after a fine-tuning, a last digit of float16 may choose other hard negatives."""
    assert_two_equal_one(model, tmp_path, {"head.svm_weight": 1e-5, "head.box_weight": 1e-5}, "optimizer.lr=0")
