"""The composed configuration against the constructors that it names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from cases import SUPPLIED, net, told
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from cvexp.config import (
    Composer,
    Origins,
    check_config,
    register_resolvers,
    report_errors,
)

WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    # an unknown argument, with and without a similar one
    (net(widht=3), ("'model.widht' = 3", "toybox.Net has no argument 'widht'", "did you mean 'width'?")),
    (net(zzz=3), ("no argument 'zzz'", "its arguments: backbone, ghost, loss")),
    # a missing one; nested
    ({"a": {"_target_": "toybox.Body"}}, ("'a': toybox.Body needs the argument 'depth'", "+a.depth=VALUE")),
    (net(backbone={"_target_": "toybox.Body"}), ("'model.backbone'", "needs the argument 'depth'")),
    # wrong types
    (net(width="8"), ("'model.width' = '8'", "expects int", "remove the quotes: 8")),
    (net(width=True), ("'model.width' = True", "expects int")),
    (net(width=1.5), ("'model.width' = 1.5", "expects int")),
    (net(backbone="resnet"), ("'model.backbone' = 'resnet'", "expects Body", "model/backbone=NAME")),
    ({"t": {"_target_": "toybox.Trainer", "mode": "mean"}}, ("'t.mode' = 'mean'", "'min' | 'max'")),
    ({"t": {"_target_": "toybox.Trainer", "lr": None}}, ("'t.lr' = None", "expects float")),
    # a node inside a list and inside a plain dict
    ({"c": [{"_target_": "toybox.Body", "depht": 3, "depth": 1}]}, ("'c[0].depht' = 3", "did you mean 'depth'?")),
    ({"c": {"d": {"_target_": "toybox.Body", "depth": "x"}}}, ("'c.d.depth' = 'x'",)),
    # values left open and interpolations
    ({"a": "???"}, ("'a' has no value", "set it: a=VALUE")),
    ({"data": {"classes": 2}, "a": "${data.clases}"}, ("'a' = '${data.clases}'", "did you mean 'data.classes'?")),
    ({"a": "${nothing:3}"}, ("'a' = '${nothing:3}' cannot be resolved", "nothing")),
    ({"a": "${a}"}, ("'a'",)),
    (
        {"m": {"size": "huge", "w": "${pick:${.size},{tiny:1,base:2}}"}},
        ("'m.w'", "'huge' is not one of tiny, base", "m.size"),
    ),
    # Hydra's own keys
    ({"a": {"_target_": "toybox.Body", "depth": 1, "_partial_": "yes"}}, ("'a._partial_' = 'yes'", "true or false")),
    ({"a": {"_target_": "toybox.Body", "depth": 1, "_convert_": "some"}}, ("'a._convert_' = 'some'", "partial")),
    ({"a": {"_target_": "toybox.Body", "_args_": 3}}, ("'a._args_' = 3", "a list")),
    ({"a": {"_target_": "toybox.Body", "_partial": True, "depth": 1}}, ("no argument '_partial'",)),
    # a target that is not there
    ({"a": {"_target_": "toybox.Bdy"}}, ("'a': _target_ 'toybox.Bdy'", "did you mean 'Body'?")),
    ({"a": {"_target_": "toybox.no.Body"}}, ("there is no module 'toybox.no'",)),
    ({"a": {"_target_": 3}}, ("_target_ 3 is refused",)),
    # a near miss of a named argument although the function takes any keyword
    ({"a": {"_target_": "toybox.loose", "name": "x", "nam": 1}}, ("'a.nam' = 1", "did you mean 'name'?")),
]


@pytest.mark.parametrize(("cfg", "parts"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_config(cfg: dict[str, Any], parts: tuple[str, ...]) -> None:
    message = told(cfg, supplied=SUPPLIED, origin=lambda key: f"<{key}>")
    for part in parts:
        assert part in message
    assert "where: <" in message


RIGHT: list[dict[str, Any]] = [
    {},  # nothing
    net(),  # num_classes is supplied
    net(width=4, neck=None, ghost=3),  # a hint that cannot be evaluated judges nothing
    net(size="tiny"),  # taken out by the program before it builds the model
    {"a": {"_target_": "toybox.Body", "_partial_": True}},  # arguments may come later
    {"a": {"_target_": "toybox.Body", "_args_": [3]}},  # positional
    {"a": {"_target_": "toybox.Net", "_recursive_": False, "num_classes": 2, "backbone": {"_target_": "toybox.Body"}}},
    {"a": {"_target_": "toybox.Trainer", "lr": 1, "devices": "auto", "max_epochs": None, "_convert_": "all"}},
    {"a": {"_target_": "toybox.loose", "name": "x", "anything": 1}},  # takes any keyword
    {"a": {"b": "${c}"}, "c": [1, "${a.d}"]} | {"a": {"d": 1, "b": "${c}"}},  # interpolations
    {"hydra": {"x": "???"}, "a": 1},  # Hydra's node is not ours
]


@pytest.mark.parametrize("cfg", RIGHT, ids=[str(i) for i in range(len(RIGHT))])
def test_right_config(cfg: dict[str, Any]) -> None:
    check_config(cfg, supplied=SUPPLIED, extra=["toybox"])


def test_all_problems_of_a_config_are_numbered() -> None:
    message = told({**net(widht=3, width="x"), "a": "???", "b": {"_target_": "os.system"}})
    assert message.startswith("5 problems in the configuration:\n1. 'a' has no value")
    assert all(f"\n{i}. " in message for i in (2, 3, 4, 5))  # widht, num_classes, width, os.system


def test_supplied_value_may_be_left_open() -> None:
    check_config({"t": {"_target_": "toybox.Body", "depth": "???"}}, supplied={"t": {"depth"}}, extra=["toybox"])
    assert "'t.depth' has no value" in told({"t": {"_target_": "toybox.Body", "depth": "???"}})


def test_wrong_size_is_told_once_with_its_origin(conf: Path) -> None:
    words = ["model.size=huge", "+model.backbone.dilated='${pick:${..size},{tiny:true,base:false}}'"]
    composer = Composer(conf=conf)
    message = told(composer.compose(words), origin=Origins(words, composer))
    assert message.count("'huge' is not one of tiny, base") == 1
    assert "model.size = 'huge' (from the command line: model.size=huge)" in message


def test_end_to_end_with_hydra(conf: Path) -> None:
    register_resolvers()
    words = ["experiment=good", "+trainer.mod=max", "model.backbone.depth=${data.root}"]
    with initialize_config_dir(str(conf), version_base="1.3"):
        good = compose("train", overrides=["experiment=good"])
        bad = compose("train", overrides=words)
    check_config(good, extra=["toybox"])
    message = told(bad, origin=Origins(words, Composer(conf=conf)))
    assert "'trainer.mod' = 'max': toybox.Trainer has no argument 'mod'" in message
    assert "where: from the command line: +trainer.mod=max" in message
    assert "did you mean 'mode'?" in message
    assert "'model.backbone.depth' = 'data/faces': toybox.Body expects int" in message


def test_inside_a_hydra_program(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A user's error in the task function: exit code 2, no traceback, and the origin without being told the words."""
    quiet = [
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        f"hydra.run.dir={tmp_path}",
        "hydra.output_subdir=null",
    ]
    monkeypatch.setattr(sys, "argv", ["program", "experiment=good", "+trainer.lim=1", "~callbacks", *quiet])

    @hydra.main(version_base="1.3", config_path=str(conf), config_name="train")
    @report_errors
    def program(cfg: DictConfig) -> None:
        cfg.trainer.max_epochs = "x"
        check_config(cfg, extra=cfg.allow_targets)

    with pytest.raises(SystemExit) as stop:
        program()
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "where: from the command line: +trainer.lim=1" in printed
    assert "where: conf/experiment/good.yaml:5" in printed
    assert "Traceback" not in printed
    assert Origins.running()("seed") == ""  # outside of a Hydra program nothing is known


def test_real_classes_are_understood() -> None:
    trainer = {"_target_": "lightning.pytorch.Trainer", "max_epochs": 3, "devices": "auto", "precision": "16-mixed"}
    loss = {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1, "weight": None}
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1, "betas": [0.9, 0.99]}
    metric = {"_target_": "torchmetrics.Accuracy", "task": "multiclass", "num_classes": 3}
    check_config({"t": trainer, "l": loss, "o": adam, "m": metric})
    trainer |= {"max_epochs": "3", "precision": "8", "max_time": {"days": 1}, "devices": [0, 1], "logger": True}
    message = told(
        {"t": trainer, "l": loss | {"label_smoothing": "x"}, "o": adam | {"betas": 3}, "m": {**metric, "task": 3}}
    )
    assert message.startswith("5 problems")
    for part in ("'t.max_epochs' = '3'", "'t.precision' = '8'", "'l.label_smoothing'", "'o.betas' = 3", "'m.task' = 3"):
        assert part in message
