"""The ledger of a sweep: one SQLite file that says of every job what it is, how far it came and what came of it.

A row is written when the sweep learns of a job, when a process takes it, and when it has ended; nothing is kept in memory that
is not in the file, so that a sweep that is killed at any moment knows as much as before. Several processes may write: the jobs
of a parallel launcher each tell their own end.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvexp.errors import UserError

FILE = "ledger.db"
FORMAT = 1
PATIENCE = 60.0
"""Seconds to wait while another process writes."""

PENDING, RUNNING, INTERRUPTED = "pending", "running", "interrupted"
FINISHED, PRUNED, OUT_OF_MEMORY, NOT_FINITE, FAILED = "finished", "pruned", "out_of_memory", "not_finite", "failed"
ENDED = (FINISHED, PRUNED, OUT_OF_MEMORY, NOT_FINITE)
"""States that are results: such a job is not started again. A `FAILED` one is, when the sweep is resumed."""
STATES = (PENDING, RUNNING, INTERRUPTED, *ENDED, FAILED)

_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    words TEXT NOT NULL,
    identity TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    trial INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    started REAL,
    ended REAL,
    seconds REAL NOT NULL DEFAULT 0,
    peak_memory INTEGER,
    peak_gpu_memory INTEGER,
    value REAL,
    message TEXT NOT NULL DEFAULT '',
    process TEXT NOT NULL DEFAULT '',
    result TEXT
);
"""


@dataclass(frozen=True)
class Job:
    """One job, as it stands in the ledger.

    Attributes:
        number: 0, 1, ...; also the name of its folder in the sweep's.
        words: its overrides, as ``("model=yolo", "seed=1")``.
        state: one of `STATES`.
        trial: its number in the study of a search; None in a grid.
        attempts: how often it was started.
        started, ended: of the last attempt, seconds since 1970; None where there is none.
        seconds: of all attempts together.
        peak_memory: the most bytes that one of its processes held; None where it is not known.
        peak_gpu_memory: the same on the accelerator.
        value: the best validation score (``val/best``), or the last one of a pruned job.
        message: why it ended otherwise than well.
        process: who has it, as ``process 12 on host``.
        result: what its ``result.json`` says; empty before.
    """

    number: int
    words: tuple[str, ...]
    state: str
    trial: int | None = None
    attempts: int = 0
    started: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    peak_memory: int | None = None
    peak_gpu_memory: int | None = None
    value: float | None = None
    message: str = ""
    process: str = ""
    result: Mapping[str, Any] = None  # type: ignore[assignment]  # never None: see `_job`

    @property
    def has_ended(self) -> bool:
        """Whether it is a result, of whatever kind, and not to be started again."""
        return self.state in ENDED


class Ledger:
    """The ledger in a sweep's folder.

    Args:
        folder: of the sweep; the file is made in it where there is none.

    Raises:
        UserError: the file is none of this kind, or of a later version.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE
        if not self.path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._create()
        self._check()

    @classmethod
    def existing(cls, folder: Path | str) -> Ledger:
        """The ledger of a sweep that has begun.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        if not (Path(folder) / FILE).is_file():
            raise UserError(f"{folder}: no sweep: there is no {FILE}. Fix: the folder that cvexp.train -m has printed")
        return cls(folder)

    # -- what it is about ----------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What was noted of the whole sweep: its words, its measure."""
        with self._open() as database:
            return {key: json.loads(value) for key, value in database.execute("SELECT key, value FROM about")}

    def note(self, **values: Any) -> None:
        """Notes something of the whole sweep, in the place of what was noted before."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """All of them, by number."""
        with self._open() as database:
            return [_job(row) for row in database.execute("SELECT * FROM jobs ORDER BY number")]

    def job(self, number: int) -> Job:
        """One of them.

        Raises:
            KeyError: there is none of this number.
        """
        with self._open() as database:
            row = database.execute("SELECT * FROM jobs WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(number)
        return _job(row)

    def register(
        self,
        jobs: Sequence[Sequence[str]],
        identities: Sequence[str] | None = None,
        trials: Sequence[int] | None = None,
    ) -> list[Job]:
        """The jobs of these words, in this order; those that the ledger does not know are added as `PENDING`.

        What is added gets the next free number; a job that is known and has not ended takes these words.

        Args:
            jobs: overrides of each.
            identities: by what each is known again; None: by its words, in any order.
            trials: the number of each in a study.
        """
        keys = [identity(words) for words in jobs] if identities is None else identities
        marks: Sequence[int | None] = [None] * len(jobs) if trials is None else trials
        free = "(SELECT COALESCE(MAX(number) + 1, 0) FROM jobs)"
        found = []
        with self._open(write=True) as database:
            for words, key, trial in zip(jobs, keys, marks, strict=True):
                text = json.dumps(list(words))
                database.execute(
                    f"INSERT OR IGNORE INTO jobs (number, words, identity, state, trial) VALUES ({free}, ?, ?, ?, ?)",
                    (text, key, PENDING, trial),
                )
                row = database.execute("SELECT * FROM jobs WHERE identity = ?", (key,)).fetchone()
                if row["state"] not in ENDED and row["words"] != text:
                    database.execute("UPDATE jobs SET words = ? WHERE identity = ?", (text, key))
                    row = database.execute("SELECT * FROM jobs WHERE identity = ?", (key,)).fetchone()
                found.append(_job(row))
        return found

    def knows(self, identities: Sequence[str]) -> int:
        """How many of these jobs are in the ledger."""
        with self._open() as database:
            known = {row["identity"] for row in database.execute("SELECT identity FROM jobs")}
        return len(known.intersection(identities))

    def begin(self, number: int) -> None:
        """This process has the job from now on."""
        with self._open(write=True) as database:
            database.execute(
                "UPDATE jobs SET state = ?, attempts = attempts + 1, started = ?, ended = NULL, message = '', process = ?"
                " WHERE number = ?",
                (RUNNING, time.time(), f"process {os.getpid()} on {socket.gethostname()}", number),
            )

    def end(
        self,
        number: int,
        state: str,
        *,
        message: str = "",
        result: Mapping[str, Any] | None = None,
        value: float | None = None,
        peak_memory: int | None = None,
        at: float | None = None,
    ) -> None:
        """A job has ended, or was stopped; what was known of it and is not given stays.

        Args:
            number: of the job.
            state: one of `STATES`.
            message: why, where it did not end well.
            result: what its ``result.json`` says; its ``val/best`` is the value where none is given.
            value: by which it is ranked.
            peak_memory: bytes.
            at: seconds since 1970 when it ended; None: now.
        """
        known = {**(result or {})}
        value = known.get("val/best") if value is None else value
        peak_memory = known.get("peak/memory_bytes") if peak_memory is None else peak_memory
        at = time.time() if at is None else at
        with self._open(write=True) as database:
            database.execute(
                "UPDATE jobs SET state = ?, message = ?, process = '', ended = ?,"
                " seconds = seconds + MAX(0, ? - COALESCE(started, ?)),"
                " peak_memory = COALESCE(MAX(peak_memory, ?), peak_memory, ?),"
                " peak_gpu_memory = COALESCE(?, peak_gpu_memory),"
                " value = COALESCE(?, value), result = COALESCE(?, result) WHERE number = ?",
                (
                    *(state, message, at, at, at, peak_memory, peak_memory, known.get("peak/gpu_memory_bytes")),
                    *(value, json.dumps(known) if known else None, number),
                ),
            )

    def mark(self, number: int, state: str, message: str = "") -> None:
        """Another state, without an end of its own: a process is gone that could not say so."""
        with self._open(write=True) as database:
            database.execute(
                "UPDATE jobs SET state = ?, message = ?, process = '' WHERE number = ?", (state, message, number)
            )

    # -- the file ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection for one piece of work, which is written whole or not at all.

        Raises:
            UserError: the file cannot be read or written.
        """
        try:
            with closing(sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)) as database:
                database.row_factory = sqlite3.Row
                database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield database
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: cannot be read or written ({error}). Fix: free space and rights in its folder; on a file"
                " system without locks move the sweep to another"
            ) from error

    def _create(self) -> None:
        """Makes the file beside its place and moves it there whole."""
        part = self.path.with_name(f".{FILE}.{os.getpid()}.part")
        part.unlink(missing_ok=True)
        with closing(sqlite3.connect(part)) as database:
            database.executescript(_TABLES)
            database.execute("INSERT INTO about VALUES ('format', ?)", (json.dumps(FORMAT),))
            database.commit()
        part.replace(self.path)

    def _check(self) -> None:
        try:
            found = self.about().get("format")
        except (UserError, ValueError) as error:
            raise UserError(
                f"{self.path}: no ledger of a sweep ({error.__cause__ or error}). Fix: move it away; finished jobs are"
                " known again by their result.json"
            ) from None
        if found != FORMAT:
            raise UserError(f"{self.path}: format {found}, this cvexp reads {FORMAT}. Fix: use the cvexp that wrote it")


def identity(words: Sequence[str]) -> str:
    """By what a job is known again: its words in any order, with or without ``+``."""
    return json.dumps(sorted(word.lstrip("+") for word in words))


def _job(row: sqlite3.Row) -> Job:
    fields = {key: row[key] for key in row.keys() if key not in ("identity", "words", "result")}  # noqa: SIM118
    return Job(words=tuple(json.loads(row["words"])), result=json.loads(row["result"] or "{}"), **fields)
