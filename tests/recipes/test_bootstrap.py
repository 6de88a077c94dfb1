"""Bootstrapped negatives: what is a false alarm, when the rounds are, and what a run that goes on knows of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from cvexp.ops.batching import PaddedTargets
from cvexp.ops.matching import max_iou
from cvexp.recipes.bootstrap import Rounds, bootstrap, false_alarms
from cvexp.recipes.stages import Stages
from cvexp.types import Match, Target, UserError

WINDOWS = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
PROBABILITY = [0.9, 0.8, 0.7, 0.95, 0.2]
"""Of an object of some class, window by window; the second one is nearly the first one."""


class Alarmed(nn.Module):
    """A sliding window that sees objects with `PROBABILITY`, scaled by the brightness of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[list[list[list[float]]], list[int]]] = []
        self.modes: list[bool] = []

    def grid(self, images: Tensor) -> tuple[list, Tensor]:
        return [], WINDOWS

    def match_windows(self, boxes: Tensor, objects: PaddedTargets) -> Match:
        return max_iou(boxes, objects, 0.5, 0.5)

    def scan(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        any_class = torch.tensor(PROBABILITY) * images.float().mean(dim=(1, 2, 3))[:, None] / 255
        return torch.stack([1 - any_class, any_class * 0.6, any_class * 0.4], dim=-1).clamp(min=1e-9).log()

    def learn_negatives(self, boxes: list[Tensor], image_ids: list[int]) -> None:
        self.told.append(([each.tolist() for each in boxes], list(image_ids)))


def target(boxes: list[list[float]], image_id: int = 0, to_original: tuple[float, ...] = (1, 1, 0, 0)) -> Target:
    count = len(boxes)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(count, dtype=torch.int64),
        difficult=torch.zeros(count, dtype=torch.bool),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
        image_id=image_id,
        size=(10, 70),
        original_size=(10, 70),
        to_original=torch.tensor(to_original, dtype=torch.float32),
    )


WHITE = torch.full((1, 3, 10, 70), 255, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("objects", "settings", "expected", "count"),
    [
        ([], {}, [3, 0, 2], 3),  # the most certain first; window 1 is window 0; window 4 is not certain enough
        ([[40, 0, 50, 10]], {}, [0, 2], 2),  # an object is no false alarm
        ([], {"per_image": 1}, [3], 3),  # the others are counted all the same
        ([], {"threshold": 0.85}, [3, 0], 2),
        ([], {"threshold": 0.99}, [], 0),  # nothing is wrong
        ([], {"nms_threshold": 0.9}, [3, 0, 1, 2], 4),  # IoU of windows 0 and 1 is 90 / 110 = 0.82
    ],
)
def test_false_alarms(objects: list, settings: dict, expected: list[int], count: int) -> None:
    ((boxes, found),) = false_alarms(Alarmed(), WHITE, [target(objects)], **({"per_image": 8} | settings))
    assert boxes.tolist() == WINDOWS[expected].tolist()
    assert found == count


def test_a_difficult_object_is_no_false_alarm() -> None:
    """It is no background either."""
    hard = target([[40, 0, 50, 10]])
    hard.difficult[:] = True
    ((boxes, _),) = false_alarms(Alarmed(), WHITE, [hard], 8)
    assert boxes.tolist() == WINDOWS[[0, 2]].tolist()


class Pictures:
    """A data module of images of falling brightness; the second one is given at half its size."""

    pad, batch_size = "square", 2

    def __init__(self, count: int) -> None:
        self.count = count

    def dataset(self, split: str, augmented: bool) -> Pictures:
        assert (split, augmented) == ("train", False)
        return self

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target]:
        index = key[1]
        geometry = (0.5, 0.5, 0.0, 0.0) if index == 1 else (1, 1, 0, 0)
        return WHITE[0] - 40 * index, target([], 100 + index, geometry)


def trainer_at(epoch: int, folder: Path, images: int = 3, **changes: Any) -> Any:
    settings = {"max_epochs": 8, "fast_dev_run": False, "default_root_dir": str(folder)} | changes
    return SimpleNamespace(current_epoch=epoch, datamodule=Pictures(images), **settings)


def follow(rounds: Rounds, folder: Path, epochs: range, **changes: Any) -> tuple[list[int], Alarmed]:
    """In which epochs something was told, and the model."""
    module: Any = SimpleNamespace(model=Alarmed().train(), device=torch.device("cpu"))
    when = []
    rounds.on_train_start(trainer_at(epochs[0], folder, **changes), module)
    when += [epochs[0]] * len(module.model.told)
    for epoch in epochs:
        before = len(module.model.told)
        rounds.on_train_epoch_start(trainer_at(epoch, folder, **changes), module)
        when += [epoch] * (len(module.model.told) - before)
    return when, module.model


@pytest.mark.parametrize(
    ("settings", "epochs", "when"),
    [
        ({"rounds": 3, "every": 2}, 8, [2, 4, 6]),
        ({"rounds": 1, "every": 3}, 8, [3]),
        ({"rounds": 0, "every": 1}, 8, []),
        ({"rounds": 3}, 8, [2, 4, 6]),  # 8 epochs in 4 equal parts
        ({"rounds": 3}, 2, [1]),  # of training too short the later rounds are missing
    ],
)
def test_when_the_rounds_are(tmp_path: Path, settings: dict, epochs: int, when: list[int]) -> None:
    assert follow(Rounds(**settings), tmp_path, range(epochs), max_epochs=epochs)[0] == when


def test_equal_rounds_of_a_training_without_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.every=null.*Fix: recipe\.every=3"):
        follow(Rounds(), tmp_path, range(2), max_epochs=-1)


def test_what_a_round_finds(tmp_path: Path) -> None:
    """Brightness 255, 215 and 175: probabilities times 1, 0.84 and 0.69, above 0.5 in 3, 3 and 2 windows."""
    rounds = Rounds(1, 1)
    _, model = follow(rounds, tmp_path, range(2))
    ((boxes, ids),) = model.told
    assert ids == [100, 101, 102]
    assert boxes[0] == WINDOWS[[3, 0, 2]].tolist()
    assert boxes[1] == (WINDOWS[[3, 0, 2]] * 2).tolist()  # original pixels
    assert boxes[2] == WINDOWS[[3, 0]].tolist()
    assert rounds.results == {"train/false_alarms_1": pytest.approx(8 / 3)}
    assert model.modes == [False, False], "two batches, scanned as in a test"
    assert model.training
    assert [path.name for path in (tmp_path / "stages").iterdir()] == ["negatives_1.pt"]


def test_a_run_that_goes_on_knows_former_rounds(tmp_path: Path) -> None:
    """Killed in epoch 5, it is told rounds 1 and 2 as they were found, without another scan, and then does the third."""
    _, whole = follow(Rounds(3, 2), tmp_path / "whole", range(8))
    follow(Rounds(3, 2), tmp_path / "killed", range(6))
    when, again = follow(Rounds(3, 2), tmp_path / "killed", range(5, 8))
    assert when == [5, 5, 6]
    assert again.told == whole.told
    assert len(again.modes) == 2, "one scan of two batches"


def test_a_run_that_goes_on_after_its_last_epoch_has_the_same_numbers(tmp_path: Path) -> None:
    rounds = Rounds(3, 2)
    follow(rounds, tmp_path, range(8))
    assert len(rounds.results) == 3
    assert Rounds(3, 2).numbers(Stages(tmp_path)) == rounds.results
    assert Rounds(3, 2).numbers(Stages(tmp_path, step=True)) == {}  # a dry run does not look
    assert Rounds(3, 2).numbers(Stages(tmp_path / "new")) == {}


def test_only_the_first_images_are_scanned(tmp_path: Path) -> None:
    _, model = follow(Rounds(1, 1, images=2), tmp_path, range(2))
    assert model.told[0][1] == [100, 101]
    assert follow(Rounds(1, 1, images=99), tmp_path / "more", range(2))[1].told[0][1] == [100, 101, 102]


def test_a_dry_run_scans_two_images_and_writes_nothing(tmp_path: Path) -> None:
    when, model = follow(Rounds(3, 2), tmp_path, range(1), fast_dev_run=True)
    assert when == [0]
    assert model.told[0][1] == [100, 101]
    assert list(tmp_path.iterdir()) == []


def test_images_of_several_shapes_are_scanned_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pictures, "pad", "batch")
    _, model = follow(Rounds(1, 1), tmp_path, range(2))
    assert len(model.modes) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": -1}, "recipe.rounds=-1 must be at least 0"),
        ({"every": 0}, "recipe.every=0 must be at least 1"),
        ({"per_image": 0}, "recipe.per_image=0 must be at least 1"),
        ({"images": 0}, "recipe.images=0 must be at least 1"),
        ({}, "Linear does not learn from negatives"),
    ],
)
def test_what_cannot_be_bootstrapped(settings: dict, message: str) -> None:
    task: Any = SimpleNamespace(model=nn.Linear(1, 1))
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        bootstrap(None, task, None, **settings)  # type: ignore[arg-type]


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    _, model = follow(Rounds(2, 1), Path(folder) / "run", range(3), images=5)
    torch.save(model.told, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    """Five images: the shares differ in size."""
    _, alone = follow(Rounds(2, 1), tmp_path / "alone", range(3), images=5)
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == alone.told
