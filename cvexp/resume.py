"""``resume=``: which run goes on, by which words, and what may differ from before.

``resume=auto`` looks for the newest run below ``paths.runs`` (or in a typed ``hydra.run.dir``) that has the configuration of the
words typed and has not ended; where there is none, a new one begins, so that a requeued job needs no other words than its first
start. ``resume=<folder>`` needs nothing else: the run's own words are repeated, what is typed replaces them. Rules:

* Model, data, optimizer, seed and all else that decides the result must be as before; see `MAY_CHANGE` for what need not.
* Another ``trainer.max_epochs``, ``max_steps`` or budget (``minutes``, ``images``): the schedule is the same curve over the new
  length, and what is done is a smaller (or larger) share of it.
* Another number of processes: the global batches and their order stay; each process draws new random numbers.

Nothing here imports torch before the run is chosen: ``--help`` and refusals answer at once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from cvexp.config import Composer, check_overrides
from cvexp.config.messages import shown
from cvexp.config.sources import CommandLine, is_endless
from cvexp.errors import UserError

EXTENDS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "budget.*", "early_stopping.*")
"""What lets a run that has ended go on."""
MAY_CHANGE = (
    *EXTENDS,
    *("resume", "launcher", "paths.*", "allow_targets*", "logger.*", "metric.*"),
    "callbacks.*",
    *("data.num_workers", "data.eval_batch_size", "data.root", "data.*_root", "data.proposal_cache"),
    "data.proposal_workers",
    *(f"trainer.{name}" for name in ("accelerator", "strategy*", "devices", "num_nodes", "precision", "plugins*")),
    *(f"trainer.{name}" for name in ("min_epochs", "min_steps", "limit_val_batches", "limit_test_batches")),
    *(f"trainer.{name}" for name in ("check_val_every_n_epoch", "val_check_interval", "log_every_n_steps", "enable_*")),
    *(f"trainer.{name}" for name in ("profiler*", "default_root_dir", "detect_anomaly", "benchmark")),
)
"""Keys (patterns as of file names) that may be others when a run goes on."""
MUST_STAY = ("callbacks.ema*", "callbacks.freeze*", "callbacks.best*")
"""Keys among them that must not."""
OF_ONE_RUN = ("wandb_run.txt", "mlflow_run.txt", "alarms.txt")
"""Files of a run that a new one in the same folder must not find."""


@dataclass(frozen=True)
class Change:
    """A key whose value is another than before."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.old, 40)} -> {shown(self.new, 40)}"

    def matches(self, patterns: Sequence[str]) -> bool:
        """Whether the key is among the patterns."""
        return any(fnmatchcase(self.key, pattern) for pattern in patterns)

    @property
    def allowed(self) -> bool:
        return self.matches(MAY_CHANGE) and not self.matches(MUST_STAY)


@dataclass(frozen=True)
class Plan:
    """What the command does.

    Attributes:
        argv: the words after the program's name.
        folder: of the run that goes on; None: a new one begins.
        ended: it has nothing left to do.
        note: for the screen.
    """

    argv: list[str]
    folder: Path | None = None
    ended: bool = False
    note: str = ""


def plan(argv: Sequence[str]) -> Plan:
    """Which run goes on, if any, and the words to compose its configuration by.

    Raises:
        UserError: a sweep, a folder that holds no run, or one that differs in what must stay.
    """
    argv = list(argv)
    line = CommandLine.read(argv, "train", None, ())
    typed = [word for word in line.words if _key(word) != "resume"]
    wanted = next((word.partition("=")[2].strip("'\"") for word in line.words if _key(word) == "resume"), "null")
    if line.passive or wanted in ("null", ""):
        return Plan(argv)
    if line.multirun:
        raise UserError(
            "resume= continues one run, -m starts several. Fix: sweep=resume, or resume=<sweep folder>/<job> without -m"
        )
    flags = list(argv)
    for word in line.words:
        flags.remove(word)
    check_overrides([*flags, *typed])  # a misspelled word is told as ever
    if wanted == "auto":
        return _newest(typed, flags, line)
    folder = run_folder(Path(wanted))
    words = merged(stored_words(folder), typed)
    changes = differences(folder, _composed(words, line))
    refuse(folder, changes)
    return _going_on(folder, Path(wanted), words, flags, changes)


def _newest(typed: list[str], flags: list[str], line: CommandLine) -> Plan:
    """The plan of ``resume=auto``."""
    config = _composed(typed, line)
    own = next((word.partition("=")[2].strip("'\"") for word in typed if _key(word) == "hydra.run.dir"), None)
    note = ""
    for folder in [Path(own)] if own else run_folders(Path(config.paths.runs)):
        if not last_checkpoint(folder).is_file() or not (folder / "config.yaml").is_file():
            continue
        changes = differences(folder, config)
        blocking = [change for change in changes if not change.allowed]
        if blocking:
            note = note or f" ({folder} differs: {blocking[0]})"
        elif first_process() and locked(folder):
            note = note or f" ({folder} is still going on)"
        else:
            return _going_on(folder, folder, merged(stored_words(folder), typed), flags, changes)
    note = f"resume=auto: there is no run of this configuration to go on with{note}; a new one begins"
    return Plan([*flags, *typed], note=note)


def _going_on(folder: Path, wanted: Path, words: list[str], flags: list[str], changes: list[Change]) -> Plan:
    checkpoint = wanted if wanted.suffix == ".ckpt" else last_checkpoint(folder)
    if not checkpoint.is_file():
        raise UserError(f"resume={wanted}: there is no {checkpoint}. Fix: start it again; it had saved nothing yet")
    extended = any(change.matches(EXTENDS) for change in changes)
    if (folder / "result.json").exists() and not extended and wanted.suffix != ".ckpt":
        note = f"{folder} has ended. To train on: a larger trainer.max_epochs (or budget.minutes, budget.images) beside resume="
        return Plan([], folder, ended=True, note=note)
    words = [word for word in words if _key(word) != "hydra.run.dir"]
    places = [f"resume={_quoted(checkpoint.absolute())}", f"hydra.run.dir={_quoted(folder.absolute())}"]
    told = "; ".join(str(change) for change in changes if not change.matches(("resume", "paths.*")))
    return Plan([*flags, *words, *places], folder, note=f"going on with {folder}" + (told and f"; changed: {told}"))


def run_folder(wanted: Path) -> Path:
    """The folder of a run, given it or one of its checkpoints.

    Raises:
        UserError: there is no run.
    """
    folder = wanted.parent.parent if wanted.suffix == ".ckpt" else wanted
    if not (folder / "config.yaml").is_file():
        near = [str(run) for run in run_folders(folder)[:3]]
        fix = f"one of its runs: {', '.join(near)}" if near else "the folder that cvexp.train printed, or resume=auto"
        what = "no such file or folder" if not wanted.exists() else f"not a run: {folder} has no config.yaml"
        raise UserError(f"resume={wanted}: {what}. Fix: {fix}")
    return folder


def run_folders(runs: Path) -> list[Path]:
    """Folders below ``runs`` with a checkpoint to go on from, the newest first."""
    found = [path for depth in ("*", "*/*", "*/*/*") for path in runs.glob(f"{depth}/checkpoints/last.ckpt")]
    return [path.parent.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def last_checkpoint(folder: Path) -> Path:
    """Where `cvexp.callbacks.last.Last` writes."""
    return folder / "checkpoints" / "last.ckpt"


def decides(word: str) -> bool:
    """Whether a word of the command line makes another result, or another length of it."""
    change = Change(_key(word), None, None)
    return not change.allowed or change.matches(EXTENDS)


def stored_words(folder: Path) -> list[str]:
    """The overrides that a run was last started or resumed by, without those of Hydra itself."""
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        words = [content, *content.get("resumed", [])][-1]["overrides"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        words = _words_of_hydra(folder / ".hydra" / "overrides.yaml")
    words = [w for w in words if isinstance(w, str) and not w.startswith("-")] if isinstance(words, list) else []
    unkept = ("resume", "allow_targets")  # the latter is typed anew: a folder may be somebody else's
    return [word for word in words if _key(word) not in unkept and not _key(word).startswith("hydra")]


def _words_of_hydra(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return []


def merged(stored: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The stored words with those typed in their place.

    Example: ``["model=yolo", "seed=1"]`` and ``["seed=2"]``: ``["model=yolo", "seed=2"]``.
    """
    keys = {_key(word) for word in typed}
    return [word for word in stored if _key(word) not in keys] + list(typed)


def differences(folder: Path, config: DictConfig) -> list[Change]:
    """What a composed configuration has otherwise than the run's ``config.yaml``.

    Raises:
        UserError: that file cannot be read.
    """
    path = folder / "config.yaml"
    try:
        if is_endless(path):
            raise ValueError("its references multiply")
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(old, dict)
    except (OSError, ValueError, yaml.YAMLError, AssertionError, RecursionError) as error:
        reason = (str(error).splitlines() or ["no mapping"])[0]
        raise UserError(f"{path}: cannot be read ({reason}). Fix: begin anew with init_from=<checkpoint>") from None
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    config.paths.output = old.get("paths", {}).get("output")
    config.resume = old.get("resume")
    new = yaml.safe_load(OmegaConf.to_yaml(config, resolve=True))
    before, after = _flat(old), _flat(new)
    keys = dict.fromkeys([*before, *after])
    return [Change(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def refuse(folder: Path, changes: Sequence[Change]) -> None:
    """Stops where something differs that must not.

    Raises:
        UserError: which keys, before and now.
    """
    blocking = [str(change) for change in changes if not change.allowed]
    if blocking:
        raise UserError(
            f"resume={folder}: {len(blocking)} key(s) differ from how the run began: {'; '.join(blocking[:6])}. Fix: leave"
            " them as they were, or begin anew from its weights: init_from=" + str(last_checkpoint(folder))
        )


def check_resumed(config: DictConfig) -> list[Change]:
    """What differs in a run that goes on (``resume`` is its checkpoint by now); all of it may.

    Raises:
        UserError: no such checkpoint, nothing that could go on from it, or a difference that must not be.
    """
    checkpoint = Path(str(config.resume))
    if not checkpoint.is_file():
        raise UserError(
            f"resume={checkpoint}: no such checkpoint. Fix: on the command line resume=auto or a run's folder; from Python its"
            " checkpoints/last.ckpt"
        )
    if not config.callbacks.get("last") or not config.trainer.enable_checkpointing or config.trainer.fast_dev_run:
        raise UserError(
            f"resume={checkpoint}: nothing can go on without callbacks.last, trainer.enable_checkpointing and with"
            " fast_dev_run. Fix: leave them as they were"
        )
    folder = checkpoint.parent.parent
    changes = differences(folder, config)
    refuse(folder, changes)
    return [change for change in changes if change.key != "resume" and not change.key.startswith("paths.")]


def make_way(folder: Path, resumed: bool) -> None:
    """Readies the folder of a run: what an earlier end left is set aside, or a new run finds nothing of an old one.

    Raises:
        UserError: a new run would overwrite another.
    """
    if not first_process():
        return
    result = folder / "result.json"
    for part in (folder / "checkpoints").glob(".*.part"):  # a kill while saving
        part.unlink()
    if resumed:
        if result.exists():
            steps = json.loads(result.read_text(encoding="utf-8")).get("train/steps", 0)
            result.replace(folder / f"result_at_{steps}.json")
        return
    if last_checkpoint(folder).exists():
        raise UserError(
            f"{folder} holds a run already, which would be overwritten. Fix: resume={folder} to go on with it, another"
            " hydra.run.dir, or remove it"
        )
    for path in [*(folder / name for name in OF_ONE_RUN), *(folder / "stages").glob("*.pt")]:
        path.unlink(missing_ok=True)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the run of a folder, so that no second process writes there; the system lets go of it even after a kill.

    Raises:
        UserError: another process holds it.
    """
    if not first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a+", encoding="utf-8") as stream:
        if not _lock(stream):
            raise UserError(
                f"{folder}: another process trains there ({_holder(path)}). Fix: wait for its end, or stop it"
            )
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def locked(folder: Path) -> bool:
    """Whether another process holds the run of a folder."""
    try:
        with (folder / ".lock").open("r+", encoding="utf-8") as stream:
            return not _lock(stream)
    except FileNotFoundError:
        return False


def _lock(stream: IO[str]) -> bool:
    """A lock that is not inherited by loader processes, which outlive a killed parent for seconds."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() or "its number is not known"


def first_process() -> bool:
    """Whether this is the first process of a run, known before there is any connection between them."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _composed(words: Sequence[str], line: CommandLine) -> DictConfig:
    words = [word for word in words if _key(word) != "resume"]
    return Composer(line.config_name, line.conf, line.extra_dirs).compose(words)


def _key(word: str) -> str:
    """``model.size`` of ``++model.size=tiny``; ``model/backbone`` of ``~model/backbone``."""
    return word.partition("=")[0].lstrip("+~").strip()


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; lists are leaves, and so are empty mappings."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found
