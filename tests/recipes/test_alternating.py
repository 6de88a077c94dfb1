"""Alternating training: what each of the four steps trains, what it hands on, its share of the run, and a run that goes on."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from resuming import BOXES, QUICK, CutError, cut_words, last, rows, train_here, unequal
from torch import nn

from cvexp.backbones.vgg import VGG
from cvexp.callbacks.budget import Budget
from cvexp.callbacks.last import Last
from cvexp.models.faster_rcnn import REGIONS, RPN, Anchors, FasterRCNN, RegionHead, RPNHead
from cvexp.recipes import alternating
from cvexp.recipes.alternating import STEPS, Onward, Run, check_shares, part_of, stage_of
from cvexp.types import Target, UserError

K = 3


def network(seed: int = 0, **options) -> FasterRCNN:
    torch.manual_seed(seed)
    backbone = VGG(layers=(1, 1, 1, 1, 1), channels=(8, 8, 16, 16, 16), pools=3, freeze=1)
    defaults = {
        "anchors": Anchors(scales=(2, 4, 8)), "pool_size": 2, "inside": False, "rpn_batch": 32, "roi_batch": 16,
        "pre_nms": (100, 50), "post_nms": (30, 20), "min_size": 2.0, "score_threshold": 0.01, "image_size": 96,
    }  # fmt: skip
    head = partial(RegionHead, hidden=16, dropout=0.0)
    return FasterRCNN(backbone, partial(RPNHead, channels=16), head, K, **(defaults | options))


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def targets() -> list[Target]:
    none = torch.zeros(1, dtype=torch.bool)
    return [
        Target(
            boxes=torch.tensor([box]), labels=torch.tensor([label]), difficult=none, crowd=none, area=torch.ones(1),
            image_id=label, size=(96, 96), original_size=(96, 96), to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        )
        for label, box in enumerate(([10.0, 10, 50, 60], [30.0, 20, 80, 90]))
    ]  # fmt: skip


def run_of(model: nn.Module, folder: str = "nowhere", callbacks: tuple = (), **options) -> Run:
    """A run with a trainer that only has limits."""
    limits = {"max_epochs": 10, "max_steps": -1, "fast_dev_run": False} | options

    def make() -> SimpleNamespace:
        return SimpleNamespace(
            default_root_dir=folder, callbacks=list(callbacks), limit_val_batches=1.0, loggers=[],
            checkpoint_callbacks=[c for c in callbacks if isinstance(c, ModelCheckpoint | Last)],
            fit_loop=SimpleNamespace(max_epochs=None, epoch_loop=SimpleNamespace(max_steps=None)), **limits,
        )  # fmt: skip

    task = SimpleNamespace(model=model, description={}, clock=0.7, images_used=0.9)
    return Run(make, task, None, check_shares((1, 1, 1, 1)))


# -- what the network knows of the steps -------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [RPN, REGIONS, RPN + REGIONS])
def test_only_the_losses_of_a_step_are_there(names: tuple[str, ...]) -> None:
    model = network().train()
    every = model(pixels(), targets())
    model.draws.zero_()
    model.trains = names
    losses = model(pixels(), targets())
    assert set(losses) == set(names)
    assert all(losses[name].item() == every[name].item() for name in names)
    assert int(model.draws) == 1, "the next step draws other samples"
    model.eval()
    validated, found = model.loss_and_detect(pixels(), targets())
    assert set(validated) == set(names)
    assert len(found) == 2


def test_another_network_proposes_and_is_no_part_of_this_one() -> None:
    model, other = network(0).eval(), network(5).eval()
    names = list(model.state_dict())
    own = model.assignments(pixels(), targets())[1].boxes
    model.propose_by(other)
    assert list(model.state_dict()) == names
    assert all(p.grad is None for p in other.parameters())
    assert not torch.equal(model.assignments(pixels(), targets())[1].boxes, own)
    model.train()
    model.trains = REGIONS
    sum(model(pixels(), targets()).values()).backward()
    assert all(p.grad is None for p in other.parameters())
    assert all(p.grad is None for p in model.rpn.parameters())
    assert model.backbone.features[-2].weight.grad is not None
    model.eval()
    with torch.no_grad():
        theirs = other.propose(
            *other.rpn(other.features(pixels())), other.anchors(other.features(pixels())), (96, 96), other.in_test
        )
        expected = model.detect(model.features(pixels()), theirs, (96, 96))
        found = model(pixels())
    assert torch.equal(found[0].scores, expected[0].scores)
    model.propose_by(None)
    assert torch.equal(model.assignments(pixels(), targets())[1].boxes, own)


# -- the steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("backbone.features.0.weight", "convolutions"),
        ("neck.lateral.0.bias", "convolutions"),
        ("rpn.conv.weight", "rpn"),
        ("head.body.0.weight", "regions"),
        ("mask.predict.weight", "regions"),  # of Mask R-CNN
        ("draws", "regions"),  # no parameter: belongs to nobody in particular
    ],
)
def test_whose_a_tensor_is(name: str, part: str) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("index", "trained"), [(0, {"backbone", "rpn"}), (1, {"backbone", "head"}), (2, {"rpn"}), (3, {"head"})]
)
def test_what_each_step_trains(index: int, trained: set[str]) -> None:
    """What the backbone itself has frozen stays frozen."""
    model = network()
    run = run_of(model)
    kept = run._prepare(STEPS[index])
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in learning} == trained
    assert not any(name.startswith("backbone.features.0") for name in learning)
    assert not learning & kept
    assert model.trains == (RPN if index % 2 == 0 else REGIONS)
    assert (run.task.clock, run.task.images_used, run.task.description["stage"]) == (0.0, None, STEPS[index].name)


def test_the_second_step_begins_anew_on_the_proposals_of_the_first() -> None:
    model = network()
    run, before = run_of(model), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    trained = copy.deepcopy(model.state_dict())
    run._prepare(STEPS[1])
    for name, value in model.state_dict().items():
        old = before if part_of(name) == "convolutions" else trained
        assert torch.equal(value, old[name]), name
    (proposer,) = model.proposer
    assert all(torch.equal(value, trained[name]) for name, value in proposer.state_dict().items())
    assert not proposer.training
    assert not any(p.requires_grad for p in proposer.parameters())
    run._prepare(STEPS[2])
    assert model.proposer == ()
    assert all(torch.equal(model.state_dict()[n], before[n]) for n in before if part_of(n) == "convolutions")


def test_every_step_begins_with_the_first_batch() -> None:
    """Of a run that went on within the step before, the data begins elsewhere."""
    run, begun = run_of(network()), []
    run.data = SimpleNamespace(start_at=lambda *place: begun.append(place))
    run._prepare(STEPS[2])
    assert begun == [(0, 0)]


def test_afterwards_the_model_trains_what_it_did() -> None:
    model = network()
    run = run_of(model)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    with run.as_it_was():
        run._prepare(STEPS[1])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    assert model.trains == RPN + REGIONS
    assert model.proposer == ()


def test_frozen_convolutions_keep_their_statistics() -> None:
    model = nn.Module()
    model.backbone, model.rpn = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    onward = Onward(3, 5, {"backbone.weight", "backbone.bias"}, again=False)
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0)), loggers=[])
    onward.on_train_start(trainer, SimpleNamespace(model=model))
    model.train()
    onward.on_train_epoch_start(trainer, SimpleNamespace(model=model))
    assert (model.backbone.training, model.rpn.training) == (False, True)
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 5


# -- shares ------------------------------------------------------------------------------------------------------------


def limits(run: Run, kind: str) -> list[float]:
    """What each step gets of a limit, if each takes what it gets."""
    found = []
    for index in range(4):
        trainer = run._trainer(index, set(), None)
        budget = next((c for c in trainer.callbacks if isinstance(c, Budget)), None)
        value = {
            "epochs": trainer.fit_loop.max_epochs,
            "steps": trainer.fit_loop.epoch_loop.max_steps,
            "images": budget and budget.images,
            "seconds": budget and budget.minutes and budget.minutes * 60,
        }[kind]
        found.append(value)
        run.spent[kind] += value
    return found


@pytest.mark.parametrize(
    ("kind", "options", "callbacks", "expected"),
    [
        ("epochs", {"max_epochs": 10}, (), [3, 2, 3, 2]),  # 2.5, 5, 7.5 and 10, rounded up
        ("epochs", {"max_epochs": 4}, (), [1, 1, 1, 1]),  # as few as there can be
        ("epochs", {"max_epochs": -1}, (), [-1, -1, -1, -1]),  # the budget alone
        ("steps", {"max_epochs": -1, "max_steps": 8}, (), [2, 2, 2, 2]),
        ("steps", {"max_steps": -1}, (), [-1, -1, -1, -1]),  # no limit
        ("images", {}, (Budget(images=1000),), [250, 250, 250, 250]),
        ("images", {}, (Budget(images=2),), [1, 1, 1, 1]),  # every step has at least one
        ("seconds", {}, (Budget(minutes=4),), [60, 60, 60, 60]),
    ],
)
def test_a_limit_is_the_whole_runs(kind: str, options: dict, callbacks: tuple, expected: list[float]) -> None:
    assert limits(run_of(network(), callbacks=callbacks, **options), kind) == pytest.approx(expected)


def test_a_step_that_took_longer_takes_it_from_the_next() -> None:
    run = run_of(network(), callbacks=(Budget(minutes=4),))
    run.spent["seconds"] = 90
    budget = next(c for c in run._trainer(1, set(), None).callbacks if isinstance(c, Budget))
    assert budget.minutes == pytest.approx(0.5)


def test_shares_are_of_the_steps() -> None:
    run = run_of(network(), max_epochs=12)
    run.shares = check_shares([2, 1, 2, 1])
    assert limits(run, "epochs") == [4, 2, 4, 2]


def test_only_the_last_step_is_validated_and_chooses() -> None:
    callbacks = (Last("folder"), ModelCheckpoint(monitor="val/AP"), EarlyStopping("val/AP"), Budget(minutes=1))
    run = run_of(network(), callbacks=callbacks)
    for index in range(4):
        trainer = run._trainer(index, set(), None)
        kinds = {type(c) for c in trainer.callbacks}
        assert ({ModelCheckpoint, EarlyStopping} <= kinds) == (index == 3)
        assert {Onward, Last, Budget} <= kinds
        assert trainer.limit_val_batches == (1.0 if index == 3 else 0)
        assert not any(c in callbacks for c in trainer.callbacks), "each has its own, as before any training"


# -- clear errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shares",
    [[], [1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 1, 1], [1, 1, -1, 1], [1, 1, math.inf, 1], [1, 1, "2", 1], [True] * 4],
)
def test_shares_that_are_none(shares: list) -> None:
    with pytest.raises(UserError, match=r"recipe.shares=.* Fix: recipe.shares=\[1,1,1,1\]"):
        check_shares(shares)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 3}, r"trainer.max_epochs=3 is less than one for each .* Fix: trainer.max_epochs=4"),
        ({"max_steps": 1}, r"trainer.max_steps=1 .* Fix: trainer.max_steps=4"),
    ],
)
def test_fewer_than_one_for_each(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_of(network(), **options)
    run_of(network(), **(options | {"fast_dev_run": True}))


def test_other_models_have_no_rpn() -> None:
    with pytest.raises(UserError, match=r"recipe=alternating: Linear has no RPN. Fix: recipe=end_to_end"):
        alternating(lambda: None, SimpleNamespace(model=nn.Linear(1, 1)), None)


# -- a run -------------------------------------------------------------------------------------------------------------

RUN = (
    "model=faster_rcnn",
    "recipe=alternating",
    *QUICK,
    *BOXES,
    "data.train_size=8",
    "trainer.max_epochs=4",
    "budget.minutes=null",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Four epochs of two steps, one epoch for each."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_here(folder, *RUN)


def artefact(folder: Path, index: int) -> dict:
    return torch.load(folder / "stages" / f"{STEPS[index].name}.pt", weights_only=True)


def test_the_convolutions_are_shared_in_the_end(whole) -> None:
    folder, _ = whole
    first, second, third = (artefact(folder, index)["state"] for index in range(3))
    end = {n.removeprefix("model."): v for n, v in last(folder)["state_dict"].items() if n.startswith("model.")}
    changed = {
        part: {
            "first to second": any(not torch.equal(first[n], second[n]) for n in first if part_of(n) == part),
            "second to third": any(not torch.equal(second[n], third[n]) for n in first if part_of(n) == part),
            "third to end": any(
                not torch.equal(third[n], end[n]) for n in first if part_of(n) == part and n != "draws"
            ),
        }
        for part in ("convolutions", "rpn", "regions")
    }
    assert changed["convolutions"] == {"first to second": True, "second to third": False, "third to end": False}
    assert changed["rpn"] == {"first to second": False, "second to third": True, "third to end": False}
    assert changed["regions"]["first to second"]
    assert changed["regions"]["third to end"]
    assert end.keys() == first.keys()
    assert int(end["draws"]) == 8


def test_what_a_run_tells_is_the_sum(whole) -> None:
    folder, results = whole
    assert (results["train/epochs"], results["train/steps"], results["train/images"]) == (4, 8, 32)
    assert [artefact(folder, index)["steps"] for index in range(3)] == [2, 2, 2]
    assert results["train/seconds"] > sum(artefact(folder, index)["seconds"] for index in range(3))
    assert math.isfinite(results["test/AP50"])
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert stage_of(str(folder / "checkpoints" / "last.ckpt")) == "4_fast_rcnn_shared"


def test_logs_go_on_from_step_to_step(whole) -> None:
    """Steps are counted over the whole run; each row has the losses of its own step alone."""
    found = [row for row in rows(whole[0]) if any(name.startswith("train/loss_") for name in row)]
    assert [int(row["step"]) for row in found] == list(range(8))
    names = [{n.removeprefix("train/loss_") for n in row if n.startswith("train/loss_")} for row in found]
    assert names == [set(RPN)] * 2 + [set(REGIONS)] * 2 + [set(RPN)] * 2 + [set(REGIONS)] * 2
    assert [(row["stage"], row["step"]) for row in rows(whole[0]) if "stage" in row] == [
        ("1.0", "0"), ("2.0", "2"), ("3.0", "4"), ("4.0", "6"),
    ]  # fmt: skip
    assert sum("val/AP" in row for row in rows(whole[0])) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "step", "shares"),
    [
        ("on_train_batch_start", 2, "[2,1,1,1]"),  # in the first step
        ("on_train_batch_start", 5, "[1,3,1,1]"),  # in the second, between two saves; the first is passed over
        ("on_train_batch_start", 5, "[1,1,3,1]"),  # in the third
        ("on_train_batch_start", 5, "[1,1,1,3]"),  # in the last, after a validation
        ("on_test_start", 0, "[1,1,1,1]"),  # after everything
    ],
)
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path: Path, moment: str, step: int, shares: str) -> None:
    words = (*RUN, "trainer.max_epochs=6", "callbacks.last.steps=1", f"recipe.shares={shares}")
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    expected = train_here(straight, *words)
    with pytest.raises(CutError):
        train_here(cut, *words, *cut_words(moment, step))
    done = sorted(path.name for path in (cut / "stages").glob("*.pt")) if (cut / "stages").exists() else []
    results = train_here(cut, *words, f"resume={cut / 'checkpoints/last.ckpt'}")
    assert list(unequal(last(straight), last(cut))) == []
    assert rows(cut) == rows(straight)
    same = [
        n for n in expected if n.startswith(("test/AP", "val/")) or n in ("train/steps", "train/epochs", "train/images")
    ]
    assert {name: results[name] for name in same} == pytest.approx({name: expected[name] for name in same}, nan_ok=True)
    assert len(done) == {("on_test_start", 0): 3}.get((moment, step), max(shares.find("3") // 2, 0))


@pytest.mark.slow
def test_a_kill_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is of a step that is done: the next begins, and what it had logged goes."""
    straight, cut, real = tmp_path / "straight", tmp_path / "cut", Run.train
    train_here(straight, *RUN)

    def train(self: Run, index: int) -> tuple:
        if index == 2:
            raise CutError
        return real(self, index)

    monkeypatch.setattr(Run, "train", train)
    with pytest.raises(CutError):
        train_here(cut, *RUN)
    monkeypatch.undo()
    train_here(cut, *RUN, f"resume={cut / 'checkpoints/last.ckpt'}")
    assert list(unequal(last(straight), last(cut))) == []
    assert rows(cut) == rows(straight)


@pytest.mark.slow
def test_a_dry_run_leaves_no_artefacts(tmp_path: Path) -> None:
    train_here(tmp_path, *RUN, "trainer.fast_dev_run=true")
    assert not (tmp_path / "stages").exists()


@pytest.mark.slow
def test_mask_rcnn_takes_the_same_steps(tmp_path: Path) -> None:
    words = ["model=mask_rcnn" if word == "model=faster_rcnn" else word for word in RUN]
    results = train_here(tmp_path, *words)
    assert results["train/steps"] == 8
    first, second = (artefact(tmp_path, index)["state"] for index in (0, 1))
    assert all(torch.equal(first[n], second[n]) for n in first if part_of(n) == "rpn")
    assert any(not torch.equal(first[n], second[n]) for n in first if n.startswith("mask_head."))
