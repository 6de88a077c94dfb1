"""``sweep=``: which sweep goes on, by which words; what of a folder is not trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra.errors import HydraException

from cvexp.errors import UserError
from cvexp.resume import merged
from cvexp.sweeps.controller import Sweep
from cvexp.sweeps.ledger import FINISHED, Ledger
from cvexp.sweeps.plan import plan, sweep_folders


def make(folder: Path, words: list[str], done: int, age: float = 0) -> Ledger:
    """A sweep of two jobs, so many of which are done, noted so many seconds ago."""
    ledger = Ledger(folder)
    ledger.note(words=words)
    ledger.register([["seed=1"], ["seed=2"]])
    for number in range(done):
        ledger.end(number, FINISHED, result={"val/best": 1.0})
    time = ledger.path.stat().st_mtime - age
    os.utime(ledger.path, (time, time))
    return ledger


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three sweeps; the newest is done."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/sweeps")
    make(folder / "old", ["model=yolo", "seed=1,2"], done=1, age=300)
    make(folder / "open", ["model=facenet", "seed=1,2"], done=1, age=200)
    make(folder / "done", ["model=yolo", "data=bccd", "seed=1,2"], done=2, age=100)
    return folder


def chosen(argv: list[str]) -> Path:
    (word,) = [word for word in argv if word.startswith("hydra.sweep.dir=")]
    return Path(word.partition("=")[2].strip('"')).relative_to(Path.cwd())


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["sweep=resume"], "open"),  # the newest that is not done
        (["-m", "sweep=resume", "seed=1,2", "model=yolo"], "old"),  # of these words, in any order
        (["sweep=resume", "model=yolo", "data=bccd", "seed=1,2"], "done"),  # done, but asked for
        (["sweep=resume", "callbacks.last.minutes=1", "launcher=joblib"], "open"),  # these say nothing of the jobs
        (["sweep=resume", "model=yolo", "seed=1,2", "data.num_workers=4"], "old"),
        (["sweep=resume", "hydra.sweep.dir=runs/sweeps/old"], "old"),
        (["sweep=runs/sweeps/done"], "done"),
        (["sweep='runs/sweeps/done'", "seed=1,2,3"], "done"),
    ],
)
def test_which_sweep(words: list[str], folder: str, runs: Path) -> None:
    found = plan(words)
    assert chosen(found.argv) == runs / folder
    assert found.argv.count("-m") == 1
    assert not [word for word in found.argv if word.startswith("sweep=")]
    assert f"going on with {runs / folder}" in found.note.replace(f"{Path.cwd()}/", "")


def test_the_words_of_the_sweep_are_repeated_and_replaced(runs: Path) -> None:
    words = plan(["sweep=runs/sweeps/old", "seed=1,2,3", "data.num_workers=2"]).argv
    assert words[:-1] == ["-m", "model=yolo", "seed=1,2,3", "data.num_workers=2"]


def test_without_a_sweep_of_these_words_a_new_one_begins(runs: Path) -> None:
    found = plan(["-m", "sweep=resume", "model=yolo", "seed=7,8"])
    assert found.argv == ["-m", "model=yolo", "seed=7,8"]
    assert "a new one begins" in found.note


@pytest.mark.parametrize(
    "words",
    [["model=yolo"], ["-m", "seed=1,2"], ["sweep=null", "model=yolo"], ["--help"], ["sweep=resume", "--version"]],
)
def test_other_words_stay_as_they_are(words: list[str], runs: Path) -> None:
    assert plan(words).argv == words
    assert plan(words).note == ""


def test_what_a_folder_says_cannot_name_code_to_run(runs: Path) -> None:
    """A sweep's folder may be somebody else's: its launcher's commands, targets and permissions are typed anew or not at all."""
    stored = [
        *("hydra/launcher=joblib", "hydra/sweeper=search", "hydra.sweeper.n_trials=40", "hydra.sweeper.retry=[failed]"),
        *("hydra.launcher.setup=[rm -rf /]", "hydra.sweeper.sampler._target_=os.system", "hydra.job_logging.x=1"),
        *("hydra.sweeper.params={a:{_target_:os.system}}", "hydra/job_logging=../../evil", "hydra.searchpath=[/evil]"),
        *("allow_targets=[evil]", "hydra.sweep.dir=elsewhere", "model=yolo", "seed=1,2"),
    ]
    make(runs / "given", stored, done=0)
    found = plan(["sweep=runs/sweeps/given"])
    assert found.argv[:-1] == ["-m", *stored[:4], "model=yolo", "seed=1,2"]
    assert "not repeated unless they are typed: hydra.launcher.setup=[rm -rf /]" in found.note
    typed = plan(["sweep=runs/sweeps/given", "hydra.launcher.setup=[ls]", "allow_targets=[mine]"])
    assert {"hydra.launcher.setup=[ls]", "allow_targets=[mine]"} <= set(typed.argv)
    assert "hydra.launcher.setup=[rm" not in typed.note


def test_words_that_are_no_words(runs: Path) -> None:
    make(runs / "odd", ["seed=1,2", 7, None], done=0)  # type: ignore[list-item]
    assert "seed=1,2" in plan(["sweep=runs/sweeps/odd"]).argv


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=nowhere"], "sweep=nowhere: no such folder. Fix: "),
        (["sweep=runs"], "sweep=runs: no sweep: there is no ledger.db in it. Fix: "),
        (["sweep=runs/sweeps/old/1"], "this is one job of a sweep. Fix: sweep=runs/sweeps/old, or resume="),
        (["-m", "seed=1,2", "hydra.sweep.dir=runs/sweeps/old"], "holds a sweep already. Fix: sweep=runs/sweeps/old"),
    ],
)
def test_what_is_refused(words: list[str], message: str, runs: Path) -> None:
    with pytest.raises(UserError) as caught:
        plan(words)
    assert message in str(caught.value)


def test_without_m_a_new_one_does_not_begin(runs: Path) -> None:
    """Who goes on with a sweep does not type -m; a word too many shall not train something else for hours."""
    with pytest.raises(UserError, match=r"below runs/sweeps there is no sweep of these words\. Fix: "):
        plan(["sweep=resume", "model=yolo", "seed=7,8"])


def test_nothing_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"below runs/sweeps there is no sweep that is not done\. Fix: "):
        plan(["sweep=resume"])
    assert sweep_folders(Path("runs")) == []


def test_further_processes_of_a_job_plan_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert plan(["sweep=resume"]).argv == ["sweep=resume"]


def test_typed_words_take_the_place_of_stored_ones() -> None:
    assert merged(["a=1", "b=2"], ["+a=3"]) == ["b=2", "+a=3"]


def test_words_of_a_job_that_would_run_other_code_are_left_out(tmp_path: Path) -> None:
    """A ledger that somebody has written by hand: what was typed counts, the rest of that kind does not."""
    launched: list[list[str]] = []

    class Launcher:
        def launch(self, jobs: list[list[str]], initial_job_idx: int) -> None:
            launched.extend(jobs)

    ledger = Ledger(tmp_path)
    ledger.register([["model=yolo", "hydra.job_logging.x=1", "++hydra/launcher=evil", "allow_targets=[a, b]"]])
    Sweep(ledger, Launcher(), (), frozenset(["model=yolo"])).start(ledger.jobs())
    Sweep(ledger, Launcher(), (), frozenset(["allow_targets=[a,b]"])).start(ledger.jobs())
    assert launched == [
        ["model=yolo", "hydra.sweep.subdir=0"],
        ["model=yolo", "allow_targets=[a, b]", "hydra.sweep.subdir=0"],
    ]


def test_a_job_that_cannot_be_composed_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    """One of more combinations than are checked beforehand."""
    launched: list[int] = []

    class Launcher:
        def launch(self, jobs: list[list[str]], initial_job_idx: int) -> None:
            launched.extend(int(words[-1].partition("=")[2]) for words in jobs)

    def compose(words: list[str]) -> None:
        if "seed=2" in words:
            raise HydraException("Could not find 'model/neck/none'")

    ledger = Ledger(tmp_path)
    ledger.register([["seed=1"], ["seed=2"], ["seed=3"]])
    found = Sweep(ledger, Launcher(), (), compose=compose).start(ledger.jobs())
    assert launched == [0, 2]
    assert (found[1].state, found[1].message) == ("failed", "Could not find 'model/neck/none'")
