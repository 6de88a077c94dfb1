"""``python -m cvexp.train`` whose jobs train nothing: a sweep of seconds that can be killed at any moment.

A job counts ten steps of ``STEP`` seconds, notes each in ``steps.txt``, saves after every second one as a training does, and
writes its result. What it makes of its words: ``seed=13`` fails the first time, ``seed=14`` always, ``seed=15`` is killed,
``seed=16`` runs out of memory, ``seed=17`` meets NaN.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from killing import put

STEP = float(os.environ.get("STUB_STEP", "0.05"))


def conduct() -> None:
    from cvexp import launch
    from cvexp.sweeps import board
    from cvexp.train import main

    board.show_sweep = lambda ledger: print(
        *[f"{job.number} {job.state}" for job in ledger.jobs()], sep="\n"
    )  # no pictures

    def command(cfg: object, *words: str) -> list[str]:
        return [sys.executable, __file__, "--job", *launch.job_words(cfg), *words]  # type: ignore[arg-type]

    launch.command = command  # type: ignore[assignment]
    main()


def train(words: list[str]) -> None:
    from cvexp.launch import rank
    from cvexp.resume import only_one
    from cvexp.sweeps.outcome import told

    values = dict(word.split("=", 1) for word in words if "=" in word)
    folder = Path(values["hydra.run.dir"].strip('"'))
    with rank(), told(), only_one(folder):
        checkpoint = folder / "checkpoints" / "last.ckpt"
        begun = "resume" in values
        done = json.loads(checkpoint.read_text()) if begun else 0
        _end_in_its_way(folder, int(values["seed"]), done)
        for step in range(done, 10):
            time.sleep(STEP)
            with (folder / "steps.txt").open("a") as stream:
                stream.write(f"{step}\n")
            if step % 2:
                put(checkpoint, step + 1)
        put(folder / "result.json", {"val/best": float(values["seed"]), "train/steps": 10})


def _end_in_its_way(folder: Path, seed: int, done: int) -> None:
    from cvexp.errors import NotFiniteError, UserError

    first = not (folder / "tried").exists()
    folder.mkdir(exist_ok=True)
    (folder / "tried").touch()
    if seed == 13 and first:
        raise UserError("the disk was full. Fix: space")
    if seed == 14:
        raise ZeroDivisionError("always")
    if seed == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 16:
        raise MemoryError
    if seed == 17:
        raise NotFiniteError("stopped at step 3: the loss is nan")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        train(sys.argv[2:])
    else:
        conduct()
