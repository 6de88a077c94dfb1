"""Freezing: what keeps its value, what the optimizer holds, what happens when it ends, after a resume and on two processes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cvexp.callbacks.ema import EMA
from cvexp.callbacks.freeze import Freeze, frozen_norms, matching
from cvexp.errors import UserError
from cvexp.schedules import Poly
from cvexp.tasks.detection import DetectionTask

NAMES = ["backbone.conv.weight", "backbone.norm.weight", "backbone.norm.bias", "head.weight", "head.bias"]
STEPS = 4


class Net(nn.Module):
    """A backbone with a batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("conv", nn.Conv1d(1, 2, 1, bias=False))
        self.backbone.add_module("norm", nn.BatchNorm1d(2))
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x[:, None]).mean(-1))


class Task(LightningModule):
    """The detection task's optimizer and progress around `Net`."""

    parameter_groups = DetectionTask.parameter_groups
    configure_optimizers = DetectionTask.configure_optimizers
    progress = DetectionTask.progress

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Net()
        self.scheduler, self.backbone_lr, self.clock, self.total_steps = Poly(), 0.5, 0.0, float("inf")
        self.images_used = None
        self.momentum = momentum
        self.trained: list[set[str]] = []  # names whose value each step changed

    def make_optimizer(self, groups):
        return torch.optim.SGD(groups, lr=0.1, momentum=self.momentum, weight_decay=0.1)

    def training_step(self, batch, index):
        return self.model(batch[0]).square().mean()


class Watch(Callback):
    """Notes the names of the tensors that each step changes, and the gradient norm that clipping sees."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.before = {name: value.clone() for name, value in pl_module.model.state_dict().items()}

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        now = pl_module.model.state_dict()
        pl_module.trained.append({n for n in now if "tracked" not in n and not torch.equal(now[n], self.before[n])})


def data() -> torch.utils.data.DataLoader:
    """The same batch in each step, so that a run resumed within an epoch goes on with what the whole one saw."""
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).repeat(STEPS, 1)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(values), batch_size=2)


def fit(
    folder: Path, freeze: Freeze, task: Task | None = None, ckpt: str | None = None, **options
) -> tuple[Task, Trainer]:
    task = task or Task()
    callbacks = [*options.pop("callbacks", ()), freeze, Watch()]
    options = {"max_epochs": 1, "enable_checkpointing": False} | options
    trainer = Trainer(
        callbacks=callbacks, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, gradient_clip_val=1.0, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, data(), ckpt_path=ckpt)
    return task, trainer


BACKBONE = {"backbone.conv.weight", "backbone.norm.weight", "backbone.norm.bias"}
STATISTICS = {"backbone.norm.running_mean", "backbone.norm.running_var"}
HEAD = {"head.weight", "head.bias"}


def names_in(trainer: Trainer, task: Task) -> set[str]:
    """What the optimizer holds."""
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    return {name for name, p in task.model.named_parameters() if id(p) in held}


# --- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ([], set()),  # nothing
        (["backbone.*"], BACKBONE),  # a star passes dots
        (["*.bias"], {"backbone.norm.bias", "head.bias"}),
        (["head.weight"], {"head.weight"}),  # a whole name
        (["head.?ias", "*.conv.*"], {"head.bias", "backbone.conv.weight"}),  # two patterns
        (["*"], BACKBONE | HEAD),
    ],
)
def test_matching(patterns: list[str], found: set[str]) -> None:
    assert matching(patterns, NAMES) == found


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("backbon.*", "'backbone.*'"),  # misspelled
        ("backbone", "'backbone.*'"),  # a module, not a parameter
        ("backbone.norm", "'backbone.norm.*'"),
        ("Head.*", "'head.*'"),  # capitals matter
        ("xyz", "'backbone.*' or 'head.*'"),  # nothing is near: the outermost parts
        ("", "'backbone.*'"),
        ("[", "'backbone.*'"),  # not a valid set of characters
    ],
)
def test_a_pattern_without_a_match_names_what_is_near(pattern: str, near: str) -> None:
    with pytest.raises(UserError, match=r"matches no parameter of the model\. Fix: ") as refused:
        matching(["head.*", pattern], NAMES)
    assert f"'{pattern}'" in str(refused.value)
    assert near in str(refused.value)


@pytest.mark.parametrize("share", [0, 1, 3, -0.5, float("nan")])
def test_unfreeze_at_is_a_share(share: float) -> None:
    with pytest.raises(UserError, match=r"freeze\.unfreeze_at=.* between 0 and 1.*Fix: "):
        Freeze(["backbone.*"], share)


def test_unfreeze_at_without_a_pattern() -> None:
    with pytest.raises(UserError, match=r"nothing is frozen\. Fix: "):
        Freeze([], 0.5)


@pytest.mark.parametrize("patterns", [["*"], ["backbone.*", "head.*"]])
def test_something_must_be_left_to_train(patterns: list[str]) -> None:
    with pytest.raises(UserError, match=r"leaves no parameter to train\. Fix: "):
        Freeze(patterns).check(Net())
    with pytest.raises(UserError, match="leaves no parameter"), torch.device("meta"):  # nor without memory
        Freeze(patterns).check(Net())


# --- training --------------------------------------------------------------------------------------------------------


def test_off_changes_nothing(tmp_path: Path) -> None:
    task, trainer = fit(tmp_path, Freeze())
    assert task.trained == [BACKBONE | HEAD | STATISTICS] * STEPS
    assert names_in(trainer, task) == BACKBONE | HEAD


def test_frozen_for_good(tmp_path: Path) -> None:
    """Weights, statistics and decay stand still; the optimizer does not know the parameters."""
    task, trainer = fit(tmp_path, Freeze(["backbone.*"]))
    assert task.trained == [HEAD] * STEPS
    assert names_in(trainer, task) == HEAD
    assert not task.model.backbone.norm.training
    assert task.model.backbone.norm.num_batches_tracked == 0
    assert {n for n, p in task.model.named_parameters() if p.requires_grad} == HEAD


def test_a_frozen_convolution_leaves_its_norm_in_training(tmp_path: Path) -> None:
    task, _ = fit(tmp_path, Freeze(["*.conv.*"]))
    assert task.trained == [HEAD | BACKBONE - {"backbone.conv.weight"} | STATISTICS] * STEPS


@pytest.mark.parametrize(
    ("share", "first"),
    [
        (0.5, 2),  # steps 0 and 1 of 4 are frozen; at the start of step 2 half is done
        (0.26, 2),  # the first step that starts with at least this share done
        (0.25, 1),
        (0.99, STEPS),  # never in time
    ],
)
def test_unfrozen_at_a_share_of_training(tmp_path: Path, share: float, first: int) -> None:
    task, trainer = fit(tmp_path, Freeze(["backbone.*"], share))
    assert task.trained == [HEAD] * first + [BACKBONE | HEAD | STATISTICS] * (STEPS - first)
    assert names_in(trainer, task) == BACKBONE | HEAD, "one set of groups from the first step on"


def test_unfrozen_by_the_clock(tmp_path: Path) -> None:
    """A time budget that is used up faster than the steps ends the freezing sooner."""

    class Clock(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            pl_module.clock = 0.8 if batch_idx >= 1 else 0.0

    task, _ = fit(tmp_path, Freeze(["backbone.*"], 0.6), callbacks=[Clock()])
    assert task.trained == [HEAD] + [BACKBONE | HEAD | STATISTICS] * (STEPS - 1)


def test_norms_stay_silent_after_a_validation(tmp_path: Path) -> None:
    task = Task()
    task.validation_step = lambda batch, batch_idx: None
    seen: list[bool] = []

    class Modes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            seen.append(pl_module.model.backbone.norm.training)
            assert pl_module.model.head.training

    trainer = Trainer(
        callbacks=[Freeze(["backbone.*"]), Modes()], max_epochs=2, val_check_interval=2, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, data(), data())
    assert seen == [False] * 2 * STEPS


def test_the_average_of_frozen_weights_is_themselves(tmp_path: Path) -> None:
    start = {name: value.clone() for name, value in Task().model.state_dict().items()}
    task, _ = fit(tmp_path, Freeze(["backbone.*"]), callbacks=[EMA(decay=0.9)])
    now = task.model.state_dict()
    assert all(torch.equal(now[name], start[name]) for name in BACKBONE | STATISTICS)
    assert not torch.equal(now["head.weight"], start["head.weight"])


def test_what_a_backbone_froze_by_itself_stays_frozen(tmp_path: Path) -> None:
    task = Task()
    task.model.backbone.conv.requires_grad_(False)
    fit(tmp_path, Freeze(["backbone.*"], 0.5), task)
    assert not task.model.backbone.conv.weight.requires_grad
    assert task.trained[-1] == HEAD | BACKBONE - {"backbone.conv.weight"} | STATISTICS


def test_accumulated_gradients(tmp_path: Path) -> None:
    """Two batches make a step: the second of two steps trains everything, from gradients of both of its batches."""
    task, _ = fit(tmp_path, Freeze(["backbone.*"], 0.5), accumulate_grad_batches=2)
    assert [names - STATISTICS for names in task.trained] == [set(), HEAD, set(), BACKBONE | HEAD]


@pytest.mark.parametrize("share", [None, 0.3, 0.6])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, share: float | None, stop: int) -> None:
    """Killed before or after the end of the freezing; momentum and decay included."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "stop.ckpt")

    whole, _ = fit(tmp_path, Freeze(["backbone.*"], share), callbacks=[Save()])
    again, _ = fit(tmp_path, Freeze(["backbone.*"], share), ckpt=str(tmp_path / "stop.ckpt"))
    assert len(again.trained) == STEPS - stop
    assert again.trained == whole.trained[stop:]
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())


def test_dropped_gradients_equal_none(tmp_path: Path) -> None:
    """With several processes gradients are computed and thrown away before the clipping: the same numbers."""
    alone, _ = fit(tmp_path, Freeze(["backbone.*"], 0.5))

    class Pretend(Freeze):
        def setup(self, trainer, pl_module, stage) -> None:
            super().setup(trainer, pl_module, stage)
            self._drop = True

    dropping, _ = fit(tmp_path, Pretend(["backbone.*"], 0.5))
    state = dropping.model.state_dict()
    assert dropping.trained == alone.trained
    assert all(torch.equal(value, state[name]) for name, value in alone.model.state_dict().items())


# --- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        (["0.*", "1.*"], 1),  # the norm without parameters goes with the module around it, which has a free convolution
        (["0.*", "1.*", "2.0.*"], 2),  # now all of that is frozen
        (["1.weight"], 0),  # half of a norm
    ],
)
def test_norms_without_parameters(patterns: list[str], count: int) -> None:
    inner = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, affine=False))
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), inner)
    names = matching(patterns, [name for name, _ in model.named_parameters()])
    assert len(list(frozen_norms(model, names))) == count


def test_a_model_without_parameters_has_no_frozen_norms() -> None:
    assert list(frozen_norms(nn.Sequential(nn.BatchNorm2d(1, affine=False)), set())) == []
