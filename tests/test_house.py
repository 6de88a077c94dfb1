"""The rules of the house: who may import whom, what lies where, what the packaging files say."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cvexp

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "cvexp"

# What each part of the package may import from the others; itself is always allowed.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "ops": {"types"},
    # one formula, one backbone, one neck
    "losses": {"types", "ops"},
    "backbones": {"types", "ops"},
    "necks": {"types", "ops"},
    "comparators": {"types", "ops"},
    # one paper
    "models": {"types", "ops", "losses", "backbones", "necks", "comparators"},
    # one kind of task: it serves every network of its kind and knows none by name
    "tasks": {"types", "ops", "losses", "metrics", "schedules"},
    # they make trainers, ask callbacks how a stage went, and in stages without a trainer read the data themselves
    "recipes": {"types", "ops", "losses", "backbones", "necks", "models", "tasks", "metrics", "callbacks", "data"},
    # beside the arrows
    "data": {"types", "ops"},
    "metrics": {"types", "ops", "viz"},  # their curves are drawn and written as all figures are
    "viz": {"types", "ops"},
    "report": {"types", "viz", "metrics", "errors"},  # pages of results
    "callbacks": {"viz", "types", "metrics", "loggers", "report"},  # what they make is shown by the loggers
    "schedules": {"types"},
    "loggers": {"types", "ops", "viz"},  # boxes are drawn where a logger has none of its own
    "video": set(),  # frames in and out
    "export": {"types"},  # any network as a file
    "config": {"types"},
}
# Commands and what they are made of see everything, also the configuration. A new command is added here.
COMMANDS = {
    *("train", "evaluate", "predict", "predict_faces", "build", "results", "inference", "transfer", "config"),
    *("resume", "manifest", "launch", "replay", "bench", "benchmark", "evaluate_detections", "ablation"),
    *("sweeps", "compare", "comparison", "leaderboard", "proposals"),
}
# The network does not know the trainer; pictures are drawn without one.
WITHOUT_LIGHTNING = {
    "errors",
    "types",
    "ops",
    "losses",
    "backbones",
    "necks",
    "comparators",
    "models",
    "metrics",
    "viz",
    "report",
    "video",
    "schedules",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """``models`` for cvexp/models/yolo/v1.py, ``train`` for cvexp/train.py, empty for cvexp/__init__.py."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: the body of ``if TYPE_CHECKING`` is left out."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from nodes(other)
        else:
            yield child
            yield from nodes(child)


def imports(source: str, package: str = "cvexp") -> set[str]:
    """The dotted names that a module imports, inside functions too; relative ones are made absolute."""
    found: set[str] = set()
    for node in nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def parts_of(names: set[str]) -> set[str]:
    """The parts of cvexp among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("cvexp.")} - {"__version__"}


def source_imports(path: Path) -> set[str]:
    package = ".".join(path.relative_to(REPOSITORY).parent.parts)
    return imports(path.read_text(encoding="utf-8"), package)


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


# --- import arrows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("", set()),  # the empty module
        ("import torch\nfrom cvexp.ops import boxes", {"torch", "cvexp.ops.boxes"}),
        ("from cvexp import viz", {"cvexp.viz"}),  # a module imported from the package
        ("def f():\n    from cvexp.data.voc import VOC", {"cvexp.data.voc.VOC"}),  # inside a function
        ("from ..ops import boxes\nfrom . import fpn", {"cvexp.ops.boxes", "cvexp.necks.fpn"}),  # relative
        ("if TYPE_CHECKING:\n    import cvexp.train\nelse:\n    import torch", {"torch"}),  # for types only
        ("if typing.TYPE_CHECKING:\n    import cvexp.train", set()),
    ],
)
def test_imports_are_found(source: str, found: set[str]) -> None:
    assert imports(source, "cvexp.necks") == found


def test_every_part_has_its_arrows() -> None:
    """A new folder or module at the top states here what it may import."""
    assert {part(path) for path in modules()} - {""} - ARROWS.keys() - COMMANDS == set()


@pytest.mark.parametrize("path", [path for path in modules() if part(path) in ARROWS], ids=relative)
def test_arrows_point_one_way(path: Path) -> None:
    me = part(path)
    wrong = parts_of(source_imports(path)) - ARROWS[me] - {me, "errors"}
    assert not wrong, f"{relative(path)} imports {sorted(wrong)}; cvexp.{me} may import {sorted(ARROWS[me])}"


@pytest.mark.parametrize("path", [path for path in modules() if part(path) not in COMMANDS], ids=relative)
def test_only_commands_see_a_configuration(path: Path) -> None:
    names = source_imports(path)
    assert {name.split(".")[0] for name in names} & {"hydra", "omegaconf"} == set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert "cfg" not in arguments, "no class receives the whole configuration"


@pytest.mark.parametrize("path", [p for p in modules() if part(p) in WITHOUT_LIGHTNING], ids=relative)
def test_networks_do_not_know_the_trainer(path: Path) -> None:
    assert {name.split(".")[0] for name in source_imports(path)} & {"lightning", "pytorch_lightning"} == set()


def test_commands_do_not_import_torch_at_once() -> None:
    """``--help`` answers in a second: the top of a command module and of the package imports nothing heavy."""
    light = [PACKAGE / "__init__.py", *(PACKAGE / f"{name}.py" for name in ("train", "evaluate", "predict", "resume"))]
    for path in light:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = imports(ast.unparse(ast.Module(top, [])))
        heavy = {name for name in names if name.split(".")[0] in {"torch", "torchvision", "lightning", "wandb", "timm"}}
        assert not heavy, relative(path)
        assert parts_of(names) <= {"config", "errors", "resume", "launch", "sweeps"}, relative(path)


# --- the tree --------------------------------------------------------------------------------------------------------


def test_no_catch_all_files() -> None:
    """Every file is one paper or one formula; a drawer for odds and ends is neither."""
    drawers = {"utils", "util", "helpers", "misc", "common", "tools", "registry", "factory"}
    python = [*modules(), *(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py")]
    assert [relative(path) for path in python if drawers & {path.stem, path.parent.name}] == []


def test_tests_mirror_the_package() -> None:
    """A folder of tests belongs to a folder of the package; a file at the top to a module, or to the whole."""
    about_the_whole = {
        "house",
        "conf",
        "cli",
        "wheel",
        "contracts",
        "life",
        "run",
        "processes",
        "hostile",
        "fuzz_inputs",
        "torture_resume",
        "wandb_workspace",
        "training_features",
        "sweep",
        "launchers",
    }
    tests = REPOSITORY / "tests"
    folders = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")} - {"."}
    assert [name for name in folders if not (PACKAGE / name).is_dir()] == []
    names = {path.stem.removeprefix("test_") for path in tests.glob("test_*.py")}
    assert names - {part(path) for path in modules()} <= about_the_whole


def test_every_part_is_tested() -> None:
    """Each part of the package is imported by a test, or run by one of the tests of the commands."""
    files = list((REPOSITORY / "tests").rglob("*.py"))
    tested = {name for path in files for name in parts_of(imports(path.read_text(encoding="utf-8")))}
    mirrored = {path.stem.removeprefix("test_") for path in files} | {path.parent.name for path in files}
    run = {
        "recipes",
        "loggers",
        "build",
        "results",
        "inference",
        "viz",
        "train",
        "evaluate",
        "predict",
    }  # test_cli, test_run
    assert {part(path) for path in modules()} - {""} - tested - mirrored - run == set()


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is"
    if part(path) != "models":  # a paper may be longer
        assert len(text.splitlines()) <= 500


def ours() -> list[Path]:
    """Every text file of the repository that git knows or would add."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(git, cwd=REPOSITORY, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [REPOSITORY / name for name in done.stdout.split("\0") if name]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()]


MACHINE = re.compile(r"(?<![\w.\-/<>}])/(?:work|farm|opt|root|home|Users|mnt|srv|scratch)/[\w.]")
REGISTRY = re.compile(
    r"[p]ypi\.(?:org|python)|[p]ythonhosted\.|[d]ownload\.pytorch|[n]pmjs\.|anaconda\.[o]rg|--(?:extra-)?[i]ndex-url|--[f]ind-links"
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cd /o" + "pt/venv/bin", True),  # an absolute folder
        ("root='/ho" + "me/me/data'", True),  # quoted
        ("data.root=/my/set", False),  # an example that is nobody's machine
        ("../shared/work/x", False),  # relative
        ("<repo>/ho" + "me/x", False),  # a placeholder
    ],
)
def test_machine_paths_are_found(text: str, found: bool) -> None:
    assert bool(MACHINE.search(text)) is found


def test_no_file_names_a_machine_or_a_registry() -> None:
    wrong = [
        f"{relative(path)}:{number}: {row.strip()}"
        for path in ours()
        if path.name != "LICENSE"
        for number, row in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE.search(row) or REGISTRY.search(row)
    ]
    assert wrong == []


# --- packaging -------------------------------------------------------------------------------------------------------


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> list[str]:
    """Every requirement of pyproject.toml, those of the build and of the extras too."""
    content = project()
    extras = content["project"]["optional-dependencies"].values()
    return [*content["build-system"]["requires"], *content["project"]["dependencies"], *(r for e in extras for r in e)]


def pins() -> dict[str, str]:
    """Name -> version of constraints.txt."""
    rows = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [row.split("==") for row in rows if not row.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", requirements())
def test_every_dependency_has_a_lower_bound_and_its_reason(requirement: str) -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if f'"{requirement}"' in row]
    assert rows, "one requirement on each line"
    assert all(re.search(r'["\],]\s+# \w', row) for row in rows), "say why this bound, or what it is for"
    assert ">=" in requirement


def test_constraints_are_plain_pins() -> None:
    rows = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("# ")
    assert "-c constraints.txt" in rows[0]
    assert [row for row in rows[1:] if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==\d[\w.]*", row)] == []
    assert len(pins()) == len(rows) - 1, "a package is listed twice"
    assert list(pins()) == sorted(pins()), "in alphabetical order"


@pytest.mark.parametrize(
    "requirement", [*project()["project"]["dependencies"], *project()["project"]["optional-dependencies"]["test"]]
)
def test_constraints_satisfy_the_bounds(requirement: str) -> None:
    bound = Requirement(requirement)
    assert canonicalize_name(bound.name) in pins(), f"constraints.txt lacks {bound.name}"
    assert bound.specifier.contains(pins()[canonicalize_name(bound.name)])


def test_constraints_are_complete() -> None:
    """What is pinned needs nothing that is not: the list holds the transitive dependencies too."""
    missing = set()
    for name in pins():
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        for need in map(Requirement, needs):
            wanted = need.marker is None or need.marker.evaluate({"extra": ""})
            if wanted and canonicalize_name(need.name) not in pins():
                missing.add(f"{name} needs {need}")
    assert missing == set()


def licences(name: str) -> list[str]:
    """What an installed package says of its licence; empty if it is not installed (it is for another system)."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return []
    said = [about.get("License-Expression") or "", *(c for c in about.get_all("Classifier", []) if "License" in c)]
    return list(filter(None, said)) or [(about.get("License") or "").split("\n")[0]]


def under_gpl(licence: str) -> bool:
    return bool(re.search(r"(?<!L)GPL|(?<!Lesser )General Public", licence))


@pytest.mark.parametrize(
    ("licence", "found"),
    [
        ("", False),  # says nothing
        ("AGPL-3.0-only", True),
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("LGPL-2.1-or-later", False),  # a library may be used
        ("License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
        ("Apache-2.0", False),
    ],
)
def test_gpl_is_found(licence: str, found: bool) -> None:
    assert under_gpl(licence) is found


def test_no_dependency_is_under_the_gpl() -> None:
    """cvexp is Apache-2.0; code under the GPL or AGPL, also as a dependency, would bind everyone who passes it on."""
    said = {name: licences(name) for name in pins()}
    assert sum(map(bool, said.values())) > 50, "the packages are installed, so there is something to check"
    assert {name: texts for name, texts in said.items() if any(map(under_gpl, texts))} == {}


def test_forbidden_packages_are_not_named() -> None:
    """Libraries whose licence forbids it (AGPL, non-commercial) are neither required nor imported."""
    forbidden = {"ultralytics", "openwandb", "insightface"}
    names = {Requirement(requirement).name for requirement in requirements()} | set(pins())
    imported = {name.split(".")[0] for path in modules() for name in source_imports(path)}
    assert forbidden & (names | imported) == set()


def test_version_has_one_value() -> None:
    version = project()["project"]["version"]
    assert version == cvexp.__version__
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert citation["license"] == project()["project"]["license"]
    assert f"## [{version}]" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence_is_the_whole_text() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert len(text.splitlines()) == 202
    assert text.rstrip().endswith("limitations under the License.")


def test_hooks_download_nothing() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in hooks["repos"]} == {"local"}
    assert {hook["language"] for repo in hooks["repos"] for hook in repo["hooks"]} == {"system"}


@pytest.mark.parametrize(
    ("marker", "command"),
    [
        ("setup:run", "pip install -e . && python -m cvexp.train model=yolo"),  # what a user types first
        ("setup:test", 'pip install -e ".[test]" && pytest'),  # what a contributor types first
    ],
)
def test_readme_has_the_commands_that_ci_runs(marker: str, command: str) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    if not text.strip():
        pytest.skip("README.md is still empty")
    found = re.findall(rf"<!-- {marker} -->\s*```\w*\n(.*?)\n```", text, flags=re.DOTALL)
    assert found == [command]
