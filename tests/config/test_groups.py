"""Group choices laid over the configuration of a checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from cases import write

from cvexp.config.groups import apply_groups
from cvexp.types import UserError

CKPT: dict[str, Any] = {
    "model": {
        "_target_": "toybox.Net",
        "size": "tiny",
        "width": 4,
        "nms": {"_target_": "toybox.Body", "depth": 7},
        "neck": {"_target_": "toybox.Body", "depth": 1, "norm": {"depth": 2}},
    },
    "seed": 0,
}
TREE = {
    "model/nms/greedy.yaml": "_target_: toybox.Body\ndepth: 1",
    "model/nms/soft.yaml": "_target_: toybox.Body\ndepth: 1e-3",  # a number, as Hydra reads it
    "model/nms/softer.yaml": "defaults: [soft, _self_]\ndilated: true",  # begins with one of its own group
    "model/nms/last.yaml": "defaults: [_self_, soft]\ndepth: 9\nextra: 1",  # which comes last, and wins
    "model/nms/parts.yaml": "defaults: [{inner: a}, _self_]\ndepth: 1",  # has parts of its own
    "model/nms/stranger.yaml": "defaults: [/data/voc]\ndepth: 1",
    "model/nms/sized.yaml": "depth: ${pick:${..size},{tiny:3,base:30}}\nwidth: ${model.width}",
    "model/nms/unfit.yaml": "depth: ${model.nothing}",
    "model/nms/empty.yaml": "",
    "model/nms/torn.yaml": "depth: [1",
    "model/nms/_base.yaml": "depth: 0",
    "model/neck/norm/batch.yaml": "depth: 5",
    "data/voc.yaml": "root: x",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("groups") / "conf", TREE)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("greedy", {"_target_": "toybox.Body", "depth": 1}),
        ("soft", {"_target_": "toybox.Body", "depth": 0.001}),
        ("softer", {"_target_": "toybox.Body", "depth": 0.001, "dilated": True}),
        ("last", {"_target_": "toybox.Body", "depth": 0.001, "extra": 1}),
        ("sized", {"depth": 3, "width": 4}),  # what it refers to is read from the checkpoint's configuration
        ("empty", {}),
        ("null", None),
    ],
)
def test_the_node_becomes_the_file(option: str, expected: object, tree: Path) -> None:
    before = copy.deepcopy(CKPT)
    words, config = apply_groups([f"model/nms={option}"], CKPT, tree)
    assert words == []
    assert config["model"]["nms"] == expected
    assert {**config["model"], "nms": None} == {**CKPT["model"], "nms": None}, "nothing else changes"
    assert before == CKPT


def test_other_words_are_left_alone_in_their_order(tree: Path) -> None:
    typed = ["model.nms.depth=3", "model/nms=soft", "data=voc", "seed=1", "strange", "root=a/b", "data.root=/x/y=1"]
    words, config = apply_groups(typed, CKPT, tree)
    assert words == ["model.nms.depth=3", "data=voc", "seed=1", "strange", "root=a/b", "data.root=/x/y=1"]
    assert config["model"]["nms"]["depth"] == 0.001
    assert apply_groups([], CKPT, tree) == ([], CKPT)


def test_a_part_that_the_checkpoint_has_not_and_one_deeper_down(tree: Path) -> None:
    """A checkpoint of before has no node ``nms``; the last of two words for one slot wins."""
    old = {"model": {"_target_": "toybox.Net"}}
    words = ["model/nms=soft", "model/nms=greedy", "model/neck/norm=batch"]
    assert apply_groups(words[:2], old, tree)[1]["model"]["nms"] == {"_target_": "toybox.Body", "depth": 1}
    assert apply_groups(words, CKPT, tree)[1]["model"]["neck"]["norm"] == {"depth": 5}


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("model/nms=sft", ("the group 'model/nms' has no option 'sft'", "did you mean 'soft'", "choices: ", "greedy")),
        ("model/nms=_base", ("no option '_base'",)),  # a base is no choice
        ("model/nms=", ("no option ''",)),
        ("model/nms=../../data/voc", ("no option '../../data/voc'",)),  # nothing outside the group
        ("model/nmss=soft", ("no group 'model/nmss'", "did you mean 'model/nms'", "model/neck/norm")),
        ("modl/nms=soft", ("no group 'modl/nms'", "groups: none")),
        ("model/nms=parts", ("chooses parts of its own", "choose among")),
        ("model/nms=stranger", ("chooses parts of its own",)),
        ("model/nms=torn", ("model/nms/torn.yaml cannot be read", "Fix:")),
        ("model/nms=unfit", ("does not fit", "model.nothing")),
    ],
)
def test_refused(word: str, parts: tuple[str, ...], tree: Path) -> None:
    with pytest.raises(UserError) as caught:
        apply_groups([word], CKPT, tree)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("config", [{}, {"model": None}, {"model": {"neck": None}}, {"model": {"neck": 3}}])
def test_nothing_to_be_a_part_of(config: dict[str, Any], tree: Path) -> None:
    with pytest.raises(UserError, match="no part for 'model/neck/norm'"):
        apply_groups(["model/neck/norm=batch"], config, tree)


@pytest.mark.parametrize("option", ["greedy", "class_agnostic", "soft_linear", "soft_gaussian", "none"])
def test_the_packaged_rules_of_suppression(option: str) -> None:
    node = apply_groups([f"model/nms={option}"], CKPT)[1]["model"]["nms"]
    assert node["_target_"].startswith("cvexp.ops.")
    assert "iou_threshold" not in node, "that number has one source: model.nms_threshold"
