"""Sweeps that are killed, asked to stop, extended and resumed: nothing finished is repeated, nothing is lost.

The jobs are those of `stub_sweep`, which train nothing; everything else is what ``python -m cvexp.train -m`` does. One whole
sweep with real trainings, killed too, is in ``tests/test_sweep.py``.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from killing import MINUTE, start_stub, stop_all, wait_for

from cvexp.sweeps.ledger import FAILED, FINISHED, INTERRUPTED, NOT_FINITE, OUT_OF_MEMORY, Job, Ledger

SWEEP = "runs/sweeps/mine"
STUB = Path(__file__).with_name("stub_sweep.py")


def run(cwd: Path, *words: str, code: int = 0) -> str:
    process = start_stub(STUB, cwd, *words)
    text, _ = process.communicate(timeout=4 * MINUTE)
    assert process.returncode == code, text
    return text


def steps(folder: Path, job: int) -> Counter[int]:
    """How often each step of a job was made."""
    path = folder / str(job) / "steps.txt"
    return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()


def states(folder: Path) -> list[tuple[str, int]]:
    return [(job.state, job.attempts) for job in Ledger(folder).jobs()]


def assert_whole(folder: Path, job: Job) -> None:
    """All ten steps are made; those made twice were made after the last checkpoint before a kill."""
    made = steps(folder, job.number)
    assert sorted(made) == list(range(10))
    assert max(made.values()) <= job.attempts
    assert job.state == FINISHED
    assert job.value == float(job.words[-1].partition("=")[2])


SEEDS = ("-m", "model=yolo", "seed=1,2,3", f"hydra.sweep.dir={SWEEP}")


def test_killed_in_its_second_job(tmp_path: Path) -> None:
    """The conductor and the job, by SIGKILL: the first job is not touched again, the second goes on from its checkpoint."""
    sweep = tmp_path / SWEEP
    process = start_stub(STUB, tmp_path, *SEEDS, step=0.2)
    wait_for(lambda: len(steps(sweep, 1)) >= 5, process)
    stop_all(process)
    first = Ledger(sweep).job(0)
    kept = (sweep / "0" / "result.json").stat()
    assert first.state == FINISHED

    text = run(tmp_path, "sweep=resume")
    assert "going on with" in text
    assert "1 of 3 jobs have ended" in text
    assert states(sweep) == [(FINISHED, 1), (FINISHED, 2), (FINISHED, 1)]
    assert Ledger(sweep).job(0) == first, "its row is as it was"
    assert (sweep / "0" / "result.json").stat() == kept
    made = steps(sweep, 1)
    assert sorted(made) == list(range(10))
    assert made[0] == made[3] == 1, "what was saved is not repeated"
    for job in Ledger(sweep).jobs():
        assert_whole(sweep, job)
    before = sorted(path.stat().st_mtime_ns for path in sweep.rglob("steps.txt"))
    text = run(tmp_path, *SEEDS[:-1], "sweep=resume")
    assert "3 of 3 jobs have ended" in text, "with the words of the sweep it is found, and there is nothing to do"
    assert sorted(path.stat().st_mtime_ns for path in sweep.rglob("steps.txt")) == before


def test_every_end_is_a_result_and_the_sweep_goes_on(tmp_path: Path) -> None:
    sweep = tmp_path / SWEEP
    text = run(tmp_path, "-m", "model=yolo", "seed=13,14,15,16,17,1", f"hydra.sweep.dir={SWEEP}", code=1)
    jobs = Ledger(sweep).jobs()
    assert [job.state for job in jobs] == [FAILED, FAILED, FAILED, OUT_OF_MEMORY, NOT_FINITE, FINISHED]
    assert jobs[0].message == "the disk was full. Fix: space"
    assert jobs[1].message == "ZeroDivisionError: always"
    assert jobs[2].message == "killed by SIGKILL"
    assert jobs[4].message == "stopped at step 3: the loss is nan"
    assert all(job.peak_memory > 2**20 and job.seconds > 0 for job in jobs)
    assert "ZeroDivisionError" in text

    run(tmp_path, f"sweep={SWEEP}", code=1)  # what failed is tried again; out of memory and NaN are results
    assert states(sweep) == [
        *((FINISHED, 2), (FAILED, 2), (FAILED, 2)),
        *((OUT_OF_MEMORY, 1), (NOT_FINITE, 1), (FINISHED, 1)),
    ]
    run(tmp_path, f"sweep={SWEEP}", "hydra.sweeper.retry=[out_of_memory]", code=1)
    assert [attempts for _, attempts in states(sweep)] == [2, 2, 2, 2, 1, 1]


def test_asked_to_stop_and_more_values(tmp_path: Path) -> None:
    """SIGTERM: the job that runs is interrupted, the sweep ends; then other values are added, and the numbers stay."""
    sweep = tmp_path / SWEEP
    process = start_stub(STUB, tmp_path, *SEEDS, step=0.2)
    wait_for(lambda: len(steps(sweep, 0)) >= 3, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=MINUTE)
    assert process.returncode == 128 + signal.SIGTERM
    assert states(sweep) == [(INTERRUPTED, 1), ("pending", 0), ("pending", 0)]
    assert "SIGTERM" in Ledger(sweep).job(0).message

    run(tmp_path, f"sweep={SWEEP}", "seed=0,1,2,3,4", "data.num_workers=0")
    jobs = Ledger(sweep).jobs()
    assert [job.words[1] for job in jobs] == ["seed=1", "seed=2", "seed=3", "seed=0", "seed=4"]
    assert [job.attempts for job in jobs] == [2, 1, 1, 1, 1]
    assert [job.value for job in jobs] == [1, 2, 3, 0, 4]


def test_what_is_refused(tmp_path: Path) -> None:
    sweep = tmp_path / SWEEP
    run(tmp_path, "-m", "model=yolo", "seed=1", f"hydra.sweep.dir={SWEEP}")
    assert f"{SWEEP}: holds a sweep already. Fix: sweep={SWEEP}" in run(tmp_path, *SEEDS, code=2)
    text = run(tmp_path, f"sweep={SWEEP}", "model=fast_yolo", code=2)
    assert "none of its 1 jobs is among the 1 of these words" in text
    assert Ledger(tmp_path / SWEEP).about()["words"][-1] == "seed=1", "it is as it was"
    assert f"{SWEEP}/0: this is one job of a sweep. Fix: sweep={SWEEP}" in run(tmp_path, f"sweep={SWEEP}/0", code=2)
    assert "sweep=nowhere: no such folder. Fix: " in run(tmp_path, "sweep=nowhere", code=2)
    assert "an interval has no end" in run(tmp_path, "-m", "optimizer.lr=interval(1e-4,1e-2)", code=2)
    assert "there is no state 'fail'" in run(tmp_path, f"sweep={SWEEP}", "hydra.sweeper.retry=[fail]", code=2)
    assert states(sweep) == [(FINISHED, 1)]


def test_two_conductors(tmp_path: Path) -> None:
    process = start_stub(STUB, tmp_path, *SEEDS, step=0.3)
    wait_for(lambda: len(steps(tmp_path / SWEEP, 0)) >= 1, process)
    text = run(tmp_path, f"sweep={SWEEP}", code=2)
    assert "another process" in text
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=MINUTE)
    assert process.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(seed: int, tmp_path: Path) -> None:
    """Again and again, the conductor alone or with its job, at random moments; then it is left to end."""
    draw = random.Random(seed)
    sweep = tmp_path / SWEEP
    words = SEEDS
    for _ in range(6):
        process = start_stub(STUB, tmp_path, *words, step=0.3)
        time.sleep(draw.uniform(0.5, 6))
        if draw.random() < 0.5:
            process.kill()
            process.communicate()
        else:
            stop_all(process)
        words = (f"sweep={SWEEP}",) if (sweep / "ledger.db").exists() else SEEDS
    run(tmp_path, *words)
    jobs = Ledger(sweep).jobs()
    assert [job.words for job in jobs] == [("model=yolo", f"seed={seed}") for seed in (1, 2, 3)]
    for job in jobs:
        assert_whole(sweep, job)
