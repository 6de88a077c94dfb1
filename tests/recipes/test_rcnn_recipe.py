"""R-CNN's stages: who is a positive and who a negative, artefacts that are not made twice, a whole run and one that goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare
from cvexp.models.rcnn import NEVER, RCNN
from cvexp.ops.coding import decode
from cvexp.ops.linear_svm import train_svm
from cvexp.recipes.rcnn import Features, Pairs, feature_scale, half, mine, pairs_of, rcnn, regress, spread
from cvexp.recipes.stages import Stages
from cvexp.types import Target, UserError

K = 2


def target(boxes: list, labels: list[int], image_id: int = 0, difficult: list[bool] | None = None) -> Target:
    none = torch.zeros(len(labels), dtype=torch.bool)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64),
        difficult=none if difficult is None else torch.tensor(difficult), crowd=none.clone(), area=torch.ones(len(labels)),
        image_id=image_id, size=(64, 64), original_size=(64, 64), to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )  # fmt: skip


# -- what a region is --------------------------------------------------------------------------------------------------

REGIONS = torch.tensor(
    [
        [0.0, 0, 40, 40],  # the object itself
        [0, 0, 40, 28],  # IoU 0.7
        [0, 0, 40, 24],  # 0.6 exactly
        [0, 0, 40, 12],  # 0.3 exactly
        [0, 0, 40, 11],  # 0.275
        [50, 50, 60, 60],  # nothing
    ]
)


def test_negatives_have_an_iou_below_three_tenths_with_their_class_alone() -> None:
    facts = Pairs().of(REGIONS, target([[0, 0, 40, 40]], [1]), K)
    assert facts["negative"][:, 1].tolist() == [False, False, False, False, True, True]
    assert facts["negative"][:, 0].all()  # of the class that is not there all are, even the object


def test_what_a_difficult_object_holds_is_no_negative_and_no_pair() -> None:
    facts = Pairs().of(REGIONS, target([[0, 0, 40, 40]], [1], difficult=[True]), K)
    assert facts["negative"][:, 1].tolist() == [False, False, False, False, False, True]  # the fifth lies in it
    assert len(facts["row"]) == 0


def test_regressors_learn_from_regions_above_six_tenths() -> None:
    facts = Pairs().of(REGIONS, target([[0, 0, 40, 40]], [1]), K)
    assert facts["row"].tolist() == [0, 1]
    assert facts["label"].tolist() == [1, 1]
    back = decode(facts["goal"], REGIONS[facts["row"]].double())
    torch.testing.assert_close(back, torch.tensor([[0.0, 0, 40, 40]] * 2).double())


def test_a_region_goes_to_the_nearest_object_of_each_class() -> None:
    near = target([[0, 0, 40, 40], [0, 0, 40, 36], [0, 0, 38, 40]], [1, 1, 0])
    facts = Pairs().of(REGIONS[:1], near, K)
    assert facts["label"].tolist() == [0, 1]
    back = decode(facts["goal"], REGIONS[facts["row"]].double())
    assert back.tolist() == [pytest.approx([0, 0, 38, 40]), pytest.approx([0, 0, 40, 40])]


def test_an_image_without_objects_is_all_background() -> None:
    facts = Pairs().of(REGIONS, target([], []), K)
    assert facts["negative"].all()
    assert facts["goal"].shape == (0, 4)


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [(10, 3, [0, 3, 6]), (2, 5, [0, 1]), (0, 5, []), (1, 200, [0])],
)
def test_spread(length: int, count: int, expected: list[int]) -> None:
    assert spread(length, count) == expected


def test_what_float16_cannot_hold_stays_finite() -> None:
    assert half(torch.tensor([1e6, -1e6, 0.5])).tolist() == [65504.0, -65504.0, 0.5]


# -- features and what is solved on them -------------------------------------------------------------------------------


class Colours(nn.Module):
    """The mean colour of a region: classes are colours, so that the stages have something to find."""

    def __init__(self) -> None:
        super().__init__()
        self.prepare = Prepare((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.out_channels, self.strides = [3], [1]
        self.calls = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        self.calls += 1
        return [self.prepare(images)]


class Painted:
    """Red squares (class 0) and blue ones (class 1) on grey, each with regions around it; a data module as far as asked."""

    pad, max_proposals = "square", 8

    def __init__(self, count: int = 6) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images, self.targets, self.regions = [], [], []
        for index in range(count):
            image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
            boxes, labels = [], []
            for label in range(K):
                x, y = (4 + 32 * label + torch.randint(0, 6, (1,), generator=generator).item() for _ in range(2))
                image[:, y : y + 20, x : x + 20] = torch.tensor([255, 0, 0] if label == 0 else [0, 0, 255])[
                    :, None, None
                ]
                boxes.append([x, y, x + 20, y + 20])
                labels.append(label)
            self.images.append(image)
            self.targets.append(target(boxes, labels, index))
            near = torch.tensor(boxes).repeat(3, 1) + torch.randint(-3, 4, (6, 4), generator=generator)
            away = torch.tensor([[2.0, 40, 20, 60], [40, 2, 60, 20], [0, 0, 64, 64]])
            self.regions.append(torch.cat([near, away]).float())

    def dataset(self, split: str, augmented: bool) -> Painted:
        assert (split, augmented) == ("train", False)
        return self

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple:
        index = key[1]
        return self.images[index], self.targets[index], {"proposals": self.regions[index][: self.max_proposals]}

    def proposals_of(self, split: str) -> list[Tensor]:
        return self.regions

    def source(self, split: str) -> Painted:
        return self

    def ground_truth(self) -> SimpleNamespace:
        return SimpleNamespace(image_index=torch.arange(len(self)).repeat_interleave(K))


def painted(folder: Path, step: bool = False, count: int = 6) -> tuple[Features, RCNN]:
    torch.manual_seed(0)
    model = RCNN(Colours(), K, crop=12, context=1, pool_size=2, layers=0, chunk=4, score_threshold=0.0).eval()
    task = SimpleNamespace(model=model, classes=["red", "blue"])
    return Features(Stages(folder, step), task, Painted(count), count, Pairs(), torch.device("cpu")), model


@pytest.fixture
def cache(tmp_path: Path) -> Features:
    features, _ = painted(tmp_path)
    features.make()
    return features


def test_features_are_those_of_regions_and_objects(cache: Features) -> None:
    data, model = cache.data, cache.task.model
    found = dict(cache.images())
    assert sorted(found) == list(range(6))
    for index, image in found.items():
        seen = model.look(data.images[index][None])
        pooled, hidden = model.describe(seen, torch.cat([data.regions[index][:8], data.targets[index].boxes]))
        assert torch.equal(image["hidden"], hidden[:8].half())
        assert torch.equal(image["objects"], hidden[8:].half())
        assert image["labels"].tolist() == [0, 1]
        facts = Pairs().of(data.regions[index][:8], data.targets[index], K)
        assert torch.equal(image["pooled"][image["pooled_row"]], pooled[facts["row"]].half())


def test_the_size_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        sys.modules["cvexp.recipes.rcnn"],
        "rank_zero_info",
        lambda text: told.append((text, (tmp_path / "stages").exists())),
    )
    features, _ = painted(tmp_path)
    results = features.make()
    # of each of 6 images 8 regions and 2 objects of 12 numbers, and 8 times 12 for the regressors at most, two bytes each
    assert results["features/megabytes"] <= 6 * (10 + 8) * 12 * 2 / 1e6
    assert "MB will be written" in told[0][0]
    assert not told[0][1]


def test_artefacts_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cvexp.recipes.rcnn"]
    monkeypatch.setattr(module, "CHUNK_IMAGES", 2)
    features, model = painted(tmp_path)
    features.make()
    assert [path.name for path in sorted((tmp_path / "stages").iterdir())] == [f"features_000{i}.pt" for i in range(3)]
    first = {index: image["hidden"] for index, image in features.images()}
    (tmp_path / "stages" / "features_0001.pt").unlink()  # as a run that was killed between two
    again, other = painted(tmp_path)
    again.make()
    assert other.backbone.calls * 3 == model.backbone.calls > 0
    for index, image in again.images():
        assert torch.equal(first[index], image["hidden"])


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    features, _ = painted(tmp_path, step=True)
    features.make()
    assert list(tmp_path.iterdir()) == []
    assert len(list(features.images())) == 6


def test_scaled_features_have_the_norm_that_is_asked_for(cache: Features) -> None:
    scale = feature_scale(cache, 20.0)
    hidden = torch.cat([image["hidden"] for _, image in cache.images()]).double()
    assert float((hidden * scale["svm"]).norm(dim=1).mean()) == pytest.approx(20.0)
    assert scale["boxes"] > 0


def test_mined_machines_tell_the_colours_apart(cache: Features) -> None:
    scale = feature_scale(cache, 20.0)["svm"]
    found = mine(cache, scale, train_svm, passes=5)
    assert found["numbers"]["svm/largest_gap"] < 1e-3
    assert found["numbers"]["svm/trainings"] >= 2 * K
    for _, image in cache.images():
        margins = image["objects"].float() @ found["weight"].T + found["bias"]
        assert margins[0, 0] > 0 > margins[0, 1]  # a red square
        assert margins[1, 1] > 0 > margins[1, 0]
        known = image["hidden"].float() @ found["weight"].T + found["bias"]
        assert (known[image["negative"]] < 0.5).all()


def test_a_class_without_objects_gets_no_machine(tmp_path: Path) -> None:
    features, _ = painted(tmp_path)
    for each in features.data.targets:
        each.labels[:] = 0
    features.make()
    found = mine(features, 1.0, train_svm)
    assert found["bias"][1] == NEVER
    assert not found["weight"][1].any()
    assert found["weight"][0].any()
    boxes = regress(features, 1.0, 1.0)
    assert not boxes["weight"][1].any()
    assert not boxes["bias"][1].any()


def test_images_without_any_object_still_come_to_an_end(tmp_path: Path) -> None:
    features, _ = painted(tmp_path)
    for index, each in enumerate(features.data.targets):
        features.data.targets[index] = target([], [], each.image_id)
    features.make()
    assert feature_scale(features, 20.0)["boxes"] == 1.0  # no pair, nothing to measure
    found = mine(features, 1.0, train_svm)
    assert found["bias"].tolist() == [NEVER] * K
    assert found["numbers"] == {"svm/hard_negatives": 0, "svm/trainings": 0, "svm/largest_gap": 0.0}
    assert regress(features, 1.0, 1.0)["numbers"] == {"boxes/pairs": 0, "boxes/mean_error": 0.0}


def test_regressors_move_boxes_nearer_to_their_objects(cache: Features) -> None:
    scale = feature_scale(cache, 20.0)["boxes"]
    found = regress(cache, scale, 1.0)
    features, goals = pairs_of(cache, 0)
    assert len(goals) > 10
    moved = features @ found["weight"][0].numpy() + found["bias"][0].numpy()
    assert np.abs(moved - goals).mean() < 0.7 * np.abs(goals).mean()
    still = regress(cache, scale, 1e12)
    assert still["weight"].abs().max() < 1e-6
    assert still["bias"][0].numpy() == pytest.approx(goals.mean(axis=0), abs=1e-5)


# -- the recipe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [("images", 0), ("cost", -1.0), ("ridge", 0.0), ("norm", 0.0), ("passes", 0)]
)
def test_settings_that_cannot_be_are_refused(name: str, value: float, tmp_path: Path) -> None:
    task = SimpleNamespace(model=painted(tmp_path)[1])
    with pytest.raises(UserError, match=rf"recipe\.{name}=.*Fix"):
        rcnn(lambda: None, task, Painted(), **{name: value})


def test_a_model_without_the_stages_is_refused() -> None:
    with pytest.raises(UserError, match=r"recipe=rcnn: Linear has no SVMs.*Fix: model=rcnn"):
        rcnn(lambda: None, SimpleNamespace(model=nn.Linear(1, 1)), Painted())


WORDS = (
    "model.size=tiny", "data=shapes", "data.train_size=12", "data.val_size=2", "data.test_size=4", "data.batch_size=4",
    "data.eval_batch_size=2", "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=1", "budget.minutes=null",
    "trainer.enable_progress_bar=false", "callbacks.report=null", "callbacks.pictures=null", "callbacks.costs=null",
    "data.proposal_workers=1", "data.max_proposals=30",
)  # fmt: skip


@pytest.mark.parametrize("model", ["rcnn", pytest.param("sppnet", marks=pytest.mark.slow)])
def test_a_whole_run_and_its_artefacts(model: str, tmp_path: Path, compose: Callable) -> None:
    from cvexp.train import train

    words = (f"model={model}", *WORDS, f"paths.cache={tmp_path / 'cache'}")
    results = train(compose(*words))
    passes = results["test/cnn_passes_per_image"]
    assert (passes == 1) if model == "sppnet" else (1 < passes <= 30)
    assert results["svm/trainings"] >= 3
    assert results["boxes/pairs"] > 0
    names = {path.name for path in (tmp_path / "stages").iterdir()}
    assert names == {"features_0000.pt", "norm.pt", "svm.pt", "boxes.pt"}
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert bool(state["model.head.svm_trained"])
    assert state["model.head.box_weight"].abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rcnn", "sppnet"])
def test_a_dry_run_takes_two_images(model: str, tmp_path: Path, compose: Callable) -> None:
    from cvexp.train import train

    results = train(compose(f"model={model}", *WORDS, "debug=step", f"paths.cache={tmp_path / 'cache'}"))
    assert not (tmp_path / "stages").exists()
    assert "test/cnn_passes_per_image" in results
