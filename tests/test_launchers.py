"""Sweeps by other launchers than Hydra's own, for real on this machine: side by side, and put back into a queue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig
from resuming import train_here

from cvexp import launch
from cvexp.config import check_overrides
from cvexp.errors import UserError

Compose = Callable[..., DictConfig]
TESTS = Path(__file__).parent
PLUGINS = {"joblib": "joblib", "slurm": "submitit", "ray": "ray"}


def needs(extra: str) -> pytest.MarkDecorator:
    try:
        found = find_spec(f"hydra_plugins.hydra_{PLUGINS[extra]}_launcher") is not None
    except ModuleNotFoundError:
        found = False
    return pytest.mark.skipif(not found, reason=f"needs pip install 'cvexp[{extra}]'")


JOBLIB = (pytest.mark.joblib, needs("joblib"))
SLURM = (pytest.mark.slurm, needs("slurm"))
RAY = (pytest.mark.ray, needs("ray"))
PRESETS = [
    pytest.param("joblib", "joblib", "joblib", marks=JOBLIB, id="joblib"),
    pytest.param("slurm", "submitit_slurm", "slurm", marks=SLURM, id="slurm"),
    pytest.param("slurm_local", "submitit_local", "slurm", marks=SLURM, id="slurm_local"),
    pytest.param("ray", "ray", "ray", marks=RAY, id="ray"),
]


# --- choosing one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "plugin", "extra"), PRESETS)
def test_a_preset_is_hydras_launcher(compose: Compose, preset: str, plugin: str, extra: str) -> None:
    """Every key of the preset is one of the launcher's, or Hydra would refuse it."""
    words = ["data=voc", f"launcher={preset}"]
    cfg = compose(*words, return_hydra_config=True)
    assert cfg.hydra.runtime.choices["hydra/launcher"] == plugin
    assert cfg.hydra.launcher._target_.startswith(f"hydra_plugins.hydra_{PLUGINS[extra]}_launcher.")
    check_overrides(["-m", *words, "seed=1,2"])


@pytest.mark.parametrize(
    ("preset", "plugin", "extra"),
    [
        ("joblib", "joblib", "joblib"),
        ("slurm", "submitit_slurm", "slurm"),
        ("slurm_local", "submitit_local", "slurm"),
        ("ray", "ray", "ray"),
    ],
)
def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, preset: str, plugin: str, extra: str) -> None:
    Plugins.instance()  # what is installed has come forward
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(known, f"{plugin}.yaml", raising=False)
    with pytest.raises(UserError, match=rf"launcher={preset} needs the extra: pip install 'cvexp\[{extra}\]'"):
        check_overrides(["-m", f"launcher={preset}", "seed=1,2"])


def test_a_misspelled_one_is_told() -> None:
    with pytest.raises(UserError, match="jobllib"):
        check_overrides(["-m", "launcher=jobllib", "seed=1,2"])


def test_without_one_jobs_follow_each_other(compose: Compose) -> None:
    assert compose("data=voc", return_hydra_config=True).hydra.runtime.choices["hydra/launcher"] == "basic"


# --- a scheduler's signal ----------------------------------------------------------------------------------------------

PATIENT = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w').close(), sys.exit(143)));"
    "open('ready', 'w').close(); time.sleep(60)"
)
STARTER = """
import os, signal, sys
from cvexp import launch
def requeue(number, frame):
    print("requeued, saved:", os.path.exists("saved"), flush=True)
    {end}
signal.signal(signal.SIGUSR2, requeue)
ended = launch.together([sys.executable, "-c", {program!r}], 1)
print("ended", ended.code, signal.getsignal(signal.SIGUSR2) is requeue)
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(144)", 144, "requeued, saved: True\n"),  # as submitit's does on one machine
        ("raise RuntimeError('too many times')", 1, "requeued, saved: True\n"),  # and where it gives up
        ("pass", 0, "requeued, saved: True\nended 143 True\n"),  # it is heard again afterwards
    ],
)
def test_a_schedulers_handler_waits_for_the_save(tmp_path: Path, end: str, code: int, said: str) -> None:
    program = STARTER.format(end=end, program=PATIENT)
    starter = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    until(tmp_path / "ready")
    starter.send_signal(signal.SIGUSR2)
    out, _ = starter.communicate(timeout=60)
    assert (starter.returncode, out) == (code, said)


def test_nobody_else_hears_it() -> None:
    """A handler that no scheduler has set is left alone."""
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    with launch._handed_on([], []):
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        assert callable(signal.getsignal(signal.SIGTERM))


# --- whole sweeps ----------------------------------------------------------------------------------------------------


def until(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name} after {seconds} s"
        time.sleep(0.05)


def sweep(cwd: Path, *words: str, **more: str) -> tuple[int, str]:
    """Exit code and output of ``cvexp.train -m`` into ``sweep``; one that hangs is a failure."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "cvexp.train", "-m", "hydra.sweep.dir=sweep", *words],
        cwd=cwd, env=os.environ | {"PYTHONPATH": path} | more, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def results(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["launcher=joblib"], marks=JOBLIB, id="joblib"),
        pytest.param(["launcher=slurm_local"], marks=SLURM, id="slurm_local"),
        pytest.param(["launcher=ray", "hydra.launcher.ray.init.num_cpus=2"], marks=RAY, id="ray"),
    ],
)
def test_two_jobs(tmp_path: Path, tiny: list[str], words: list[str]) -> None:
    """Each has its values and its folder, and ends as it would alone."""
    code, text = sweep(tmp_path, *words, *tiny, "seed=1,2", RAY_USAGE_STATS_ENABLED="0")
    assert code == 0, text
    found = {results(tmp_path / "sweep" / str(job))["seed"]: job for job in range(2)}
    assert found.keys() == {1, 2}
    assert_same_weights(tmp_path / "sweep" / str(found[2]), alone(tmp_path / "alone", *tiny, "seed=2"))


def alone(folder: Path, *words: str) -> Path:
    train_here(folder, *words)
    return folder


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = (torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (a, b))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


LONGER = ("trainer.max_epochs=4", "callbacks.pictures=null", "data.num_workers=0")
PREEMPTED = (
    "+callbacks.preempted={_target_:launcher_parts.Preempted,step:3}",
    "allow_targets=[launcher_parts]",
)


def assert_went_on(folder: Path, whole: Path) -> None:
    """One folder, interrupted after the third of eight steps, and as if it had not been."""
    assert (folder / "preempted").exists()
    assert results(folder)["train/steps"] == 8
    (entry,) = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["resumed"]
    assert entry["step"] == 3, "saved when the signal came, not before"
    assert_same_weights(folder, whole)


@pytest.mark.slow
@pytest.mark.slurm
@needs("slurm")
def test_put_back_into_the_queue_a_job_goes_on_in_its_folder(tmp_path: Path, tiny: list[str]) -> None:
    code, text = sweep(tmp_path, "launcher=slurm_local", *tiny, *LONGER, *PREEMPTED, "seed=5")
    assert code == 0, text
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.name.isdecimal()) == ["0"]
    assert_went_on(tmp_path / "sweep" / "0", alone(tmp_path / "alone", *tiny, *LONGER, "seed=5"))
    (log,) = (tmp_path / "sweep" / ".submitit").glob("*/*_log.out")
    assert "this job is preempted" in log.read_text(encoding="utf-8")


# What SLURM does with an array job, as far as submitit asks for it: its tasks run here, in the background.
CLUSTER = {
    "sbatch": """
file="${@: -1}"; cp "$file" "$CLUSTER/submitted.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$file")
export SLURM_ARRAY_JOB_ID=4711 SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export SLURM_JOB_NODELIST=here SLURM_JOB_NAME=cvexp SLURM_NTASKS_PER_NODE=1
for task in $(seq 0 "${last:-0}"); do
  SLURM_JOB_ID=$((4711 + task)) SLURM_ARRAY_TASK_ID=$task setsid bash "$file" >>"$CLUSTER/log" 2>&1 </dev/null &
done
echo "Submitted batch job 4711"
""",
    "srun": """
while [[ $1 != *python* ]]; do shift; done
exec "$@" >>"$CLUSTER/log" 2>&1
""",
    "scontrol": """
echo "$@" >>"$CLUSTER/requeued"
(sleep 3; setsid bash "$CLUSTER/submitted.sh") >>"$CLUSTER/log" 2>&1 </dev/null &
""",
    "sacct": """
echo "JobID|State|NodeList"; echo "4711_0|RUNNING|here"; echo "4711_1|RUNNING|here"
""",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Environment in which SLURM's commands are those of `CLUSTER`."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, content in CLUSTER.items():
        (folder / name).write_text(f"#!/bin/bash\n{content.strip()}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CLUSTER": str(folder)}


@pytest.mark.slow
@pytest.mark.slurm
@needs("slurm")
def test_on_a_cluster_too(tmp_path: Path, tiny: list[str], cluster: dict[str, str]) -> None:
    """What is submitted says when a job is to be told, and being told leads back into its folder."""
    code, text = sweep(tmp_path, "launcher=slurm", *tiny, *LONGER, *PREEMPTED, "seed=5,6", **cluster)
    assert code == 0, text + (tmp_path / "cluster" / "log").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.name.isdecimal()) == ["0", "1"]
    for job in (0, 1):
        whole = alone(tmp_path / f"alone{job}", *tiny, *LONGER, f"seed={5 + job}")
        assert_went_on(tmp_path / "sweep" / str(job), whole)
    submitted = (tmp_path / "cluster" / "submitted.sh").read_text(encoding="utf-8")
    requeued = (tmp_path / "cluster" / "requeued").read_text(encoding="utf-8").splitlines()
    assert sorted(requeued) == ["requeue 4711_0", "requeue 4711_1"]
    for wanted in ("--signal=USR2@120", "--open-mode=append", "--time=240", "--gpus-per-node=1", "--mem=32GB"):
        assert f"#SBATCH {wanted}\n" in submitted, wanted
