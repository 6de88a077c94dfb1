"""What may be typed: every message holds the key, the value, who set it, and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cases import refusal, write

from cvexp.config import (
    check_overrides,
    parse_overrides,
)
from cvexp.types import UserError

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
    "seed=1.5",  # a number where the default is one: who receives it is asked after composition
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
