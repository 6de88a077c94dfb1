"""``cvexp.predict`` on videos, cameras and lists: what is written, in whose numbers, and how it ends."""

from __future__ import annotations

import csv
import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cvexp import predict as command
from cvexp.errors import UserError
from cvexp.metrics.encoded_masks import encode_masks
from cvexp.predict import find_images, predict
from cvexp.types import Detection


class RedSquare:
    """A detector without a network: one box around the pure red pixels, with the score 0.9, and one of score 0.02 elsewhere.

    Attributes:
        batches: how many pictures each call had.
    """

    classes = ("square", "dust")

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fail_at: int | None = None

    def predict_batch(self, images: list[Tensor], threshold: float) -> list[Detection]:
        self.batches.append(len(images))
        if self.fail_at is not None and sum(self.batches) > self.fail_at:
            raise RuntimeError("the network failed")
        return [self.find(image, threshold) for image in images]

    @staticmethod
    def find(image: Tensor, threshold: float) -> Detection:
        rows, columns = ((image[0] > 150) & (image[1] < 100) & (image[2] < 100)).nonzero().unbind(dim=1)
        if not len(rows):
            return Detection.empty()
        x, y = int(columns.min()), int(rows.min())
        boxes = torch.tensor([[x, y, int(columns.max()) + 1, int(rows.max()) + 1], [0, 0, 4, 4]]).float()
        keep = torch.tensor([0.9, 0.02]) >= threshold
        return Detection(boxes[keep], torch.tensor([0.9, 0.02])[keep], torch.tensor([0, 1])[keep])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> RedSquare:
    """Whatever checkpoint is named, it is this detector."""
    square = RedSquare()
    monkeypatch.setattr("cvexp.inference.load", lambda *_, **__: square)
    return square


def picture(step: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A red square of 16 pixels that moves right by 2 in each step."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    pixels[24:40, 8 + 2 * step : 24 + 2 * step] = (250, 20, 20)
    return pixels


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """20 frames at 12.5 per second, 96 x 64."""
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'cvexp[video]'")
    from cvexp.video import VideoWriter

    with VideoWriter(tmp_path / "my clip.mp4", 12.5, (64, 96)) as writer:
        for step in range(20):
            writer.write(picture(step))
    return tmp_path / "my clip.mp4"


def run(source: Path | str, tmp_path: Path, *words: str) -> dict[str, Any]:
    return predict(["ckpt=any.ckpt", f"source={source}", f"output={tmp_path / 'out'}", *words])


def tables(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    content = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    with (tmp_path / "out" / "detections.csv").open(encoding="utf-8", newline="") as file:
        return content, list(csv.DictReader(file))


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def frames_of(path: Path) -> tuple[float, list[np.ndarray]]:
    """Rate and frames (RGB) of a written video."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (read := capture.read())[0]:
        frames.append(read[1][:, :, ::-1])
    return fps, frames


# --- videos ----------------------------------------------------------------------------------------------------------


def test_video(model: RedSquare, clip: Path, tmp_path: Path) -> None:
    done = run(clip, tmp_path, "batch_size=8")
    assert model.batches == [8, 8, 4]
    assert (done["images"], done["drawn"], done["detections"], done["notes"]) == (20, 20, 40, [])
    assert everything(tmp_path / "out") == {"videos/my clip.mp4", "detections.json", "detections.csv"}

    content, rows = tables(tmp_path)
    assert content["categories"] == [{"id": 1, "name": "square"}, {"id": 2, "name": "dust"}]
    first = {"id": 0, "file_name": "my clip.mp4", "frame": 0, "seconds": 0.0, "height": 64, "width": 96}
    assert content["images"][0] == first
    assert [(image["frame"], image["seconds"]) for image in content["images"]] == [(i, 0.08 * i) for i in range(20)]
    assert list(rows[0]) == ["image", "frame", "seconds", "class", "score", "x1", "y1", "x2", "y2"]
    squares = [row for row in rows if row["class"] == "square"]
    assert [int(row["frame"]) for row in squares] == list(range(20))
    for step, row in enumerate(squares):  # in pixels of the frame, up to what the compression moves
        assert float(row["x1"]) == pytest.approx(8 + 2 * step, abs=1)
        assert float(row["y2"]) == pytest.approx(40, abs=1)
    assert [(a["image_id"], a["score"]) for a in content["annotations"][:2]] == [(0, 0.9), (0, 0.02)]

    fps, frames = frames_of(tmp_path / "out" / "videos" / "my clip.mp4")
    assert (fps, len(frames), frames[0].shape) == (12.5, 20, (64, 96, 3))
    bare = picture(0)
    assert np.abs(frames[0].astype(int) - bare)[20:44].max() > 60, "something is drawn about the square"
    assert np.abs(frames[0].astype(int) - bare)[50:].max() < 25, "and nothing far from it"


@pytest.mark.parametrize(
    ("words", "numbers", "fps"),
    [
        (["every=5"], [0, 5, 10, 15], 2.5),  # the drawn video lasts as long as the source
        (["limit=3"], [0, 1, 2], 12.5),
        (["every=4", "limit=1s"], [0, 4, 8, 12], 3.125),
        (["every=4", "limit=2", "batch_size=1"], [0, 4], 3.125),
    ],
)
def test_every_and_limit(
    words: list[str], numbers: list[int], fps: float, model: RedSquare, clip: Path, tmp_path: Path
) -> None:
    run(clip, tmp_path, *words)
    content, _ = tables(tmp_path)
    assert [image["frame"] for image in content["images"]] == numbers
    assert [image["id"] for image in content["images"]] == list(range(len(numbers)))
    rate, frames = frames_of(tmp_path / "out" / "videos" / "my clip.mp4")
    assert (rate, len(frames)) == (pytest.approx(fps, abs=1e-3), len(numbers))


def test_frames_without_objects_are_listed(model: RedSquare, clip: Path, tmp_path: Path) -> None:
    run(clip, tmp_path, "threshold=1")  # nothing is drawn; 0.01 is what the files start at
    content, rows = tables(tmp_path)
    assert (len(content["images"]), len(rows)) == (20, 40)
    model.find = lambda *_: Detection.empty()  # type: ignore[method-assign]
    done = run(clip, tmp_path)
    content, rows = tables(tmp_path)
    assert (done["detections"], len(content["images"]), content["annotations"], rows) == (0, 20, [], [])


def test_ctrl_c_keeps_what_was_done(model: RedSquare, clip: Path, tmp_path: Path) -> None:
    """The signal comes while the third batch of two is predicted: six frames are written, in good order."""
    find = model.find

    def interrupted(image: Tensor, threshold: float) -> Detection:
        if model.batches == [2, 2, 2]:
            model.batches.append(0)
            signal.raise_signal(signal.SIGINT)
        return find(image, threshold)

    model.find = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    done = run(clip, tmp_path, "batch_size=2")
    assert signal.getsignal(signal.SIGINT) is before
    assert done["images"] == 6
    assert done["notes"] == ["stopped after 6 frames, all of them written"]
    content, _ = tables(tmp_path)
    assert [image["frame"] for image in content["images"]] == list(range(6))
    assert len(frames_of(tmp_path / "out" / "videos" / "my clip.mp4")[1]) == 6
    assert not [name for name in everything(tmp_path / "out") if "part" in name]


def test_failure_leaves_nothing(model: RedSquare, clip: Path, tmp_path: Path) -> None:
    model.fail_at = 10
    with pytest.raises(RuntimeError, match="the network failed"):
        run(clip, tmp_path, "batch_size=4")
    assert everything(tmp_path / "out") == set()


def test_broken_video_keeps_what_was_read(model: RedSquare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    rng = np.random.default_rng(0)
    for _ in range(40):
        writer.write(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = run(path, tmp_path)
    assert 10 < done["images"] < 25
    assert done["notes"] == [f"broken: ended after {done['images']} of 40 frames; what was read until there is kept"]
    assert len(frames_of(tmp_path / "out" / "videos" / "cut.mp4")[1]) == done["images"]


def test_a_video_is_not_written_over_its_source(model: RedSquare, clip: Path, tmp_path: Path) -> None:
    run(clip, tmp_path)
    drawn = tmp_path / "out" / "videos" / "my clip.mp4"
    content = drawn.read_bytes()
    with pytest.raises(UserError, match=r"would write over .*Fix: output="):
        run(drawn, tmp_path)
    assert drawn.read_bytes() == content


# --- cameras ---------------------------------------------------------------------------------------------------------


class Camera:
    """Four frames at 10 per second by its own clock; after the second it stalls for half a second."""

    TIMES = (0.0, 0.1, 0.6, 0.7)

    def __init__(self) -> None:
        self.now, self.next = 5.0, 0

    def isOpened(self) -> bool:
        return True

    def get(self, name: int) -> float:
        return 10.0 if name == 5 else 0.0  # cv2.CAP_PROP_FPS

    def set(self, *_: object) -> bool:
        return True

    def grab(self) -> bool:
        if self.next == len(self.TIMES):
            return False
        self.now = 5.0 + self.TIMES[self.next]
        self.next += 1
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, picture(self.next - 1)[:, :, ::-1]

    def release(self) -> None:
        self.next = -1


def test_camera(model: RedSquare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    camera = Camera()
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", lambda *_: camera)
        patch.setattr("cvexp.video.monotonic", lambda: camera.now)
        done = run("0", tmp_path, "batch_size=8")
    assert model.batches == [1, 1, 1, 1], "a camera's frames do not wait for a batch"
    assert camera.next == -1, "the camera is given back"
    assert done["notes"] == ["the source ended after 4 frames"]
    content, rows = tables(tmp_path)
    assert {image["file_name"] for image in content["images"]} == {"camera_0"}
    assert [image["seconds"] for image in content["images"]] == [0.0, 0.1, 0.6, 0.7]
    assert float(rows[-1]["seconds"]) == 0.7
    fps, frames = frames_of(tmp_path / "out" / "videos" / "camera_0.mp4")
    assert (fps, len(frames)) == (10, 8), "0.0 to 0.7 s; the stall is filled with the frame before it"


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["source=nowhere.mp4"], r"nowhere\.mp4: no such file. Fix"),
        (["source={text}"], "cannot be read as a video"),
        (["source=smb://host/x"], "smb:// is not a stream"),
        (["source={clip}", "every=0"], "every=0: must be a whole number from 1. Fix: every=1"),
        (["source={clip}", "every=1.5"], "every=1.5"),
        (["source={clip}", "limit=-1"], "limit=-1: must be a number of frames or of seconds"),
        (["source={clip}", "evry=2"], "did you mean 'every'"),
        (["source={picture}", "every=2"], "every=2: is for videos, cameras and streams"),
        (["source={picture}", "limit=5s"], "limit=5s: is for videos, cameras and streams"),
        (["source={list}"], r"gone\.png: no such file \(1 of 2\). Fix"),
        (["source={blank}"], "no picture in this list"),
        (["source={binary}"], "not a text in UTF-8"),
    ],
)
def test_refusal(words: list[str], message: str, model: RedSquare, clip: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "picture.png")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("picture.png\ngone.png\n")
    (tmp_path / "blank.txt").write_text("\n# only a comment\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    places = {"clip": clip, "picture": tmp_path / "picture.png", "text": tmp_path / "text.mp4"}
    places |= {name: tmp_path / f"{name}.txt" for name in ("list", "blank", "binary")}
    with pytest.raises(UserError, match=message):
        predict(["ckpt=any.ckpt", f"output={tmp_path / 'out'}", *(word.format(**places) for word in words)])
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_list_of_pictures(model: RedSquare, tmp_path: Path) -> None:
    """Relative to the list, in its order, each once, under names that do not collide."""
    for name in ("b/x.png", "a/x.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(picture(1)).save(tmp_path / name)
    (tmp_path / "lists").mkdir()
    text = f"\ufeff# two pictures\n../b/x.png\n\n{tmp_path / 'a' / 'x.png'}\n../a/../b/x.png\n"
    (tmp_path / "lists" / "mine.txt").write_text(text, encoding="utf-8")
    done = run(tmp_path / "lists" / "mine.txt", tmp_path)
    content, _ = tables(tmp_path)
    assert [image["file_name"] for image in content["images"]] == ["b/x.png", "a/x.png"]
    assert everything(tmp_path / "out" / "pictures") == {"a/x.png", "b/x.png"}
    assert (done["images"], done["drawn"], done["pictures"]) == (2, 2, tmp_path / "out" / "pictures")


def test_a_picture_named_like_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: RedSquare) -> None:
    """``source=0`` with a folder of that name is the folder, as before."""
    (tmp_path / "0").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "0" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert find_images("0")[0] == [Path("0/a.png")]
    assert run("0", tmp_path)["images"] == 1


def test_help_names_every_kind_of_source(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", "--help"])
    command.main()
    said = capsys.readouterr().out
    for word in (
        "an image",
        "a folder",
        "list.txt",
        "a video",
        "a camera",
        "a stream",
        "every=",
        "limit=",
        "cvexp[video]",
    ):
        assert word in said
    assert set(command.DEFAULTS) <= {word.strip("[").split("=")[0] for word in said.split()}


def test_command_says_where(model: RedSquare, clip: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    words = ["ckpt=any.ckpt", f"source={clip}", f"output={tmp_path / 'out'}", "limit=2"]
    monkeypatch.setattr(sys, "argv", ["predict", *words])
    command.main()
    said = capsys.readouterr().out
    assert "2 frame(s), 2 object(s) drawn, 4 written" in said
    for name in ("videos/my clip.mp4", "detections.json", "detections.csv"):
        assert str(tmp_path / "out" / name) in said


# -- masks: drawn, and written as COCO's run lengths that every tool can read ----------------------------------------------


class LeftHalves:
    """A detector without a network: two boxes, of whose objects only the left half is there; the second is not sure."""

    classes = ("square", "dust")

    def __init__(self, masks: bool = True) -> None:
        self.masks = masks

    def predict_batch(self, images: list[Tensor], threshold: float) -> list[Detection]:
        return [self.find(image) for image in images]

    def find(self, image: Tensor) -> Detection:
        boxes = torch.tensor([[10.0, 30, 30, 50], [50, 30, 70, 50]])
        masks = torch.zeros(2, 4, 4)
        masks[..., :2] = 1
        scores, labels = torch.tensor([0.9, 0.1]), torch.tensor([0, 1])
        if not self.masks:
            return Detection(boxes, scores, labels)
        return Detection(boxes, scores, labels, masks, encode_masks(masks, boxes, (image.shape[1], image.shape[2])))


def of_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: bool) -> tuple[dict, np.ndarray]:
    """``detections.json`` and the drawn picture, of a grey one of 90 x 60."""
    monkeypatch.setattr("cvexp.inference.load", lambda *_, **__: LeftHalves(masks))
    Image.new("RGB", (90, 60), (100, 100, 100)).save(tmp_path / "grey.png")
    predict(["ckpt=any.ckpt", f"source={tmp_path / 'grey.png'}", f"output={tmp_path / 'out'}"])
    content = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    return content, np.asarray(Image.open(tmp_path / "out" / "pictures" / "grey.png"))


def test_masks_are_written_as_run_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hotcoco import mask

    content, _ = of_masks(tmp_path, monkeypatch, masks=True)
    first, second = content["annotations"]
    assert first["segmentation"]["size"] == [60, 90]
    assert isinstance(first["segmentation"]["counts"], str)
    rows = [a["segmentation"] | {"counts": a["segmentation"]["counts"].encode()} for a in (first, second)]
    decoded = mask.decode(rows)  # [60, 90, 2]
    expected = np.zeros((60, 90, 2), bool)
    expected[30:50, 10:20, 0] = expected[30:50, 50:60, 1] = True
    assert np.array_equal(decoded.astype(bool), expected)
    assert (first["bbox"], first["score"], second["category_id"]) == ([10, 30, 20, 20], 0.9, 2)


def test_masks_are_drawn_from_the_threshold_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, drawn = of_masks(tmp_path, monkeypatch, masks=True)
    assert drawn[40, 15].tolist() != [100] * 3
    assert drawn[40, 25].tolist() == [100] * 3  # the half that is not there
    assert drawn[35:49, 52:68].std() == 0  # the second is not sure enough


def test_without_masks_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, drawn = of_masks(tmp_path, monkeypatch, masks=False)
    assert all("segmentation" not in annotation for annotation in content["annotations"])
    assert drawn[40, 15].tolist() == [100] * 3


def test_the_file_can_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a COCO result against the same objects as annotations: every mask is found."""
    from cvexp.data.coco_results import read_results

    content, _ = of_masks(tmp_path, monkeypatch, masks=True)
    objects = [
        {k: v for k, v in a.items() if k != "score"} | {"id": i + 1, "iscrowd": 0, "area": 200}
        for i, a in enumerate(content["annotations"])
    ]
    (tmp_path / "truth.json").write_text(json.dumps(content | {"annotations": objects}))
    results = read_results(tmp_path / "out" / "detections.json", tmp_path / "truth.json", masks=True)
    assert results.masks is not None
    assert results.truth.masks is not None
    assert [m["counts"] for m in results.masks] == [m["counts"] for m in results.truth.masks]
