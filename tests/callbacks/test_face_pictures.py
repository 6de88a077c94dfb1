"""After the test of an embedding model: which pictures are written, which pairs they show, what W&B gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from cvexp.callbacks.face_pictures import FacePictures, worst_pairs
from cvexp.comparators.comparator import Comparator
from cvexp.errors import UserError
from cvexp.metrics.verification_metric import Verification
from cvexp.types import FaceBatch, FaceTruth, Pairs
from cvexp.viz.faces import RIGHT, WRONG

PEOPLE = ["Ann", "Bob", "Cleo"]
# Image ids are no positions: 10, 11, ... An embedding is a number on a line; so is the brightness of the image.
LINE = torch.tensor([0.0, 0.1, 1.0, 1.2, 0.2, 5.0])
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
DISTRACTOR = torch.tensor([False] * 5 + [True])
# squared distances: Ann .01, Bob .04; Ann-Bob 1, 1.44, .81; Cleo-Ann .04, .01; Cleo-Bob .64
FIRST, SECOND = [10, 12, 10, 10, 11, 14, 14, 14], [11, 13, 12, 13, 12, 10, 11, 12]
SAME = [True, True, False, False, False, False, False, False]


class Line(Comparator):
    measure, falling = "squared distance", True

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        return -(a - b).square().sum(dim=-1)


class Source:
    """Six images in the order of the truth; each read is noted."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def truth(self) -> FaceTruth:
        fold = torch.zeros(len(SAME), dtype=torch.int64)
        pairs = Pairs(torch.tensor(FIRST), torch.tensor(SECOND), torch.tensor(SAME), fold, "mine.txt")
        return FaceTruth(torch.arange(10, 16), LABELS, PEOPLE, DISTRACTOR, pairs)

    def read(self, index: int) -> tuple[Tensor, int, int]:
        self.asked.append(index)
        return self.image(index), int(LABELS[index]), 10 + index

    @staticmethod
    def image(index: int) -> Tensor:
        return torch.full((3, 8, 8), int(100 * LINE[index] / 5) + 20, dtype=torch.uint8)


class Data(LightningDataModule):
    tested = "test"

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._source, self.batches = Source(), batches

    def source(self, split: str) -> Source:
        assert split == "test"
        return self._source

    def test_dataloader(self) -> DataLoader:
        batches = [FaceBatch(Source.image(i)[None], LABELS[i, None], torch.tensor([10 + i])) for i in range(6)]
        return DataLoader(batches[: self.batches], batch_size=None)  # type: ignore[arg-type]


class Task(LightningModule):
    def __init__(self, threshold: float | None) -> None:
        super().__init__()
        self.metric = Verification(fars=[0.1], resamples=20)
        self.metric.comparator, self.threshold = Line(1), threshold

    def on_test_start(self) -> None:
        self.metric.set_ground_truth(self.trainer.datamodule.source("test").truth())  # type: ignore[attr-defined]
        self.metric.threshold = self.threshold

    def test_step(self, batch: FaceBatch, index: int) -> None:
        self.metric.update(batch.image_ids, LINE[batch.image_ids - 10][:, None])

    def on_test_epoch_end(self) -> None:
        self.metric.compute()


def measured(folder: Path, batches: int = 6, threshold: float | None = -0.03, **options: Any) -> tuple[Task, Source]:
    task, data = Task(threshold), Data(batches)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    trainer = Trainer(
        accelerator="cpu", callbacks=[FacePictures(str(folder / "run"))], **({"logger": False} | quiet | options)
    )
    trainer.test(task, datamodule=data, verbose=False)
    return task, data.source("test")


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


ALL = {"run/roc.png", "run/embedding_map.png", "run/pairs.png"}


def test_files_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, source = measured(tmp_path)
    assert written(tmp_path) == ALL
    for name in ALL:
        assert np.asarray(Image.open(tmp_path / name).convert("RGB")).std() > 1
    said = capsys.readouterr().out
    assert task.metric.result is not None
    assert len(task.metric.result.notes) > 0
    for note in task.metric.result.notes:
        assert said.count(f"note: {note}") == 1
    assert 5 not in source.asked, "a distractor is on no picture"


@pytest.mark.parametrize(
    ("batches", "names"),
    [
        (6, ALL),
        (3, ALL),  # a limited run: two pairs are left
        (1, {"run/roc.png", "run/embedding_map.png"}),  # no pair is whole: nothing to show, and no failure
    ],
)
def test_images_that_were_not_seen(batches: int, names: set[str], tmp_path: Path) -> None:
    _, source = measured(tmp_path, batches)
    assert written(tmp_path) == names
    assert max(source.asked, default=0) < batches


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    measured(tmp_path, fast_dev_run=1)
    assert not (tmp_path / "run").exists()


def test_without_a_threshold(tmp_path: Path) -> None:
    task, _ = measured(tmp_path, threshold=None)
    assert written(tmp_path) == ALL
    assert task.metric.result is not None


def judged(threshold: float | None) -> tuple[Any, Source]:
    """A result of the pairs above without a trainer."""
    source = Source()
    metric = Verification(fars=[0.1], resamples=5)
    metric.comparator, metric.threshold = Line(1), threshold
    metric.set_ground_truth(source.truth())
    metric.update(range(10, 16), LINE[:, None])
    metric.compute()
    return metric.result, source


@pytest.mark.parametrize(
    ("count", "asked"),
    [
        # of one person Bob (2, 3) then Ann (0, 1); of two people Cleo with Ann: .01 (4, 1) then .04 (4, 0)
        (1, [2, 3, 4, 1]),
        (2, [2, 3, 0, 1, 4, 1, 4, 0]),
        (99, [2, 3, 0, 1, 4, 1, 4, 0, 4, 2, 1, 2, 0, 2, 0, 3]),  # all that there are
    ],
)
def test_the_worst_come_first(count: int, asked: list[int]) -> None:
    result, source = judged(-0.03)
    worst_pairs(result, source.truth(), source, count)
    assert source.asked == asked


def test_pairs_are_found_where_some_are_left_out() -> None:
    """Without image 11 positions in the list and among the judged pairs differ: Bob is the only pair of one person."""
    source, seen = Source(), torch.tensor([0, 2, 3, 4])
    metric = Verification(fars=[0.1], resamples=5)
    metric.comparator, metric.threshold = Line(1), -0.03
    metric.set_ground_truth(source.truth())
    metric.update(seen + 10, LINE[seen, None])
    metric.compute()
    worst_pairs(metric.result, source.truth(), source, 9)
    assert source.asked == [2, 3, 4, 0, 4, 2, 0, 2, 0, 3]


def framed(picture: np.ndarray, ink: tuple[int, int, int]) -> int:
    """How many faces have a frame of a colour: 4 pixels wide around 120."""
    return round((picture == ink).all(axis=2).sum() / (4 * 4 * (128 - 4)))


@pytest.mark.parametrize(
    ("threshold", "left", "right"),
    [
        (-0.03, (2, 2), (2, 2)),  # Bob is refused, Ann accepted; Cleo is taken for Ann once
        (-0.005, (4, 0), (0, 4)),  # everybody is refused: both of one person wrong
        (-2.0, (0, 4), (4, 0)),  # everybody is accepted: both of two people wrong
        (None, (0, 0), (0, 0)),  # no verdict
    ],
)
def test_mistakes_are_red(threshold: float | None, left: tuple[int, int], right: tuple[int, int]) -> None:
    """Red and green faces of the two worst pairs, of one person and of two."""
    result, source = judged(threshold)
    if threshold is None:
        result = SimpleNamespace(**vars(result) | {"threshold": None})
    picture = np.asarray(worst_pairs(result, source.truth(), source, 2))
    half = picture.shape[1] // 2
    assert tuple(framed(picture[:, :half], ink) for ink in (WRONG, RIGHT)) == left
    assert tuple(framed(picture[:, half:], ink) for ink in (WRONG, RIGHT)) == right


def test_no_pairs_are_refused() -> None:
    with pytest.raises(UserError, match=r"pairs=0 .*Fix: pairs=6"):
        FacePictures("x", pairs=0)


def test_wandb_gets_the_pictures(tmp_path: Path) -> None:
    from cvexp.loggers.wandb import wandb

    logger = wandb(str(tmp_path / "log"), mode="offline")
    try:
        measured(tmp_path, logger=logger)
    finally:
        logger.experiment.finish()
    kept = {path.stem.split("_")[0] for path in (tmp_path / "log").rglob("media/images/test/*.png")}
    assert kept == {"roc", "embedding", "pairs"}


def test_facenet_by_the_command(compose: Callable[..., Any], tmp_path: Path) -> None:
    """A training of two steps on drawn faces leaves the pictures beside its results."""
    from cvexp.train import train

    config = compose(
        "model=facenet", "model.size=tiny", "data=drawn_faces", "data.batch_size=16", "data.train_identities=8",
        "data.val_identities=4", "data.test_identities=4", "data.train_images=4", "trainer.max_epochs=1",
        "trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    train(config)
    for name in ("roc.png", "embedding_map.png", "pairs.png"):
        assert (tmp_path / name).exists()
    assert not (tmp_path / "alarms.txt").exists()
