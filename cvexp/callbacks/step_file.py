"""A training step in one file: its batch and everything as it was before it, so that it can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cvexp.callbacks.trace import Trace, network, trace
from cvexp.types import Batch, FaceBatch, UserError

FOLDER = "nan"
"""In the run's folder."""
NEEDED = {
    **dict.fromkeys(("cvexp", "state_dict", "batch", "random"), Mapping),
    **dict.fromkeys(("batch_idx", "step", "epoch", "rank", "processes"), int),
    **dict.fromkeys(("resting", "frozen"), list),
    "scale": float,
}
"""What a file must hold, and of which type."""


class Kept:
    """What a step changes, held from before it.

    Args:
        buffers: live tensors by name; they are copied.

    Attributes:
        random: state of torch's generators, from which a step draws; ``cuda`` of the current GPU where there is one.
    """

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        self.buffers = {name: value.detach().clone() for name, value in buffers.items()}
        self.random = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            self.random["cuda"] = torch.cuda.get_rng_state()

    @torch.no_grad()
    def put_back(self, task: LightningModule) -> None:
        live = dict(task.named_buffers())
        for name, value in self.buffers.items():
            live[name].copy_(value)
        put_back_random(self.random)


def put_back_random(state: Mapping[str, Tensor]) -> None:
    """The generators' state; that of a GPU where there is one."""
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def live_buffers(task: LightningModule) -> dict[str, Tensor]:
    """Those that a checkpoint holds, by their name in it."""
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in task.named_modules()
        for name, value in module._buffers.items()
        if value is not None and name not in module._non_persistent_buffers_set
    }


def describe_step(task: LightningModule, batch: Any, batch_idx: int, kept: Kept, trainer: Trainer) -> dict[str, Any]:
    """The file's content, before the optimizer has moved a weight; tensors and plain Python."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    named = list(network(task).named_modules())
    return {
        "cvexp": dict(getattr(task, "description", {})),
        "state_dict": task.state_dict() | kept.buffers,
        "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "random": kept.random,
        "scale": 1.0 if scaler is None else float(scaler.get_scale()),
        "resting": [name for name, module in named if not module.training],
        "frozen": [name for name, parameter in network(task).named_parameters() if not parameter.requires_grad],
        "batch": pack(batch),
        "batch_idx": batch_idx,
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "rank": trainer.global_rank,
        "processes": trainer.world_size,
    }


def write_step(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(content), part)
        part.replace(path)
    except RuntimeError as error:  # torch's writer turns a full disk into one
        raise OSError(str(error).splitlines()[0]) from error
    finally:
        part.unlink(missing_ok=True)


def find_step(place: str | Path) -> Path:
    """The file itself, or the last one of a run's folder.

    Raises:
        UserError: there is none.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return path
    steps = [file for folder in (path, path / FOLDER) for file in folder.glob("step_*.pt")]
    if not steps:
        raise UserError(
            f"replay={place}: no saved step there ({FOLDER}/step_<number>.pt is written when a loss is NaN or infinite)."
            " Fix: give the folder of a run that an alarm of callbacks.not_finite has ended, or the file"
        )
    return max(steps, key=lambda file: (file.stat().st_mtime_ns, file.name))


def read_step(path: Path) -> dict[str, Any]:
    """What `write_step` wrote; no code of the file is run.

    Raises:
        UserError: not such a file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file provokes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"replay={path}: cannot be read safely ({reason[:160]}). Fix: give a file that cvexp.train wrote"
        ) from None
    known = isinstance(content, Mapping) and all(isinstance(content.get(name), kind) for name, kind in NEEDED.items())
    if not known or not {"config", "classes"} <= set(content["cvexp"]):
        raise UserError(f"replay={path}: is no saved step. Fix: give <run folder>/{FOLDER}/step_<number>.pt")
    return dict(content)


def repeat_step(task: LightningModule, content: Mapping[str, Any], trainer: Trainer, path: str | Path) -> Trace:
    """The step of a file once more, on the trainer's device and at its precision.

    Raises:
        UserError: the file's weights do not fit the task's model.
    """
    device = trainer.strategy.root_device
    model = network(task)
    try:
        task.load_state_dict(content["state_dict"])
        for name in content["frozen"]:
            model.get_parameter(name).requires_grad_(False)
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"replay={path}: its weights do not fit this model ({str(error).splitlines()[-1].strip()[:160]})."
            f" Fix: python -m cvexp.replay {path}, which takes the run's own configuration"
        ) from None
    task.trainer = trainer  # type: ignore[assignment]
    task.to(device).train()
    resting = set(content["resting"])
    for name, module in model.named_modules():
        module.training = name not in resting  # alone, not with all that it holds
    try:
        batch = unpack(content["batch"]).to(device)
        put_back_random(content["random"])
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(
            f"replay={path}: its batch or random state cannot be used ({type(error).__name__}: {error})."
            " Fix: give a file that cvexp.train wrote"
        ) from None
    return trace(task, batch, content["batch_idx"], trainer, content["scale"])


def pack(batch: Any) -> dict[str, Any]:
    """A batch as tensors and plain Python.

    Raises:
        UserError: neither a `Batch` nor a `FaceBatch`.
    """
    for kind in (Batch, FaceBatch):
        if isinstance(batch, kind):
            state: dict[str, Any] = batch.__getstate__() if kind is Batch else dict(vars(batch))  # type: ignore[assignment]
            return {"kind": kind.__name__} | state
    raise UserError(f"a batch of {type(batch).__name__} cannot be saved. Fix: let the loader give a Batch or FaceBatch")


def unpack(packed: Mapping[str, Any]) -> Batch | FaceBatch:
    """The batch that `pack` packed."""
    state = {name: value for name, value in packed.items() if name != "kind"}
    if packed["kind"] == "FaceBatch":
        return FaceBatch(**state)
    batch = Batch.__new__(Batch)
    batch.__setstate__(state)
    return batch
