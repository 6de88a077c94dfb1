"""How a job of a sweep ended: a result, or one of the ends that are no result of training, told by the one who felt it.

The process of a job writes ``outcome.json`` into its folder when it cannot go on; the process that looks after it reads that,
the exit code, and whether the system has killed somebody for want of memory meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvexp.errors import NotFiniteError, Pruned, UserError
from cvexp.launch import lost_connection
from cvexp.sweeps.ledger import FAILED, FINISHED, INTERRUPTED, NOT_FINITE, OUT_OF_MEMORY, PRUNED

JOB = "CVEXP_JOB"
"""Environment variable of a job's processes: its folder."""
FILE = "outcome.json"
LONGEST = 2000
"""Characters of a message that are kept."""
_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|bad_alloc", re.I)
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: of `cvexp.sweeps.ledger`.
        message: why, where it is not finished.
        value: that a pruned job had reached.
        result: what its ``result.json`` says.
        at: when that was written, seconds since 1970.
    """

    state: str
    message: str = ""
    value: float | None = None
    result: dict[str, Any] | None = None
    at: float | None = None


# -- in the process of the job ---------------------------------------------------------------------------------------------


@contextmanager
def told() -> Iterator[None]:
    """What a job runs in: an error that ends it is written down, and goes on its way. The first process that fails speaks."""
    try:
        yield
    except Exception as error:
        if JOB in os.environ and not lost_connection(error):
            write(Path(os.environ[JOB]), *classified(error))
        raise


def classified(error: BaseException) -> tuple[str, str, float | None]:
    """State, message and value of an error: which of the ends it is, or was caused by."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        if isinstance(link, Pruned):
            return PRUNED, str(link), link.value
        if isinstance(link, NotFiniteError):
            return NOT_FINITE, str(link), None
        if isinstance(link, MemoryError) or (isinstance(link, RuntimeError) and _MEMORY.search(str(link))):
            return OUT_OF_MEMORY, _named(link), None
    own = next((link for link in chain if isinstance(link, UserError)), None)
    return FAILED, str(own) if own else _named(error), None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).splitlines()[:4])}".removesuffix(": ")


def write(folder: Path, state: str, message: str, value: float | None = None) -> None:
    """``outcome.json``, whole or not at all; what another process of the job has written stays."""
    path = Path(folder) / FILE
    if path.exists() or not path.parent.is_dir():
        return
    part = path.with_name(f".{FILE}.part")
    with suppress(OSError):  # a full disk is what the error may be about
        part.write_text(json.dumps({"state": state, "message": message[:LONGEST], "value": value}), encoding="utf-8")
        part.replace(path)


# -- in the process that looks after it ------------------------------------------------------------------------------------


def clear(folder: Path) -> None:
    """Takes away what an earlier attempt has told."""
    (Path(folder) / FILE).unlink(missing_ok=True)


def outcome_of(folder: Path, code: int, memory_kills: int = 0) -> Outcome:
    """How the job of a folder ended.

    Args:
        folder: of the run.
        code: of its process, as a shell would say it: 137 is SIGKILL.
        memory_kills: how many processes the system has killed meanwhile for want of memory.
    """
    result, at = result_of(folder)
    if result and code == 0:
        return Outcome(FINISHED, result=result, at=at)
    if code in _STOPPED:
        return Outcome(INTERRUPTED, "stopped by " + signal.Signals(code - 128).name)
    said = _said(folder)
    if memory_kills and (said is None or said.state == FAILED):
        return Outcome(OUT_OF_MEMORY, "the system has killed a process of it, as memory had run out")
    if said is not None:
        return said
    if code > 128 and code - 128 in {number.value for number in signal.Signals}:
        name = signal.Signals(code - 128).name
        return Outcome(FAILED, f"killed by {name}")
    return Outcome(FAILED, f"exit code {code}" if code else "it ended without a result.json")


def result_of(folder: Path) -> tuple[dict[str, Any] | None, float | None]:
    """What ``result.json`` says and when it was written; ``(None, None)`` where there is none, or none that can be read."""
    path = Path(folder) / "result.json"
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content, path.stat().st_mtime
    return None, None


def _said(folder: Path) -> Outcome | None:
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        content = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        if content["state"] in (FAILED, NOT_FINITE, OUT_OF_MEMORY, PRUNED):
            value = content["value"]
            return Outcome(content["state"], str(content["message"]), None if value is None else float(value))
    return None


def memory_kills() -> int:
    """How many processes of this machine the system has killed for want of memory so far; 0 where it does not count."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
