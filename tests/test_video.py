"""Reading and writing videos: what a source is, each frame's number and time, ends and breaks, and nothing half-written."""

from __future__ import annotations

import builtins
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvexp import video
from cvexp.errors import UserError
from cvexp.video import Frames, Limit, VideoWriter, kind_of, name_of, stopping, without_password

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'cvexp[video]'")

FPS, COUNT, WIDTH, HEIGHT = 12.5, 20, 64, 48


def shade(index: int) -> np.ndarray:
    """Frame ``index`` of the clip: red grows by 10 from frame to frame, blue falls, so that channels and order show."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[:, :, 0], frame[:, :, 2] = 10 * index, 250 - 10 * index
    return frame


def write_clip(path: Path, count: int = COUNT) -> Path:
    with VideoWriter(path, FPS, (HEIGHT, WIDTH)) as writer:
        for index in range(count):
            writer.write(shade(index))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames at 12.5 per second, 64 x 48."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


# --- what a source is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("", None, ""),  # nothing
        ("0", "camera", "camera_0"),
        ("12", "camera", "camera_12"),
        ("²", None, "²"),  # a digit to Python's isdigit, no number
        ("-1", None, "-1"),
        ("photos", None, "photos"),  # a folder or a mistake: said elsewhere
        ("photo.JPG", None, "photo.JPG"),
        ("clip.gif", None, "clip.gif"),  # read as a picture
        ("a b/größe.MP4", "video", "größe.MP4"),
        ("rtsp://cam/live", "stream", "rtsp_cam_live"),
        ("rtsp://me:secret@cam:554/live?key=1", "stream", "rtsp_cam_554_live"),  # no password in a file's name
        ("HTTPS://host/clip.mp4", "stream", "https_host_clip.mp4"),
    ],
)
def test_kind_and_name(source: str, kind: str | None, name: str) -> None:
    assert kind_of(source) == kind
    assert name_of(source) == name


def test_a_folder_of_digits_is_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7").mkdir()
    Path("frames.mp4").mkdir()
    assert kind_of("7") is None
    assert kind_of("frames.mp4") is None
    assert kind_of("8") == "camera"


def test_an_unknown_scheme_is_refused_without_the_password() -> None:
    with pytest.raises(UserError, match=r"ftp:// is not a stream.*Fix: one of rtsp") as caught:
        kind_of("ftp://me:secret@host/clip.mp4")
    assert "secret" not in str(caught.value)
    assert without_password("rtsp://a:b@h:1/p?token=x#y") == "rtsp://h:1/p"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", Limit()),  # none
        ("1", Limit(frames=1)),
        ("300", Limit(frames=300)),
        ("10s", Limit(seconds=10)),
        ("0.5s", Limit(seconds=0.5)),
        (".5s", Limit(seconds=0.5)),
    ],
)
def test_limit(text: str, limit: Limit) -> None:
    assert Limit.parse(text) == limit


@pytest.mark.parametrize("text", ["0", "0s", "-5", "5m", "s", "1e3", "nan", "infs", "3.5", "٣"])
def test_bad_limit(text: str) -> None:
    with pytest.raises(UserError, match=f"limit={text}: .*Fix: limit=300 or limit=10s"):
        Limit.parse(text)


# --- reading a file --------------------------------------------------------------------------------------------------


def test_every_frame_has_its_number_time_and_colours(clip: Path) -> None:
    with Frames(str(clip)) as frames:
        assert (frames.fps, frames.total, frames.expected, frames.live) == (FPS, COUNT, COUNT, False)
        read = list(frames)
    assert [frame.number for frame in read] == list(range(COUNT))
    assert [frame.seconds for frame in read] == pytest.approx([i / FPS for i in range(COUNT)])
    assert all(frame.pixels.shape == (HEIGHT, WIDTH, 3) and frame.pixels.dtype == np.uint8 for frame in read)
    for index, frame in enumerate(read):  # RGB, up to what the compression loses
        assert frame.pixels.reshape(-1, 3).mean(axis=0) == pytest.approx([10 * index, 0, 250 - 10 * index], abs=6)
    assert frames.notes == []


@pytest.mark.parametrize(
    ("every", "limit", "numbers"),
    [
        (1, "3", [0, 1, 2]),
        (7, "", [0, 7, 14]),  # 20 is no multiple of 7
        (19, "", [0, 19]),  # the last frame
        (20, "", [0]),
        (500, "", [0]),  # more than there are
        (3, "2", [0, 3]),  # the limit counts the frames that are taken
        (1, "0.2s", [0, 1, 2]),  # 0, 0.08, 0.16 s
        (1, "0.24s", [0, 1, 2]),  # frame 3 is at 0.24 s: not before it
        (1, "0.001s", [0]),
        (2, "1000s", list(range(0, COUNT, 2))),
    ],
)
def test_every_and_limit(every: int, limit: str, numbers: list[int], clip: Path) -> None:
    with Frames(str(clip), every, Limit.parse(limit)) as frames:
        expected = frames.expected
        assert [frame.number for frame in frames] == numbers
    assert expected == len(numbers)
    assert frames.notes == []


def test_stop_ends_before_the_next_frame(clip: Path) -> None:
    answers = iter([False] * 4 + [True])
    with Frames(str(clip), stop=lambda: next(answers)) as frames:
        assert [frame.number for frame in frames] == [0, 1, 2, 3]


def test_a_rotated_video_is_upright(clip: Path, tmp_path: Path) -> None:
    """A phone writes the sensor's picture and a matrix: turn by 90 degrees."""
    content = clip.read_bytes()
    start = content.index(b"tkhd") + 4 + 40  # version, times, id, duration, layer, volume; then nine 32-bit numbers
    assert struct.unpack(">9i", content[start : start + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    turn = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path = tmp_path / "phone.mp4"
    path.write_bytes(content[:start] + turn + content[start + 36 :])
    with Frames(str(path), limit=Limit(frames=1)) as frames:
        assert next(iter(frames)).pixels.shape == (WIDTH, HEIGHT, 3)


def test_a_varying_frame_rate_keeps_each_frames_time(clip: Path, tmp_path: Path) -> None:
    """Ten frames of 0.12 s, then ten of 0.04 s: the mean rate stays 12.5."""
    content = bytearray(clip.read_bytes())
    at = content.index(b"stts")  # the table of durations: one row becomes two
    count, delta = struct.unpack(">II", content[at + 12 : at + 20])
    assert count == COUNT
    rows = struct.pack(">5I", 2, 10, delta * 3 // 2, 10, delta // 2)
    content[at + 8 : at + 20] = rows
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        at = content.index(box) - 4
        content[at : at + 4] = struct.pack(">I", struct.unpack(">I", content[at : at + 4])[0] + 8)
    path = tmp_path / "phone.mp4"
    path.write_bytes(content)
    with Frames(str(path)) as frames:
        times = [frame.seconds for frame in frames]
    assert times == pytest.approx([0.12 * i for i in range(10)] + [1.2 + 0.04 * i for i in range(10)])
    assert len(frames.notes) == 1  # said once
    assert "frame rate varies" in frames.notes[0]
    assert "12.5 per second" in frames.notes[0]


def broken_avi(path: Path) -> Path:
    """60 frames of noise, of which the second half is cut off."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for _ in range(60):
        writer.write(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def test_broken_in_the_middle_says_how_far_it_got(tmp_path: Path) -> None:
    with Frames(str(broken_avi(tmp_path / "cut.avi"))) as frames:
        count = len(list(frames))
    assert 20 <= count <= 30
    assert frames.notes == [f"broken: ended after {count} of 60 frames; what was read until there is kept"]


def unknown_codec(clip: Path) -> bytes:
    content = bytearray(clip.read_bytes())
    at = content.index(b"esds")
    content[at + 21] = 0xDF  # the type of the stream, MPEG-4 before
    return bytes(content).replace(b"mp4v", b"zzzz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.mp4", None, "no such file. Fix: check the path"),
        ("empty.mp4", b"", "the file is empty"),
        ("text.mp4", b"no video at all\n" * 50, "it is none"),
        ("cut.mp4", 600, "cut off before its end"),  # MP4 has its table of contents at the end
        ("codec.mp4", "codec", "its codec is missing here"),
    ],
)
def test_what_cannot_be_read(name: str, content: Any, message: str, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        content = unknown_codec(clip) if content == "codec" else content
        path.write_bytes(clip.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(UserError, match=message) as caught:
        Frames(str(path))
    assert str(path) in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_without_opencv(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'cvexp\[video\]'"):
        Frames(str(clip))


# --- cameras and streams ---------------------------------------------------------------------------------------------


class Camera:
    """A capture object with a clock of its own: a frame waits each 1/fps seconds, up to ``frames`` of them.

    Frames that nobody took wait in a queue, as a stream's do.
    """

    def __init__(self, fps: float = 10.0, frames: int = 1000, opened: bool = True, count: float = 0) -> None:
        self.fps, self.frames, self.opened, self.count = fps, frames, opened, count
        self.now, self.next, self.released = 100.0, 0, False
        self.properties: dict[int, float] = {}

    def monotonic(self) -> float:
        return self.now

    def isOpened(self) -> bool:
        return self.opened

    def get(self, name: int) -> float:
        return {cv2.CAP_PROP_FPS: self.fps, cv2.CAP_PROP_FRAME_COUNT: self.count}.get(name, 0.0)

    def set(self, name: int, value: float) -> bool:
        self.properties[name] = value
        return True

    def grab(self) -> bool:
        if self.next >= self.frames:
            return False
        self.now = max(self.now, 100.0 + self.next / self.fps)
        self.next += 1
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, shade(self.next % 25)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``plug_in(camera)``: whatever is opened is this one, and the clock is the camera's."""

    def plugged(camera: Camera) -> Camera:
        monkeypatch.setattr(cv2, "VideoCapture", lambda *_: camera)
        monkeypatch.setattr(video, "monotonic", camera.monotonic)
        return camera

    return plugged


def test_camera_runs_until_its_limit(plug_in: Any) -> None:
    camera = plug_in(Camera(fps=10))
    with Frames("0", limit=Limit(seconds=1)) as frames:
        assert (frames.live, frames.expected, frames.total, frames.fps) == (True, None, None, 10)
        read = list(frames)
    assert [frame.number for frame in read] == list(range(10))  # 0.0 to 0.9 s
    assert [frame.seconds for frame in read] == pytest.approx([0.1 * i for i in range(10)])
    assert camera.released
    assert camera.properties[cv2.CAP_PROP_BUFFERSIZE] == 1
    assert frames.notes == []


@pytest.mark.parametrize("source", ["0", "rtsp://cam/live"])
def test_slow_model_sees_the_present(source: str, plug_in: Any) -> None:
    """Each frame takes 0.35 s at 10 frames per second: three of four are skipped, and the lag does not grow."""
    camera = plug_in(Camera(fps=10))
    seen = []
    with Frames(source, limit=Limit(frames=5)) as frames:
        for frame in frames:
            seen.append((frame.number, round(frame.seconds, 2)))
            camera.now += 0.35
    assert [number for number, _ in seen] == [0, 4, 8, 12, 16]
    assert all(seconds - number / 10 < 0.1 for number, seconds in seen), "no frame is older than one interval"


def test_quick_model_skips_nothing(plug_in: Any) -> None:
    camera = plug_in(Camera(fps=10))
    with Frames("0", limit=Limit(frames=4)) as frames:
        numbers = []
        for frame in frames:
            numbers.append(frame.number)
            camera.now += 0.09
    assert numbers == [0, 1, 2, 3]


def test_stream_that_ends_is_no_error(plug_in: Any) -> None:
    plug_in(Camera(frames=3))
    with Frames("rtsp://cam/live") as frames:
        assert len(list(frames)) == 3
    assert frames.notes == ["the source ended after 3 frames"]


def test_url_of_a_file_is_read_whole(plug_in: Any) -> None:
    """A video at a URL has a length: nothing is skipped, however slow the model."""
    camera = plug_in(Camera(frames=6, count=6))
    with Frames("https://host/clip.mp4") as frames:
        assert not frames.live
        for _ in frames:
            camera.now += 5
    assert camera.next == 6


@pytest.mark.parametrize(
    ("source", "camera", "message"),
    [
        ("3", Camera(opened=False), r"camera 3 cannot be opened \(absent, used by another program.*Fix: close"),
        ("3", Camera(frames=0), "opened, but gives no picture"),
        ("rtsp://me:secret@cam/x", Camera(opened=False), r"source=rtsp://cam/x: the stream cannot be opened"),
        ("http://host/clip.mp4", Camera(frames=0, count=9), "none of its 9 could be decoded.*download it"),
    ],
)
def test_what_does_not_answer(source: str, camera: Camera, message: str, plug_in: Any) -> None:
    plug_in(camera)
    with pytest.raises(UserError, match=message) as caught, Frames(source) as frames:
        list(frames)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "fps", [0.0, float("nan"), 90000.0, -1.0]
)  # what cameras and streams say when they do not know
def test_rate_of_a_source_that_does_not_know_it(fps: float, plug_in: Any) -> None:
    plug_in(Camera(fps=fps))
    with Frames("0") as frames:
        assert frames.fps == 25


# --- writing ---------------------------------------------------------------------------------------------------------


def facts(path: Path) -> tuple[int, float, int, int]:
    capture = cv2.VideoCapture(str(path))
    names = (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    count, fps, width, height = (capture.get(name) for name in names)
    capture.release()
    return int(count), fps, int(width), int(height)


def test_written_video(clip: Path) -> None:
    assert facts(clip) == (COUNT, FPS, WIDTH, HEIGHT)
    assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"], "no part is left"


@pytest.mark.parametrize(
    "fps", [0.5, 14.985, 23.976, 29.97, 240.0]
)  # every=2 of 29.97; rates that are no whole numbers
def test_rates_are_kept(fps: float, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps, (HEIGHT, WIDTH)) as writer:
        for index in range(3):
            writer.write(shade(index))
    assert facts(tmp_path / "a.mp4")[:2] == (3, pytest.approx(fps, abs=1e-3))


def test_odd_sides_become_even_and_another_size_is_scaled(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 10, (49, 65)) as writer:
        writer.write(np.zeros((49, 65, 3), np.uint8))
        writer.write(np.zeros((480, 640, 3), np.uint8))  # the camera changed its mode
    assert facts(tmp_path / "a.mp4") == (2, 10, 64, 48)


@pytest.mark.parametrize(
    ("times", "written"),
    [
        ([0.0], 1),
        ([0.0, 0.1, 0.2], 3),  # as fast as the video's rate
        ([0.0, 0.4], 5),  # the first frame stands for 0.4 s
        ([0.0, 0.02, 0.03, 0.1], 2),  # too fast: those between are left out
        ([0.0, 0.12, 0.19, 0.31], 4),  # jitter
    ],
)
def test_live_video_plays_as_fast_as_life(times: list[float], written: int, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 10, (HEIGHT, WIDTH)) as writer:
        for index, at in enumerate(times):
            writer.write(shade(index), at)
    assert facts(tmp_path / "a.mp4")[0] == written


def test_nothing_is_left_after_an_exception(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("the one before")

    def fails() -> None:
        with VideoWriter(tmp_path / "a.mp4", 10, (HEIGHT, WIDTH)) as writer:
            writer.write(shade(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "the one before"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Fix: output="):
        VideoWriter(tmp_path / "file" / "a.mp4", 10, (HEIGHT, WIDTH))
    with pytest.raises(UserError, match="9000 x 100 pixels"):
        VideoWriter(tmp_path / "a.mp4", 10, (100, 9000))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_interrupts(number: signal.Signals) -> None:
    def stopped(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(number, stopped)
    try:
        with stopping() as asked:
            assert not asked.is_set()
            signal.raise_signal(number)
            assert asked.is_set()
            with pytest.raises(InterruptedError):
                signal.raise_signal(number)
        assert signal.getsignal(number) is stopped
    finally:
        signal.signal(number, before)
