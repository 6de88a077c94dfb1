"""Proposals of whole splits, made once: in parallel, interruptible, kept on disk by what the pixels are.

``<folder>/<method>-<settings>/<ab>/<ab...>.npz``: one file for each image, written whole or not at all. The name is the hash
of the pixels and of everything the boxes depend on, so a file can be stale only by being damaged; one that is, or that is
another's, is made anew and never trusted.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import statistics
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cvexp.data.proposals.proposer import Proposer, fingerprint
from cvexp.data.records import Source
from cvexp.types import UserError

WORTH_PROCESSES = 8.0
"""Seconds of work for one process above which others are started; starting them takes some seconds itself."""
AHEAD = 4
"""Images for each worker that are read before it has done those before."""
MAX_FILE = 1 << 26
"""A larger file, bytes, is none of ours: four million boxes."""
_BROKEN = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError)

Made = tuple[np.ndarray, float]
"""float32 ``[R, 4]`` and the seconds that making them took."""


class ProposalStore:
    """The proposals of one method.

    Args:
        proposer: makes them. What it learnt is no part of the cache's key: one that learns is not cached.
        folder: of the cache, shared by all methods and data sets; None keeps nothing on disk.
        workers: processes that make proposals; 1 makes them in this one.

    Raises:
        UserError: ``workers`` is below 1; ``folder`` is a file.
    """

    def __init__(self, proposer: Proposer, folder: Path | str | None, workers: int = 1) -> None:
        if workers < 1:
            raise UserError(f"workers={workers} of the proposals must be at least 1. Fix: workers=1")
        self.proposer, self.workers = proposer, workers
        self.settings = json.dumps({"name": proposer.name} | proposer.settings(), sort_keys=True)
        key = hashlib.sha256(self.settings.encode()).hexdigest()[:12]
        self.folder = None if folder is None else Path(folder).expanduser() / f"{proposer.name}-{key}"
        for place in () if self.folder is None else (self.folder, self.folder.parent):
            if place.exists() and not place.is_dir():
                raise UserError(f"{place}: is a file, and the proposals need a folder. Fix: another folder")
        self._seconds: dict[str, float] = {}

    def of(self, source: Source, split: str) -> Sequence[Tensor]:
        """The proposals of every image, made where they are not there yet.

        Ctrl-C keeps those that are done. With several processes on one folder the first makes them and the others wait.

        Args:
            split: its name, for the screen and for `seconds`.

        Returns:
            One float32 ``[R, 4]`` xyxy in original pixels for each image, best first, none cut off. Cached ones are held in
            memory, 16 bytes a box; others are made at each access, and depend on the image's size alone.

        Raises:
            UserError: an image or the folder cannot be used, or a worker died.
        """
        if not self.proposer.cached:
            found = BySize(self.proposer, source)
            self._seconds[split] = found.seconds()
            return found
        names = self._names(source, split)
        made = self._read(names)
        missing = [i for i, name in enumerate(names) if name not in made]
        if missing:
            with locked(self.folder):
                made |= self._read([names[i] for i in missing])  # another process may have been here meanwhile
                missing = list({names[i]: i for i in reversed(missing) if names[i] not in made}.values())[::-1]
                made |= self._make(source, {i: names[i] for i in missing}, split)
        if names:
            self._seconds[split] = statistics.fmean(made[name][1] for name in names)
        return Packed([made[name][0] for name in names])

    def seconds(self, split: str) -> float | None:
        """Mean seconds an image that making the proposals of a split took, whenever that was; None before `of`."""
        return self._seconds.get(split)

    def _names(self, source: Source, split: str) -> list[str]:
        """The hash of each image's pixels."""
        with ThreadPoolExecutor(min(self.workers, 4)) as pool, bar(f"pixels of {split}", len(source)) as tell:
            found = []
            for name in pool.map(lambda i: fingerprint(source.read(i)[0]), range(len(source))):
                found.append(name)
                tell()
            return found

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name[:2] / f"{name}.npz"

    def _read(self, names: Iterable[str]) -> dict[str, Made]:
        """What is there of these images, by name."""
        found = {name: read(path, self.settings) for name in set(names) if (path := self._path(name)) is not None}
        return {name: made for name, made in found.items() if made is not None}

    def _make(self, source: Source, names: dict[int, str], split: str) -> dict[str, Made]:
        """Makes and keeps the proposals of images of ``source``, by their hash."""
        done: dict[str, Made] = {}
        jobs = iter(names.items())
        if not names:
            return done
        with bar(f"{self.proposer.name} of {split}", len(names)) as tell:
            for index, name in jobs:  # in this process until it is known how long it takes
                begin = time.perf_counter()
                done[name] = work(self.proposer, source.read(index)[0], self._path(name), self.settings)
                tell()
                rest = (len(names) - len(done)) * (time.perf_counter() - begin)
                if len(done) > 1 and rest > WORTH_PROCESSES and self._may_start():
                    break
            if len(done) < len(names):
                for name, made in self._in_processes(source, jobs):
                    done[name] = made
                    tell()
        return done

    def _may_start(self) -> bool:
        """A process of a loader may have no children."""
        return self.workers > 1 and not multiprocessing.current_process().daemon

    def _in_processes(self, source: Source, jobs: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Made]]:
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), initializer=prepare)
        running: dict[Future[Made], str] = {}
        try:
            while True:
                while len(running) < AHEAD * self.workers and (job := next(jobs, None)) is not None:
                    image = source.read(job[0])[0]
                    running[pool.submit(work, self.proposer, image, self._path(job[1]), self.settings)] = job[1]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise UserError(
                f"a process that made proposals ({self.proposer.name}) was killed, perhaps for want of memory. Those that are"
                " done are kept. Fix: start again with fewer workers"
            ) from None
        except BaseException:  # Ctrl-C: nobody waits for images that are half done
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def prepare() -> None:
    """A worker heeds no Ctrl-C (its parent does, and ends it) and uses one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def work(proposer: Proposer, image: Tensor, path: Path | None, settings: str) -> Made:
    """Makes the proposals of one image, checks them, and keeps them where there is a path.

    Raises:
        UserError: the proposer's boxes break its contract, or the file cannot be written.
    """
    begin = time.perf_counter()
    boxes = proposer(image)
    seconds = time.perf_counter() - begin
    height, width = image.shape[-2:]
    found = boxes.detach().cpu().numpy()
    if reason := wrong(found, height, width):
        raise UserError(
            f"data.proposals={proposer.name}: {reason}. Fix: the method's __call__; cvexp.data.proposals.tidy helps"
        )
    if path is not None:
        write(path, found, seconds, (height, width), settings)
    return found, seconds


def wrong(boxes: np.ndarray, height: float, width: float) -> str | None:
    """Why boxes are no proposals of an image of this size, or None."""
    if boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] != 4:
        return f"gives {boxes.dtype} {list(boxes.shape)} where float32 [R, 4] is expected"
    if not np.isfinite(boxes).all():
        return "gives boxes that are not finite"
    if not (boxes[:, 2:] > boxes[:, :2]).all():
        return "gives boxes without area"
    if len(boxes) and (boxes.min() < 0 or boxes[:, 2].max() > width or boxes[:, 3].max() > height):
        return f"gives boxes outside the image of {width:g}x{height:g} pixels"
    return None


def write(path: Path, boxes: np.ndarray, seconds: float, size: tuple[int, int], settings: str) -> None:
    """
    Raises:
        UserError: the folder cannot be written to.
    """
    content = io.BytesIO()
    np.savez(
        content, boxes=boxes, seconds=np.float64(seconds), size=np.array(size, np.int64), settings=np.array(settings)
    )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.getvalue())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(
            f"{path}: proposals cannot be kept ({error.strerror or error}). Fix: make room, or another folder"
        ) from None


def read(path: Path, settings: str) -> Made | None:
    """What `write` wrote with these settings; None if there is no such file or it is damaged."""
    try:
        if path.stat().st_size > MAX_FILE:
            return None
        with np.load(path, allow_pickle=False) as file:
            boxes, seconds, size = file["boxes"], float(file["seconds"]), file["size"]
            known = str(file["settings"]) == settings and size.shape == (2,) and np.isfinite(seconds) and seconds >= 0
            return (boxes, seconds) if known and wrong(boxes, *size.tolist()) is None else None
    except _BROKEN:
        return None


class Packed(Sequence[Tensor]):
    """Boxes of many images in one tensor: a process that gets them receives two tensors, not thousands."""

    def __init__(self, boxes: Sequence[np.ndarray]) -> None:
        self.ends = torch.tensor([0, *(len(each) for each in boxes)]).cumsum(0)
        self.boxes = torch.from_numpy(np.concatenate([*boxes, np.zeros((0, 4), np.float32)]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return self.boxes[self.ends[i] : self.ends[i + 1]]


class BySize(Sequence[Tensor]):
    """Boxes that depend on an image's size alone, made when they are asked for; the last sizes are remembered.

    Args:
        proposer: one with ``cached`` False; it is given images without content.
    """

    def __init__(self, proposer: Proposer, source: Source) -> None:
        self.proposer = proposer
        self.sizes = source.ground_truth().sizes.tolist()
        self._make()

    def _make(self) -> None:
        self._of = lru_cache(maxsize=32)(self._new)

    def __getstate__(self) -> dict[str, Any]:
        return {"proposer": self.proposer, "sizes": self.sizes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make()

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self._of(*size) for size in self.sizes[index]]
        return self._of(*self.sizes[index])

    def _new(self, height: int, width: int) -> Tensor:
        return torch.from_numpy(work(self.proposer, blank(height, width), None, "")[0])

    def seconds(self) -> float:
        """Mean seconds of up to ten images, made for this."""
        sizes = self.sizes[:: max(len(self.sizes) // 10, 1)][:10]
        return statistics.fmean(work(self.proposer, blank(*size), None, "")[1] for size in sizes) if sizes else 0.0


def blank(height: int, width: int) -> Tensor:
    """uint8 ``[3, height, width]`` that takes one byte."""
    return torch.zeros(1, dtype=torch.uint8).expand(3, height, width)


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """One process at a time, where the system and the disk can do that; elsewhere each makes what is missing."""
    try:
        import fcntl
    except ImportError:  # Windows
        folder = None
    if folder is None:
        yield
        return
    file = None
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file is not None:
            file.close()  # which unlocks


@contextmanager
def bar(text: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on the error stream where that is a terminal, gone when it is done; the block tells it of each image."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)
