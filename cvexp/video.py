"""Frames in and out: video files, cameras and streams read one by one; a video written whole or not at all.

OpenCV reads and writes (the extra ``video``: Apache-2.0, with an LGPL build of FFmpeg, which has no H.264 encoder; hence
MPEG-4). A phone's rotated video is turned upright by its own mark. A video whose frame rate varies is written with each frame
once at the mean rate; every frame carries its own time.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np

from cvexp.errors import UserError

Kind = Literal["video", "camera", "stream"]

ENDINGS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv"}
SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "rtp", "srt")
TIMEOUT = 10_000
"""A stream that does not answer for so many milliseconds is given up."""
USUAL_FPS = 25.0
"""Where a source does not know its rate."""


def kind_of(source: str) -> Kind | None:
    """What ``source=`` names: digits a camera, a URL a stream, a file by its ending a video; None for anything else.

    A file or folder whose name is digits is what it is, not a camera.

    Raises:
        UserError: a URL of an unknown kind.
    """
    if source.isascii() and source.isdigit() and not Path(source).exists():
        return "camera"
    if "://" in source:
        scheme = source.partition("://")[0].lower()
        if scheme not in SCHEMES:
            raise UserError(
                f"source={without_password(source)}: {scheme}:// is not a stream. Fix: one of {', '.join(SCHEMES)}"
            )
        return "stream"
    return "video" if Path(source).suffix.lower() in ENDINGS and not Path(source).expanduser().is_dir() else None


def without_password(source: str) -> str:
    """A URL without user, password and query: fit for messages and files."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def name_of(source: str) -> str:
    """How a source is called in tables: the file's own name, ``camera_0``, ``rtsp_host_path``."""
    kind = kind_of(source)
    if kind == "camera":
        return f"camera_{int(source)}"
    if kind == "stream":
        return re.sub(r"[^\w.-]+", "_", without_password(source)).strip("_")[:80]
    return Path(source).name


@dataclass(frozen=True)
class Limit:
    """Where to stop: after so many frames taken, or so many seconds of the source; None: no limit."""

    frames: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``""``, ``"300"`` (frames) or ``"10s"``.

        Raises:
            UserError: anything else, or not positive.
        """
        if not text:
            return cls()
        if re.fullmatch(r"\d+", text, re.ASCII) and int(text):
            return cls(frames=int(text))
        if re.fullmatch(r"(\d+\.?\d*|\.\d+)s", text, re.ASCII) and float(text[:-1]):
            return cls(seconds=float(text[:-1]))
        raise UserError(f"limit={text}: must be a number of frames or of seconds. Fix: limit=300 or limit=10s")


@dataclass(frozen=True)
class Frame:
    """One picture of a video.

    Attributes:
        number: its position in the source, from 0; frames that were left out count too.
        seconds: its time in the file, or since the first frame of a camera or stream.
        pixels: uint8 RGB ``[H, W, 3]``.
    """

    number: int
    seconds: float
    pixels: np.ndarray


class Frames:
    """The frames of a source, one after the other; a context manager that closes the source.

    Args:
        source: see `kind_of`.
        every: each n-th frame is taken.
        limit: where to stop.
        stop: asked before each frame; true ends the reading.

    Attributes:
        live: a camera or an endless stream: its time is the clock's, and frames that came while the caller was busy are skipped.
        fps: frames per second, of the file or as the camera says; 25 where that is unknown.
        total: frames of the source; None if unknown.
        notes: what a user should know about the reading, in words.

    Raises:
        UserError: the source cannot be opened; from iteration: it has no frame.
    """

    def __init__(
        self, source: str, every: int = 1, limit: Limit | None = None, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.source, self.every, self.limit, self.stop = source, every, limit or Limit(), stop
        self.shown = f"source={without_password(source)}"
        kind = kind_of(source)
        self.capture = _open(source, kind, self.shown)
        cv2 = import_cv2()
        count = self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = int(count) if kind != "camera" and 0 < count < 2**31 else None
        self.live = kind == "camera" or (kind == "stream" and self.total is None)
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0.1 <= fps <= (60 if self.live else 1000) else USUAL_FPS
        self.notes: list[str] = []
        self._position = cv2.CAP_PROP_POS_MSEC
        self._grabbed = self._taken = 0
        self._start: float | None = None
        self._varies = False

    @property
    def expected(self) -> int | None:
        """How many frames will be taken, if that is known; with a limit in seconds by the mean rate."""
        known = []
        if self.total is not None:
            known.append(ceil(self.total / self.every))
        if self.limit.frames is not None:
            known.append(self.limit.frames)
        if self.limit.seconds is not None and not self.live:
            known.append(ceil(max(ceil(round(self.limit.seconds * self.fps, 6)), 1) / self.every))
        return min(known, default=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.release()

    def __iter__(self) -> Iterator[Frame]:
        while not self._done():
            if not self.capture.grab():
                self._ended()
                return
            number, self._grabbed = self._grabbed, self._grabbed + 1
            seconds = self._seconds(number)
            if self.limit.seconds is not None and seconds >= self.limit.seconds:
                return
            if number % self.every:
                continue
            ok, pixels = self.capture.retrieve()
            if not ok or pixels is None:
                self._ended()
                return
            self._taken += 1
            given = monotonic()
            yield Frame(number, seconds, np.ascontiguousarray(pixels[:, :, ::-1]))
            if self.live:
                self._catch_up(monotonic() - given)

    def _done(self) -> bool:
        return self.stop() or (self.limit.frames is not None and self._taken >= self.limit.frames)

    def _seconds(self, number: int) -> float:
        """The time of the frame just grabbed, from 0 for the first."""
        now = monotonic() if self.live else self.capture.get(self._position) / 1000
        if self._start is None:
            self._start = now
        seconds = now - self._start
        if self.live:
            return seconds
        if number and seconds <= 0:  # the container has no times
            return number / self.fps
        if abs(seconds - number / self.fps) > 1.5 / self.fps and not self._varies:
            self._varies = True
            self.notes.append(
                f"the frame rate varies: the drawn video plays at the mean of {self.fps:.4g} per second, the tables hold"
                " each frame's own time"
            )
        return seconds

    def _catch_up(self, busy: float) -> None:
        """Skips the frames that arrived while the caller was busy; the first one that has to be waited for ends it."""
        for _ in range(int(busy * self.fps)):
            before = monotonic()
            if self._done() or not self.capture.grab():
                return
            self._grabbed += 1
            if monotonic() - before > 0.5 / self.fps:
                return

    def _ended(self) -> None:
        """The source gave no further frame: at its end, or because it is broken.

        Raises:
            UserError: there was none at all.
        """
        if not self._grabbed or not self._taken:
            if self.live:
                raise UserError(f"{self.shown}: opened, but gives no picture. Fix: see whether another program uses it")
            many = "it has none" if not self.total else f"none of its {self.total:,} could be decoded"
            fix = (
                "download it and give the file as source" if kind_of(self.source) == "stream" else
                "play it elsewhere; if that works, its codec is missing here: convert it to MP4 with H.264"
            )  # fmt: skip
            raise UserError(f"{self.shown}: no frame ({many}). Fix: {fix}")
        if self.live:
            self.notes.append(f"the source ended after {self._grabbed:,} frames")
        elif self.total is not None and self._grabbed < self.total - max(2, self.total // 100):
            self.notes.append(
                f"broken: ended after {self._grabbed:,} of {self.total:,} frames; what was read until there is kept"
            )


def import_cv2() -> Any:
    """OpenCV, without FFmpeg's own words between ours.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"videos, cameras and streams need OpenCV ({error}). Fix: pip install 'cvexp[video]'") from None
    silence = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, OpenCV 5
    silence(0)
    return cv2


def _open(source: str, kind: Kind | None, shown: str) -> Any:
    """An opened ``cv2.VideoCapture``.

    Raises:
        UserError: it cannot be opened, with what can be done about it.
    """
    if kind == "camera":
        return _open_camera(int(source))
    cv2 = import_cv2()
    if kind == "stream":
        patience = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT]
        capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, patience)
        if not capture.isOpened():
            raise UserError(
                f"{shown}: the stream cannot be opened (no answer, wrong path or password, or no video)."
                " Fix: try the same URL in a player"
            )
        return capture
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"{shown}: no such file. Fix: check the path")
    if not path.stat().st_size:
        raise UserError(f"{shown}: the file is empty. Fix: copy it again")
    capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UserError(
            f"{shown}: cannot be read as a video: it is none, its codec is missing here, or it was cut off before its end."
            " Fix: play it elsewhere; if that works, convert it to MP4 with H.264"
        )
    return capture


def _open_camera(index: int) -> Any:
    cv2 = import_cv2()
    capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
        seen = f"; there are {there}" if there else "; there is no /dev/video*" if Path("/dev").is_dir() else ""
        raise UserError(
            f"source={index}: camera {index} cannot be opened (absent, used by another program, or not allowed{seen})."
            f" Fix: close the other program or try source={index + 1}; a recorded file works as source too"
        )
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the present, not what waited in the queue
    return capture


class VideoWriter:
    """Writes an MP4 beside its place and moves it there at the end; after an exception nothing is left of it.

    Args:
        path: ends in .mp4.
        fps: frames per second.
        size: ``(height, width)`` of the first frame, pixels; the format wants even numbers, so an odd side loses its last row
            or column. Frames of another size are scaled to it.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self.path, self.fps, self.size = path, fps, size
        self.part = path.with_name(f".{path.stem}.part{path.suffix}")
        self.written = 0
        self._last: np.ndarray | None = None
        self._cv2 = cv2 = import_cv2()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output: {path.parent}: {error.strerror}. Fix: output=<a folder you may write>") from None
        height, width = size
        self._writer = cv2.VideoWriter(
            str(self.part.resolve()), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height)
        )
        if not self._writer.isOpened():
            self.part.unlink(missing_ok=True)
            raise UserError(
                f"output: {path}: OpenCV cannot write MPEG-4 of {width} x {height} pixels at {fps:.4g} frames per second there."
                " Fix: output=<a folder you may write>; frames beyond 8,191 pixels do not fit"
            )

    def write(self, pixels: np.ndarray, at: float | None = None) -> None:
        """Appends a frame, uint8 RGB ``[H, W, 3]``.

        Args:
            at: its time in seconds: the frame before is repeated up to then, and this one is left out where it is too early,
                so that the video plays as fast as life. None: each frame once.
        """
        picture = np.ascontiguousarray(pixels[:, :, ::-1])
        if picture.shape[:2] != self.size:
            picture = self._cv2.resize(picture, self.size[::-1], interpolation=self._cv2.INTER_AREA)
        due = self.written if at is None else round(at * self.fps)
        while self._last is not None and self.written < due:
            self._append(self._last)
        if self.written <= due:
            self._append(picture)
        self._last = picture

    def _append(self, picture: np.ndarray) -> None:
        self._writer.write(picture)
        self.written += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.release()
        if kind is None:
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Within it, the first Ctrl-C (or SIGTERM) only sets the event, so that files can be finished; the second one interrupts.

    Outside of the main thread signals stay as they are.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(*_: object) -> None:
        asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
