"""The detectors that are measured: fresh from a configuration, or trained, from a checkpoint with its test score."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from cvexp.build import SUPPLIED, build_model
from cvexp.config import Composer, check_config, check_overrides, parse_overrides, register_resolvers
from cvexp.config.foreign import check_slots, read_foreign, tamed
from cvexp.data.transforms import Fit
from cvexp.inference import Propose, fit_of, propose_of, read_checkpoint, rebuild_model
from cvexp.types import UserError

SCORE = "test/AP"


@dataclass(frozen=True)
class Score:
    """The test score of a checkpoint.

    Attributes:
        value: AP, 0..1, or None.
        note: why there is none.
        data: what it was tested on, as ``ShapesData``; points of different data are not compared.
    """

    value: float | None
    note: str = ""
    data: str = ""


@dataclass(frozen=True)
class Subject:
    """One detector.

    Attributes:
        name: of the model or of the checkpoint's run; unique.
        model: in evaluation mode.
        fit: how a picture is brought to its size.
        trained: False for random weights, whose scores are random too.
        classes: number of classes.
        score: of its test.
        propose: makes the proposals of a picture; None for a model that needs none.
    """

    name: str
    model: nn.Module
    fit: Fit
    trained: bool
    classes: int
    score: Score
    propose: Propose | None = None

    @property
    def parameters(self) -> int:
        """Numbers that are trained, and those that could be."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def limits(self) -> dict[str, Any]:
        """What decides how much the post-process has to do; None where a model has no such thing."""
        names = ("max_detections", "score_threshold", "nms_threshold", "candidates")
        rule = getattr(self.model, "nms", None)
        found = {name: getattr(self.model, name, None) for name in names} | {"nms": None if rule is None else str(rule)}
        return found if getattr(rule, "thresholded", True) else found | {"nms_threshold": None}


def fresh(name: str, words: Sequence[str], classes: int, packages: Sequence[str] = ()) -> Subject:
    """A model of ``conf/model`` with random weights, the same in every run.

    Args:
        words: overrides, as of ``cvexp.train``.
        packages: your own, that ``_target_`` may name.

    Raises:
        UserError: an unknown model, a word it cannot use, or a model that finds no boxes.
    """
    register_resolvers()
    typed = [f"model={name}", *words]
    with _about(f"models={name}"):
        check_overrides(typed)
        config = Composer().compose([*typed, "paths.output=."])
        config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        check_config(
            config, origin=lambda _: f"of model={name} or on the command line", supplied=SUPPLIED, extra=packages
        )
        torch.manual_seed(0)
        model = build_model(config.model, num_classes=classes).eval()
        return _subject(name, model, config, classes, Score(None, "random weights, nothing to score"), {})


def trained(path: str, words: Sequence[str], packages: Sequence[str] = ()) -> Subject:
    """The model of a checkpoint.

    Args:
        words: overrides of its configuration; with those of the model or the data its test score no longer holds.

    Raises:
        UserError: a file that is none of cvexp's checkpoints, a word it cannot use, or a model that finds no boxes.
    """
    content = read_checkpoint(path)
    about = content["cvexp"]
    plain = tamed(read_foreign(about["config"], path, ("model", "data")))
    check_slots(plain, path, packages)
    with _about(f"ckpt={path}"):
        config = OmegaConf.create(parse_overrides(words, plain))
        assert isinstance(config, DictConfig)
        check_config(config, origin=lambda _: f"in {path} or on the command line", supplied=SUPPLIED, extra=packages)
    model = rebuild_model(content, config, path)
    changed = [word for word in words if word.split("=")[0].lstrip("+").split(".")[0] in ("model", "data")]
    score = Score(None, f"tested without {changed[0]}") if changed else run_score(Path(path).expanduser())
    data = str(OmegaConf.select(config, "data._target_") or "").rpartition(".")[2]
    return _subject(_name(path), model, config, len(about["classes"]), replace(score, data=data), about)


def run_score(path: Path) -> Score:
    """What the run that wrote a checkpoint measured: ``result.json`` beside it or beside its folder ``checkpoints``.

    A run tests its best checkpoint, so of others (``last.ckpt``) the score is not known.
    """
    folder = path.resolve().parent
    places = [folder / "result.json"] + ([folder.parent / "result.json"] if folder.name == "checkpoints" else [])
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        return Score(None, "no result.json beside the checkpoint: the run has not ended, or the file was moved alone")
    if not path.stem.startswith("best") and (folder / "best.ckpt").exists():
        return Score(None, f"{found.name} is about best.ckpt")
    try:
        results = json.loads(found.read_text(encoding="utf-8"))
        value = results.get(SCORE) if isinstance(results, dict) else None
    except (OSError, ValueError):
        return Score(None, f"{found.name} cannot be read")
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return Score(float(value)) if usable else Score(None, f"{found.name} has no {SCORE}")


def distinct(subjects: Sequence[Subject]) -> list[Subject]:
    """The same with names that tell them apart: ``a``, ``a (2)``."""
    seen: Counter[str] = Counter()
    named = []
    for subject in subjects:
        seen[subject.name] += 1
        count = seen[subject.name]
        named.append(subject if count == 1 else replace(subject, name=f"{subject.name} ({count})"))
    return named


def _name(path: str) -> str:
    """``yolo-shapes`` for ``runs/yolo-shapes/checkpoints/best.ckpt``; other checkpoints of a run have their own name too."""
    file = Path(path).expanduser().resolve()
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    run = f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name  # a job of a sweep
    return run if file.stem == "best" and run else f"{run}/{file.stem}"


def _subject(
    name: str, model: nn.Module, config: DictConfig, classes: int, score: Score, about: Mapping[str, Any]
) -> Subject:
    """``about``: what a checkpoint says of itself; empty for random weights."""
    if getattr(model, "kind", "detection") != "detection":
        raise UserError(
            f"{name}: compares faces and finds no boxes. Fix: models=[yolo,faster_rcnn_fpn], or a detector's ckpt="
        )
    fit = fit_of(config, name)
    if getattr(model, "square", False) and not fit.pad:
        raise UserError(f"{name}: data.pad={config.data.pad}, and it needs square images. Fix: data.pad=square")
    return Subject(name, model, fit, bool(about), classes, score, propose_of(model, config, about, name))


@contextmanager
def _about(what: str) -> Iterator[None]:
    """A `UserError` of the block says which of the models it is about."""
    try:
        yield
    except UserError as error:
        if what in str(error):
            raise
        raise UserError(f"{what}: {error}") from None
