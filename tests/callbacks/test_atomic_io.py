"""A checkpoint is written whole or not at all: a full disk, a kill or a missing right leaves the one before it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cvexp.callbacks.atomic_io import AtomicIO
from cvexp.types import UserError

# Writes checkpoints 1, 2, 3 ... of 4 MB on and on.
WRITER = """
import sys, torch
from cvexp.callbacks.atomic_io import AtomicIO
number = 0
while True:
    number += 1
    AtomicIO().save_checkpoint({"number": number, "weights": torch.full((1_000_000,), float(number))}, sys.argv[1])
"""


def load(path: Path) -> dict:
    return AtomicIO().load_checkpoint(path, weights_only=True)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "last.ckpt"
    AtomicIO().save_checkpoint({"a": torch.arange(3), "b": [1, "x", None]}, path)
    AtomicIO().save_checkpoint({"a": torch.arange(4)}, path)
    assert load(path)["a"].tolist() == [0, 1, 2, 3]
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path) -> None:
    """A limit of 1 MB on files stands for the disk; the child reports what it met."""
    code = (
        "import resource, signal, sys, torch\n"
        "from cvexp.callbacks.atomic_io import AtomicIO\n"
        "from cvexp.types import UserError\n"
        "path = sys.argv[1]\n"
        "AtomicIO().save_checkpoint({'number': 1}, path)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "try:\n    AtomicIO().save_checkpoint({'number': 2, 'weights': torch.zeros(1_000_000)}, path)\n"
        "except UserError as error:\n    print(error)\n"
    )
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: cannot be written (")
    assert "the checkpoint before it is intact. Fix: make room on the disk" in done.stdout
    assert f"resume={tmp_path / 'run'}" in done.stdout
    assert load(path) == {"number": 1}
    assert list(path.parent.iterdir()) == [path]


def test_without_one_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(UserError, match=r"cannot be written .*there is none before it\. Fix: "):
        AtomicIO().save_checkpoint({"number": 1}, tmp_path / "file" / "last.ckpt")


@pytest.mark.parametrize("delay", [0.0, 0.023])
def test_a_kill_while_saving(tmp_path: Path, delay: float) -> None:
    """At whatever moment: the file is one of the checkpoints, whole."""
    path = tmp_path / "last.ckpt"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        end = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
    finally:
        writer.kill()
        writer.wait()
    found = load(path)
    assert torch.equal(found["weights"], torch.full((1_000_000,), float(found["number"])))
    AtomicIO().save_checkpoint({"number": 0}, path)  # what the kill left is no hindrance
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
