"""Who set a value."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import write

from cvexp.config import (
    origin,
)

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
