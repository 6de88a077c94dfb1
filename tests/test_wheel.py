"""The wheel: what is in it, and that an installation far from the repository trains with its own configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """The output of a Python process; with ``path``, packages in that folder come first."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=900, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--outdir", str(folder), str(repository), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's files and nothing of the repository."""
    folder = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--no-deps", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def test_wheel_holds_the_configuration_and_no_tests(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"cvexp/{path.relative_to(repository).as_posix()}" for path in (repository / "conf").rglob("*.yaml")}
    modules = {path.relative_to(repository).as_posix() for path in (repository / "cvexp").rglob("*.py")}
    assert conf | modules <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"cvexp", "hydra_plugins"}, "neither tests nor scripts"
    assert {name for name in names if name.startswith("hydra_plugins/")} == {"hydra_plugins/cvexp_sweeper.py"}, (
        "no __init__.py"
    )


def test_installation_uses_its_own_configuration(installed: Path, tmp_path: Path) -> None:
    where = run("-c", "import cvexp.config; print(cvexp.config.conf_dir())", cwd=tmp_path, path=installed)
    assert Path(where.strip()) == installed / "cvexp" / "conf"
    file = installed / "cvexp" / "conf" / "scheduler" / "constant.yaml"
    before = file.read_text(encoding="utf-8")
    file.write_text(before + "# edited\nfactor_of_this_test: 7\n", encoding="utf-8")
    words = ("--cfg", "job", "--package", "scheduler", "scheduler=constant")
    printed = run("-m", "cvexp.train", *words, cwd=tmp_path, path=installed)
    file.write_text(before, encoding="utf-8")
    assert "factor_of_this_test: 7" in printed


def test_installation_trains_from_any_folder(installed: Path, tmp_path: Path, tiny: list[str]) -> None:
    run("-m", "cvexp.train", *tiny, "debug=step", "hydra.run.dir=run", cwd=tmp_path, path=installed)
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["train/steps"] == 1
