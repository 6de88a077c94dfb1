"""``init_from=<file>``: weights that a model starts training with, and a report of what was taken.

A tensor is copied where name and shape agree. Tensors that depend on the list of classes are copied only where the file and
the data have the same classes in the same order: equal shapes prove nothing, since row 3 may be a cat there and a dog here.
Which tensors those are, the model declares: ``class_parameters``, patterns of names as of files (``head.predict.*``).
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from cvexp.config.messages import plain
from cvexp.results import write_text
from cvexp.types import UserError


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
        path: of the file.
        state: tensors by name; of a checkpoint those of the model, named as the model names them.
        classes: names in label order; None where the file does not say.
        plain: not a checkpoint of cvexp, so a model may know other names for its entries.
        known: all people that a face model and those it began with were trained on, where that is more than ``classes``.
    """

    path: Path
    state: dict[str, Tensor]
    classes: list[str] | None
    plain: bool
    known: Sequence[str] = ()


@dataclass
class Report:
    """What became of every tensor of a model and every entry of a file.

    Attributes:
        source: the file.
        copied: names of the model's tensors that were taken.
        skipped: those that the file has but that were not taken, with the reason.
        missing: those that the file lacks.
        unused: entries of the file that the model has no place for.
        sizes: number of values of each parameter of the model (buffers are not counted).
        entries: every name of the file, translated.
        notes: about translation and classes.
    """

    source: Path
    sizes: dict[str, int]
    names: list[str]
    entries: list[str]
    copied: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Number of values of the parameters that were copied."""
        return sum(self.sizes.get(name, 0) for name in self.copied)

    def text(self, limit: int | None = None) -> str:
        """The report as lines; each list is cut after ``limit``."""
        rows = [
            f"init_from={self.source}: copied {len(self.copied)} of {len(self.names)} tensors"
            f" ({self.parameters:,} of {sum(self.sizes.values()):,} parameters)",
            *self.notes,
        ]
        for title, lines in (
            ("skipped, left as initialised:", [f"{name}: {reason}" for name, reason in self.skipped.items()]),
            ("not in the file, left as initialised:", grouped(self.missing, self.names)),
            ("unused entries of the file:", grouped(self.unused, self.entries)),
        ):
            rows += [title, *(f"  {line}" for line in _cut(lines, limit))] if lines else []
        return "\n".join(rows)


def read_weights(path: str | Path) -> Weights:
    """A checkpoint of cvexp, or a state dict: plain, or under ``state_dict`` or ``model`` (with ``classes`` beside it or not).

    Tensors and plain Python are read, no code is run.

    Raises:
        UserError: missing file, one that cannot be read safely, or one without tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(_not_there(path))
    try:
        content = read_safely(path)
    except ValueError as error:
        raise UserError(
            f"init_from={path}: cannot be read safely ({error})."
            " Fix: give a checkpoint of cvexp.train or a state dict saved by torch.save (tensors, no pickled objects)"
        ) from None
    content = content if isinstance(content, Mapping) else {}
    about = content.get("cvexp")
    ours = isinstance(about, Mapping)
    inner = (content.get("state_dict"), content.get("model"), content)
    state: dict[str, Tensor] = next((found for found in map(_tensors, inner) if found), {})
    if ours:
        state = {n.removeprefix("model."): value for n, value in state.items() if n.startswith("model.")}
    if not state:
        found = ", ".join(map(str, list(content)[:5])) or "nothing that has names"
        raise UserError(
            f"init_from={path}: no tensors with names in it (found: {found})."
            " Fix: give a checkpoint of cvexp.train or a file with model.state_dict()"
        )
    known = about.get("known") if isinstance(about, Mapping) else None
    classes = _classes(about if isinstance(about, Mapping) else content, path)
    known = [name for name in known if isinstance(name, str)] if isinstance(known, list) else ()
    return Weights(path, state, classes, plain=not ours, known=known)


def read_safely(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors and plain Python, no code is run.

    Raises:
        ValueError: why it cannot be read; also when a part of it is compressed, which ``torch.save`` never does: a small file
            could fill the memory.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
            if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > path.stat().st_size:
                raise ValueError("compressed, as torch.save does not write it")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file provokes
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0][:160]) from None


def known_people(weights: Weights | None, data: Any) -> list[str]:
    """Who is no stranger to a face model that begins with these weights: those that they know, and those of ``data``.

    ``data`` is told. Empty without weights, or where the data is of no people.
    """
    known = set() if weights is None or not hasattr(data, "trained") else {*(weights.classes or ()), *weights.known}
    if known:
        data.trained = known | set(data.class_names)
    return sorted(data.trained) if known else []


def init_model(model: nn.Module, weights: Weights, classes: Sequence[str]) -> Report:
    """Copies what fits from a file into a model; nothing is changed where an error is raised.

    Args:
        model: may have ``class_parameters`` (see above) and, for published files, ``translate(state)``: the file's entries
            under the model's own names, or None for a file that it does not know, and ``published_classes(state)``.
        weights: see `read_weights`.
        classes: of the data, in label order.

    Raises:
        UserError: not one parameter fits; NaN or infinity among the weights; other classes and a model that does not declare
            ``class_parameters``.
    """
    state = _translated(model, weights)
    own = model.state_dict()
    report = Report(
        source=weights.path,
        sizes={name: parameter.numel() for name, parameter in model.named_parameters()},
        names=list(own),
        entries=list(state),
    )
    if state is not weights.state:
        report.notes.append(
            f"translated: {len(weights.state)} entries of the file became {len(state)} of {type(model).__name__}"
        )
    if weights.classes is None and hasattr(model, "published_classes"):
        weights = replace(weights, classes=model.published_classes(weights.state))
    by_class = _class_names(model, weights, classes, report)
    for name, value in own.items():
        if name not in state:
            report.missing.append(name)
        elif reasons := "; ".join(filter(None, [_unfit(state[name], value), by_class.get(name, "")])):
            report.skipped[name] = reasons
        else:
            report.copied.append(name)
    report.unused = [name for name in state if name not in own]
    _check(report, state, own)
    with torch.no_grad():
        for name in report.copied:
            own[name].copy_(state[name])
    return report


def transfer(model: nn.Module, weights: Weights, classes: Sequence[str], folder: Path) -> None:
    """`init_model`, told on the screen in short and in ``init_from.txt`` of the run folder in full.

    Raises:
        UserError: see `init_model`.
    """
    report = init_model(model, weights, classes)
    write_text(folder / "init_from.txt", report.text() + "\n")
    rank_zero_info("\n".join(plain(line[:300]) for line in report.text(limit=8).splitlines()))


def grouped(names: Iterable[str], everything: Sequence[str]) -> list[str]:
    """Names as short as they can be told: a part of which all of ``everything`` is named becomes ``part.* (n tensors)``.

    Example: ``grouped({"a.x", "a.y", "b.x"}, ["a.x", "a.y", "b.x", "b.y"])`` gives ``a.* (2 tensors), b.x``.
    """
    wanted = set(names)
    whole = Counter(part for name in everything for part in _parts(name))
    hits = Counter(part for name in wanted for part in _parts(name))
    lines: dict[str, None] = {}
    for name in (name for name in everything if name in wanted):
        part = next((part for part in _parts(name) if hits[part] == whole[part] > 1), None)
        lines[name if part is None else f"{part}.* ({whole[part]} tensors)"] = None
    return list(lines)


def _parts(name: str) -> list[str]:
    """``a.b`` and before it ``a`` for ``a.b.weight``: the modules around a tensor, the outermost first."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(1, len(words))]


def _cut(lines: list[str], limit: int | None) -> list[str]:
    if limit is None or len(lines) <= limit:
        return lines
    return [*lines[:limit], f"... {len(lines) - limit} more"]


def _not_there(path: Path) -> str:
    """The message for a path that is no file, with checkpoints that are near it."""
    folder = path if path.is_dir() else path.parent
    near = sorted(str(p) for p in [*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")])[:5]
    what = "is a folder" if path.is_dir() else "no such file"
    return f"init_from={path}: {what}. Fix: give a file" + (f", as {', '.join(near)}" if near else " that is there")


def _tensors(content: Any) -> dict[str, Tensor]:
    """The entries with a text for a name and a tensor for a value."""
    if not isinstance(content, Mapping):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _classes(about: Mapping[Any, Any], path: Path) -> list[str] | None:
    found = about.get("classes")
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(
            f"init_from={path}: its classes are not a list of names. Fix: save it with classes=[...] or without"
        )
    return found


def _translated(model: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The entries under the model's names; the file's own dict where there is nothing to translate.

    Raises:
        UserError: the translation stumbles over the file.
    """
    translate = getattr(model, "translate", None)
    if not weights.plain or translate is None:
        return weights.state
    try:
        found = translate(weights.state)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:  # entries that only look like those it knows
        raise UserError(
            f"init_from={weights.path}: {type(model).__name__}.translate cannot read it ({type(error).__name__}: {error})."
            " Fix: give the published file unchanged, or a state dict with the model's own names"
        ) from error
    return weights.state if found is None else dict(found)


def _class_names(model: nn.Module, weights: Weights, classes: Sequence[str], report: Report) -> dict[str, str]:
    """The model's tensors that must not be copied because of the classes, with the reason; notes them in the report.

    Raises:
        UserError: the classes are others (or unknown), and the model does not say what depends on them.
    """
    if weights.classes == list(classes):
        return {}
    unknown = weights.classes is None
    reason = "the file does not name its classes" if unknown else "classes differ"
    patterns: Sequence[str] | None = getattr(model, "class_parameters", None)
    if patterns is None:
        raise UserError(
            f"init_from={weights.path}: {reason}, and {type(model).__name__} does not say which of its parameters depend on"
            " them. Fix: give the class the attribute class_parameters, patterns of names as ('head.predict.*',) or ()"
        )
    names = [name for name in report.names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    file = "not named in the file (beside the tensors, 'classes': [...] would)" if unknown else None
    report.notes.append(
        f"classes: {file or _listed(weights.classes or []) + ' in the file'}, {_listed(classes)} in the data"
    )
    return dict.fromkeys(names, reason)


def _unfit(value: Tensor, own: Tensor) -> str:
    """Why a tensor cannot be copied; empty if it can."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        return "not a plain tensor of real numbers"
    if value.shape != own.shape:
        return f"{list(value.shape)} in the file, {list(own.shape)} here"
    if value.is_floating_point() != own.is_floating_point():
        return f"{value.dtype} in the file, {own.dtype} here".replace("torch.", "")
    return ""


def _check(report: Report, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuses a file that gives nothing, or no numbers."""
    if not report.parameters:
        raise UserError(
            f"init_from={report.source}: not one parameter fits this model. The file has {_some(report.entries)}; the model"
            f" {_some(report.names)}. Fix: give weights of the same model, with the same model.* numbers\n{report.text(5)}"
        )
    broken = [name for name in report.copied if not torch.isfinite(state[name]).all()]
    if broken:
        raise UserError(
            f"init_from={report.source}: NaN or infinity in {_some(broken)}. Fix: give a checkpoint from before training broke"
        )


def _listed(classes: Sequence[str]) -> str:
    return str(list(classes[:6])) + (f" ... ({len(classes)} in all)" if len(classes) > 6 else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" ... ({len(names)} in all)" if len(names) > 3 else "")
