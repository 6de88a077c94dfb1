"""Type hints, resolvers, folders and messages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from cvexp.config import (
    conf_dir,
    register_resolvers,
    report_errors,
    suggest,
)
from cvexp.config.annotations import OPEN, describe, matches
from cvexp.types import UserError

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
