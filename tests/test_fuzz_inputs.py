"""The fuzzer: a short run finds nothing, and each of its checks can fail."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cvexp.types import UserError


@pytest.fixture(scope="module")
def fuzzer(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_inputs", repository / "scripts" / "fuzz_inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_inputs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.BASES[:] = [module.make_bases(None)]
    return module


@pytest.mark.slow
def test_a_short_run_finds_nothing(fuzzer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzzer.main(["--count", "40", "--seed", "7", "--keep", str(tmp_path)]) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert "40 inputs in" in said
    assert "0 with findings" in said
    assert all(kind in said for kind in fuzzer.KINDS)
    assert list(tmp_path.iterdir()) == []


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo", "lists", "pictures", "config"])  # zip files hold the time
def test_a_case_is_drawn_again(fuzzer: ModuleType, kind: str, tmp_path: Path) -> None:
    drawn = []
    for seed in ("0/1", "0/1", "0/2"):
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        fuzzer.KINDS[kind](random.Random(seed), folder, fuzzer.BASES[0])
        drawn.append({name: d for name, d in digest(folder / "in").items() if not name.endswith(".ckpt")})
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


# --- what a case must not do -----------------------------------------------------------------------------------------


def good(folder: Path) -> None:
    (folder / "out" / "result.json").write_text("{}")
    (folder / "in" / "a.txt").read_text()


def refuses(folder: Path) -> None:
    raise UserError(f"{folder}/in/a.txt: is bad. Fix: mend it")


def raises(folder: Path) -> None:
    raise KeyError("x")


def names_no_place(folder: Path) -> None:
    raise UserError("something is wrong. Fix: mend it")


def names_no_fix(folder: Path) -> None:
    raise UserError(f"{folder}/in/a.txt: is bad")


def spins(folder: Path) -> None:
    while True:
        pass


def fills(folder: Path) -> None:
    b"x" * (2 << 30)


def fills_and_hides_it(folder: Path) -> None:
    try:
        fills(folder)
    except MemoryError as error:
        raise UserError(f"{folder}/in/a.txt: {type(error).__name__}. Fix: less") from None


def dies(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(folder: Path) -> None:
    os._exit(0)


def exits(folder: Path) -> None:
    raise SystemExit(3)


def writes_outside(folder: Path) -> None:
    (folder / "trap").write_text("x")


def changes_its_input(folder: Path) -> None:
    (folder / "in" / "a.txt").write_text("y")


def makes_a_folder_outside(folder: Path) -> None:
    (folder / "in" / "trap").mkdir()


def reads_outside(folder: Path) -> None:
    (folder / "outside" / "secret.jpg").read_bytes()


def starts_a_program(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def calls_home(folder: Path) -> None:
    import socket

    with socket.socket() as home:
        home.settimeout(0.1)
        home.connect_ex(("127.0.0.1", 9))


def prints_a_secret(folder: Path) -> None:
    print(os.environ["SECRET"])


def keeps_a_secret(folder: Path) -> None:
    (folder / "out" / "result.json").write_text(os.environ["SECRET"])


def prints_commands(folder: Path) -> None:
    print("\x1b[2J")


def prints_a_book(folder: Path) -> None:
    print("x" * 200_000)


def leaves_a_part(folder: Path) -> None:
    (folder / "out" / ".result.json.part").write_text("{")


BAD: dict[Callable[[Path], None], str] = {
    raises: "raises KeyError",
    names_no_place: "names no place",
    names_no_fix: "names no fix",
    spins: "hangs",
    fills: "raises MemoryError",
    fills_and_hides_it: "runs out of memory",
    dies: "dies by SIGKILL",
    leaves: "ends without a word",
    exits: "ends with exit code 3",
    writes_outside: "changed: trap",
    changes_its_input: "changed: in/a.txt",
    makes_a_folder_outside: "os.mkdir outside",
    reads_outside: "reads outside",
    starts_a_program: "subprocess.Popen",
    calls_home: "socket.connect",
    prints_a_secret: "a secret is shown",
    keeps_a_secret: "a secret is in out/result.json",
    prints_commands: "the control character",
    prints_a_book: "200,001 characters",
    leaves_a_part: "half-written",
}


def case(fuzzer: ModuleType, run: Callable[[Path], None]) -> Callable[..., Any]:
    def make(rng: random.Random, folder: Path, bases: Any) -> Any:
        fuzzer.write(folder / "in" / "a.txt", "x")
        return fuzzer.Case(lambda: run(folder))

    return make


@pytest.mark.parametrize("run", BAD, ids=lambda run: run.__name__)
def test_a_fault_is_found(
    fuzzer: ModuleType, run: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzer, "KINDS", {"bad": case(fuzzer, run)})
    outcome = fuzzer.run_case(0, 0, tmp_path / "case", fuzzer.Limits(seconds=1, memory=1 << 30))
    assert any(BAD[run] in finding for finding in outcome.findings), outcome


@pytest.mark.parametrize(("run", "end"), [(good, "accepted"), (refuses, "refused")])
def test_no_fault_is_found(
    fuzzer: ModuleType, run: Callable[[Path], None], end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzer, "KINDS", {"good": case(fuzzer, run)})
    outcome = fuzzer.run_case(0, 0, tmp_path / "case", fuzzer.Limits())
    assert (outcome.findings, outcome.end) == ([], end), outcome


def test_a_user_may_read_the_own_environment(
    fuzzer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(rng: random.Random, folder: Path, bases: Any) -> Any:
        return fuzzer.Case(lambda: prints_a_secret(folder), own=True)

    monkeypatch.setattr(fuzzer, "KINDS", {"own": make})
    assert fuzzer.run_case(0, 0, tmp_path / "case", fuzzer.Limits()).findings == []


def test_findings_are_kept_and_told(
    fuzzer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzzer, "KINDS", {"good": case(fuzzer, good), "bad": case(fuzzer, raises)})
    bases = list(fuzzer.BASES)
    monkeypatch.setattr(fuzzer, "make_bases", lambda _: bases[0])
    assert fuzzer.main(["--count", "4", "--keep", str(tmp_path)]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00001", "00003"]
    kept = (tmp_path / "00001" / "finding.txt").read_text()
    assert kept.startswith("kind bad, seed 0, index 1\nraises KeyError")
    assert "Traceback" in kept
    assert (tmp_path / "00001" / "in" / "a.txt").is_file()
    said = capsys.readouterr().err
    assert "4 inputs in" in said
    assert "2 with findings" in said
    assert fuzzer.main(["--count", "4", "--keep", str(tmp_path / "more"), "--only", "0"]) == 0
    assert fuzzer.main(["--count", "4", "--keep", str(tmp_path / "more"), "--kinds", "good"]) == 0


def test_a_case_that_cannot_be_drawn_is_a_finding(
    fuzzer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzer, "KINDS", {"none": lambda *_: 1 / 0})
    outcome = fuzzer.run_case(0, 0, tmp_path / "case", fuzzer.Limits())
    assert "the fuzzer itself fails" in outcome.findings
    assert "ZeroDivisionError" in outcome.said


# --- what is changed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{}, [], {"a": []}, {"a": {"b": [1, 2]}, "c": "x"}])
def test_trees_are_changed(fuzzer: ModuleType, value: Any, tmp_path: Path) -> None:
    """Whatever they hold; the original's parts that are shared stay as they were."""
    changed = [repr(fuzzer.change_tree(fuzzer.json_copy(value), random.Random(i), tmp_path)) for i in range(50)]
    assert len(set(changed)) > 10
    assert sum(text != repr(value) for text in changed) > 40


@pytest.mark.parametrize("data", [b"", b"x", b"0123456789" * 100])
def test_bytes_are_changed(fuzzer: ModuleType, data: bytes) -> None:
    changed = [fuzzer.change_bytes(data, random.Random(i)) for i in range(50)]
    assert sum(each != data for each in changed) > (0 if not data else 30)


def test_a_picture_that_claims_a_size(fuzzer: ModuleType, tmp_path: Path) -> None:
    from PIL import Image

    rng = random.Random(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP"):
        path = fuzzer.write(tmp_path / kind, fuzzer.sized(fuzzer.picture(rng, kind=kind), 123, 77))
        with Image.open(path) as picture:
            assert picture.size == (123, 77)
