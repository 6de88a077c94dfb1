"""The checks of a configuration: every message must hold the key, the value, who set it, and the fix."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional, Union

import hydra
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from cvexp.config import (
    Composer,
    Origins,
    allowed,
    check_config,
    check_overrides,
    check_targets,
    conf_dir,
    origin,
    parse_overrides,
    register_resolvers,
    report_errors,
    suggest,
)
from cvexp.config.annotations import OPEN, describe, matches
from cvexp.types import UserError

# A user's own package: constructors of known signature, importable without torch.
TOYBOX = """
    from __future__ import annotations
    import os, subprocess
    from functools import partial
    from pathlib import Path
    from typing import TYPE_CHECKING, Literal
    if TYPE_CHECKING:
        from nowhere import Ghost

    class Net:
        def __init__(self, backbone: Body, num_classes: int, width: int = 8, neck: Body | None = None,
                     loss: object = None, ghost: Ghost = None):
            self.width = width
        @classmethod
        def build(cls): ...

    class Body:
        def __init__(self, depth: int, dilated: bool = False): ...

    class Trainer:
        def __init__(self, max_epochs: int | None = None, lr: float = 0.1, devices: int | str = "auto",
                     mode: Literal["min", "max"] = "min", limit: float = 1.0, deterministic: bool = False): ...

    def loose(name: str, **kwargs): ...
    table = {}
    shortcut = partial(loose, "x")
"""

CONF = {
    "train.yaml": """
        defaults:
          - _self_
          - trainer: default
          - data: voc
          - model: yolo
          - callbacks: default
          - experiment: null
        seed: 0
        ratio: 0.5
        name: run
        flag: false
        sizes: [1, 2]
        allow_targets: [toybox]
    """,
    "trainer/default.yaml": """
        # the trainer
        _target_: toybox.Trainer
        max_epochs: 14
        lr: 1e-2
        devices: 1
    """,
    "callbacks/default.yaml": "early: {depth: 1}",
    "data/voc.yaml": "num_classes: 20\nroot: data/voc",
    "data/faces.yaml": "num_classes: 3\nroot: data/faces",
    "data/_base.yaml": "root: none",
    "model/yolo.yaml": """
        defaults:
          - backbone: resnet
          - _self_
        _target_: toybox.Net
        size: base
        width: ${pick:${.size},{tiny:4,base:16}}
        num_classes: ${data.num_classes}
        neck: null
    """,
    "model/yolov1.yaml": """
        defaults:
          - yolo
          - loss: giou
          - _self_
          - override /data@_global_.data: faces
    """,
    "model/backbone/resnet.yaml": "_target_: toybox.Body\ndepth: 50",
    "model/backbone/darknet.yaml": "_target_: toybox.Body\ndepth: 19\ndilated: true",
    "model/neck/fpn.yaml": "_target_: toybox.Body\ndepth: 3",
    "model/loss/giou.yaml": "gain: 1.0",
    "model/loss/diou.yaml": "gain: 1.5",
    "experiment/good.yaml": """
        # @package _global_
        defaults:
          - override /model: yolov1
        trainer:
          max_epochs: 3
    """,
    "experiment/typo.yaml": """
        # @package _global_
        traner:
          max_epochs: 3
    """,
    "experiment/slot.yaml": """
        # @package _global_
        defaults:
          - override /model/nek: fpn
    """,
    "experiment/option.yaml": """
        # @package _global_
        defaults:
          - override /model: yolo8
    """,
    "experiment/syntax.yaml": "# @package _global_\ntrainer:\n  max_epochs: [1, 2\nseed: 1",
    "experiment/grammar.yaml": "# @package _global_\nname: ${data.root",
    "experiment/shape.yaml": "# @package _global_\ntrainer: [1, 2]",
    "other/lonely.yaml": "a: 1",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
    return folder


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tree") / "conf", CONF)


@pytest.fixture(scope="module", autouse=True)
def toybox(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write(tmp_path_factory.mktemp("packages"), {"toybox/__init__.py": TOYBOX, "toybox/part.py": "X = 1"})
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def refusal(*argv: str, conf: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_overrides(argv, conf=conf, **options)
    return str(caught.value)


# --- overrides: what is refused --------------------------------------------------------------------------------------

# The word typed; what the message must hold: key or value, reason, fix.
REFUSED: list[tuple[str, tuple[str, ...]]] = [
    # a misspelled group
    ("modle=yolo", ("unknown key 'modle'", "did you mean 'model'")),
    ("model/bakbone=resnet", ("no component slot 'model/bakbone'", "did you mean 'model/backbone'")),
    ("exprimnt/a=good", ("no group 'exprimnt/a'", "groups: callbacks, data")),
    # a misspelled option: suggestion and choices; files that begin with _ are no choices
    ("model=yolo8", ("'model' has no option 'yolo8'", "did you mean 'yolo' or 'yolov1'?", "choices: yolo, yolov1")),
    ("model/backbone=resnt", ("'model/backbone' has no option 'resnt'", "'resnet'", "choices: darknet, resnet")),
    ("data=imagenet", ("'data' has no option 'imagenet'", "choices: faces, voc")),
    ("+experiment=god", ("'experiment' has no option 'god'", "did you mean 'good'")),
    ("experiment=[good,bad]", ("'experiment' has no option 'bad'",)),
    # an option that is no name
    ("data=3", ("it takes the name of an option, not 3", "choices: faces, voc")),
    ("data=null", ("not None", "without any: ~data")),
    # a slot that the model does not have: no folder at all, a folder but no slot, with a package
    ("model/head=big", ("model=yolo has no component slot 'model/head'", "its slots: model/backbone")),
    ("model/loss=giou", ("model=yolo has no component slot 'model/loss'", "its slots: model/backbone")),
    ("model/backbone@model.body=resnet", ("no component slot 'model/backbone@model.body'", "model/backbone")),
    ("~model/loss", ("model=yolo has no component slot 'model/loss'",)),
    # a group that is there but not in the defaults list, and one that has a choice already
    ("other=lonely", ("'other' is not in the defaults list of train.yaml", "add it: +other=lonely")),
    ("+data=faces", ("'data' has a choice already: voc", "leave the + away: data=faces")),
    ("++data=faces", ("'data' has a choice already: voc", "leave the + away: data=faces")),
    ("++other=lonely", ("'other' is a group, which takes no ++", "add it: +other=lonely")),
    # a misspelled key, plain, with + and ++ (which switch Hydra's own check off), with ~
    ("trainer.max_epoch=3", ("unknown key 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'")),
    ("+trainer.max_epoch=3", ("unknown key 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'")),
    ("++trainer.max_epoch=3", ("unknown key 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'")),
    ("~trainer.max_epoch", ("unknown key 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'")),
    ("traner.max_epochs=3", ("unknown key 'traner.max_epochs'", "did you mean 'trainer.max_epochs'")),
    ("model.backbone.dept=3", ("unknown key 'model.backbone.dept'", "did you mean 'model.backbone.depth'")),
    ("+sed=3", ("unknown key 'sed'", "did you mean 'seed'")),
    ("+callbacks.zzz=3", ("unknown key 'callbacks.zzz'", "known callbacks: early")),
    # the last name alone: the full key is offered
    ("lr=0.1", ("unknown key 'lr'", "did you mean 'trainer.lr'")),
    # an argument that no file sets: it is one, so it may be added
    ("trainer.limit=0.5", ("an argument of toybox.Trainer", "add it: +trainer.limit=0.5")),
    # already there
    ("+trainer.max_epochs=3", ("'trainer.max_epochs' is there already", "leave the + away: trainer.max_epochs=3")),
    # wrong types: by the constructor's hint ...
    ("trainer.max_epochs=ten", ("'trainer.max_epochs' expects int or null, not 'ten'", "trainer.max_epochs=14")),
    ("trainer.max_epochs=1.5", ("expects int or null, not 1.5",)),
    ("trainer.max_epochs=true", ("expects int or null, not True",)),
    ("trainer.lr='0.1'", ("'trainer.lr' expects float, not '0.1'", "trainer.lr=0.01")),
    # ... else by the default
    ("seed=ten", ("'seed' expects an integer (as its default 0), not 'ten'", "seed=0")),
    ("seed=1.5", ("expects an integer", "not 1.5")),
    ("ratio=half", ("'ratio' expects a number (as its default 0.5), not 'half'",)),
    ("flag=yess", ("'flag' expects true or false", "not 'yess'", "flag=false")),
    ("flag=1", ("'flag' expects true or false",)),
    ("name=[a]", ("'name' expects a text", "not ['a']")),
    ("sizes=3", ("'sizes' expects a list [a, b]", "sizes=[3]")),
    ("data.num_classes=many", ("'data.num_classes' expects an integer", "not 'many'")),
    ("callbacks=3", ("it takes the name of an option",)),
    ("callbacks.early=3", ("expects a dict", "set one of its keys: callbacks.early.depth")),
    # a component set as if it were a value
    ("model.backbone=darknet", ("'model.backbone' is a component", "model/backbone=darknet")),
    ("model.neck=fpn", ("'model.neck' is a component", "model/neck=fpn")),
    # not an override at all, or a value that cannot be read
    ("yolo", ("'yolo' cannot be read", "key=value")),
    ("trainer.max_epochs=[1,2", ("'trainer.max_epochs=[1,2' cannot be read", "quote")),
    ("name=a=b", ("'name=a=b' cannot be read", "quote")),
    ("name={a:", ("cannot be read", "quote")),
    # a sweep without -m
    ("seed=1,2", ("'seed' has several values", "add -m", "seed=[1,2]", "'seed=\"1,2\"'")),
    # files: an experiment that sets a key nobody reads, overrides no slot, names no option, is no YAML, does not merge
    ("experiment=typo", ("unknown key 'traner'", "conf/experiment/typo.yaml:2", "did you mean 'trainer'")),
    ("experiment=slot", ("model/nek", "conf/experiment/slot.yaml:3")),
    ("experiment=option", ("'yolo8'", "conf/experiment/option.yaml:3", "did you mean 'yolo' or 'yolov1'")),
    ("experiment=syntax", ("not valid YAML", "conf/experiment/syntax.yaml:4")),
    ("experiment=grammar", ("not valid YAML", "conf/experiment/grammar.yaml:2")),
    ("experiment=shape", ("cannot be composed", "conf/experiment/shape.yaml")),
]


@pytest.mark.parametrize(("word", "told"), REFUSED, ids=[word for word, _ in REFUSED])
def test_refused_override(word: str, told: tuple[str, ...], conf: Path) -> None:
    message = refusal(word, conf=conf)
    for part in told:
        assert part in message
    in_file = any(part.startswith("conf/") for part in told)
    assert in_file or f"from the command line: {word}" in message
    assert "problems" not in message  # one mistake, one problem


# Sweeps: the words, the choice that is wrong.
SWEEPS = [
    ("model=yolo,yolo8", "'yolo8'"),  # simple choices of a group
    ("seed=choice(1,x)", "'x'"),  # explicit choices of a key
    ("trainer.max_epochs=range(0.5,2)", "0.5"),  # a range of the wrong type
    ("trainer.max_epochs=interval(0.5,2)", "0.5"),  # the ends of an interval
    ("model/loss=giou,diou", "no component slot"),  # a slot that is missing for every choice
    ("model/backbone=glob(z*)", "no choice is left"),  # a pattern that matches nothing
    ("seed=glob(*)", "not one"),  # a pattern where there is no group
    ("trainer.max_epoch=1,2", "trainer.max_epochs"),  # an unknown key
]


@pytest.mark.parametrize(("word", "told"), SWEEPS)
def test_every_choice_of_a_sweep_is_checked(word: str, told: str, conf: Path) -> None:
    message = refusal("-m", word, conf=conf)
    assert told in message
    assert f"from the command line: {word}" in message


def test_slot_is_checked_for_every_model_of_a_sweep(conf: Path) -> None:
    check_overrides(["-m", "model=yolov1", "model/loss=giou,diou"], conf=conf)
    assert "model=yolo has no component slot 'model/loss'" in refusal(
        "-m", "model=yolov1,yolo", "model/loss=giou", conf=conf
    )


def test_all_mistakes_are_told_together(conf: Path) -> None:
    message = refusal("seed=x", "trainer.max_epoch=3", "flag=7", conf=conf)
    assert message.startswith("3 problems in the configuration:\n1. 'seed'")
    assert "\n2. unknown key 'trainer.max_epoch'" in message
    assert "\n3. 'flag'" in message


# --- overrides: what passes ------------------------------------------------------------------------------------------

ACCEPTED = [
    "",  # nothing
    "trainer.max_epochs=3 seed=1 name=x ratio=1",  # an int where the default is a float
    "trainer.devices=auto",  # a text where the default is an int: the hint allows it
    "trainer.max_epochs=null",  # null where the hint allows it
    "model=yolov1 model/loss=diou",  # a slot that only the chosen model has
    "model/loss=diou model=yolov1",  # in any order
    "experiment=good model/loss=diou",  # a slot that only the experiment's model has
    "+trainer.limit=0.5 +trainer.mode=max",  # arguments that no file sets
    "++trainer.limit=0.5 ++trainer.lr=0.5",  # ++ for a new one and for a present one
    "+callbacks.ema._target_=toybox.Body +callbacks.ema.depth=3",  # a node built word by word
    "+callbacks.ema={_target_:toybox.Body,depth:3}",  # or at once
    "+other=lonely",  # a group that is not in the defaults list
    "~callbacks ~model.width",  # a group and a key taken away
    "callbacks.early=null",  # a part switched off
    "sizes=[3] sizes=[]",  # lists
    "data.num_classes=${model.width}",  # an interpolation is judged when it is resolved
    "-m seed=1,2,3 model=yolo,yolov1 trainer.lr=interval(0.1,1)",  # sweeps
    "-m model/backbone=glob(*) seed=range(1,4) data=choice(voc,faces)",
    "--multirun seed=1,2",
    "seed=1,2 hydra.mode=MULTIRUN",  # the other way to ask for a sweep
    "hydra.run.dir=x +hydra.job.env_set.A=1 hydra.verbose=true",  # Hydra's own keys
    "--help",  # flags alone and with words
    "--hydra-help",
    "--version",
    "--cfg job seed=3",
    "--info defaults seed=3",
    "--cfg job --resolve --package trainer",
    "--config-name train seed=1",
]


@pytest.mark.parametrize("line", ACCEPTED)
def test_accepted_overrides(line: str, conf: Path) -> None:
    check_overrides(line.split(), conf=conf)


def test_config_dir_is_searched_and_named(conf: Path, tmp_path: Path) -> None:
    mine = write(
        tmp_path / "mine", {"model/own.yaml": "defaults: [yolo, _self_]\nwidth: 3", "experiment/bad.yaml": "a: [1"}
    )
    check_overrides(["--config-dir", str(mine), "model=own", "model.width=5"], conf=conf)
    check_overrides(["model=own"], conf=conf, extra_dirs=[mine])
    assert "mine/experiment/bad.yaml:1" in refusal("experiment=bad", "-cd", str(mine), conf=conf)
    assert "choices: own, yolo, yolov1" in refusal("--config-dir", str(mine), "model=onw", conf=conf)
    assert "'model' has no option 'own'" in refusal("model=own", conf=conf)  # without the folder
    assert "no configuration folder" in refusal("--config-dir", str(tmp_path / "no"), "seed=1", conf=conf)


def test_config_name_chooses_the_primary_file(conf: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", {"small.yaml": "depth: 1"})
    check_overrides(["--config-name", "small", "depth=2"], conf=mine)
    assert "unknown key 'seed'" in refusal("--config-name=small", "seed=2", conf=mine)
    check_overrides(["--config-path", str(mine), "-cn", "small.yaml", "depth=2"], conf=conf)


def test_message_of_a_missing_mandatory_group(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", {"train.yaml": "defaults:\n  - model: ???\n", "model/a.yaml": "b: 1"})
    assert "You must specify 'model'" in refusal("+x=1", conf=mine)
    check_overrides(["model=a"], conf=mine)


# --- origins ---------------------------------------------------------------------------------------------------------

# Overrides, key, origin.
ORIGINS = [
    ([], "trainer.max_epochs", "conf/trainer/default.yaml:3"),  # a comment above counts as a line
    ([], "model.backbone.depth", "conf/model/backbone/resnet.yaml:2"),  # a slot's file
    (["model/backbone=darknet"], "model.backbone.dilated", "conf/model/backbone/darknet.yaml:3"),
    (["trainer.max_epochs=5"], "trainer.max_epochs", "from the command line: trainer.max_epochs=5"),
    (["seed=1", "seed=2"], "seed", "from the command line: seed=2"),  # the last one counts
    (["+trainer.limit=0.5"], "trainer.limit", "from the command line: +trainer.limit=0.5"),
    (["callbacks.early={depth:4}"], "callbacks.early.depth", "from the command line: callbacks.early={depth:4}"),
    (["callbacks.early={wide:4}"], "callbacks.early.depth", "conf/callbacks/default.yaml:1"),  # it sets another key
    (["experiment=good"], "trainer.max_epochs", "conf/experiment/good.yaml:5"),  # the file that wins
    (["experiment=good"], "trainer.lr", "conf/trainer/default.yaml:4"),
    (["model=yolov1"], "data.num_classes", "conf/data/faces.yaml:1"),  # the model chose another data set
    (["model=yolov1"], "model.width", "conf/model/yolo.yaml:6"),  # inherited
    ([], "sizes[1]", "conf/train.yaml:12"),  # an item of a list written in one row
    ([], "trainer.nothing", ""),  # nobody set it, nor (as one key) what encloses it
    ([], "callbacks.early.nothing", "conf/callbacks/default.yaml:1"),  # the nearest enclosing key
]


@pytest.mark.parametrize(("overrides", "key", "expected"), ORIGINS)
def test_origin(overrides: list[str], key: str, expected: str, conf: Path) -> None:
    assert origin(key, overrides, conf=conf) == expected


def test_origin_in_an_additional_folder(conf: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", {"data/own.yaml": "\nnum_classes: 7\n"})
    assert origin("data.num_classes", ["data=own"], conf=conf, extra_dirs=[mine]) == "mine/data/own.yaml:1"


def test_origin_through_anchors_and_merge_keys(tmp_path: Path) -> None:
    folder = write(tmp_path / "conf", {"train.yaml": "a: &a\n  x: 1\nb:\n  <<: *a\n  y: 2\n"})
    assert origin("b.x", conf=folder) == "conf/train.yaml:2"
    assert origin("b.y", conf=folder) == "conf/train.yaml:5"


# --- the composed configuration --------------------------------------------------------------------------------------

SUPPLIED = {"model": {"num_classes"}}


def told(cfg: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_config(cfg, extra=["toybox"], **options)
    return str(caught.value)


def net(**changes: Any) -> dict[str, Any]:
    return {"model": {"_target_": "toybox.Net", "backbone": {"_target_": "toybox.Body", "depth": 3}, **changes}}


# A configuration; what the message must hold.
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


# --- the allow-list --------------------------------------------------------------------------------------------------

HOSTILE = [
    "os.system",  # outside the list
    "builtins.eval",
    "subprocess.Popen",
    "posix.system",
    "hydra.utils.get_method",  # Hydra's own ways to any object
    "hydra.utils.get_class",
    "hydra.utils.call",
    "hydra._internal.utils._locate",
    "torch.hub.load",  # fetches and runs code
    "torch.load",  # pickle
    "torch.utils.cpp_extension.load",
    "torchvision.datasets.VOCDetection",
    "lightning.pytorch.cli.LightningCLI",
    "cvexp.train.main",  # a command, not a component
    "cvexp.config.report_errors",
    "cvexp.config.os.system",  # a module's imports
    "cvexp.config.Path",
    "cvexp.models.os.system",
    "torch.nn.modules.module.warnings.warn",
    "torch.nn.modules.module.functools.partial",
    "torch.nn.init.torch.load",
    "torch.nn.modules.torch.hub.load",
    "torch.optim.optimizer.torch.load",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.modules.module.OrderedDict",  # a class of another package
    "torchvision.models.resnet.partial",
    "torch.nn.Module.load_state_dict",  # inside a class
    "lightning.pytorch.loggers.WandbLogger.download_artifact",
    "lightning.pytorch.Trainer.fit",
    "torch.nn.modules",  # a module
    "torch.nn.Module.__init__.__globals__",  # not public
    "torch.nn.__loader__.load_module",
    "torch.nn._reduction.get_enum",
    "torchvision.models._api.get_model",
    "torchvision.models.resnet.load_state_dict_from_url",
    "timm.models.load_checkpoint",  # inside the listed packages, but unpickles, fetches or uploads
    "timm.models.push_to_hf_hub",
    "timm.models.load_model_config_from_hf",
    "timm.models.build_model_with_cfg",
    "timm.data.create_dataset",
    "timm.utils.CheckpointSaver",
    "torchmetrics.text.BERTScore",
    "torchmetrics.multimodal.CLIPScore",
    "torchmetrics.functional.multimodal.clip_score",
    "lightning.pytorch.strategies.launchers.multiprocessing.Popen",
    "lightning.pytorch.loggers.csv_logs.get_filesystem",
    "torch.nnx.Module",  # a prefix of letters, not of packages
    "timmy.create_model",
    "cvexp.modelsx.A",
    "torch.nn",  # no name in it
    "Net",
    "",
    "torch.nn.Linear; import os",
    "torch.nn.Linear\n",
    " torch.nn.Linear",
    "torch..nn.Linear",
    "../evil.Linear",
]


@pytest.mark.parametrize("target", HOSTILE)
def test_hostile_target_is_refused(target: str) -> None:
    with pytest.raises(UserError, match="is refused"):
        allowed(target)
    assert "is refused" in told({"a": [{"b": {"_target_": target, "_partial_": True}}]}, origin=lambda key: key)


@pytest.mark.parametrize("target", [None, 3, ["os.system"], {"a": 1}, os.system])
def test_target_that_is_no_text_is_refused(target: object) -> None:
    with pytest.raises(UserError, match="is refused"):
        allowed(target)


def test_refused_package_is_not_imported(toybox: Path) -> None:
    (toybox / "evil.py").write_text("raise SystemExit('imported')")
    with pytest.raises(UserError, match=r"(?s)'evil.Net' is refused.*allow_targets=\[evil\]"):
        allowed("evil.Net")
    assert "evil" not in sys.modules


def test_hostile_target_made_by_an_interpolation_is_refused() -> None:
    hidden = {
        "a": "${oc.create:{_target_: os.system, _args_: [ls]}}",  # a node that a resolver makes
        "b": {"_target_": "${c}"},  # a name that an interpolation gives
        "c": "os.popen",
        "d": "${oc.decode:'{_target_: os.remove}'}",  # a plain dict that a resolver makes
        "e": "${pick:a,{a:[{_target_:os.kill}]}}",  # inside a list that a resolver makes
    }
    message = told(hidden, origin=lambda key: key)
    for name in ("os.system", "os.popen", "os.remove", "os.kill"):
        assert f"'{name}' is refused" in message


def test_checkpoint_is_judged_by_its_targets_alone() -> None:
    part = {"model": {"_target_": "torch.nn.Linear"}, "paths": {"output": "???"}, "x": "${paths.output}"}
    check_targets(part)  # missing arguments and open values are the program's business
    for bad in ({"_target_": "os.system"}, {"_target_": "timm.create_model", "checkpoint_path": "x"}, "${nowhere}"):
        with pytest.raises(UserError, match=r"'more\[0\]'"):
            check_targets({**part, "more": [bad]})
    with pytest.raises(UserError, match=r"'toybox\.Net' is refused"):
        check_targets({"a": {"_target_": "toybox.Net"}, "allow_targets": ["toybox"]})  # a config cannot allow itself
    check_targets({"a": {"_target_": "toybox.Net"}}, extra=["toybox"])


def test_users_package_is_allowed_by_name_only() -> None:
    with pytest.raises(UserError, match=r"allow_targets=\[toybox\]"):
        allowed("toybox.Net")
    assert allowed("toybox.Net", ["toybox"]).__name__ == "Net"
    for target in (
        "toybox.os.system",
        "toybox.Path",
        "toybox.Net.build",
        "toybox.table",
        "toybox.shortcut",
        "toybox.partial",
    ):
        with pytest.raises(UserError, match="is refused"):
            allowed(target, ["toybox"])
    for package in ("os", "subprocess", "posix", "builtins", "shutil"):  # Python's own library is nobody's package
        with pytest.raises(UserError, match="is refused"):
            allowed(f"{package}.system", [package])
    with pytest.raises(UserError) as caught:
        allowed("shutil.rmtree")
    assert "allow_targets=[" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.nn.functional.relu",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.plugins.environments.SLURMEnvironment",
        "lightning.pytorch.profilers.SimpleProfiler",
        "torchmetrics.detection.MeanAveragePrecision",
        "torchvision.ops.FrozenBatchNorm2d",
        "torchvision.models.resnet50",
        "timm.create_model",
    ],
)
def test_listed_target_is_found(target: str) -> None:
    assert allowed(target).__name__ == target.rsplit(".", 1)[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_name": "hf-hub:somebody/model"},  # fetched from anybody's account
        {"_args_": ["local-dir:/tmp/x"]},
        {"model_name": "resnet18", "checkpoint_path": "evil.pth"},  # unpickled by older releases
        {"model_name": "resnet18", "pretrained_cfg_overlay": {"url": "http://evil"}},
    ],
)
def test_timm_takes_no_file_from_a_config(arguments: dict[str, Any]) -> None:
    assert "would load a file" in told({"a": {"_target_": "timm.create_model", **arguments}}, origin=lambda key: key)


# --- hints -----------------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = 1


class Part:
    pass


# Value, hint, whether it fits.
HINTS: list[tuple[Any, Any, bool]] = [
    (1, int, True),
    (True, int, False),  # bool is no number here
    ("1", int, False),
    (1.0, int, False),
    (1, float, True),  # int for float
    (True, float, False),
    ("1e-3", float, False),  # a quoted number is a text
    (1, bool, False),
    (False, bool, True),
    (1, str, False),
    ("", str, True),
    (None, int, False),
    (None, None, True),
    (None, Optional[int], True),  # noqa: UP045 - the old spelling is the row
    ("a", Union[int, str], True),  # noqa: UP007
    (1.5, int | str, False),
    ("min", Literal["min", "max"], True),
    ("mean", Literal["min", "max"], False),
    (True, Literal[1], False),  # equal, but not the same type
    ([1, 2], list[int], True),
    ([1, "x"], list[int], False),
    ([], list[int], True),
    (3, list[int], False),
    ([1], list, True),
    ([1, 2], Sequence[int], True),
    ("ab", Sequence[str], False),  # a text is not meant as a list of letters
    ([1, 2], tuple[int, int], True),
    ([1], tuple[int, int], False),
    ([1, 2, 3], tuple[int, ...], True),
    ([], tuple[int, ...], True),
    ({"a": 1}, dict[str, int], True),
    ({"a": "x"}, dict[str, int], False),
    ([1], dict[str, int], False),
    ({"a": 1}, int, False),
    ("x", Callable[..., int], False),
    ("x", Part, False),  # a name where an object is expected
    ({"_target_": "a.B"}, Part, True),  # a node is judged by itself
    ([{"_target_": "a.B"}], list[Part], True),
    ([3], list[Part], False),
    ("RED", Colour, True),
    ("a/b", Path, True),
    (3, Any, True),
    (OPEN, int, True),
    (3, object, True),
    (3, "NotEvaluated", True),  # nothing is known: nothing is claimed
]


@pytest.mark.parametrize(("value", "hint", "fits"), HINTS, ids=[f"{v!r}-{h}" for v, h, _ in HINTS])
def test_matches(value: Any, hint: Any, fits: bool) -> None:
    assert matches(value, hint) is fits


def test_describe() -> None:
    assert describe(int | str | None) == "int, str or null"
    assert describe(Literal["a", 1]) == "'a' | 1"
    assert describe(list[int]) == "list[int]"


# --- resolvers and folders -------------------------------------------------------------------------------------------


def test_pick() -> None:
    register_resolvers()
    register_resolvers()  # twice does no harm
    cfg = OmegaConf.create({"m": {"size": "tiny", "w": "${pick:${.size},{tiny:96,base:448}}"}})
    assert cfg.m.w == 96
    cfg.m.size = "tniy"
    with pytest.raises(
        InterpolationResolutionError, match=r"m\.w: 'tniy' is not one of tiny, base; did you mean 'tiny'"
    ):
        _ = cfg.m.w


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register_resolvers()
    cfg = OmegaConf.create({"root": "${cvexp_data:}"})
    monkeypatch.setenv("CVEXP_DATA", "/from/env")
    assert cfg.root == "/from/env"
    monkeypatch.delenv("CVEXP_DATA")
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cfg.root == "../shared/data"
    (tmp_path / "shared" / "data").rmdir()
    monkeypatch.setattr("cvexp.config.sources._PACKAGE", tmp_path / "a" / "cvexp")  # nothing beside the repository
    assert cfg.root == "data"


def test_conf_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert conf_dir().name == "conf"
    monkeypatch.setattr("cvexp.config.sources._PACKAGE", tmp_path / "cvexp")
    assert conf_dir() == tmp_path / "conf"  # editable: beside the package
    (tmp_path / "cvexp" / "conf").mkdir(parents=True)
    assert conf_dir() == tmp_path / "cvexp" / "conf"  # a wheel: inside


def test_import_needs_no_torch() -> None:
    code = "import sys, cvexp.config; cvexp.config.check_overrides(['--help']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# --- commands without Hydra ------------------------------------------------------------------------------------------

CKPT: dict[str, Any] = {"data": {"root": "a", "batch_size": 8, "sizes": [1, 2]}, "seed": 0, "lr": 0.1, "note": None}


def test_parse_overrides() -> None:
    words = ["data.batch_size=4", "lr=1e-3", "data.root=x=y z", "data.sizes[1]=5", "note=text", "data.sizes.0=7"]
    result = parse_overrides(words, CKPT)
    assert result == {
        "data": {"root": "x=y z", "batch_size": 4, "sizes": [7, 5]},
        "seed": 0,
        "lr": 0.001,
        "note": "text",
    }
    assert CKPT["data"] == {"root": "a", "batch_size": 8, "sizes": [1, 2]}  # unchanged
    assert parse_overrides([], CKPT) == CKPT


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("data.batchsize=4", ("unknown key 'data.batchsize'", "did you mean 'data.batch_size'?")),
        ("batch_size=4", ("unknown key 'batch_size'", "did you mean 'data.batch_size'?")),
        ("data.sizes[5]=4", ("unknown key 'data.sizes[5]'",)),
        ("data.batch_size", ("cannot be read", "key=value")),
        ("=4", ("cannot be read", "key=value")),
        ("lr=[1", ("cannot be read",)),
        ("data.batch_size=four", ("expects an integer (as its default 8), not 'four'",)),
        ("data=voc", ("'data' expects a dict", "data.root")),
    ],
)
def test_parse_overrides_refuses(word: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        parse_overrides([word], CKPT)
    for part in (*parts, f"from the command line: {word}"):
        assert part in str(caught.value)


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "choices", "text"),
    [
        ("max_epoch", ["max_epochs", "lr"], "did you mean 'max_epochs'?"),
        ("YOLO", ["yolo"], "did you mean 'yolo'?"),  # letters' case does not matter
        ("res", ["resnet50", "vgg"], "did you mean 'resnet50'?"),  # an abbreviation
        ("zzz", ["yolo"], ""),  # nothing close
        ("x", [], ""),  # no choices
    ],
)
def test_suggest(word: str, choices: list[str], text: str) -> None:
    assert suggest(word, choices) == text


def test_report_errors(capsys: pytest.CaptureFixture[str]) -> None:
    @report_errors
    def main(kind: str) -> str:
        """Doc."""
        if kind == "user":
            raise UserError("bad [value] in /a/very/long/path" + "/x" * 80)
        if kind == "bug":
            raise ZeroDivisionError
        return kind

    assert main("fine") == "fine"
    assert main.__doc__ == "Doc."
    with pytest.raises(SystemExit) as stop:
        main("user")
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.strip() == "error: bad [value] in /a/very/long/path" + "/x" * 80  # neither markup nor wrapping
    assert printed.out == ""
    with pytest.raises(ZeroDivisionError):
        main("bug")
