"""``python -m cvexp.train`` whose jobs train nothing: a search of seconds that can be killed at any moment.

A job makes three steps, reports each to the study as a training does its validations, and has as its value how near its
learning rate is to 0.003.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

from killing import put

STEP = float(os.environ.get("STUB_STEP", "0.05"))


def conduct() -> None:
    from cvexp import launch
    from cvexp.sweeps import board
    from cvexp.train import main

    def command(cfg: object, *words: str) -> list[str]:
        return [sys.executable, __file__, "--job", *launch.job_words(cfg), *words]  # type: ignore[arg-type]

    launch.command = command  # type: ignore[assignment]
    board.draw = lambda ranking: ({}, [])  # its pictures are drawn in test_board
    main()


def train(words: list[str]) -> None:
    from cvexp.launch import rank
    from cvexp.resume import only_one

    values = dict(word.split("=", 1) for word in words if "=" in word)
    folder = Path(values["hydra.run.dir"].strip('"'))
    value = -abs(math.log10(float(values["optimizer.lr"])) - math.log10(0.003))
    with rank(), only_one(folder):
        checkpoint = folder / "checkpoints" / "last.ckpt"
        for step in range(json.loads(checkpoint.read_text()) if "resume" in values else 0, 3):
            time.sleep(STEP)
            with (folder / "steps.txt").open("a") as stream:
                stream.write(f"{step}\n")
            put(checkpoint, step + 1)
        put(folder / "result.json", {"val/best": value})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        train(sys.argv[2:])
    else:
        conduct()
