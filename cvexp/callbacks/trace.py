"""One training step, run with an eye on everything: what goes into each module and comes out, loss terms, gradient norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn


class Range(NamedTuple):
    """Of the numbers of some tensors.

    Attributes:
        low, high: the smallest and the largest finite number; NaN where there is none.
        broken: how many are NaN or infinite.
        size: how many there are.
    """

    low: float
    high: float
    broken: int
    size: int

    @property
    def finite(self) -> bool:
        return self.broken == 0

    @property
    def largest(self) -> float:
        """By absolute value."""
        return max(abs(self.low), abs(self.high))


class Reading(NamedTuple):
    """One call of a module.

    Attributes:
        name: of the module in the model; with ``#2`` in its second call of the step.
        kind: its class.
        inputs, outputs: of all tensors together.
    """

    name: str
    kind: str
    inputs: Range
    outputs: Range


class Culprit(NamedTuple):
    """What was not finite first, and what sort of thing it is."""

    kind: Literal["weight", "module", "input", "term", "gradient"]
    name: str


@dataclass
class Trace:
    """What `trace` saw.

    Attributes:
        readings: calls of modules in the order in which they returned.
        terms: of the loss, by name; empty where the task does not sum named terms.
        loss: their sum.
        gradients: norm by parameter, in the order in which the way back reaches them.
        weights: parameters and buffers that were not finite before the step.
    """

    readings: list[Reading] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)
    loss: float = math.nan
    gradients: dict[str, float] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        """Loss and gradients; a module may mean its infinities, as a mask does."""
        return math.isfinite(self.loss) and all(map(math.isfinite, self.gradients.values()))

    @property
    def bad_terms(self) -> list[str]:
        return [name for name, value in self.terms.items() if not math.isfinite(value)]

    @property
    def culprit(self) -> Culprit | None:
        """The first thing that is not finite; None where loss and gradients are.

        A weight, else the first module whose output is not finite though its input is, else the first input, else the first
        term. Where the loss is finite, the gradient that the way back reached first.
        """
        if self.finite:
            return None
        if self.weights:
            return Culprit("weight", self.weights[0])
        if math.isfinite(self.loss):
            return Culprit("gradient", next(name for name, v in self.gradients.items() if not math.isfinite(v)))
        for reading in self.readings:
            only_terms = reading is self.readings[-1] and reading.outputs.size == len(
                self.terms
            )  # a detector gives its losses
            if reading.inputs.finite and not reading.outputs.finite and not only_terms:
                return Culprit("module", reading.name)
        broken = next((reading.name for reading in self.readings if not reading.inputs.finite), None)
        if broken is not None:
            return Culprit("input", broken)
        return Culprit("term", next(iter(self.bad_terms), "loss"))

    def reading(self, name: str) -> Reading:
        return next(reading for reading in self.readings if reading.name == name)


def trace(task: LightningModule, batch: Any, batch_idx: int, trainer: Trainer, scale: float = 1.0) -> Trace:
    """Runs ``task.training_step`` forward and back, without logging and without touching any ``.grad``.

    Buffers and random numbers go on as in any step: put back those of before first. With several processes all of them must
    call it, since losses hold collectives.

    Args:
        task: in the mode (training or not, module by module) that the step is to have.
        trainer: for its precision.
        scale: factor of the loss on its way back (fp16); gradient norms are given without it.
    """
    found = Trace(weights=broken_weights(task))
    model = network(task)
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(muted(task, found.terms))
        stack.enter_context(watched(model, found.readings))
        stack.enter_context(trainer.precision_plugin.train_step_context())
        output = task.training_step(batch, batch_idx)
    loss: Any = output["loss"] if isinstance(output, Mapping) else output
    found.loss = float(loss.detach())
    if loss.requires_grad:
        found.gradients = gradients(model, loss * scale, scale)
    return found


def network(task: LightningModule) -> nn.Module:
    """What the names of modules and parameters are counted from: ``task.model`` where there is one."""
    model = getattr(task, "model", None)
    return model if isinstance(model, nn.Module) else task


def broken_weights(task: LightningModule) -> list[str]:
    """Parameters and buffers of the network that hold NaN or infinity."""
    state = network(task).state_dict().items()
    return [name for name, value in state if value.is_floating_point() and not bool(value.isfinite().all())]


def gradients(model: nn.Module, loss: Tensor, scale: float) -> dict[str, float]:
    """Norm of the gradient of each trained parameter, in the order of the way back; parameters that it misses are left out."""
    norms: dict[str, float] = {}

    def note(name: str, gradient: Tensor) -> None:
        norms[name] = float(gradient.detach().float().norm()) / scale

    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    handles = [parameter.register_hook(partial(note, name)) for name, parameter in named]
    try:
        torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return norms


@contextmanager
def muted(task: LightningModule, terms: dict[str, float]) -> Iterator[None]:
    """A task that logs nothing and whose named losses, as it sums them, are noted in ``terms``."""
    total = getattr(task, "total", None)

    def noted(losses: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        terms.update({name: float(value.detach()) for name, value in losses.items()})
        return total(losses, *arguments)  # type: ignore[misc]

    replaced = {"log": _nothing, "log_dict": _nothing} | ({"total": noted} if callable(total) else {})
    vars(task).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(task)[name]


def _nothing(*_: Any, **__: Any) -> None:
    """In place of ``log``."""


@contextmanager
def watched(model: nn.Module, readings: list[Reading]) -> Iterator[None]:
    """Notes every call of every module in ``readings``, when it returns.

    The input is looked at before the call: a module that works in place leaves nothing of it.
    """
    waiting: dict[str, list[Range]] = {}
    calls: dict[str, int] = {}

    def before(name: str, module: nn.Module, arguments: Any, named: Any) -> None:
        waiting.setdefault(name, []).append(range_of((arguments, named)))

    def after(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        shown = name if calls[name] == 1 else f"{name}#{calls[name]}"
        readings.append(Reading(shown, type(module).__name__, waiting[name].pop(), range_of(output)))

    handles = []
    for name, module in model.named_modules():
        name = name or type(module).__name__
        handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(after, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def range_of(values: Any) -> Range:
    """Over all tensors in nested tuples, lists, dictionaries and dataclasses.

    Example: of ``[1, nan]`` and ``{"a": [-3]}`` low is -3, high 1, and 1 of 3 numbers is broken.
    """
    parts = [part.detach().flatten().float() for part in tensors(values)]
    numbers = torch.cat([part.cpu() for part in parts]) if parts else torch.zeros(0)
    good = numbers[numbers.isfinite()]
    low, high = (float(good.min()), float(good.max())) if len(good) else (math.nan, math.nan)
    return Range(low, high, len(numbers) - len(good), len(numbers))


def tensors(values: Any) -> Iterator[Tensor]:
    """See `range_of`; complex and quantised ones are left out."""
    if isinstance(values, Tensor):
        if not (values.is_complex() or values.is_quantized):
            yield values
    elif isinstance(values, Mapping):
        yield from tensors(list(values.values()))
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
        for value in values:
            yield from tensors(value)
    elif is_dataclass(values) and not isinstance(values, type):
        yield from tensors([getattr(values, f.name) for f in fields(values)])
