"""Several processes on one machine: started with this job's own words, watched, and ended together.

Lightning would start them from inside the first one, with the words of the whole command line: in a sweep every process but the
first would then train with other values than its job's. And its processes do not watch each other well: what is on the screen
after one died is what the others felt of it. Here a small process, without torch, starts them all and looks after them.

Who starts processes from outside (``torchrun``, ``srun``) is left to do so; then only `rank` has something to do.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cvexp.config import conf_dir
from cvexp.errors import UserError

PARENT = "CVEXP_LAUNCHER"
"""Environment variable of the processes that `run` starts: the id of the process that looks after them."""
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Environment variables by which a process learns which one it is, as Lightning reads them."""
OF_SLURM = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
"""Environment variables of the one task of SLURM's that starts processes here; they are not tasks of SLURM's themselves."""
GRACE = 1.0  # seconds from the failure of one process to the end of the others
PATIENCE = 60.0  # the same after a signal: they may still be saving
TURN = 8.0  # seconds by which the first process is ahead in telling an error that all have
LOST = 30.0  # seconds in which whoever looks after the processes will end one that lost the others

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA's driver, AMD's, Windows' subsystem
_STOP = (signal.SIGTERM, signal.SIGINT)
_OF_A_SCHEDULER = (signal.SIGUSR1, signal.SIGUSR2) if os.name == "posix" else ()
_ASKED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # a process ended as it was asked to
_OF_A_SWEEP = re.compile(r"[+~]*hydra[./](mode|launcher|sweeper|sweep|run|output_subdir)\b")
_CONNECTION = re.compile(r"gloo/transport|nccl|connection (closed|reset|refused)|broken pipe|TCPStore", re.IGNORECASE)


# -- whether there is something to start -----------------------------------------------------------------------------------


def needed(cfg: DictConfig) -> bool:
    """Whether this run is to be started as several processes on this machine, and is not one of them.

    Raises:
        UserError: processes were started from outside in a way in which they would not find together.
    """
    if launched():
        _check_outside(cfg)
        return False
    trainer = cfg.trainer
    if any("SLURMEnvironment" in str(plugin) for plugin in _plugins(trainer)):
        raise UserError(
            "trainer=slurm outside of srun: there is no SLURM_NTASKS. Fix: sbatch scripts/slurm/train.sh ..."
        )
    if trainer.num_nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: the nodes do not know each other. Fix: on each node torchrun"
            f" --nnodes={trainer.num_nodes} --nproc_per_node=... --rdzv_backend=c10d --rdzv_endpoint=<first node>:29500"
            " -m cvexp.train ...; or SLURM"
        )
    return os.name == "posix" and _by_command(trainer.strategy) and processes(trainer) > 1


def launched() -> bool:
    """Whether this is one of several processes that somebody started, by Lightning's own rules."""
    by_srun = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return by_srun or any(name in os.environ for name in RANKS if name != "SLURM_PROCID")


def processes(trainer: DictConfig) -> int:
    """How many of them ``trainer.devices`` means on this machine; 1 where that is Lightning's affair."""
    devices = trainer.devices
    if OmegaConf.is_list(devices):
        return len(devices)
    text = str(devices).strip()
    if text in ("auto", "-1"):
        return _gpus() if trainer.accelerator in ("auto", "gpu", "cuda") else 1
    if "," in text:  # "0,3": those two
        return len([index for index in text.split(",") if index.strip()])
    return int(text) if text.isdecimal() else 1


def _gpus() -> int:
    if sys.platform == "linux" and not any(map(os.path.exists, _GPU_FILES)):  # torch takes seconds and half a gigabyte
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)


def _by_command(strategy: Any) -> bool:
    """Whether Lightning would start the processes of a strategy by the command line, and not from its own memory."""
    if isinstance(strategy, DictConfig):
        return strategy.get("start_method", "popen") == "popen"
    return not any(word in str(strategy) for word in ("spawn", "fork", "notebook", "xla"))


def _plugins(trainer: DictConfig) -> list[Any]:
    plugins = trainer.get("plugins") or []
    return list(plugins) if OmegaConf.is_list(plugins) else [plugins]


def _check_outside(cfg: DictConfig) -> None:
    """Whether processes that were started from outside agree on the folder and on what is to be run."""
    world = _world()
    if PARENT in os.environ or world == 1:
        return
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        refuse_sweeps()
    named = any(re.match(r"\+*hydra\.run\.dir=", word) for word in hydra.overrides.hydra)
    if not (named or cfg.get("resume") or any(word.startswith("paths.output=") for word in hydra.overrides.task)):
        raise UserError(
            f"each of {world} processes would name the folder of the run by its own clock: {hydra.run.dir}."
            " Fix: hydra.run.dir=runs/<name>"
        )


def refuse_sweeps() -> None:
    """
    Raises:
        UserError: this is one of several processes that were started from outside; each would conduct the sweep.
    """
    if launched() and PARENT not in os.environ and _world() > 1:
        raise UserError(
            f"a sweep in each of {_world()} processes. Fix: leave torchrun or srun away; every job starts its processes itself"
        )


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)


# -- starting --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """What is left of processes that have ended.

    Attributes:
        code: 0, the exit code of the first that failed, or 128 + the number of the signal.
        signal: that this process received and handed on; 0: none.
        peak_memory: the most bytes that one of them held; 0 where the system does not say.
    """

    code: int
    signal: int = 0
    peak_memory: int = 0


def run(cfg: DictConfig) -> float | None:
    """Runs this job on several processes.

    Returns:
        ``val/best`` of its ``result.json``, for a sweeper.

    Raises:
        SystemExit: with the exit code of the process that failed; 143 after SIGTERM, 130 after Ctrl-C.
    """
    ended = together(command(cfg), processes(cfg.trainer), cfg.trainer.num_nodes, HydraConfig.get().runtime.cwd)
    if ended.code:
        raise SystemExit(ended.code)
    result = Path(cfg.paths.output) / "result.json"
    return json.loads(result.read_text(encoding="utf-8")).get("val/best") if result.exists() else None


def command(cfg: DictConfig, *words: str) -> list[str]:
    """What each process of this job runs; ``words`` are added to its own."""
    return [sys.executable, "-m", "cvexp.train", *job_words(cfg), *words]


def job_words(cfg: DictConfig) -> list[str]:
    """The command line by which another process composes what this job is: its own overrides, its own folder."""
    hydra = HydraConfig.get()
    words = [word for word in hydra.overrides.hydra if not _OF_A_SWEEP.match(word)] + list(hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN:
        words.append(f"hydra.job.num={hydra.job.num}")
    return [
        *_flags(hydra),
        *words,
        "hydra.mode=RUN",  # a file may ask for a sweep
        f"hydra.run.dir={quoted(str(cfg.paths.output))}",
        "hydra.output_subdir=null",  # the words that were typed are kept by this process
    ]


def _flags(hydra: Any) -> list[str]:
    """``--config-name``, ``--config-path`` and ``--config-dir``, where they were typed."""
    places = {source.provider: source.path for source in hydra.runtime.config_sources if source.schema == "file"}
    flags = [] if hydra.job.config_name == "train" else ["--config-name", hydra.job.config_name]
    if places.get("main", str(conf_dir())) != str(conf_dir()):
        flags += ["--config-path", places["main"]]
    return [*flags, "--config-dir", places["command-line"]] if "command-line" in places else flags


def quoted(text: str) -> str:
    """A text as Hydra's grammar reads it back, whatever signs are in it."""
    escaped = re.sub(r"(\\+)(?=$|\"|')", r"\1\1", text)  # backslashes count only before a quote
    return '"' + escaped.replace('"', '\\"').replace("${", "\\${") + '"'


def together(
    command: Sequence[str],
    count: int,
    nodes: int = 1,
    cwd: str | None = None,
    output: IO[bytes] | None = None,
    told: Mapping[str, str] | None = None,
) -> Ended:
    """Starts ``count`` processes of one command and waits; none outlives the others' failure or this process.

    Signals are handed on once to each: the processes are in no group of the terminal's. After SIGTERM or Ctrl-C they may save
    as long as they like; a third signal kills them.

    Args:
        command: what each runs; it learns which one it is by ``LOCAL_RANK``.
        count: on this machine.
        nodes: machines, each of which runs this.
        cwd: folder that they start in.
        output: what they print goes there; None: where this process prints.
        told: further environment variables of theirs.
    """
    ranks: list[Rank] = []
    received: list[int] = []
    with _handed_on(ranks, received):
        try:
            outside = {name: value for name, value in os.environ.items() if name not in OF_SLURM}
            for place in places(count, nodes):
                env = outside | place | dict(told or {})
                files = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
                ranks += [Rank(command, env=env, cwd=cwd, process_group=0, **files)]
            for number in received[:1]:  # it came while they were started, and some may not have got it
                _send(ranks, number)
            first, code = _wait(ranks, received)
        finally:
            _kill(ranks)
    peak = max((rank.peak_memory for rank in ranks), default=0)
    if received:
        return Ended(128 + received[0] if code else 0, received[0], peak)
    if code and code not in _ASKED and count > 1:
        print(f"error: {_obituary(first, count, code)}", file=sys.stderr, flush=True)
    return Ended(code if code >= 0 else 128 - code, peak_memory=peak)


class Rank(subprocess.Popen):
    """A process that tells afterwards what it needed.

    Attributes:
        peak_memory: the most bytes that it held (at least what this process held when it started it), once it has ended; 0
            before, and where the system does not say.
    """

    peak_memory = 0

    def poll(self) -> int | None:
        if self.returncode is None and hasattr(os, "wait4"):
            with suppress(ChildProcessError):
                ended, status, usage = os.wait4(self.pid, os.WNOHANG)
                if ended:
                    self.returncode = os.waitstatus_to_exitcode(status)
                    self.peak_memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return super().poll()


def places(count: int, nodes: int = 1) -> list[dict[str, str]]:
    """What each of ``count`` processes reads of its place; the addresses of several machines are set by hand and kept.

    A single one only learns who started it.
    """
    if nodes * count == 1:
        return [{PARENT: str(os.getpid())}]
    node = int(os.environ.get("NODE_RANK", 0))
    shared = {
        PARENT: str(os.getpid()),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        "WORLD_SIZE": str(nodes * count),
        "NODE_RANK": str(node),
    }
    return [shared | {"LOCAL_RANK": str(i), "RANK": str(node * count + i)} for i in range(count)]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _handed_on(ranks: Sequence[subprocess.Popen], received: list[int]) -> Iterator[None]:
    """Signals go to every process and into ``received``; where this is not the main thread they are not heard.

    Where a scheduler has set a handler of its own (submitit's puts the job back into the queue and ends this process), the
    processes are told to save before it has its turn.
    """

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 2:
            _kill(ranks)
        else:
            _send(ranks, number)

    def save_first(number: int, frame: FrameType | None) -> None:
        _send(ranks, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
            time.sleep(0.05)
        before[number](number, frame)

    heard = threading.current_thread() is threading.main_thread()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (*_STOP, *_OF_A_SCHEDULER) if heard}
    before = {number: old for number, old in before.items() if number in _STOP or callable(old)}
    for number in before:
        signal.signal(number, hand_on if number in _STOP else save_first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence[subprocess.Popen], received: Sequence[int]) -> tuple[int, int]:
    """Waits for all; when one has failed the others are killed a little later.

    Returns:
        Which one failed first and its exit code (-9: killed by signal 9); ``(0, 0)`` if none did.
    """
    first, end = (0, 0), float("inf")
    waiting = True
    while waiting:
        codes = [rank.poll() for rank in ranks]
        failed = next(((i, code) for i, code in enumerate(codes) if code), None)
        if failed and not first[1]:
            first = failed
            _kill_group(ranks[first[0]])  # the workers of its loader
            end = time.monotonic() + (PATIENCE if received or first[1] in _ASKED else GRACE)
        waiting = None in codes
        if time.monotonic() > end:
            _kill(ranks)
        time.sleep(0.05 * waiting)
    return first


def _send(ranks: Sequence[subprocess.Popen], number: int) -> None:
    for rank in ranks:
        rank.send_signal(number)  # nothing where it has ended


def _kill(ranks: Sequence[subprocess.Popen]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            _kill_group(rank)


def _kill_group(rank: subprocess.Popen) -> None:
    """A process and whatever it has started."""
    with suppress(ProcessLookupError):
        os.killpg(rank.pid, signal.SIGKILL)


def _obituary(rank: int, count: int, code: int) -> str:
    """What can be said of a process that ended the run, beside its own words."""
    who = f"process {rank} of {count}"
    if code > 0:
        return f"{who} failed with exit code {code}; its own words stand above. The others were stopped."
    name = signal.Signals(-code).name
    if -code != signal.SIGKILL:
        return f"{who} was ended by {name}. The others were stopped. Fix: PYTHONFAULTHANDLER=1 shows where it was"
    return (
        f"{who} was killed by {name}; it could say nothing. The others were stopped. Mostly memory ran out (dmesg tells)."
        " Fix: smaller data.batch_size, fewer data.num_workers; then resume=auto goes on"
    )


# -- inside of one of them -------------------------------------------------------------------------------------------------


@contextmanager
def rank() -> Iterator[None]:
    """What one of several processes runs in: it ends with whoever started it, and its error is told once.

    That others are gone is no news to a user, who wants to know why: a process that feels it keeps quiet until it is ended,
    and one that fails where all fail lets the first speak.

    Raises:
        UserError: the others are gone and nobody has ended this process; whatever else was raised inside.
    """
    if not launched() and PARENT not in os.environ:
        yield
        return
    _end_with_parent()
    if PARENT in os.environ and threading.current_thread() is threading.main_thread():
        for number in _OF_A_SCHEDULER:  # some clusters send it to all; who started this process tells it to save
            signal.signal(number, signal.SIG_IGN)
    try:
        yield
    except Exception as error:
        if lost_connection(error):
            time.sleep(LOST)
            raise UserError(
                f"the connection to another process was lost: {_first_line(error)}"
                " Fix: look for the error in the output of the other processes or machines"
            ) from error
        if next((os.environ[name] for name in RANKS if name in os.environ), "0") != "0":
            time.sleep(TURN)
        raise


def lost_connection(error: BaseException | None) -> bool:
    """Whether an error only says that another process is gone."""
    while error is not None:
        if isinstance(error, RuntimeError | ConnectionError) and _CONNECTION.search(str(error)):
            return True
        error = error.__cause__
    return False


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:300]


def _end_with_parent() -> None:
    """When the process that started this one is gone: SIGTERM, so that it may save, and half a minute later the end."""
    parent = int(os.environ.get(PARENT, os.getppid()))
    mine = PARENT in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if not mine or os.getppid() != parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LOST)
        os._exit(128 + signal.SIGTERM)  # it hangs, or has lost the others

    threading.Thread(target=watch, name="cvexp-parent", daemon=True).start()
