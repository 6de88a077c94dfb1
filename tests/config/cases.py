"""What the tests of the configuration share: a small conf tree and a user's own package."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from cvexp.config import (
    check_config,
    check_overrides,
)
from cvexp.types import UserError

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


def refusal(*argv: str, conf: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_overrides(argv, conf=conf, **options)
    return str(caught.value)


SUPPLIED = {"model": {"num_classes"}}


def told(cfg: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_config(cfg, extra=["toybox"], **options)
    return str(caught.value)


def net(**changes: Any) -> dict[str, Any]:
    return {"model": {"_target_": "toybox.Net", "backbone": {"_target_": "toybox.Body", "depth": 3}, **changes}}


# A configuration; what the message must hold.
