"""The board of a sweep at any time, also while it runs: ``python -m cvexp.leaderboard runs/sweeps/<time>``.

Heavy imports happen inside the functions, so that ``--help`` answers in a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cvexp.config import report_errors
from cvexp.errors import UserError

USAGE = """usage: python -m cvexp.leaderboard <folder of a sweep> [<folder> ...]

Shows the jobs of a sweep, the best first, as they stand now: value, test score, minutes, memory, what went wrong, mean and spread
over seeds, and the command lines that train the best one again and use it. The sweep may still run.

Writes leaderboard.md, leaderboard.csv, leaderboard.html and figures/ (history, parallel, importance; .png and .svg) there."""


def leaderboard(words: Sequence[str]) -> None:
    """Runs the command with ``words``.

    Raises:
        UserError: no folder, or one that holds no sweep.
    """
    from cvexp.sweeps.board import show_sweep
    from cvexp.sweeps.ledger import Ledger

    if not words:
        raise UserError("a folder of a sweep is missing. Fix: python -m cvexp.leaderboard runs/sweeps/<time>")
    if option := next((word for word in words if word.startswith("-")), None):
        raise UserError(f"{option}: there is no such option. Fix: python -m cvexp.leaderboard --help")
    ledgers = [Ledger.existing(Path(word).expanduser().absolute()) for word in words]
    for ledger in ledgers:
        show_sweep(ledger)


@report_errors
def main() -> None:
    """The command."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    leaderboard(sys.argv[1:])


if __name__ == "__main__":
    main()
