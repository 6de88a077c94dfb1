"""Starting processes and ending them together: with small programs in place of trainings; see test_processes for those."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cvexp import launch
from cvexp.config import conf_dir
from cvexp.errors import UserError

Compose = Callable[..., DictConfig]
PLACES = (*launch.RANKS, launch.PARENT, "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "cvexp"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trace of somebody who started this process as one of several."""
    for name in (*PLACES, *SLURM):
        monkeypatch.delenv(name, raising=False)


# --- how many, and whether -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "accelerator", "gpus", "count"),
    [
        (1, "cpu", 0, 1),
        (2, "cpu", 0, 2),
        ("2", "cpu", 0, 2),  # a text is a number too
        ("auto", "cpu", 8, 1),  # Lightning's choice on a CPU
        ("auto", "auto", 8, 8),
        ("auto", "auto", 0, 1),  # no GPU: the CPU
        (-1, "gpu", 4, 4),  # all
        ("-1", "cuda", 4, 4),
        ([0, 3], "gpu", 8, 2),  # these two
        ([5], "gpu", 8, 1),
        ("0,3", "gpu", 8, 2),
        ("3,", "gpu", 8, 1),  # one, by its number
        ("auto", "tpu", 8, 1),  # Lightning's affair
        ("many", "gpu", 8, 1),  # Lightning refuses it
        (0, "gpu", 8, 0),  # so it does this
    ],
)
def test_how_many(devices: object, accelerator: str, gpus: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(launch, "_GPU_FILES", ("/",))  # a driver is there
    trainer = OmegaConf.create({"devices": devices, "accelerator": accelerator})
    assert launch.processes(trainer) == count


@pytest.mark.parametrize(
    ("words", "outside", "started"),
    [
        (["trainer.devices=1"], {}, False),
        (["trainer.devices=2"], {}, True),
        (["trainer=ddp2_cpu"], {}, True),
        (["trainer.devices=2", "trainer.strategy=ddp_spawn"], {}, False),  # from memory, not by a command line
        (["trainer.devices=2"], {"LOCAL_RANK": "1", launch.PARENT: "7"}, False),  # it is one of them
        (["trainer.devices=2"], {"RANK": "0", "LOCAL_RANK": "0"}, False),  # torchrun
        (["trainer.devices=2"], SLURM | {"SLURM_NTASKS": "1"}, False),  # srun
        (["trainer.devices=2"], SLURM | {"SLURM_JOB_NAME": "bash"}, True),  # a shell on SLURM: Lightning's rule
    ],
)
def test_whether(
    words: list[str], outside: dict[str, str], started: bool, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in outside.items():
        monkeypatch.setenv(name, value)
    assert launch.needed(compose("trainer.accelerator=cpu", *words)) is started


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer=slurm"], r"outside of srun: there is no SLURM_NTASKS\. Fix: sbatch"),
        (
            ["trainer.num_nodes=2"],
            r"trainer\.num_nodes=2: the nodes do not know each other\. Fix: .*torchrun --nnodes=2",
        ),
    ],
)
def test_what_cannot_be_started(words: list[str], message: str, compose: Compose) -> None:
    with pytest.raises(UserError, match=message):
        launch.needed(compose(*words))


# --- the words of a job ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",  # nothing
        "runs/yolo-shapes/2026-01-01_00-00-00",
        "with space, comma=equals",
        "[a]{b}(c):d#e",
        'a "quoted" word',
        "it's",
        r"C:\runs\new",
        "ends with \\",
        '\\"',
        "$HOME/ü/图",
    ],
)
def test_any_folder_survives_hydra(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={launch.quoted(text)}").value() == text


APP = f"""
import json, sys, hydra
from cvexp import launch
from cvexp.config import register_resolvers
register_resolvers()
@hydra.main(version_base="1.3", config_path={str(conf_dir())!r}, config_name="train")
def main(cfg):
    from omegaconf import OmegaConf
    content = OmegaConf.to_container(cfg, resolve=True)
    content.pop("hydra", None)
    print(json.dumps([launch.job_words(cfg), content]))
main()
"""


def jobs(cwd: Path, *words: str) -> list[tuple[list[str], dict]]:
    """Of each job that Hydra makes of a command line: the words for its processes, and its configuration."""
    done = subprocess.run(
        [sys.executable, "-c", APP, *words], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(row)) for row in done.stdout.splitlines() if row.startswith("[[")]


def test_each_job_of_a_sweep_is_composed_again(tmp_path: Path) -> None:
    """Its own choices, its own folder, signs that mean something to Hydra or a shell; nothing of the sweep itself."""
    name = "a,b=c 'd' [e] (f)"
    escaped = name.replace("'", "\\'")
    words = ["-m", "optimizer.lr=1e-3,1e-2", "model=yolo,facenet", "seed=3", "trainer.devices='2'"]
    odd = [
        f"paths.runs='{escaped}'",
        "+trainer.plugins=[]",
        "~callbacks.lr",
        "hydra.sweep.dir=my sweep",
        "hydra.verbose=false",
    ]
    found = jobs(tmp_path, *words, *odd)
    assert [content["optimizer"]["lr"] for _, content in found] == [1e-3, 1e-3, 1e-2, 1e-2]
    for number, (again, content) in enumerate(found):
        assert content["paths"]["runs"] == name
        assert not [word for word in again if "sweep" in word.partition("=")[0]]
        ((same_words, same),) = jobs(tmp_path, *again)  # one job: no sweep any more
        assert same == content
        assert same["paths"]["output"].endswith(f"my sweep/{number}")
        assert sorted(same_words) == sorted(again), "and once more"


def test_flags_of_hydra_are_kept(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nseed: 77\n")
    ((again, content),) = jobs(tmp_path, "--config-dir", "mine", "experiment=own")
    assert content["seed"] == 77
    (tmp_path / "elsewhere").mkdir()
    ((_, same),) = jobs(tmp_path / "elsewhere", *again)
    assert same["seed"] == 77


# --- processes together ----------------------------------------------------------------------------------------------

ME = "import os, sys, time, signal; rank = int(os.environ['LOCAL_RANK']); "
SLEEP = "time.sleep(100)"


def together(cwd: Path, program: str, count: int = 2) -> tuple[int, str, float]:
    """Exit code, what was written, and how long it took."""
    start = time.monotonic()
    command = f"[sys.executable, '-c', {ME + program!r}]"
    code = f"import sys; from cvexp import launch; sys.exit(launch.together({command}, {count}).code)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def alive(number: int) -> bool:
    """Whether a process runs (one that has ended and waits for its parent does not)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(numbers: list[int], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, numbers)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(alive, numbers))


def test_each_knows_its_place(tmp_path: Path) -> None:
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR"
    code, said, _ = together(
        tmp_path, f"print(*[os.environ[n] for n in {names}], sys.stdin.read() == '', file=open(f'me{{rank}}', 'w'))", 3
    )
    assert (code, said) == (0, "")
    told = [(tmp_path / f"me{rank}").read_text() for rank in range(3)]
    assert told == [f"{rank} {rank} 3 0 127.0.0.1 True\n" for rank in range(3)]


def test_addresses_of_several_machines_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    places = launch.places(4, nodes=2)
    assert [place["RANK"] for place in places] == ["4", "5", "6", "7"]
    assert {place["WORLD_SIZE"] for place in places} == {"8"}
    assert {(place["MASTER_ADDR"], place["MASTER_PORT"]) for place in places} == {("first", "29500")}


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("pass", 0, ""),
        (f"rank == 1 and sys.exit(5); {SLEEP}", 5, "process 1 of 2 failed with exit code 5; its own words stand above"),
        (f"rank == 0 and sys.exit('oh no'); {SLEEP}", 1, "process 0 of 2 failed with exit code 1"),
        (f"rank == 1 and os.kill(os.getpid(), 9); {SLEEP}", 137, "process 1 of 2 was killed by SIGKILL"),
        (f"rank == 0 and os.kill(os.getpid(), 11); {SLEEP}", 139, "process 0 of 2 was ended by SIGSEGV"),
        # the last one is asked to end, and has its time to save
        ("rank == 1 and sys.exit(143); time.sleep(2.5); print('saved')", 143, "saved"),
        ("rank == 1 and sys.exit(7)", 7, "process 1 of 2 failed"),  # the others have ended well
        # the first failure is told, not what it brought about
        ("time.sleep(rank * 0.5); sys.exit(3 + rank)", 3, "process 0 of 2 failed with exit code 3"),
    ],
)
def test_all_end_with_the_first_that_fails(program: str, code: int, said: str, tmp_path: Path) -> None:
    found, text, seconds = together(tmp_path, program)
    assert (found, seconds < 20) == (code, True)
    assert said in text
    assert ("error: " in text) is (code not in (0, 143))


def test_what_a_dead_one_had_started_ends_too(tmp_path: Path) -> None:
    """The workers of a loader, which would otherwise keep files and memory."""
    program = (
        "import subprocess; child = subprocess.Popen(['sleep', '100']);"
        "open(f'child{rank}', 'w').write(str(child.pid)); rank == 0 and (time.sleep(0.5), sys.exit(4)); time.sleep(100)"
    )
    code, _, _ = together(tmp_path, program)
    assert code == 4
    assert gone([int((tmp_path / f"child{rank}").read_text()) for rank in range(2)])


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """Two processes that end half a second after a signal and write how often it came; their starter and their numbers."""
    program = f"""{ME}
from cvexp import launch
def note(number, frame):
    print("signal", number, file=open(f"heard{{rank}}", "a"))
    global end
    end = time.monotonic() + 0.5
end = float("inf")
signal.signal(signal.SIGTERM, note), signal.signal(signal.SIGINT, note)
with launch.rank():
    open(f"pid{{rank}}.part", "w").write(str(os.getpid()))
    os.rename(f"pid{{rank}}.part", f"pid{{rank}}")
    while time.monotonic() < end:
        time.sleep(0.05)
sys.exit(143 if rank == 0 else 0)
"""
    code = (
        f"import sys; from cvexp import launch; sys.exit(launch.together([sys.executable, '-c', {program!r}], 2).code)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    files = [tmp_path / f"pid{rank}" for rank in range(2)]
    end = time.monotonic() + 60
    while not all(path.exists() for path in files) and time.monotonic() < end:
        time.sleep(0.05)
    numbers = [int(path.read_text()) for path in files]
    yield starter, numbers
    for number in filter(alive, [starter.pid, *numbers]):
        os.kill(number, signal.SIGKILL)
    starter.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_each_once(
    number: int, code: int, supervised: tuple[subprocess.Popen, list[int]], tmp_path: Path
) -> None:
    starter, numbers = supervised
    starter.send_signal(number)
    assert starter.wait(timeout=30) == code
    assert gone(numbers, 1)
    assert [(tmp_path / f"heard{rank}").read_text() for rank in range(2)] == [f"signal {number}\n"] * 2


def test_none_outlives_its_starter(supervised: tuple[subprocess.Popen, list[int]], tmp_path: Path) -> None:
    """SIGKILL cannot be handed on: each notices by itself, and may still save."""
    starter, numbers = supervised
    starter.kill()
    assert gone(numbers)
    assert [(tmp_path / f"heard{rank}").read_text() for rank in range(2)] == [f"signal {signal.SIGTERM}\n"] * 2


# --- inside of one of them -------------------------------------------------------------------------------------------

GLOO = "[pair.cc:561] gloo/transport/tcp Connection closed by peer [127.0.0.1]:25739. This is typically\ncaused by ..."


def test_a_lost_connection_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match=r"process was lost: \[pair.cc:561\].*Fix: ") as raised, launch.rank():
        raise RuntimeError(GLOO)
    assert "\n" not in str(raised.value)
    assert waited == [launch.LOST], "time for its end by whoever looks after all"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(GLOO), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (ConnectionResetError("Connection reset by peer"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (UserError("the connection closed. Fix: none"), False),  # a user's error is his own
        (ValueError("gloo/transport"), False),
        (None, False),
    ],
)
def test_what_is_a_lost_connection(error: BaseException | None, lost: bool) -> None:
    assert launch.lost_connection(error) is lost
    wrapped = ValueError("while training")
    wrapped.__cause__ = error
    assert launch.lost_connection(wrapped) is lost


@pytest.mark.parametrize(
    ("outside", "waits"),
    [
        ({}, []),  # alone
        ({"LOCAL_RANK": "0"}, []),
        ({"LOCAL_RANK": "1"}, [launch.TURN]),  # the first one may say it
        ({"RANK": "2", "LOCAL_RANK": "0"}, [launch.TURN]),  # the first of the second machine
        (SLURM, [launch.TURN]),
    ],
)
def test_the_first_speaks_first(outside: dict[str, str], waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for name, value in outside.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ZeroDivisionError), launch.rank():
        raise ZeroDivisionError
    assert waited == waits
