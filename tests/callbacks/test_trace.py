"""A traced step: what is noted of modules, terms and gradients, and what is named as the first that is not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from cvexp.callbacks.trace import Culprit, Range, Reading, Trace, range_of, trace
from cvexp.types import Detection

GOOD, BAD = Range(-1, 1, 0, 4), Range(0, 1, 2, 4)
NAN, INF = math.nan, math.inf


def reading(name: str, inputs: Range = GOOD, outputs: Range = GOOD) -> Reading:
    return Reading(name, "Conv2d", inputs, outputs)


@pytest.mark.parametrize(
    ("found", "culprit"),
    [
        (Trace([reading("a")], {"x": 1.0}, 1.0, {"w": 2.0}), None),  # in order
        (Trace([reading("a", outputs=BAD)], {}, 1.0, {}), None),  # a module may mean its infinity
        (Trace([], {}, NAN, {}), Culprit("term", "loss")),  # nothing is known but the loss
        (Trace([reading("a"), reading("b", outputs=BAD), reading("c", BAD, BAD)], {}, NAN, {}), Culprit("module", "b")),
        (
            Trace([reading("a", BAD, BAD), reading("b", GOOD, BAD)], {}, NAN, {}),
            Culprit("module", "b"),
        ),  # a mask before
        (Trace([reading("a", BAD, BAD), reading("b", BAD, BAD)], {}, NAN, {}), Culprit("input", "a")),
        (Trace([reading("a")], {"x": 1.0, "y": INF, "z": NAN}, NAN, {}), Culprit("term", "y")),
        (Trace([reading("a", outputs=BAD)], {}, NAN, {}, ["w"]), Culprit("weight", "w")),  # before everything else
        (Trace([reading("a")], {}, 1.0, {"v": 1.0, "w": INF, "u": NAN}), Culprit("gradient", "w")),
    ],
)
def test_culprit(found: Trace, culprit: Culprit | None) -> None:
    assert found.culprit == culprit
    assert found.finite is (culprit is None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, (NAN, NAN, 0, 0)),
        (torch.zeros(0), (NAN, NAN, 0, 0)),  # no boxes in the batch
        ([torch.tensor([1.0, NAN]), {"a": torch.tensor([-3])}], (-3, 1, 1, 3)),  # the docstring's
        ((torch.tensor([INF, -INF]), "word", 4), (NAN, NAN, 2, 2)),
        (torch.full((2,), 6e4, dtype=torch.half), (6e4, 6e4, 0, 2)),
        (Detection.empty(), (NAN, NAN, 0, 0)),
        ([Detection(torch.ones(1, 4), torch.tensor([0.5]), torch.tensor([7]))], (0.5, 7, 0, 6)),
    ],
)
def test_range(values: Any, expected: tuple[float, float, int, int]) -> None:
    assert tuple(range_of(values)) == pytest.approx(expected, nan_ok=True, rel=1e-3)


class Net(nn.Module):
    """A layer that is called twice, one that works in place, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(2, 2, bias=False), nn.ReLU(inplace=True), nn.Linear(2, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
            self.second.weight.fill_(1.0)
            self.second.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(self.first(x))))


class Task(LightningModule):
    """Two named terms; ``wrong`` takes a logarithm of 0."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.model, self.wrong = Net(), wrong

    def total(self, losses: dict[str, Tensor], size: int) -> Tensor:
        self.log("train/loss", losses["a"])  # fails without a training loop
        return torch.stack(list(losses.values())).sum()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        out = self.model(batch).sum()
        return self.total({"a": out, "b": (out * 0).log() if self.wrong else out * 2}, len(batch))


def run(task: Task, x: list[float], scale: float = 1.0) -> Trace:
    return trace(task, torch.tensor([x]), 0, Trainer(accelerator="cpu", logger=False), scale)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_trace(scale: float) -> None:
    """``(1, -2) -> (1, 2) -> (1, -2) -> relu (1, 0) -> 1``; the loss is three times that."""
    task = Task()
    task.model.first.weight.grad = torch.ones(2, 2)
    found = run(task, [1.0, -2.0], scale)
    assert [r.name for r in found.readings] == ["first", "first#2", "act", "second", "Net"]
    assert [(r.inputs.low, r.outputs.low) for r in found.readings] == [(-2, 1), (1, -2), (-2, 0), (0, 1), (-2, 1)]
    assert found.terms == {"a": 1.0, "b": 2.0}
    assert found.loss == 3.0
    assert list(found.gradients) == ["second.bias", "second.weight", "first.weight"], "in the order of the way back"
    assert found.gradients["second.bias"] == pytest.approx(3.0)
    assert found.culprit is None
    assert torch.equal(task.model.first.weight.grad, torch.ones(2, 2)), "what a step has gathered is left alone"
    assert not {"log", "log_dict", "total"} & set(vars(task)), "the task logs again"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in task.modules())


def test_a_term_is_named() -> None:
    found = run(Task(wrong=True), [1.0, -2.0])
    assert found.bad_terms == ["b"]
    assert found.culprit == Culprit("term", "b")


def test_a_module_is_named_and_a_weight_before_it() -> None:
    task = Task()
    with torch.no_grad():
        task.model.second.weight.fill_(3e38)
    assert run(task, [9.0, 0.0]).culprit == Culprit("module", "second")
    assert run(task, [NAN, 0.0]).culprit == Culprit("input", "first")
    with torch.no_grad():
        task.model.second.weight[0, 0] = NAN
    assert run(task, [9.0, 0.0]).culprit == Culprit("weight", "second.weight")


def test_hooks_are_removed_when_the_step_fails() -> None:
    task = Task()
    with pytest.raises(RuntimeError):
        run(task, [1.0])  # of another shape
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in task.modules())
    assert "log" not in vars(task)
