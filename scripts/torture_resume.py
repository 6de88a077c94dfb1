"""Kills runs at random moments and tells how many went on as if nothing had happened.

``python scripts/torture_resume.py --models yolo faster_rcnn_fpn facenet --count 20 --output torture.json``

Of each model a tiny run is trained once without interruption. Then, ``--count`` times, the same command is started in a folder
of its own, its whole process group is killed at a random moment between the start of its training and the end of its test,
and the command is typed again (it holds ``resume=auto``), in one of three cases to be killed again, until it ends by itself.
What it leaves must equal the uninterrupted run's: ``last.ckpt`` bit for bit (clock times and the folder's name apart), the
weights of ``best.ckpt``, every row of ``metrics.csv``, and all scores. The moments follow from ``--seed``; what the run was
doing then, it says itself, in ``doing.txt``.

With ``--output`` finished cases are kept in a JSON file: the same command goes on where it was stopped. Folders of equal cases
are removed, those of others stay for a look. Exit code: 0 if all are equal, 1 if not, 2 for bad input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cvexp.config import Composer, register_resolvers, report_errors
from cvexp.errors import UserError
from cvexp.manifest.record import position
from cvexp.results import write_text

COMMON = (
    "model.size=tiny",
    "scheduler=warmup_cosine",
    "callbacks.ema.decay=0.9",
    "callbacks.pictures=null",
    "callbacks.last.steps=3",
    "budget.minutes=null",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "logger=csv",
    *(f"data.augment.{name}=0.2" for name in ("jitter", "brightness", "contrast", "saturation")),
)
KINDS = {
    "detection": (
        *("data=shapes", "data.train_size=100", "data.val_size=24", "data.test_size=24", "data.batch_size=4"),
        "callbacks.report=null",
    ),
    "embedding": (
        *("data=drawn_faces", "data.train_identities=16", "data.val_identities=8", "data.test_identities=8"),
        *("data.train_images=16", "data.val_images=6", "data.test_images=6", "data.batch_size=16", "data.pairs=40"),
        *("model/miner=random_negative", "metric.resamples=50"),
    ),
}
"""Words of the runs; a miner that draws its negatives needs the process's random numbers after a resume."""
DROPOUTS = ("model.dropout", "model.head.dropout")
CLOCK = re.compile(
    r"(^|[/_])(time|elapsed|seconds|images_per_second|seconds_per_image|memory_bytes|gpu_memory_bytes)([/_]|$)"
)
"""Names of measured times: columns, scores, and keys of the callbacks' state."""
AGAIN = 1 / 3
"""Share of the resumes that are killed, too."""
MOST_KILLS = 4
DRAWS = 5
"""So often is a moment drawn anew where the run has ended before it."""


# -- what a run is doing -----------------------------------------------------------------------------------------------


class Doing(Callback):
    """Keeps ``doing.txt``: what the first process does now. It changes nothing that is computed.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "doing.txt"

    def _say(self, trainer: Trainer, what: str) -> None:
        if trainer.is_global_zero:
            part = self.path.with_name(f".{self.path.name}.part")
            part.write_text(f"{what}, step {trainer.global_step}")
            part.replace(self.path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say(trainer, "begins to train")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._say(trainer, f"trains epoch {trainer.current_epoch} batch {batch_idx}")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._say(trainer, f"validates epoch {trainer.current_epoch} batch {batch_idx}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say(trainer, f"ends the validation of epoch {trainer.current_epoch}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._say(trainer, "saves")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say(trainer, "ends the training")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._say(trainer, f"tests batch {batch_idx}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say(trainer, "has tested")


def doing(folder: Path) -> str:
    """What the run in a folder did last, as far as is known."""
    if (folder / "result.json").exists():
        return "has written its results"
    path = folder / "doing.txt"
    said = path.read_text() if path.exists() else "starts"
    half = sorted(part.name.strip(".").removesuffix(".part") for part in folder.glob("checkpoints/.*.part"))
    return f"{said}, {' and '.join(half)} half written" if half else said


# -- starting and killing ----------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a process group ended.

    Attributes:
        code: exit code of its first process, negative for a signal.
        began: seconds until the run began to train, or to test where only that was left; None if it never did.
        seconds: from then until its results were written or it ended; without a beginning, of the whole.
        killed: whether it was by us.
        doing: at that moment.
        hung: it did not end within the limit, or not after a signal to end.
    """

    code: int
    began: float | None
    seconds: float
    killed: bool = False
    doing: str = ""
    hung: bool = False


@dataclass
class Killer:
    """Starts commands, each in a process group of its own, and ends them.

    Args:
        number: signal that is sent.
        limit: seconds that a process may take in all.
        patience: seconds between a signal and the end.
    """

    number: signal.Signals = signal.SIGKILL
    limit: float = 600.0
    patience: float = 60.0

    def run(self, command: Sequence[str], folder: Path, after: float | None = None) -> Ended:
        """Runs a command to its end, or until ``after`` seconds after its beginning; its words go to ``<folder>.log``.

        What has written its results is not killed any more: nothing is left that could go wrong.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        before = _written(folder)
        start = time.monotonic()
        with Path(f"{folder}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment()
            )
            try:
                return self._watch(process, folder, before, start, after)
            finally:
                _signal(process, signal.SIGKILL)  # also what the first process has left behind
                process.wait()

    def _watch(
        self, process: subprocess.Popen[bytes], folder: Path, before: int, start: float, after: float | None
    ) -> Ended:
        began = wrote = None
        while (code := process.poll()) is None:
            now = time.monotonic()
            if wrote is None and (folder / "result.json").exists():
                wrote = now
            if began is None and _written(folder) != before:
                began = now
            if now - start > self.limit:
                _signal(process, signal.SIGKILL)
                return Ended(
                    process.wait(), _since(start, began), now - (began or start), hung=True, doing=doing(folder)
                )
            if after is not None and began is not None and wrote is None and now - began >= after:
                return self._kill(process, folder, start, began)
            time.sleep(0.005)
        return Ended(code, _since(start, began), (wrote or time.monotonic()) - (began or start))

    def _kill(self, process: subprocess.Popen[bytes], folder: Path, start: float, began: float) -> Ended:
        what, now, hung = doing(folder), time.monotonic(), False
        _signal(process, self.number)
        try:
            code = process.wait(self.patience)
        except subprocess.TimeoutExpired:
            hung = True
            _signal(process, signal.SIGKILL)
            code = process.wait()
        # Without a half-written file before the kill there may be one after it.
        what = doing(folder) if self.number == signal.SIGKILL else what
        return Ended(code, began - start, now - began, killed=True, doing=what, hung=hung)


def _since(start: float, moment: float | None) -> float | None:
    return None if moment is None else moment - start


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the whole group, which may outlive its first process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _written(folder: Path) -> int:
    """When the run last said what it does, in nanoseconds; 0 if never. It begins to when training (or the test) begins."""
    try:
        return (folder / "doing.txt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def environment() -> dict[str, str]:
    """Of the runs: one thread each, W&B silent, this script importable for `Doing`."""
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    return {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


# -- comparing ---------------------------------------------------------------------------------------------------------


class Unreadable:
    """Stands for a file that is missing or broken; differs from everything, itself included."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __str__(self) -> str:
        return f"unreadable ({type(self.error).__name__})"


def compare(first: Path, second: Path) -> list[str]:
    """Where two runs' folders differ, besides clock times and their own names; empty if they are equal bit for bit."""
    found: list[str] = []
    for name, only in (("last.ckpt", None), ("best.ckpt", ("state_dict", "current_model_state"))):
        found += unequal(_checkpoint(first, name, only), _checkpoint(second, name, only), name)
    found += unequal(_rows(first), _rows(second), "metrics.csv")
    found += unequal(_scores(first), _scores(second), "result.json")
    return found


def _checkpoint(folder: Path, name: str, only: Sequence[str] | None) -> Any:
    """A checkpoint, or some of its entries; the configuration in it names folders and is left out."""
    try:
        content = torch.load(folder / "checkpoints" / name, map_location="cpu", weights_only=True)
        about = {key: value for key, value in content["cvexp"].items() if key != "config"}
    except Exception as error:  # whatever is wrong with the file is a finding, not an end
        return Unreadable(error)
    content = content | {"cvexp": about}
    kept = content if only is None else {key: content[key] for key in only if key in content}
    return _elsewhere(kept, str(folder))


def _elsewhere(value: Any, folder: str) -> Any:
    """``value`` with the folder's name replaced, as if all runs had the same."""
    if isinstance(value, dict):
        return {_elsewhere(key, folder): _elsewhere(inner, folder) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_elsewhere(inner, folder) for inner in value]
    return value.replace(folder, "<run>") if isinstance(value, str) else value


def _rows(folder: Path) -> list[dict[str, str]] | Unreadable:
    """The filled fields of each row of ``metrics.csv``."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(stream)]
    except (OSError, ValueError, csv.Error) as error:
        return Unreadable(error)
    return rows or Unreadable(EOFError())


def _scores(folder: Path) -> Any:
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Unreadable(error)


def unequal(a: Any, b: Any, path: str) -> Iterator[str]:
    """Where two nested values differ: in structure, kind or a single bit. Names that match `CLOCK` are passed over."""
    if isinstance(a, dict) and isinstance(b, dict):
        yield from _unequal_dicts(a, b, path)
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield f"{path}: {len(a)} and {len(b)} entries"
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from unequal(x, y, f"{path}/{index}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        yield from _unequal_tensors(a, b, path)
    elif isinstance(a, Unreadable) or isinstance(b, Unreadable):
        yield f"{path}: {a if isinstance(a, Unreadable) else 'whole'} and {b if isinstance(b, Unreadable) else 'whole'}"
    elif type(a) is not type(b) or repr(a) != repr(b):  # repr tells floats apart to the last bit, NaN equals itself
        yield f"{path}: {_short(a)} and {_short(b)}"


def _unequal_dicts(a: dict[Any, Any], b: dict[Any, Any], path: str) -> Iterator[str]:
    for key in dict.fromkeys([*a, *b]):
        if CLOCK.search(str(key)):
            continue
        if key not in a or key not in b:
            yield f"{path}/{key}: only in the {'first' if key in a else 'second'}"
        else:
            yield from unequal(a[key], b[key], f"{path}/{key}")


def _unequal_tensors(a: torch.Tensor, b: torch.Tensor, path: str) -> Iterator[str]:
    if a.dtype != b.dtype or a.shape != b.shape:
        yield f"{path}: {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        return
    first, second = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    if not torch.equal(first, second):
        apart = (a.double() - b.double()).abs()
        yield f"{path}: {int((apart > 0).sum())} of {a.numel()} numbers, by up to {float(apart.max()):.3g}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- a case ------------------------------------------------------------------------------------------------------------


@dataclass
class Kill:
    """One end by our signal.

    Attributes:
        second: since training began, or began again.
        doing: at that moment.
        code: exit code.
        step: that the checkpoint then lets the run go on from; None: there is none, it begins anew.
    """

    second: float
    doing: str
    code: int
    step: int | None


@dataclass
class Case:
    """One run that was killed, once or more, and went on to its end."""

    model: str
    number: int
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        return bool(self.kills) and not self.differences


@dataclass
class Torture:
    """Everything that decides the cases.

    Args:
        folder: for the runs.
        workers, processes: of each run.
        seed: of the moments.
        killer: starts and ends them.
    """

    folder: Path
    workers: int
    processes: int
    seed: int
    killer: Killer

    def command(self, model: str, folder: Path) -> list[str]:
        """The words of a run; the same for its start and for each resume."""
        strategy = ["trainer.strategy=ddp"] if self.processes > 1 else []
        return [
            *(sys.executable, "-m", "cvexp.train", *words_of(model), *strategy),
            *(f"data.num_workers={self.workers}", f"trainer.devices={self.processes}"),
            *("allow_targets=[torture_resume]", "resume=auto", f"hydra.run.dir={_quoted(folder)}"),
            "+callbacks.progress_doing={_target_:torture_resume.Doing,folder:${paths.output}}",
        ]

    def reference(self, model: str) -> tuple[Path, float]:
        """The folder of the uninterrupted run and its seconds of work; an earlier one is used again.

        Raises:
            UserError: it fails.
        """
        folder, known = self.folder / model / "uninterrupted", self.folder / model / "uninterrupted.json"
        if known.exists():
            return folder, float(json.loads(known.read_text())["seconds"])
        shutil.rmtree(folder, ignore_errors=True)
        ended = self.killer.run(self.command(model, folder), folder)
        if ended.code or ended.hung or ended.began is None:
            raise UserError(
                f"--models {model}: the uninterrupted run {'hangs' if ended.hung else f'ends with {ended.code}'}:"
                f" {last_words(folder)}. Fix: see {folder}.log"
            )
        write_text(known, json.dumps({"seconds": ended.seconds}))
        return folder, ended.seconds

    def case(self, model: str, number: int) -> Case:
        """Starts, kills, resumes, compares."""
        whole, seconds = self.reference(model)
        case, start = Case(model, number), time.monotonic()
        rng = random.Random(f"{self.seed}/{model}/{number}")
        folder = self.folder / model / f"case_{number:03d}"
        command = self.command(model, folder)
        for _ in range(DRAWS):
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.log").unlink(missing_ok=True)
            ended = self.killer.run(command, folder, rng.uniform(0, seconds))
            if ended.killed or ended.code or ended.hung:
                break
        while ended.killed:
            step = position(folder / "checkpoints" / "last.ckpt")["step"]
            case.kills.append(Kill(ended.seconds, ended.doing, ended.code, step))
            if ended.hung:
                break
            again = rng.random() < AGAIN and len(case.kills) < MOST_KILLS
            left = max(seconds - ended.seconds, seconds / 4)
            ended = self.killer.run(command, folder, rng.uniform(0, left) if again else None)
        case.differences = self._judge(whole, folder, ended, case.kills)
        case.seconds = time.monotonic() - start
        return case

    def _judge(self, whole: Path, folder: Path, ended: Ended, kills: Sequence[Kill]) -> list[str]:
        if ended.hung:
            how = f"does not heed {self.killer.number.name}" if ended.killed else "hangs"
            return [f"{how} while it {ended.doing}"]
        if ended.code:
            return [f"ends with {ended.code}: {last_words(folder)}"]
        if not kills:
            return ["was never killed: it always ended before the moment drawn"]
        return [*self._wrong_codes(kills), *compare(whole, folder)]

    def _wrong_codes(self, kills: Sequence[Kill]) -> list[str]:
        """SIGTERM must end a run with 143; before it listens with the signal itself, after its end with 0."""
        right = (
            {-self.killer.number} if self.killer.number == signal.SIGKILL else {128 + signal.SIGTERM, -signal.SIGTERM}
        )
        ended = ("has tested", "has written its results")
        wrong = [
            kill for kill in kills if kill.code not in right and not (kill.code == 0 and kill.doing.startswith(ended))
        ]
        return [f"ended with {kill.code} by {self.killer.number.name} while it {kill.doing}" for kill in wrong]


def words_of(model: str) -> list[str]:
    """A tiny run of a model on drawn data, with dropout where it has some.

    Raises:
        UserError: there is no such model.
    """
    register_resolvers()
    composer = Composer()
    task = composer.defaults([f"model={model}"]).overrides.known_choices["task"]
    words = [f"model={model}", *KINDS["embedding" if task == "embedding" else "detection"], *COMMON]
    config = composer.compose(words)
    return words + [f"{key}=0.2" for key in DROPOUTS if OmegaConf.select(config, key) is not None]


def _quoted(folder: Path) -> str:
    """A path as Hydra reads it on the command line."""
    return "'" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"


def last_words(folder: Path) -> str:
    """The last line of what a run has printed."""
    try:
        lines = Path(f"{folder}.log").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return "(nothing)"
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "(nothing)")


# -- the whole ---------------------------------------------------------------------------------------------------------


class Record:
    """Finished cases, in a file that is written after each of them.

    Args:
        path: None keeps them in memory.
        settings: under which they are made.

    Raises:
        UserError: the file is something else, or of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings, self.cases = path, settings, list[Case]()
        if path is None or not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before = content["settings"]
            self.cases = [_case(**case) for case in content["cases"]]
        except (ValueError, LookupError, TypeError, OSError) as error:
            raise UserError(f"--output {path}: no record of torture_resume ({error!r}). Fix: another file") from None
        if before != settings:
            raise UserError(
                f"--output {path}: made with {before}, now {settings}. Fix: the same options, or another file"
            )

    def done(self, model: str, number: int) -> bool:
        return any((case.model, case.number) == (model, number) for case in self.cases)

    def add(self, case: Case) -> None:
        self.cases.append(case)
        if self.path is not None:
            cases = [asdict(case) | {"equal": case.equal} for case in self.cases]
            write_text(self.path, json.dumps({"settings": self.settings, "cases": cases}, indent=1) + "\n")


def _case(kills: list[dict[str, Any]], equal: bool, **values: Any) -> Case:
    return Case(kills=[Kill(**kill) for kill in kills], **values)


def table(cases: Sequence[Case]) -> Table:
    """A row for each case."""
    made = Table(title="killed and resumed", caption="seconds since training began, or began again")
    for name in ("model", "case", "killed at", "while it", "resumed from", "outcome"):
        made.add_column(name, overflow="fold")
    for case in sorted(cases, key=lambda case: (case.model, case.number)):
        more = f" (and {len(case.differences) - 3} more)" if len(case.differences) > 3 else ""
        outcome = "equal" if case.equal else "; ".join(case.differences[:3]) + more
        made.add_row(
            case.model,
            str(case.number),
            "\n".join(f"{kill.second:.2f} s" for kill in case.kills),
            "\n".join(kill.doing for kill in case.kills),
            "\n".join("the beginning" if kill.step is None else f"step {kill.step}" for kill in case.kills),
            outcome,
            style=None if case.equal else "red",
        )
    return made


def totals(cases: Sequence[Case]) -> list[str]:
    """``yolo: 20 of 20 equal``."""
    lines = []
    for model in dict.fromkeys(case.model for case in cases):
        own = [case for case in cases if case.model == model]
        twice = sum(len(case.kills) > 1 for case in own)
        lines.append(f"{model}: {sum(case.equal for case in own)} of {len(own)} equal ({twice} killed more than once)")
    return lines


def torture(tools: Torture, models: Sequence[str], count: int, record: Record, keep: bool, console: Console) -> bool:
    """Makes all cases that the record lacks; shows how far it is.

    Returns:
        Whether all of them are equal.
    """
    wanted = [(model, number) for number in range(count) for model in models]
    bar = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*bar, console=console) as progress:
            task = progress.add_task("", total=len(wanted))
            for model, number in wanted:
                progress.update(task, description=f"{model} {number}")
                if not record.done(model, number):
                    case = tools.case(model, number)
                    record.add(case)
                    if case.equal and not keep:
                        shutil.rmtree(tools.folder / model / f"case_{number:03d}")
                        (tools.folder / model / f"case_{number:03d}.log").unlink()
                progress.advance(task)
    finally:
        shown = [case for case in record.cases if (case.model, case.number) in wanted]
        console.print(table(shown))
        for line in totals(shown):
            console.print(line, highlight=False)
    return all(case.equal for case in shown)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["yolo", "faster_rcnn_fpn", "facenet"], help="of conf/model")
    parser.add_argument("--count", type=int, default=20, help="cases of each model")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of a run")
    parser.add_argument("--processes", type=int, default=1, help="of a run, over gloo")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--output", type=Path, help="JSON file of the cases; runs lie in a folder beside it")
    parser.add_argument("--keep", action="store_true", help="keep the folders of equal cases too")
    options = parser.parse_args(arguments)
    for name, least in (("count", 1), ("workers", 0), ("processes", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: at least {least}. Fix: --{name} {least}")
    return options


def torture_resume(arguments: Sequence[str]) -> int:
    """The command with these words.

    Returns:
        Its exit code.

    Raises:
        UserError: an option, a model or the output cannot be used.
    """
    options = parsed(arguments)
    models = list(dict.fromkeys(options.models))
    for model in models:
        words_of(model)
    settings = {name: getattr(options, name) for name in ("seed", "workers", "processes", "signal")}
    record = Record(options.output, settings)
    folder = Path(tempfile.mkdtemp(prefix="torture_")) if options.output is None else _beside(options.output)
    tools = Torture(
        folder, options.workers, options.processes, options.seed, Killer(signal.Signals[f"SIG{options.signal}"])
    )
    console = Console()
    try:
        good = torture(tools, models, options.count, record, options.keep, console)
    except KeyboardInterrupt:
        again = "the same command goes on" if options.output else "with --output a second command could have gone on"
        console.print(f"interrupted; {again}")
        if options.output is None and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        return 130
    if good and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        console.print(f"runs: {folder}", highlight=False, soft_wrap=True)
    return 0 if good else 1


def _beside(output: Path) -> Path:
    return output.absolute().with_name(f"{output.stem}_runs")


@report_errors
def main() -> None:
    """The command."""
    sys.exit(torture_resume(sys.argv[1:]))


if __name__ == "__main__":
    main()
