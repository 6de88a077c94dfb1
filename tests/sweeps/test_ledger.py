"""The ledger: what it keeps, what is the same job, several writers, files that are none."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cvexp.errors import UserError
from cvexp.sweeps.ledger import (
    ENDED,
    FAILED,
    FILE,
    FINISHED,
    INTERRUPTED,
    NOT_FINITE,
    OUT_OF_MEMORY,
    PENDING,
    PRUNED,
    RUNNING,
    Ledger,
    identity,
)


def test_a_job_from_its_words_to_its_result(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "sweep")
    first, second = ledger.register([["model=yolo", "seed=1"], ["model=yolo", "seed=2"]])
    assert (first.number, first.words, first.state) == (0, ("model=yolo", "seed=1"), PENDING)
    assert (first.attempts, first.started, first.result) == (0, None, {})

    ledger.begin(0)
    running = ledger.job(0)
    assert (running.state, running.attempts) == (RUNNING, 1)
    assert running.process.startswith("process ")

    ledger.end(0, INTERRUPTED, message="stopped by SIGTERM", peak_memory=7 * 2**30, at=running.started + 5)
    ledger.begin(0)
    again = ledger.job(0)
    assert (again.message, again.attempts, again.ended) == ("", 2, None)
    result = {"val/best": 0.5, "peak/memory_bytes": 3 * 2**30, "peak/gpu_memory_bytes": 100}
    ledger.end(0, FINISHED, result=result, at=again.started + 10)
    done = Ledger(tmp_path / "sweep").job(0)  # a new process
    assert (done.state, done.value, done.result, done.process) == (FINISHED, 0.5, result, "")
    assert done.seconds == pytest.approx(15), "of both attempts"
    assert (done.peak_memory, done.peak_gpu_memory) == (7 * 2**30, 100), "the larger of the two"
    assert ledger.job(1) == second, "nothing else was touched"


def test_the_same_words_are_the_same_job(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (job,) = ledger.register([["model=yolo", "+seed=1"]])
    again, other = ledger.register([["seed=1", "model=yolo"], ["seed=10", "model=yolo"]])
    assert (again.number, other.number) == (job.number, 1)
    assert again.words == ("seed=1", "model=yolo"), "it is started by the words that were typed last"
    ledger.end(0, FINISHED, result={"val/best": 1.0})
    (kept,) = ledger.register([["+seed=1", "model=yolo"]])
    assert kept.words == ("seed=1", "model=yolo"), "what it was made by stays"


def test_two_trials_of_the_same_words_are_two_jobs(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    jobs = ledger.register([["lr=1"], ["lr=1"]], identities=["trial 0", "trial 1"], trials=[0, 1])
    assert [(job.number, job.trial) for job in jobs] == [(0, 0), (1, 1)]
    assert ledger.knows(["trial 1", "trial 2"]) == 1


@pytest.mark.parametrize("state", [FINISHED, PRUNED, OUT_OF_MEMORY, NOT_FINITE, FAILED])
def test_a_value_that_is_not_given_stays(state: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.register([["seed=1"]])
    ledger.begin(0)
    ledger.end(0, PRUNED, value=0.25, peak_memory=5)
    ledger.end(0, state, message="why")
    job = ledger.job(0)
    assert (job.state, job.value, job.peak_memory, job.message) == (state, 0.25, 5, "why")
    assert job.has_ended == (state in ENDED)


def test_notes_of_the_sweep(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.note(words=["seed=1,2"], mode="max")
    ledger.note(mode="min")
    assert ledger.about() == {"format": 1, "words": ["seed=1,2"], "mode": "min"}


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    """Each of six registers the same ten jobs and ends those that are its own: no row is lost, none is double."""
    Ledger(tmp_path)
    code = textwrap.dedent(
        f"""
        import sys
        from cvexp.sweeps.ledger import Ledger
        ledger = Ledger({str(tmp_path)!r})
        me = int(sys.argv[1])
        ledger.register([[f"seed={{n}}"] for n in range(10)])
        for n in range(me, 10, 6):
            ledger.begin(n)
            ledger.end(n, "finished", result={{"val/best": float(n)}})
        """
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(me)]) for me in range(6)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 6
    jobs = Ledger(tmp_path).jobs()
    assert [job.number for job in jobs] == list(range(10))
    assert [job.value for job in jobs] == [float(job.words[0].partition("=")[2]) for job in jobs]
    assert {(job.state, job.attempts) for job in jobs} == {(FINISHED, 1)}


def test_an_error_within_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.register([["seed=1"]])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ledger.register([["seed=2"], ["seed=3"]], identities=["a"])
    assert len(ledger.jobs()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "no ledger of a sweep", id="an empty file"),
        pytest.param(
            b"not a database at all, but long enough to be read as one" * 40, "no ledger", id="another format"
        ),
    ],
)
def test_a_file_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=rf"{FILE}: {message}.*Fix: "):
        Ledger(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_ledger_of_another_version_and_none(tmp_path: Path) -> None:
    Ledger(tmp_path).note(format=2)
    with pytest.raises(UserError, match=r"format 2, this cvexp reads 1\. Fix: "):
        Ledger(tmp_path)
    with pytest.raises(UserError, match=rf"elsewhere: no sweep: there is no {FILE}. Fix: "):
        Ledger.existing(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with sqlite3.connect(ledger.path) as database:
        database.execute("DROP TABLE jobs")
    with pytest.raises(UserError, match=r"ledger.db: cannot be read or written \(no such table: jobs\). Fix: "):
        ledger.jobs()


def test_identity_knows_signs_but_not_order() -> None:
    assert identity(["++b=2", "a=1"]) == identity(["a=1", "b=2"]) == json.dumps(["a=1", "b=2"])
    assert identity(["a=1"]) != identity(["~a=1"])
