"""``cvexp.predict`` with a face model: what two faces, or a face and a gallery, give; what is written; what is refused."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from cvexp import predict as command
from cvexp.comparators.comparator import Comparator
from cvexp.data.transforms import Fit
from cvexp.errors import UserError
from cvexp.inference import Comparison, Embedder, load
from cvexp.predict import predict
from cvexp.types import Detection

Colour = tuple[int, int, int]
RED, NEAR_RED, ORANGE, GREEN, BLUE = (255, 0, 0), (255, 51, 0), (255, 102, 0), (0, 255, 0), (0, 0, 255)


class Squared(Comparator):
    measure, falling = "squared distance", True

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        return -(a - b).square().sum(dim=-1)


class Inner(Comparator):
    """One whose measure rises with likeness."""

    measure = "inner product"

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=-1)


class Colours(nn.Module):
    """A face model without weights: the embedding is the mean colour, 0..1, so red and (255, 51, 0) are 0.2^2 = 0.04 apart.

    Attributes:
        sizes: number of pictures of each call.
    """

    def __init__(self, comparator: type[Comparator] = Squared) -> None:
        super().__init__()
        self.comparator = comparator(3)
        self.sizes: list[int] = []

    def embed(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return images.float().mean(dim=(2, 3)) / 255


def embedder(threshold: float | None = 0.1, comparator: type[Comparator] = Squared) -> Embedder:
    return Embedder(
        model=Colours(comparator),
        people=["Ann", "Bob"],
        fit=Fit(size=8, resize="warp"),
        config=OmegaConf.create({}),
        device=torch.device("cpu"),
        threshold=threshold,
        chosen="" if threshold is None else "best accuracy, 0.861, on the 2,200 pairs of pairsDevTrain.txt",
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Embedder:
    """Whatever checkpoint is named, it is this face model."""
    found = embedder()
    monkeypatch.setattr("cvexp.inference.load", lambda *_, **__: found)
    return found


def paint(path: Path, colour: Colour) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(path)
    return path


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Ann is red (one picture nearly, one far from it), Bob green, Cleo blue."""
    for name, colour in (("Ann/1.png", NEAR_RED), ("Ann/2.png", BLUE), ("Bob/1.png", GREEN), ("Cleo/1.png", BLUE)):
        paint(tmp_path / "people" / name, colour)
    return tmp_path / "people"


def run(tmp_path: Path, **words: object) -> dict[str, Any]:
    return predict(["ckpt=any.ckpt", f"output={tmp_path / 'out'}", *(f"{k}={v}" for k, v in words.items())])


def tables(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    content = json.loads((tmp_path / "out" / "matches.json").read_text(encoding="utf-8"))
    with (tmp_path / "out" / "matches.csv").open(encoding="utf-8", newline="") as file:
        return content, list(csv.DictReader(file))


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- two pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words", "own", "verdict", "line"),
    [
        (NEAR_RED, {}, 0.1, "same person", "same person: squared distance 0.0400 between a.png and b.png, below"),
        (ORANGE, {}, 0.1, "different", "different: squared distance 0.1600 between a.png and b.png, above"),
        (RED, {}, 0.1, "same person", "same person: squared distance 0.0000"),  # one picture twice
        (
            ORANGE,
            {"threshold": 0.2},
            0.1,
            "same person",
            "below the threshold 0.2",
        ),  # typed: wins over the checkpoint's
        (NEAR_RED, {"threshold": 0}, 0.1, "different", "above the threshold 0"),  # 0 is a threshold, too
        (RED, {"threshold": 0}, 0.1, "different", "at the threshold 0"),  # on it is not below it, as in the metric
        (NEAR_RED, {"threshold": 0.2}, None, "same person", "below the threshold 0.2"),
        (NEAR_RED, {}, None, None, "squared distance 0.0400 between a.png and b.png"),  # nobody has chosen one
    ],
)
def test_two_pictures(
    other: Colour,
    words: dict[str, float],
    own: float | None,
    verdict: str | None,
    line: str,
    model: Embedder,
    tmp_path: Path,
) -> None:
    model.threshold, model.chosen = own, model.chosen if own else ""
    done = run(tmp_path, source=paint(tmp_path / "a.png", RED), against=paint(tmp_path / "b.png", other), **words)
    assert done["verdicts"] == [verdict]
    assert line in done["said"][0]
    origin = done["said"][1]
    if words:
        more = "" if own is None else ", instead of the checkpoint's 0.1"
        assert origin == f"threshold {words['threshold']:g}: from the command line{more}"
    elif own is None:
        assert "the checkpoint has none" in origin
        assert "Fix: threshold=" in origin
    else:
        assert origin == "threshold 0.1: best accuracy, 0.861, on the 2,200 pairs of pairsDevTrain.txt"
    assert everything(tmp_path / "out") == {"pair.png", "matches.json", "matches.csv"}
    content, rows = tables(tmp_path)
    assert content["sources"][0]["verdict"] == verdict
    assert content["threshold"] == words.get("threshold", own)
    assert [row["image"] for row in rows] == ["b.png"]


def test_what_the_screen_says(
    model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = paint(tmp_path / "a.png", RED), paint(tmp_path / "b.png", ORANGE)
    words = ["ckpt=x.ckpt", f"source={a}", f"against={b}", f"output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["predict", *words])
    command.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("the model does not find faces: the pictures must be tight crops")
    assert "8x8 pixels, stretched to a square" in said[0]
    assert said[1:3] == [
        "different: squared distance 0.1600 between a.png and b.png, above the threshold 0.1",
        "threshold 0.1: best accuracy, 0.861, on the 2,200 pairs of pairsDevTrain.txt",
    ]
    assert [row.strip() for row in said[3:]] == [
        str(tmp_path / "out" / name) for name in ("pair.png", "matches.json", "matches.csv")
    ]


@pytest.mark.parametrize(
    ("other", "threshold", "rgb"),
    [
        (NEAR_RED, 0.1, (25, 140, 60)),  # green: one person
        (BLUE, 0.1, (200, 20, 30)),  # red
        (BLUE, None, (255, 255, 255)),  # no verdict, no frame
    ],
)
def test_frames_tell_the_verdict(
    other: Colour, threshold: float | None, rgb: Colour, model: Embedder, tmp_path: Path
) -> None:
    model.threshold = threshold
    run(tmp_path, source=paint(tmp_path / "a.png", RED), against=paint(tmp_path / "b.png", other))
    pixels = np.asarray(Image.open(tmp_path / "out" / "pair.png"))
    framed = (pixels == rgb).all(axis=2).sum(axis=1).max()  # of the most coloured row
    assert framed > 450  # two frames of 248 pixels


def test_one_picture_with_itself(model: Embedder, tmp_path: Path) -> None:
    a = paint(tmp_path / "a.png", RED)
    assert run(tmp_path, source=a, against=a)["notes"][0] == "source and against are the same file: a.png"


# --- a gallery -------------------------------------------------------------------------------------------------------


def test_gallery(model: Embedder, gallery: Path, tmp_path: Path) -> None:
    """A person is as near as the nearest picture: Ann by 1.png, not by the blue 2.png."""
    paint(tmp_path / "asked" / "x.png", RED)
    paint(tmp_path / "asked" / "deep" / "y.png", (128, 128, 128))
    done = run(tmp_path, source=tmp_path / "asked", gallery=gallery)
    assert (done["images"], done["verdicts"]) == (2, ["unknown", "Ann"])
    assert everything(tmp_path / "out") == {"matches.json", "matches.csv", "matches/x.png", "matches/deep/y.png"}
    content, rows = tables(tmp_path)
    assert (content["measure"], content["threshold"]) == ("squared distance", 0.1)
    assert content["chosen"].startswith("best accuracy")
    assert content["sources"][1] == {
        "file_name": "x.png",
        "verdict": "Ann",
        "matches": [
            {"person": "Ann", "file_name": "Ann/1.png", "value": 0.04, "within": True},
            {"person": "Bob", "file_name": "Bob/1.png", "value": 2.0, "within": False},
            {"person": "Cleo", "file_name": "Cleo/1.png", "value": 2.0, "within": False},
        ],
    }
    assert list(rows[0]) == ["source", "verdict", "rank", "person", "image", "measure", "value", "within"]
    mine = [row for row in rows if row["source"] == "x.png"]
    assert [(row["rank"], row["person"], row["within"]) for row in mine] == [
        ("1", "Ann", "true"),
        ("2", "Bob", "false"),
        ("3", "Cleo", "false"),
    ]
    assert "x.png: Ann; nearest Ann, squared distance 0.0400 (Ann/1.png)" in done["said"]
    assert "with 3 people in the gallery a stranger has 3 chances" in done["notes"][0]
    assert any(line.startswith("deep/y.png: unknown; nearest ") for line in done["said"])


def test_top(model: Embedder, gallery: Path, tmp_path: Path) -> None:
    x = paint(tmp_path / "x.png", RED)
    run(tmp_path, source=x, gallery=gallery, top=2)
    assert [row["person"] for row in tables(tmp_path)[1]] == ["Ann", "Bob"]
    run(tmp_path, source=x, gallery=gallery, top=99)
    assert len(tables(tmp_path)[1]) == 3, "there are no more people"


def test_without_a_threshold_there_is_no_verdict(model: Embedder, gallery: Path, tmp_path: Path) -> None:
    model.threshold, model.chosen = None, ""
    done = run(tmp_path, source=paint(tmp_path / "x.png", RED), gallery=gallery)
    assert done["verdicts"] == [None]
    assert done["said"][0] == "x.png: nearest Ann, squared distance 0.0400 (Ann/1.png)"
    content, rows = tables(tmp_path)
    assert (content["threshold"], content["chosen"], content["sources"][0]["verdict"]) == (None, None, None)
    assert content["sources"][0]["matches"][0]["within"] is None
    assert {(row["verdict"], row["within"]) for row in rows} == {("", "")}


def test_the_source_itself_is_left_out(model: Embedder, gallery: Path, tmp_path: Path) -> None:
    """Whatever way leads to the file; a copy of it under another name is a match."""
    (tmp_path / "link.png").symlink_to(gallery / "Ann" / "1.png")
    done = run(tmp_path, source=tmp_path / "link.png", gallery=gallery)
    assert done["notes"][0] == "left out of the gallery, each for itself, as it is the source: link.png"
    assert {row["image"] for row in tables(tmp_path)[1]} == {"Ann/2.png", "Bob/1.png", "Cleo/1.png"}
    done = run(tmp_path, source=gallery, gallery=gallery)
    assert done["verdicts"] == ["unknown", "Cleo", "unknown", "Ann"], "the two blue ones find each other"
    paint(gallery / "Bob" / "copy.png", NEAR_RED)
    assert run(tmp_path, source=tmp_path / "link.png", gallery=gallery)["verdicts"] == ["Bob"]


@pytest.mark.parametrize(
    ("files", "people"),
    [
        (["Ann.png", "Bob.png"], {"Ann", "Bob"}),  # plain pictures
        (["Ann/1.png", "Bob/1.png"], {"Ann", "Bob"}),  # a folder each
        (["Ann/1.png", "Bob.png"], {"Ann", "Bob"}),  # both
        (["lfw/Ann/1.png", "lfw/Bob/1.png"], {"Ann", "Bob"}),  # a folder around them
        (["Ann/1.png", "Ann/2.png"], {"Ann"}),  # one person is no folder around others
        (["a/Ann/1.png", "b/Ann/1.png"], {"a/Ann", "b/Ann"}),  # of the same name, but not the same
    ],
)
def test_layouts_of_a_gallery(files: list[str], people: set[str], model: Embedder, tmp_path: Path) -> None:
    for name in files:
        paint(tmp_path / "people" / name, GREEN)
    run(tmp_path, source=paint(tmp_path / "x.png", RED), gallery=tmp_path / "people")
    assert {row["person"] for row in tables(tmp_path)[1]} == people


def test_drawings_of_sources_with_one_stem(model: Embedder, gallery: Path, tmp_path: Path) -> None:
    for name in ("x.png", "x.bmp", "y.bmp"):
        paint(tmp_path / "asked" / name, RED)
    run(tmp_path, source=tmp_path / "asked", gallery=gallery)
    assert everything(tmp_path / "out" / "matches") == {"x.png.png", "x.bmp.png", "y.png"}


def test_no_drawing_is_written_over_another(model: Embedder, gallery: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.jpg.png"):  # the first's whole name is the last's short one
        paint(tmp_path / "asked" / name, RED)
    run(tmp_path, source=tmp_path / "asked", gallery=gallery)
    assert everything(tmp_path / "out" / "matches") == {"a.jpg.png", "a.png.png", "a.jpg.png.png"}


def test_batches(model: Embedder, gallery: Path, tmp_path: Path) -> None:
    run(tmp_path, source=paint(tmp_path / "x.png", RED), gallery=gallery, batch_size=3)
    assert model.model.sizes == [1, 3, 1]


def test_many_sources_are_not_all_named(model: Embedder, gallery: Path, tmp_path: Path) -> None:
    for i in range(23):
        paint(tmp_path / "asked" / f"{i:02}.png", RED)
    done = run(tmp_path, source=tmp_path / "asked", gallery=gallery, top=1)
    assert done["said"][20] == "... and 3 more in matches.csv"
    assert len(tables(tmp_path)[1]) == 23


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSALS = [
    (["source={a}"], r"any\.ckpt: a face model; it compares pictures.*Fix: source=<a face> with against=.*gallery="),
    (["source={a}", "top=3"], r"against= and gallery= are missing\. Fix"),
    (["source={a}", "against={b}", "gallery={people}"], r"both against= and gallery= are given\. Fix"),
    (["source={people}", "against={b}"], r"source=.*people: 4 pictures; against= compares two\. Fix"),
    (["source={a}", "against={people}"], r"against=.*people: 4 pictures"),
    (["source={a}", "against=gone.png"], r"against=gone\.png: no such image or folder"),
    (["source={a}", "gallery={empty}"], r"gallery=.*empty: no picture in this folder"),
    (["source={a}", "gallery={broken}"], r"bad\.png.*Fix: replace the file"),
    (["source={text}", "gallery={people}"], r"text\.png.*Fix: replace the file"),
    (["source={a}", "gallery=people.zip"], r"gallery=people\.zip: pictures are not read from zip files.*Fix: unpack it"),
    (["source=faces.ZIP", "against={b}"], r"source=faces\.ZIP: pictures are not read from zip files"),
    (["source={a}", "gallery={a}"], r"holds nothing but the source itself .*a\.png.*Fix"),
    (["source={a}", "gallery={people}", "top=0"], r"top=0: must be a whole number from 1\. Fix: top=5"),
    (["source={a}", "gallery={people}", "top=1.5"], r"top=1\.5"),
    (["source={a}", "against={b}", "threshold=low"], r"threshold=low: must be a number.*Fix: leave it out"),
    (["source={a}", "against={b}", "threshold=nan"], r"threshold=nan: must be a number"),
    (["source={a}", "against={b}", "every=2"], r"every=2: is for videos; against= compares pictures\. Fix: leave it out"),
    (["source={a}", "gallery={people}", "limit=5"], r"limit=5: is for videos"),
    (["source=clip.mp4", "gallery={people}"], r"gallery=.*faces are compared in pictures, and the source is a video\. Fix"),
    (["source=rtsp://host/x", "against={b}"], r"the source is a stream"),
    (["source={a}", "galery={people}"], "did you mean 'gallery'"),
]  # fmt: skip


def places(tmp_path: Path, people: Path) -> dict[str, Path]:
    """What stands for the names in the words of a refusal."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("broken/bad.png", "text.png"):
        (tmp_path / name).write_text("no picture")
    return {
        "a": paint(tmp_path / "a.png", RED),
        "b": paint(tmp_path / "b.png", RED),
        "people": people,
        "text": tmp_path / "text.png",
        "empty": tmp_path / "empty",
        "broken": tmp_path / "broken",
    }


@pytest.mark.parametrize(("words", "message"), REFUSALS)
def test_refusal(words: list[str], message: str, model: Embedder, gallery: Path, tmp_path: Path) -> None:
    known = places(tmp_path, gallery)
    with pytest.raises(UserError, match=message):
        predict(["ckpt=any.ckpt", f"output={tmp_path / 'out'}", *(word.format(**known) for word in words)])
    assert not (tmp_path / "out").exists(), "nothing is written"


@pytest.mark.parametrize("words", [{"against": "b.png"}, {"gallery": "."}])
def test_a_detector_compares_no_faces(words: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Detector:
        def predict_batch(self, images: list[Tensor], threshold: float) -> list[Detection]:
            raise AssertionError("not to be asked")

    monkeypatch.setattr("cvexp.inference.load", lambda *_, **__: Detector())
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "a.png", RED)
    paint(tmp_path / "b.png", RED)
    (option,) = words
    with pytest.raises(
        UserError, match=f"{option}=.*is for a face model; ckpt=any.ckpt is a detector. Fix: leave {option}="
    ):
        run(tmp_path, source="a.png", **words)
    assert not (tmp_path / "out").exists()


def test_a_face_model_finds_nothing_in_videos(model: Embedder, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'cvexp[video]'")
    from cvexp.video import VideoWriter

    with VideoWriter(tmp_path / "clip.mp4", 10, (64, 64)) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"a face model.*finds no objects in videos\. Fix"):
        run(tmp_path, source=tmp_path / "clip.mp4")
    assert not (tmp_path / "out").exists()


def test_a_source_is_not_written_over(model: Embedder, tmp_path: Path) -> None:
    pair = paint(tmp_path / "out" / "pair.png", RED)
    before = pair.read_bytes()
    with pytest.raises(UserError, match=r"would write over .*pair\.png\. Fix: output="):
        run(tmp_path, source=pair, against=paint(tmp_path / "b.png", RED))
    assert pair.read_bytes() == before
    assert everything(tmp_path / "out") == {"pair.png"}


def test_a_picture_of_the_gallery_is_not_written_over(model: Embedder, tmp_path: Path) -> None:
    """Not even one that is no match."""
    people = tmp_path / "out" / "matches"
    mine = paint(people / "x.png", BLUE)
    paint(people / "Ann.png", RED)
    with pytest.raises(UserError, match=r"would write over .*x\.png"):
        run(tmp_path, source=paint(tmp_path / "x.png", RED), gallery=people, top=1)
    assert Image.open(mine).getpixel((0, 0)) == BLUE


def test_output_that_is_a_file(model: Embedder, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"cannot be written .*Fix: output=<a folder you may write>"):
        run(tmp_path, source=paint(tmp_path / "a.png", RED), against=paint(tmp_path / "b.png", RED))
    assert (tmp_path / "out").read_text() == "mine"


# --- from Python -----------------------------------------------------------------------------------------------------


def test_embed_turns_pictures_as_training_does(tmp_path: Path) -> None:
    found = embedder()
    image, exif = Image.new("RGB", (8, 16)), Image.Exif()
    exif[0x0112] = 6
    image.paste((255, 255, 255), (0, 0, 8, 8))
    image.save(tmp_path / "a.png", exif=exif)
    found.model.embed = lambda images: images.float()[:, :, 4, 6]  # type: ignore[attr-defined]
    for picture in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert found.embed(picture).tolist() == [[255, 255, 255]]  # white is right, not below


def test_embed_takes_any_kind_of_picture(tmp_path: Path) -> None:
    found = embedder()
    array = np.full((5, 7, 3), RED, np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    pictures = [paint(tmp_path / "a.png", RED), str(tmp_path / "a.png"), Image.fromarray(array), array, tensor]
    for picture in pictures:
        assert found.embed(picture).tolist() == [[1, 0, 0]]
    assert found.embed(pictures, batch_size=2).tolist() == [[1, 0, 0]] * 5
    assert found.model.sizes[-3:] == [2, 2, 1]
    assert found.embed([]).shape == (0, 3)


def test_embed_refuses_what_is_no_picture_and_no_number() -> None:
    found = embedder()
    with pytest.raises(UserError, match="is not a path, a PIL image"):
        found.embed(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))  # a batch; a list is wanted
    found.model.embed = lambda images: torch.full((len(images), 3), torch.nan)
    with pytest.raises(UserError, match=r"NaN or infinity\. Fix"):
        found.embed(torch.zeros(3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("comparator", "threshold", "expected"),
    [
        (Squared, None, Comparison(pytest.approx(0.04), 0.1, True, "squared distance", embedder().chosen)),
        (Squared, 0.03, Comparison(pytest.approx(0.04), 0.03, False, "squared distance", "as given")),
        (Inner, 0.9, Comparison(pytest.approx(1.0), 0.9, True, "inner product", "as given")),  # here larger is nearer
        (Inner, 1.1, Comparison(pytest.approx(1.0), 1.1, False, "inner product", "as given")),
    ],
)
def test_compare(comparator: type[Comparator], threshold: float | None, expected: Comparison) -> None:
    red, other = (Image.new("RGB", (9, 9), colour) for colour in (RED, NEAR_RED))
    assert embedder(comparator=comparator).compare(red, other, threshold) == expected


@pytest.mark.parametrize("same", [True, False])
def test_the_verdict_is_the_metric_s(same: bool) -> None:
    """`cvexp.metrics.verification.accuracy` accepts ``score > threshold``; on the threshold is refused."""
    from cvexp.metrics.verification import accuracy

    for score, threshold in ((-0.04, -0.1), (-0.1, -0.1), (-0.2, -0.1)):
        right = embedder().judge(score, -threshold).same is same
        assert accuracy(np.array([score]), np.array([same]), threshold) == float(right)


@pytest.fixture
def checkpoint(compose: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """``checkpoint(threshold=-1.1)`` writes an untrained tiny FaceNet with what a validation chose, as the task does."""
    from cvexp.build import build_model, describe

    def written(**verification: Any) -> Path:
        config = compose("model=facenet", "model.size=tiny", "data=faces")
        torch.manual_seed(0)
        model = build_model(config.model, 2)
        about = describe(config, ["Ann", "Bob"]) | {"verification": verification}
        state = {f"model.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": state, "cvexp": about}, tmp_path / "face.ckpt")
        return tmp_path / "face.ckpt"

    return written


def test_load_gives_what_the_validation_chose(checkpoint: Callable[..., Path]) -> None:
    found = load(
        checkpoint(threshold=-1.1, shown=1.1, measure="squared distance", chosen="best accuracy"), device="cpu"
    )
    assert isinstance(found, Embedder)
    assert (found.threshold, found.chosen, found.people) == (1.1, "best accuracy", ["Ann", "Bob"])
    assert found.embed(torch.zeros(3, 50, 40, dtype=torch.uint8)).norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("verification", [{}, {"threshold": float("nan")}, {"threshold": None}])
def test_load_without_a_threshold(verification: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    found = load(checkpoint(**verification), device="cpu")
    assert (found.threshold, found.chosen) == (None, "")


def test_pictures_are_prepared_as_in_the_test(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """What `embed` makes of a file is what the model makes of the image that the data module's loader would give."""
    from cvexp.data.face_module import FaceFit

    found = load(checkpoint(), device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    fit = FaceFit(size=found.config.data.image_size, resize=found.config.data.resize)
    image = fit.picture(torch.from_numpy(pixels).permute(2, 0, 1), None)
    with torch.inference_mode():
        assert torch.equal(found.embed(tmp_path / "a.png"), found.model.embed(image[None]))


def test_drawings_of_real_faces(model: Embedder, data_root: Path, tmp_path: Path) -> None:
    """Crops of LFW: the query and its matches stand beside each other, enlarged, with legible names."""
    import zipfile

    with zipfile.ZipFile(data_root / "lfw" / "lfw_crop90.zip") as archive:
        for name in ("Tony_Blair", "Luiz_Inacio_Lula_da_Silva"):
            for number in (1, 2):
                file = tmp_path / "people" / name / f"{number}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(f"lfw/{name}/{name}_{number:04}.jpg"))
    done = run(
        tmp_path, source=tmp_path / "people" / "Tony_Blair" / "1.jpg", gallery=tmp_path / "people", threshold=1e9
    )
    assert done["verdicts"][0] in ("Tony_Blair", "Luiz_Inacio_Lula_da_Silva")
    width, height = Image.open(tmp_path / "out" / "matches" / "1.png").size
    assert width > 3 * 160
    assert 200 < height < 400
