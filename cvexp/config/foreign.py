"""The configuration in a checkpoint, which somebody else may have written, before anything of it is used.

`cvexp.train` stores plain values with every interpolation resolved, so nothing else is taken: an interpolation could read
environment variables and put them into results. What a part may name is judged by the part it is in (`check_slots`): a logger
is no model. What a program that only measures or predicts has no use for is set aside (`tamed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cvexp.config.messages import Problem, listing, raise_problems, shown
from cvexp.config.sources import cache_dir
from cvexp.errors import UserError

_MAX_NODES = 50_000
_MAX_DEPTH = 40
LARGEST = {
    **{
        "image_size": 4096,
        "num_workers": 256,
        "proposal_workers": 256,
        "devices": 64,
        "num_nodes": 64,
        "batch_size": 65_536,
    },
    **dict.fromkeys(
        ("train_size", "val_size", "test_size", "resamples", "pairs", "max_detections", "max_proposals"), 1_000_000
    ),
    **{f"{split}_{what}": 100_000 for split in ("train", "val", "test") for what in ("identities", "images")},
}
"""Numbers by which a configuration asks for memory or processes, and what they may be at most."""
_LARGEST_OF_MODEL = 1_000_000  # layers, channels, boxes ...
SLOTS: Mapping[str, tuple[str, ...]] = {
    "model": (
        *(f"cvexp.{name}" for name in ("models", "backbones", "necks", "losses", "ops", "comparators")),
        *("torch.nn", "torchvision.ops", "torchvision.models", "timm"),
    ),
    "data": ("cvexp.data",),
    "metric": ("cvexp.metrics", "torchmetrics"),
    "task": ("cvexp.tasks", "cvexp.schedules"),
    "trainer": ("lightning.pytorch.Trainer", "lightning.pytorch.strategies"),
    "callbacks": ("cvexp.callbacks", "lightning.pytorch.callbacks"),
}
"""The packages that the parts of a checkpoint's configuration may name, of those that are allowed at all."""
_UNUSED = ("profiler", "plugins", "logger", "callbacks")
_FIX = "do not use this checkpoint: it is not as cvexp.train wrote it"


def read_foreign(config: object, file: object, needed: Iterable[str]) -> dict[str, Any]:
    """A checkpoint's configuration as plain nested dicts and lists, copied.

    Args:
        config: what the file holds.
        file: its name, for messages.
        needed: the parts that must be there.

    Raises:
        UserError: it is not plain, too large or too deep, holds an interpolation, asks for more than `LARGEST`, or lacks a part.
    """
    try:
        plain = _Copy(file).copy(config, "")
    except ValueError as error:
        raise UserError(f"ckpt={file}: its configuration {error}. Fix: {_FIX}") from None
    if not isinstance(plain, dict):
        raise UserError(f"ckpt={file}: its configuration is no mapping. Fix: {_FIX}")
    for name in needed:
        if not isinstance(plain.get(name), dict) or not plain[name].get("_target_"):
            raise UserError(f"ckpt={file}: its configuration has no part '{name}' that could be built. Fix: {_FIX}")
    return plain


class _Copy:
    """Copies a value and counts what it copies: a file of a kilobyte can refer to itself a billion times."""

    def __init__(self, file: object) -> None:
        self.file, self.nodes = file, 0

    def copy(self, value: object, key: str, depth: int = 0) -> Any:
        """
        Raises:
            ValueError: what is wrong, with its place.
        """
        self.nodes += 1
        if self.nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ValueError(f"is larger than any that cvexp writes ('{key[:100]}')")
        if isinstance(value, dict):
            if wrong := next((name for name in value if not isinstance(name, str)), None):
                raise ValueError(f"has the key {shown(wrong)} in '{key}', which is no text")
            return {name: self.copy(child, f"{key}.{name}".lstrip("."), depth + 1) for name, child in value.items()}
        if isinstance(value, list):
            return [self.copy(child, f"{key}[{i}]", depth + 1) for i, child in enumerate(value)]
        return _scalar(value, key)


def _scalar(value: object, key: str) -> Any:
    if type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"holds a {type(value).__name__} in '{key}', which is no plain value")
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"refers to something outside: '{key}' = {shown(value)}")
    limit = LARGEST.get(key.rpartition(".")[2].split("[")[0], _LARGEST_OF_MODEL if key.startswith("model.") else None)
    if isinstance(value, int) and limit is not None and value > limit:
        raise ValueError(f"asks for more than {limit:,}: '{key}' = {shown(value)}")
    return value


def tamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what only training uses: profiler and plugins (they write files), weights (the checkpoint has
    them; their files need not be there) and downloads. Proposals are kept where this machine keeps them."""
    found = {**config, "model": _without_weights(config["model"])}
    if isinstance(data := config.get("data"), Mapping) and "proposal_cache" in data:
        found["data"] = {**data, "proposal_cache": str(Path(cache_dir()) / "proposals")}
    if isinstance(trainer := config.get("trainer"), Mapping):
        found["trainer"] = {name: None if name in _UNUSED else value for name, value in trainer.items()}
    return found


def _without_weights(node: Any) -> Any:
    if isinstance(node, dict):
        off = {"weights": None, "pretrained": False}
        return {name: off.get(name, _without_weights(value)) for name, value in node.items()}
    return [_without_weights(value) for value in node] if isinstance(node, list) else node


def check_slots(config: Mapping[str, Any], file: object, extra: Iterable[str] = ()) -> None:
    """Whether each part names what belongs there. To be called beside `check_config`, which knows what may be named at all.

    Raises:
        UserError: a logger as a model, for instance.
    """
    packages = tuple(filter(None, extra))
    raise_problems(
        Problem(
            f"'{key}': {shown(target)} has no place in '{slot}', where {listing(SLOTS[slot])} may be named",
            f"in {file}",
            _FIX,
        )
        for slot in SLOTS
        for key, target in _targets(config.get(slot), slot)
        if not _inside(str(target), (*SLOTS[slot], *packages))
    )


def _inside(target: str, packages: Iterable[str]) -> bool:
    return any(target == package or target.startswith(f"{package}.") for package in packages)


def _targets(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every ``_target_`` below a node, with its place."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield f"{key}._target_", value["_target_"]
        for name, child in value.items():
            yield from _targets(child, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, child in enumerate(value):
            yield from _targets(child, f"{key}[{i}]")
