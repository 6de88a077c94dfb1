"""Sweeps that are started, waited for and killed; files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MINUTE = 60


def start_stub(stub: Path, cwd: Path, *words: str, step: float = 0.05) -> subprocess.Popen[str]:
    """A sweep whose jobs train nothing, in a process group of its own; a step of theirs takes so many seconds."""
    env = os.environ | {"STUB_STEP": str(step)}
    return subprocess.Popen(
        [sys.executable, str(stub), *words],
        cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for something that a process does; it fails where that ends before, or takes a minute."""
    end = time.monotonic() + MINUTE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)


def stop_all(process: subprocess.Popen[str]) -> None:
    """As a machine that goes down: the conductor and what it has started, at once."""
    for number in (process.pid, *children(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.communicate()


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def put(path: Path, content: object) -> None:
    """Writes JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content))
    part.replace(path)
