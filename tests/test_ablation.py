"""One checkpoint in several variants: presets, tables, and the packaged NMS preset on a tiny checkpoint."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

import cvexp.evaluate
from cvexp.ablation import MEASURES, Variant, markdown, read_preset, run_ablation, table
from cvexp.errors import UserError

Compose = Callable[..., DictConfig]
PRESET = """
variants:
  - {name: low, overrides: [model.nms_threshold=0.3]}
  - {name: high, overrides: [model/nms=greedy, model.nms_threshold=0.7]}
  - {name: plain, overrides: []}
"""


@pytest.fixture
def preset(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(PRESET, encoding="utf-8")
    return str(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of every evaluation; each gives an AP of its number, and nothing is evaluated."""
    made: list[list[str]] = []

    def evaluate(words: list[str]) -> tuple[dict[str, Any], Path]:
        made.append(words)
        split = next((word[6:] for word in words if word.startswith("split=")), "test")
        ap = 0.25 * len(made)
        found = {"AP": ap, "AP50": math.nan, "detections_per_image": 12.5}  # no AP75: a metric without it
        return {f"{split}/{name}": value for name, value in found.items()}, Path(words[-1][7:])

    monkeypatch.setattr(cvexp.evaluate, "evaluate", evaluate)
    return made


# --- presets ---------------------------------------------------------------------------------------------------------


def test_the_packaged_preset() -> None:
    variants = read_preset("nms")
    assert len(variants) >= 6
    assert {word.partition("=")[2] for v in variants for word in v.overrides if word.startswith("model/nms=")} == {
        *("greedy", "class_agnostic", "soft_linear", "soft_gaussian", "none"),
    }, "every rule is there"


def test_a_preset_of_ones_own(preset: str) -> None:
    low, high, plain = read_preset(preset)
    assert low == Variant("low", ("model.nms_threshold=0.3",))
    assert high.overrides == ("model/nms=greedy", "model.nms_threshold=0.7")
    assert plain.overrides == ()  # the checkpoint as it is


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no list 'variants'"),  # an empty file
        ("[1]", "no list 'variants'"),
        ("variants: []", "no list 'variants'"),
        ("variants: {a: b}", "no list 'variants'"),
        ("variants: [greedy]", "a variant has a name and overrides"),
        ("variants: [{name: a}]", "a variant has a name and overrides"),
        ("variants: [{name: a, overrides: [], more: 1}]", "a variant has a name and overrides"),
        ("variants: [{name: 0.5, overrides: []}]", "names a folder"),  # a number
        ("variants: [{name: ../up, overrides: []}]", "names a folder"),
        ("variants: [{name: a/b, overrides: []}]", "names a folder"),
        ("variants: [{name: '', overrides: []}]", "names a folder"),
        ("variants: [{name: a, overrides: model/nms=none}]", "no list of key=value"),
        ("variants: [{name: a, overrides: [1]}]", "no list of key=value"),
        ("variants: [{name: a, overrides: [output=x]}]", "belong to the command line"),  # its folder is given
        ("variants: [{name: a, overrides: [split=val]}]", "belong to the command line"),  # one split for all
        ("variants: [{name: a, overrides: []}, {name: A, overrides: []}]", "two variants 'a'"),
        ("variants: [", "cannot be read"),
        ("variants: \x00", "cannot be read"),
    ],
)
def test_what_is_no_preset(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_preset(str(path))
    assert f"ablation={path}" in str(caught.value)
    assert said in str(caught.value)
    assert "Fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nsm", "did you mean 'nms'? choices: nms"),
        ("", "choices: nms"),
        ("../train", "no such preset"),
        ("nowhere.yaml", "cannot be read"),
    ],
)
def test_no_such_preset(name: str, said: str) -> None:
    with pytest.raises(UserError, match=r"Fix: ") as caught:
        read_preset(name)
    assert said in str(caught.value)


# --- the loop over variants ------------------------------------------------------------------------------------------


def test_every_variant_is_an_evaluation(preset: str, calls: list[list[str]], tmp_path: Path) -> None:
    rows, folder = run_ablation("runs/a/checkpoints/best.ckpt", preset, ["data.num_workers=0"], str(tmp_path / "out"))
    assert folder == tmp_path / "out"
    assert calls == [
        ["ckpt=runs/a/checkpoints/best.ckpt", "data.num_workers=0", *words, f"output={folder / name}"]
        for name, words in [
            ("low", ["model.nms_threshold=0.3"]),
            ("high", ["model/nms=greedy", "model.nms_threshold=0.7"]),
            ("plain", []),
        ]
    ]
    assert [row["AP"] for row in rows] == [0.25, 0.5, 0.75]
    assert [row["AP50"] for row in rows] == [None] * 3, "NaN is nothing"
    assert [row["AP75"] for row in rows] == [None] * 3


def test_the_tables(preset: str, calls: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, folder = run_ablation("a.ckpt", preset, ["split=val"], str(tmp_path / "out"))
    about = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
    assert about["variants"] == rows
    assert (about["checkpoint"], about["split"], about["words"]) == ("a.ckpt", "val", ["split=val"])
    lines = list(csv.DictReader((folder / "ablation.csv").open(encoding="utf-8")))
    assert [line["name"] for line in lines] == ["low", "high", "plain"]
    assert [(line["AP"], line["AP50"], line["overrides"]) for line in lines][1] == (
        "0.5",
        "",
        "model/nms=greedy model.nms_threshold=0.7",
    )
    text = (folder / "ablation.md").read_text(encoding="utf-8")
    assert "| high | 0.5000 | - | - | - | 12.5 |" in text
    assert "**0.7500**" in text, "the best AP"
    assert text.count("**") == 2
    printed = capsys.readouterr().out
    assert "detections per image" in printed
    assert str(folder / "ablation.md") in printed
    assert sorted(path.name for path in folder.iterdir()) == ["ablation.csv", "ablation.json", "ablation.md"]


def test_without_output_it_lies_beside_the_checkpoints_folder(
    preset: str, calls: list[list[str]], tmp_path: Path
) -> None:
    _, folder = run_ablation(str(tmp_path / "run" / "checkpoints" / "best.ckpt"), preset, [])
    assert folder == tmp_path / "run" / "ablation-mine"


def test_an_error_names_the_variant_and_leaves_no_table(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(words: list[str]) -> tuple[dict[str, Any], Path]:
        if "model/nms=greedy" in words:
            raise UserError("no. Fix: yes")
        return {}, Path()

    monkeypatch.setattr(cvexp.evaluate, "evaluate", evaluate)
    with pytest.raises(UserError, match=r"variant 'high': no\. Fix: yes"):
        run_ablation("a.ckpt", preset, [], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ckpt", [None, ""])
def test_a_checkpoint_is_needed(ckpt: str | None, preset: str) -> None:
    with pytest.raises(UserError, match=r"ckpt= is missing\. Fix: "):
        run_ablation(ckpt, preset, [])


def test_tables_of_nothing() -> None:
    row = {"name": "a", "overrides": [], **dict.fromkeys(MEASURES)}
    assert "| a | - | - | - | - | - | - | `` |" in markdown([row], "nms", "test")
    assert "**" not in markdown([row], "nms", "test")
    assert table([row]).splitlines()[1] == "a" + "," * 7


# --- a checkpoint ----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(compose: Compose, tiny: list[str], tmp_path: Path) -> Path:
    """A network without training, saved as before there were parts for NMS: its configuration has no node for them."""
    from cvexp.build import build_model, describe

    torch.manual_seed(0)
    cfg = compose(*tiny)
    about = describe(cfg, ["ellipse", "rectangle", "triangle"])
    assert about["config"]["model"].pop("nms")["class_agnostic"] is False
    assert about["config"]["model"]["nms_threshold"] == 0.5
    about["config"]["callbacks"] = {}  # no pictures
    state = {f"model.{name}": value for name, value in build_model(cfg.model, 3).state_dict().items()}
    torch.save({"state_dict": state, "cvexp": about}, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def test_a_checkpoint_of_before(checkpoint: Path, tmp_path: Path) -> None:
    """Without a node it has greedy NMS; every rule can be chosen."""
    own = tmp_path / "mine.yaml"
    own.write_text(
        "variants: [{name: before, overrides: []}, {name: same, overrides: [model/nms=greedy]},"
        " {name: soft, overrides: [model.nms.sigma=0.2, model/nms=soft_gaussian]},"
        " {name: agnostic, overrides: [model/nms=class_agnostic, model.nms_threshold=0.1]},"
        " {name: all, overrides: [model/nms=none]}]",
        encoding="utf-8",
    )
    words = ["data.num_workers=0", "model.score_threshold=0.0", "model.max_detections=400"]
    rows, folder = run_ablation(str(checkpoint), str(own), words, str(tmp_path / "out"))
    found = {row["name"]: row for row in rows}
    shown = ("AP", "AP50", "AP75", "AR100", "detections_per_image")
    assert [found["before"][name] for name in shown] == [found["same"][name] for name in shown]
    counts = {name: row["detections_per_image"] for name, row in found.items()}
    assert counts["agnostic"] < counts["same"] < counts["all"]
    assert all(row["seconds"] > 0 for row in rows)
    assert (folder / "soft" / "result.json").exists()
    own.write_text("variants: [{name: a, overrides: [model/nms=soft_liner]}]", encoding="utf-8")
    with pytest.raises(UserError, match=r"variant 'a': .*\n.*\n.*did you mean 'soft_linear'"):
        run_ablation(str(checkpoint), str(own), [], str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
