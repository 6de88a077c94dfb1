"""Whole sweeps with real trainings: killed and resumed as if nothing had happened; memory and NaN are results."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from resuming import BOXES, QUICK

from cvexp.resume import last_checkpoint
from cvexp.sweeps.ledger import FINISHED, INTERRUPTED, NOT_FINITE, OUT_OF_MEMORY, PENDING, Ledger

MINUTE = 60


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cvexp.train", *words],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip


def run(cwd: Path, *words: str, code: int = 0) -> str:
    process = start(cwd, *words)
    text, _ = process.communicate(timeout=10 * MINUTE)
    assert process.returncode == code, text
    return text


def curve(folder: Path) -> list[dict[str, str]]:
    """What was logged of losses and scores."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    wanted = ("train/loss", "val/AP", "test/AP", "step")
    return [{name: row[name] for name in wanted if row.get(name)} for row in rows]


@pytest.mark.slow
def test_a_killed_sweep_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL to the conductor alone, in the middle of its second job: that one saves, and goes on bit for bit."""
    words = ["-m", "model=yolo", *BOXES, *QUICK, "data.train_size=400", "seed=1,2,3", "logger=wandb"]
    run(tmp_path, *words, "hydra.sweep.dir=whole")
    process = start(tmp_path, *words, "hydra.sweep.dir=killed")
    end = time.monotonic() + 5 * MINUTE
    while not last_checkpoint(tmp_path / "killed" / "1").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate()
    kept = (tmp_path / "killed" / "0" / "result.json").stat()

    text = run(tmp_path, "sweep=killed")
    assert "1 of 3 jobs have ended" in text
    jobs = Ledger(tmp_path / "killed").jobs()
    assert [(job.state, job.attempts) for job in jobs] == [(FINISHED, 1), (FINISHED, 2), (FINISHED, 1)]
    assert (tmp_path / "killed" / "0" / "result.json").stat() == kept
    for number in range(3):
        assert curve(tmp_path / "killed" / str(number)) == curve(tmp_path / "whole" / str(number))
    whole = Ledger(tmp_path / "whole").jobs()
    assert [job.value for job in jobs] == [job.value for job in whole]
    assert all(job.peak_memory > 100 * 2**20 and job.seconds > 1 for job in jobs)
    groups = [
        yaml.safe_load((tmp_path / "killed" / str(n) / "config.yaml").read_text())["logger"]["wandb"]["group"]
        for n in range(3)
    ]
    assert groups == ["killed"] * 3


@pytest.mark.slow
def test_memory_and_nan_are_results(tmp_path: Path) -> None:
    """A batch for which there is no memory, and a learning rate at which all is NaN; the job in between is trained."""
    words = ["-m", "model=yolo", *BOXES, *QUICK, "hydra.sweep.dir=sweep", "trainer.gradient_clip_val=null"]
    greedy = "+callbacks.greedy={_target_:sweep_parts.Greedy,above:0.1}"
    text = run(tmp_path, *words, greedy, "allow_targets=[sweep_parts]", "optimizer.lr=0.2,1e-3,1e30", "optimizer=sgd")
    jobs = Ledger(tmp_path / "sweep").jobs()
    assert [job.state for job in jobs] == [OUT_OF_MEMORY, FINISHED, OUT_OF_MEMORY], text
    words = [word for word in words if "sweep.dir" not in word]
    text = run(tmp_path, *words, "optimizer.lr=1e-3,1e30", "optimizer=sgd", "hydra.sweep.dir=nan")
    jobs = Ledger(tmp_path / "nan").jobs()
    assert [job.state for job in jobs] == [FINISHED, NOT_FINITE], text
    assert "the loss is" in jobs[1].message


@pytest.mark.slow
def test_ctrl_c_saves_the_job_and_ends_the_sweep(tmp_path: Path) -> None:
    words = ["-m", "model=yolo", *BOXES, *QUICK, "data.train_size=2000", "seed=1,2", "hydra.sweep.dir=sweep"]
    process = start(tmp_path, *words)
    end = time.monotonic() + 5 * MINUTE
    while not last_checkpoint(tmp_path / "sweep" / "0").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=MINUTE)
    assert process.returncode == 130, text
    assert [job.state for job in Ledger(tmp_path / "sweep").jobs()] == [INTERRUPTED, PENDING]
    assert f'cvexp.train sweep="{tmp_path / "sweep"}"' in text
