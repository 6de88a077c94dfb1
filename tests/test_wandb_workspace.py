"""The workspace that compares runs, as the JSON that would be sent; without network and without an account."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cvexp.errors import UserError

COLUMNS = "epoch,lr/head,step,train/loss,train/loss_xy,train/loss_class,val/AP,val/AP/cat,val/AP/dog,val/AP50/cat\n"


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("wandb_workspace", repository / "scripts/wandb_workspace.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wandb_workspace"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "metrics.csv").write_text(COLUMNS)
    return tmp_path


def test_names_are_those_of_the_run(script: ModuleType, run: Path) -> None:
    names = script.names_of(run)
    assert names.kind == "detection"
    assert names.losses == ["train/loss", "train/loss_xy", "train/loss_class"]
    assert names.classes == ["val/AP/cat", "val/AP/dog"], "AP50 is another figure"
    (run / "metrics.csv").write_text("step,train/loss,val/AUC\n")
    assert script.names_of(run) == script.Names("embedding", ["train/loss"], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, r"metrics\.csv: cannot be read .*Fix: --like=", id="no such folder"),
        pytest.param(b"", "no column 'step'", id="empty file"),
        pytest.param(b"a,b\n1,2\n", "no column 'step'", id="another table"),
        pytest.param(b"\xff\xfe\x00step", "cannot be read", id="no text"),
    ],
)
def test_what_is_no_run(script: ModuleType, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        script.names_of(tmp_path)


def built(script: ModuleType, **options: Any) -> dict[str, Any]:
    pytest.importorskip("wandb_workspaces", reason="the extra `workspace` is not installed")
    names = options.pop("names", script.Names())
    return json.loads(script.as_json(script.workspace("me", "cvexp", "mine", names, **options)))


def panels(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {section["name"]: section["panels"] for section in view["spec"]["section"]["panelBankConfig"]["sections"]}


def test_sections_and_their_axes(script: ModuleType, run: Path) -> None:
    view = built(script, names=script.names_of(run))
    found = panels(view)
    assert (view["entity"], view["project"], view["name"]) == ("me", "cvexp", "mine")
    assert list(found) == ["Scores", "Losses", "Classes", "Speed", "Pictures"]
    charts = {panel["config"]["chartTitle"]: panel["config"] for section in found.values() for panel in section}
    assert [panel["config"]["metrics"] for panel in found["Losses"]] == [
        ["train/loss"],
        ["train/loss_xy"],
        ["train/loss_class"],
    ]
    assert [panel["config"]["metrics"] for panel in found["Classes"]] == [["val/AP/cat"], ["val/AP/dog"]]
    assert charts["val/AP"]["xAxis"] == "trainer/global_step"
    assert charts["val/AP over time"]["xAxis"] == "_runtime"
    assert charts["val/AP of the best validation"]["metrics"] == ["summary_metrics.val/AP"]
    assert charts["val/images"]["mediaKeys"] == ["val/images"]
    assert charts["val/images"]["gridSettings"] == {"xAxis": "step", "yAxis": "run"}


def test_without_a_run_the_names_are_patterns(script: ModuleType) -> None:
    found = panels(built(script))
    assert [panel["config"]["metricRegex"] for panel in found["Losses"]] == ["train/loss.*"]
    assert [panel["config"]["metricRegex"] for panel in found["Classes"]] == ["val/AP/.*"]


def test_faces_have_pairs_and_no_classes(script: ModuleType) -> None:
    found = panels(built(script, names=script.Names("embedding")))
    assert "Classes" not in found
    assert found["Pictures"][0]["config"]["mediaKeys"] == ["val/pairs"]
    assert found["Scores"][0]["config"]["metrics"] == ["val/AUC"]


@pytest.mark.parametrize(
    ("options", "filters", "grouping"),
    [
        ({}, [], []),  # all runs, a line each
        ({"group": "lr"}, [("group", "=", "lr")], []),  # one experiment
        ({"group": "lr", "by_group": True}, [("group", "=", "lr")], ["group"]),
        ({"by_group": True}, [], ["group"]),  # seeds together
    ],
)
def test_groups(script: ModuleType, options: dict[str, Any], filters: list[tuple], grouping: list[str]) -> None:
    (runs,) = built(script, **options)["spec"]["section"]["runSets"]
    assert [(f["key"]["name"], f["op"], f["value"]) for f in runs["filters"].get("filters", [])] == filters
    assert [key["name"] for key in runs["grouping"]] == grouping


def test_the_command(repository: Path, run: Path) -> None:
    """Writes the file whole; without --json it asks for the entity before anything else."""
    command = [sys.executable, str(repository / "scripts/wandb_workspace.py")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "--entity is missing. Fix: " in refused.stderr + refused.stdout
    done = subprocess.run(
        [*command, f"--json={run / 'out/w.json'}", f"--like={run}"], capture_output=True, text=True, check=False
    )
    if importlib.util.find_spec("wandb_workspaces") is None:
        assert 'Fix: pip install "cvexp[workspace]"' in done.stderr + done.stdout
        assert not (run / "out").exists()
    else:
        assert done.returncode == 0, done.stderr
        assert json.loads((run / "out/w.json").read_text())["project"] == "cvexp"
        assert [path.name for path in (run / "out").iterdir()] == ["w.json"]
