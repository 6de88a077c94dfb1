"""``sweep=``: which sweep goes on, and by which words.

``sweep=resume`` goes on with the newest sweep of the words typed, or, where none are typed that say which jobs there are, with
the newest that is not done; ``sweep=<folder>`` with that one, whose own words are repeated and may be replaced: more values
(``seed=1,2,3,4,5``) are more jobs. What has ended is not repeated, whatever is typed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvexp.config.sources import CommandLine
from cvexp.errors import UserError
from cvexp.launch import quoted
from cvexp.resume import decides, first_process, merged
from cvexp.sweeps.ledger import ENDED, FILE, Ledger, identity

FOLDER = "sweeps"
"""Below ``paths.runs``, where sweeps lie."""
_KEPT = re.compile(r"hydra(/(sweeper|launcher)=[\w./-]+|\.sweeper\.[a-z_]+=[\w.,\[\]+-]*)")
"""Words of Hydra's that are repeated without being typed. A folder may be somebody else's: nothing here can name code to run."""


@dataclass(frozen=True)
class SweepPlan:
    """What the command does.

    Attributes:
        argv: the words after the program's name.
        note: for the screen.
    """

    argv: list[str]
    note: str = ""


def plan(argv: Sequence[str]) -> SweepPlan:
    """The words of a sweep that goes on; all others stay as they are.

    Raises:
        UserError: no such sweep, or a new one in the folder of another.
    """
    line = CommandLine.read(argv, "train", None, ())
    wanted = next((_value(word) for word in line.words if _key(word) == "sweep"), "null")
    typed = [word for word in line.words if _key(word) != "sweep"]
    flags = [word for word in _without(argv, line.words) if word not in ("-m", "--multirun")]
    if line.passive or not first_process():
        return SweepPlan(list(argv))
    if wanted in ("null", ""):
        _refuse_overwriting(typed, line)
        return SweepPlan(list(argv))
    if wanted != "resume":
        return _going_on(_sweep_folder(Path(wanted)), typed, flags)
    folder = _newest(typed)
    if folder is not None:
        return _going_on(folder, typed, flags)
    if not line.multirun or not _deciding(typed):
        what = "no sweep of these words" if _deciding(typed) else "no sweep that is not done"
        raise UserError(
            f"sweep=resume: below {_runs(typed) / FOLDER} there is {what}. Fix: sweep=<its folder>; or -m and the words of a"
            " new one"
        )
    return SweepPlan(
        ["-m", *flags, *typed], "sweep=resume: there is no sweep of these words to go on with; a new one begins"
    )


def _going_on(folder: Path, typed: Sequence[str], flags: Sequence[str]) -> SweepPlan:
    ledger = Ledger.existing(folder)
    stored = [word for word in ledger.about().get("words", []) if isinstance(word, str)]
    repeated = [word for word in stored if not _is_hydras(word) or _KEPT.fullmatch(word)]
    left = [word for word in stored if word not in repeated and _key(word) not in ("hydra.sweep.dir", "hydra.mode")]
    left = [word for word in left if _key(word) not in map(_key, typed)]
    words = [
        word for word in merged(repeated, typed) if _key(word) not in ("hydra.sweep.dir", "sweep", "allow_targets")
    ]
    words += [word for word in typed if _key(word) == "allow_targets"]
    jobs = ledger.jobs()
    done = sum(job.has_ended for job in jobs)
    note = f"going on with {folder}: {done} of {len(jobs)} jobs have ended"
    if left:
        note += f"; not repeated unless they are typed: {' '.join(left)}"
    return SweepPlan(["-m", *flags, *words, f"hydra.sweep.dir={quoted(str(folder.absolute()))}"], note)


def _newest(typed: Sequence[str]) -> Path | None:
    """The newest sweep of these words; without words the newest with a job that has not ended."""
    own = next((_value(word) for word in typed if _key(word) == "hydra.sweep.dir"), None)
    wanted = _deciding(typed)
    for folder in [Path(own)] if own else sweep_folders(_runs(typed)):
        if not (folder / FILE).is_file():
            continue
        ledger = Ledger.existing(folder)
        if own or (
            identity(_deciding(ledger.about().get("words", []))) == identity(wanted) if wanted else _open(ledger)
        ):
            return folder
    return None


def _open(ledger: Ledger) -> bool:
    """Whether there is anything left to do: a job that has not ended, or trials of a search that were not asked for yet."""
    jobs, wanted = ledger.jobs(), ledger.about().get("n_trials")
    return any(job.state not in ENDED for job in jobs) or (isinstance(wanted, int) and len(jobs) < wanted)


def sweep_folders(runs: Path) -> list[Path]:
    """Folders below ``runs`` that hold a ledger, the newest first."""
    found = [path for depth in (FOLDER + "/*", "*", "*/*") for path in runs.glob(f"{depth}/{FILE}")]
    unique = dict.fromkeys(sorted(found, key=lambda path: path.stat().st_mtime, reverse=True))
    return [path.parent for path in unique]


def _sweep_folder(wanted: Path) -> Path:
    if (wanted / FILE).is_file():
        return wanted
    if (wanted.parent / FILE).is_file():
        raise UserError(f"sweep={wanted}: this is one job of a sweep. Fix: sweep={wanted.parent}, or resume={wanted}")
    what = "no such folder" if not wanted.exists() else f"no sweep: there is no {FILE} in it"
    raise UserError(f"sweep={wanted}: {what}. Fix: the folder that cvexp.train -m has printed, or sweep=resume")


def _refuse_overwriting(typed: Sequence[str], line: CommandLine) -> None:
    own = next((_value(word) for word in typed if _key(word) == "hydra.sweep.dir"), None)
    if own and line.multirun and (Path(own) / FILE).is_file():
        raise UserError(
            f"hydra.sweep.dir={own}: holds a sweep already. Fix: sweep={own} to go on with it, another folder, or remove it"
        )


def _deciding(words: Sequence[Any]) -> list[str]:
    """Those that say which jobs there are; ``data.num_workers=4`` or ``launcher=joblib`` do not."""
    return [word for word in words if isinstance(word, str) and not _is_hydras(word) and decides(word)]


def _runs(typed: Sequence[str]) -> Path:
    return Path(next((_value(word) for word in typed if _key(word) == "paths.runs"), "runs"))


def _is_hydras(word: str) -> bool:
    return _key(word).startswith("hydra")


def _without(argv: Sequence[str], words: Sequence[str]) -> list[str]:
    flags = list(argv)
    for word in words:
        flags.remove(word)
    return flags


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~").strip()


def _value(word: str) -> str:
    return word.partition("=")[2].strip("'\"")
