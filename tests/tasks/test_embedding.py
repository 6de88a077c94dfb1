"""The embedding task: where the threshold comes from, that it is kept and used, what is logged."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cvexp.comparators.squared_l2 import SquaredL2
from cvexp.metrics.verification_metric import Verification
from cvexp.tasks.embedding import EmbeddingTask
from cvexp.types import FaceBatch, FaceTruth, Pairs, UserError


class Angles(nn.Module):
    """An image's first pixel, in degrees, is its place on the unit circle."""

    kind = "embedding"

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.zeros(()))
        self.comparator = SquaredL2(2)
        self.seen: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        angle = images[:, 0, 0, 0].float() * math.pi / 180 + self.turn
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        self.seen.append("embed")
        return self(images)

    def losses(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        return {"triplet": embeddings.sum() * 0 + 0.5}

    def statistics(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        assert not embeddings.requires_grad
        return {"active": torch.tensor(0.25), "spread": torch.tensor(0.75)}


def squared(degrees: float) -> float:
    """The squared distance of two points so far apart on the unit circle."""
    return 2 - 2 * math.cos(degrees * math.pi / 180)


class Faces(LightningDataModule):
    """Pairs that are so many degrees apart: validation and test each with their own."""

    tested = "test"

    def __init__(self, **splits: tuple[list[int], list[int]]) -> None:
        super().__init__()
        self.splits = splits  # of each split: degrees of same pairs, of different pairs

    def source(self, split: str) -> Any:
        same, different = self.splits[split]
        count = len(same) + len(different)
        first = torch.arange(count) * 2
        pairs = Pairs(
            first, first + 1, torch.arange(count) < len(same), torch.zeros(count, dtype=torch.int64), f"{split}.txt"
        )
        labels = torch.arange(2 * count)
        labels[1 : 2 * len(same) : 2] -= 1
        names = [f"p{k}" for k in range(2 * count)]
        none = torch.zeros(2 * count, dtype=torch.bool)
        return SimpleNamespace(truth=lambda: FaceTruth(torch.arange(2 * count), labels, names, none, pairs))

    def _loader(self, split: str) -> DataLoader:
        truth = self.source(split).truth()
        images = torch.zeros(len(truth.image_ids), 3, 1, 1, dtype=torch.uint8)
        images[1::2, 0, 0, 0] = torch.tensor([d for kind in self.splits[split] for d in kind], dtype=torch.uint8)
        batches = [FaceBatch(images[k : k + 4], truth.labels[k : k + 4], truth.image_ids[k : k + 4])
                   for k in range(0, len(images), 4)]  # fmt: skip
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")


def task(**options: Any) -> EmbeddingTask:
    optimizer = partial(torch.optim.AdamW, lr=0.1)
    return EmbeddingTask(Angles(), optimizer, Verification(resamples=20), ["a", "b"], **options)


def trainer(folder: Path) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip


DATA = {"val": ([10, 20, 40], [60, 80, 90]), "test": ([10, 55], [30, 70])}


def test_the_threshold_of_the_validation_decides_the_test(tmp_path: Path) -> None:
    """Between 40 and 60 degrees; in the test one of each kind is then wrong (55 and 30), chosen there it were three right."""
    module, data = task(), Faces(**DATA)
    runner = trainer(tmp_path)
    (val,) = runner.validate(module, datamodule=data, verbose=False)
    middle = (squared(40) + squared(60)) / 2
    assert module.verification["threshold"] == pytest.approx(-middle, abs=1e-5)  # a score: larger is more alike
    assert module.verification["shown"] == pytest.approx(middle, abs=1e-5)
    assert module.verification["measure"] == "squared distance"
    assert module.verification["chosen"] == "best accuracy, 1.000, on the 6 pairs of val.txt"
    assert val["val/best_accuracy"] == 1
    (test,) = runner.test(module, datamodule=data, verbose=False)
    assert test["test/accuracy"] == 0.5
    assert test["test/threshold"] == pytest.approx(middle, abs=1e-5)
    assert set(module.model.seen) == {"embed"}


def test_every_validation_fits_the_comparator_and_chooses_anew(tmp_path: Path) -> None:
    """The threshold of a former one is no threshold that was known before this one's pairs."""
    module, fitted = task(), []
    module.model.comparator.fit = lambda a, b, same: fitted.append((len(a), len(b), int(same.sum())))  # type: ignore[method-assign]
    for data, middle in ((Faces(**DATA), (40, 60)), (Faces(val=([10, 20], [30, 40, 50])), (20, 30))):
        (val,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
        assert val["val/best_accuracy"] == 1
        assert "val/accuracy" not in val
        assert squared(middle[0]) < module.verification["shown"] < squared(middle[1])
    assert fitted == [(6, 6, 3), (5, 5, 2)]


def test_a_threshold_is_not_judged_on_the_pairs_that_it_was_chosen_on(tmp_path: Path) -> None:
    """`cvexp.evaluate split=val`."""
    module, data = task(), Faces(**DATA)
    trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    data.tested = "val"
    data.test_dataloader = data.val_dataloader  # type: ignore[method-assign]
    (again,) = trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert again["test/best_accuracy"] == 1
    assert "test/accuracy" not in again


def test_a_wanted_false_accept_rate(tmp_path: Path) -> None:
    """At most half of the different pairs, which are three: one of them, so from 60 to 80 degrees."""
    module = task(far=0.5)
    trainer(tmp_path).validate(module, datamodule=Faces(**DATA), verbose=False)
    assert squared(60) < module.verification["shown"] < squared(80)
    assert module.verification["chosen"] == "false accepts of at most 0.5 on the 6 pairs of val.txt"


def test_a_false_accept_rate_of_less_than_a_pair_cannot_be_had(tmp_path: Path) -> None:
    module = task(far=0.1)
    trainer(tmp_path).validate(module, datamodule=Faces(**DATA), verbose=False)
    assert squared(40) < module.verification["shown"] < squared(60)
    assert module.verification["chosen"].endswith("val.txt, which are too few for a false accept rate of 0.1")


def test_the_threshold_lives_in_the_checkpoint(tmp_path: Path) -> None:
    module, data = task(), Faces(**DATA)
    module.description = {"classes": ["a", "b"]}
    runner = trainer(tmp_path)
    runner.validate(module, datamodule=data, verbose=False)
    runner.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["cvexp"]  # plain Python
    assert saved == {"classes": ["a", "b"], "verification": module.verification}
    again = task()
    assert again.verification == {}
    (test,) = trainer(tmp_path).test(
        again, datamodule=data, ckpt_path=tmp_path / "x.ckpt", verbose=False, weights_only=True
    )
    assert again.verification == module.verification
    assert test["test/accuracy"] == 0.5


def test_without_a_validation_the_threshold_is_called_the_best_one(tmp_path: Path) -> None:
    (test,) = trainer(tmp_path).test(task(), datamodule=Faces(**DATA), verbose=False)
    assert test["test/best_accuracy"] == 0.75
    assert "test/accuracy" not in test or math.isnan(test["test/accuracy"])


def test_a_validation_without_pairs_of_both_kinds_keeps_the_threshold(tmp_path: Path) -> None:
    """A dry run of one batch may meet same pairs only."""
    module = task()
    module.verification = {"threshold": -1.0}
    trainer(tmp_path).validate(module, datamodule=Faces(val=([10, 20], [])), verbose=False)
    assert module.verification == {"threshold": -1.0}


def test_losses_and_statistics_are_logged(monkeypatch) -> None:
    module = task()
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value.item()}))
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update({k: v.item() for k, v in values.items()}))
    batch = FaceBatch(torch.zeros(2, 3, 1, 1, dtype=torch.uint8), torch.zeros(2).long(), torch.arange(2))
    module._trainer = SimpleNamespace(global_step=18, log_every_n_steps=20)
    assert module.training_step(batch, 0).item() == 0.5
    assert logged == {}  # only every 20th step
    module._trainer = SimpleNamespace(global_step=19, log_every_n_steps=20)
    module.training_step(batch, 0)
    assert logged == {"train/loss": 0.5, "train/loss_triplet": 0.5, "train/active": 0.25, "train/spread": 0.75}


@pytest.mark.parametrize("far", [0.0, 1.0, -0.1])
def test_a_rate_that_is_none(far: float) -> None:
    with pytest.raises(UserError, match=r"task\.far="):
        task(far=far)
