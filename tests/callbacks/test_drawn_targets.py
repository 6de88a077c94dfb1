"""``debug=targets``: a batch as the loader gives it is drawn, and nothing is trained."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cvexp.callbacks.targets import draw_targets
from cvexp.errors import UserError
from cvexp.types import Assignment, Batch, Match, Target


def target(boxes: list[list[float]], labels: list[int], image_id: int) -> Target:
    flags = torch.zeros(len(labels), dtype=torch.bool)
    return Target(
        boxes=torch.tensor(boxes).float().reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=flags,
        crowd=flags,
        area=torch.ones(len(labels)),
        image_id=image_id,
        size=(64, 64),
        original_size=(64, 64),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )


class TwoStage(nn.Module):
    """A detector with a dense grid of anchors and a few proposals, matched by hand.

    Attributes:
        asked: in training mode, and with which extras.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.asked: list[tuple[bool, list[str]]] = []

    def assignments(self, images: Tensor, targets: list[Target], **extras: Any) -> list[Assignment]:
        self.asked.append((self.training, sorted(extras)))
        places = torch.arange(0, 64, 2.0)
        corner = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).reshape(-1, 2)
        anchors = torch.cat([corner - 8, corner + 8], dim=1).expand(len(images), -1, -1)  # 1,024 of 16 x 16
        none = torch.zeros(anchors.shape[:2], dtype=torch.bool)
        positive, ignored, weight = none.clone(), none.clone(), torch.zeros(none.shape)
        positive[0, 5:8] = True  # three for the first object of the first image, one of them not sampled
        ignored[:, 100:120] = True
        weight[0, 5:7] = 1
        weight[:, 200:220] = 1
        index = torch.zeros(none.shape, dtype=torch.int64)
        proposals = torch.tensor([[[4.0, 4, 30, 30], [0, 0, 0, 0]]]).expand(len(images), -1, -1)
        empty = torch.zeros(len(images), 2)
        taken = Match(
            empty.long(), torch.tensor([[True, False]]).expand(len(images), -1) & (self.has(targets)), empty > 0, empty
        )
        return [
            Assignment("anchors", anchors, Match(index, positive, ignored, weight)),
            Assignment("proposals", proposals, taken),
        ]

    @staticmethod
    def has(targets: list[Target]) -> Tensor:
        return torch.tensor([[len(t) > 0] for t in targets])


def setting(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What a recipe gets; no trainer may be made."""

    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.classes = model, ["cow", "sheep"]

    def no_trainer() -> None:
        raise AssertionError("nothing is to be trained")

    return {
        "make_trainer": no_trainer,
        "task": Task().eval(),
        "data": SimpleNamespace(train_dataloader=lambda: [batch]),
    }


@pytest.fixture
def batch() -> Batch:
    """A cow and a sheep; an empty image; a sheep."""
    targets = [
        target([[4, 4, 30, 30], [40, 40, 54, 49]], [0, 1], 11),
        target([], [], 12),
        target([[10, 10, 20, 20]], [1], 13),
    ]
    return Batch(torch.full((3, 3, 64, 64), 90, dtype=torch.uint8), targets)


def test_counts_files_and_words(batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = TwoStage()
    results = draw_targets(**setting(model, batch), folder=str(tmp_path), side=300)
    assert results == {
        "targets/anchors/positive": 2,
        "targets/anchors/negative": 60,  # 20 in each image
        "targets/anchors/unsampled": 3 * 1024 - 2 - 60 - 60,
        "targets/anchors/ignored": 60,
        "targets/anchors/objects": 3,
        "targets/anchors/missing": 2,
        "targets/proposals/positive": 0,
        "targets/proposals/negative": 0,
        "targets/proposals/unsampled": 3,  # the one of the empty image is a negative; the padding is nothing
        "targets/proposals/ignored": 0,
        "targets/proposals/objects": 3,
        "targets/proposals/missing": 1,
    }
    assert model.asked == [(True, [])], "as in training"
    names = {f"targets_{name}_{k}.png" for name in ("anchors", "proposals") for k in (1, 2, 3)}
    assert {path.name for path in tmp_path.iterdir()} == names
    said = capsys.readouterr().out
    assert "no anchor: sheep 2 (image 1, 3)" in said
    assert "no proposal: sheep 1 (image 1)" in said
    assert f"nothing trained; 3 of 3 images drawn: {tmp_path / 'targets_*.png'}" in said


def test_only_so_many_are_drawn_and_all_are_counted(batch: Batch, tmp_path: Path) -> None:
    results = draw_targets(**setting(TwoStage(), batch), folder=str(tmp_path), images=1, side=300)
    assert {path.name for path in tmp_path.iterdir()} == {"targets_anchors_1.png", "targets_proposals_1.png"}
    assert results["targets/anchors/objects"] == 3


def test_names_sort_as_numbers_do(tmp_path: Path) -> None:
    many = Batch(torch.zeros(10, 3, 64, 64, dtype=torch.uint8), [target([[1, 1, 9, 9]], [0], i) for i in range(10)])
    draw_targets(**setting(TwoStage(), many), folder=str(tmp_path), images=2, side=100)
    assert {path.name for path in tmp_path.glob("targets_anchors*")} == {
        "targets_anchors_01.png",
        "targets_anchors_02.png",
    }


def test_extras_reach_the_model(batch: Batch, tmp_path: Path) -> None:
    model = TwoStage()
    batch.extras = {"proposals": [torch.zeros(2, 4)] * 3}
    draw_targets(**setting(model, batch), folder=str(tmp_path), images=0)
    assert model.asked == [(True, ["proposals"])]
    assert list(tmp_path.iterdir()) == []


class Wrong(TwoStage):
    """Returns the assignment of a batch of one."""

    def assignments(self, images: Tensor, targets: list[Target], **extras: Any) -> list[Assignment]:
        return super().assignments(images[:1], targets[:1])


class Ragged(TwoStage):
    """The match has one prior fewer than the boxes."""

    def assignments(self, images: Tensor, targets: list[Target], **extras: Any) -> list[Assignment]:
        found = super().assignments(images, targets)[0]
        return [Assignment("anchors", found.boxes[:, 1:], found.match)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(1, 1), r"Linear has no assignments\(images, targets\)\. Fix"),
        (Wrong(), r"anchors: boxes \(1, 1024, 4\) .* are not \[3, P\]\. Fix"),
        (Ragged(), r"anchors: boxes \(3, 1023, 4\)"),
    ],
)
def test_models_that_do_not_keep_the_contract(model: nn.Module, message: str, batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        draw_targets(**setting(model, batch), folder=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --- the command -----------------------------------------------------------------------------------------------------


def run(compose: Callable[..., Any], *words: str) -> dict[str, Any]:
    """A run in which a warning is an error."""
    from cvexp.train import train

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # other people's
        return train(compose(*words, "debug=targets"))


def test_debug_targets_draws_a_batch_and_ends(
    compose: Callable[..., Any], tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = run(compose, *tiny, "instead.images=3")
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"git.diff"}
    assert written == {"config.yaml", "manifest.json", "result.json", *(f"targets_cells_{k}.png" for k in (1, 2, 3))}
    assert Image.open(tmp_path / "targets_cells_1.png").width == 800 + 380 + 48
    assert "train/steps" not in results
    assert 0 < results["targets/cells/positive"] <= results["targets/cells/objects"]
    assert results["targets/cells/positive"] + results["targets/cells/missing"] == results["targets/cells/objects"]
    cells = sum(results[f"targets/cells/{role}"] for role in ("positive", "negative", "unsampled", "ignored"))
    assert cells == 8 * 12 * 12  # eight images of 96 pixels, stride 8
    assert (
        json.loads((tmp_path / "result.json").read_text())["targets/cells/positive"]
        == results["targets/cells/positive"]
    )
    captured = capfd.readouterr()
    assert "warn" not in (captured.out + captured.err).lower()


@pytest.mark.parametrize("model", ["sliding_window", "dpm", "rcnn", pytest.param("sppnet", marks=pytest.mark.slow)])
def test_models_with_a_recipe_of_their_own_are_drawn_too(
    model: str, compose: Callable[..., Any], tiny: list[str]
) -> None:
    """Nothing of that recipe is run, and none of its settings is in the way."""
    from cvexp.build import SUPPLIED
    from cvexp.config import check_config

    words = [*tiny, f"model={model}", "data.train_size=8", "instead.images=1", "callbacks.pictures=null"]
    check_config(compose(*words, "debug=targets"), supplied=SUPPLIED)
    results = run(compose, *words)
    assert any(name.startswith("targets/") and name.endswith("/positive") for name in results)
    assert "train/steps" not in results


def test_the_batch_is_the_one_that_training_starts_with(
    compose: Callable[..., Any], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmented, in the loader's order: the images are those of the first training step of the same configuration."""
    from cvexp.callbacks import targets
    from cvexp.tasks.detection import DetectionTask
    from cvexp.train import train

    seen: list[Batch] = []
    look, step = targets.assignments, DetectionTask.training_step
    monkeypatch.setattr(targets, "assignments", lambda model, batch: seen.append(batch) or look(model, batch))
    monkeypatch.setattr(DetectionTask, "training_step", lambda s, batch, i: seen.append(batch) or step(s, batch, i))
    run(compose, *tiny, "instead.images=0")
    train(compose(*tiny, "debug=step"))
    drawn, trained = seen[:2]
    assert torch.equal(drawn.images, trained.images)
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(drawn.targets, trained.targets, strict=True))


@pytest.mark.parametrize("data", ["bccd", pytest.param("voc", marks=pytest.mark.slow)])  # voc checks 1,000 images first
def test_real_images(data: str, compose: Callable[..., Any], data_root: Path, tmp_path: Path) -> None:
    words = ["model=yolo", "model.size=tiny", f"data={data}", f"paths.data={data_root}", "data.batch_size=2"]
    results = run(compose, *words, "trainer.accelerator=cpu")
    assert results["targets/cells/objects"] > 0
    assert len(list(tmp_path.glob("targets_cells_*.png"))) == 2
