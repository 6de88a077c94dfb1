"""Find objects in pictures and videos: ``python -m cvexp.predict ckpt=... source=<image, folder, video, camera or stream>``.

Writes every picture with its boxes and masks under its own name (a video as one MP4), ``detections.json`` (COCO results with the
list of images and classes; masks as run lengths) and ``detections.csv``. A face model compares faces instead: see
`cvexp.predict_faces`.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from cvexp.config import report_errors, suggest
from cvexp.config.messages import one_line
from cvexp.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from cvexp.types import Detection
    from cvexp.video import Frame, Frames

USAGE = """usage: python -m cvexp.predict ckpt=<detector> source=<see below> [threshold=0.3]
           [every=1] [limit=<frames, or seconds as 10s>]
       python -m cvexp.predict ckpt=<face model> source=<face> against=<another face> [threshold=<number>]
       python -m cvexp.predict ckpt=<face model> source=<face or folder> gallery=<folder> [top=5] [threshold=<number>]
       all: [output=predictions] [device=cpu] [batch_size=8] [allow_targets=<your package>]

With a detector

source=photo.jpg           an image
source=photos/             a folder with all below it; also 'photos/*.png', or list.txt with an image on each line
source=clip.mp4            a video
source=0                   a camera by its number; runs until Ctrl-C or limit=
source=rtsp://host/path    a stream, also http:// and others; runs until Ctrl-C or limit=

Draws what the checkpoint finds and writes detections.json (COCO results) and detections.csv, in pixels of each picture.
Masks, where the model finds any, are drawn too; in detections.json they are COCO's run lengths (segmentation).
Detections from threshold on are drawn; all above 0.01 are written to the files, unless threshold is lower still.

Videos, cameras and streams need pip install 'cvexp[video]'. They become videos/<name>.mp4 with the source's size and speed;
the tables hold each frame's number and time in seconds. every=5 takes each fifth frame. Ctrl-C ends in good order: what was
done until then is kept. A phone's video is turned upright. Where the frame rate varies, the drawn video plays at its mean.
Frames of a camera or endless stream that arrive while the model is busy are skipped, so that it stays at the present.

With a face model

against=b.jpg              is it the same person? The answer, pair.png, matches.json and matches.csv
gallery=people/            who is it? people/NAME/*.jpg, a folder for each person, or plain pictures; for each source the top
                           nearest people: matches.json, matches.csv and matches/<name>.png

The model does not find faces: give tight crops like those it was trained on. The threshold is in units of its measure (squared
distance, cosine ...); without one the checkpoint's is taken, which its validation chose."""

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
FILE_THRESHOLD = 0.01
COMMON = {"output": "predictions", "device": "", "batch_size": "8", "allow_targets": ""}
DETECTOR = {"threshold": "0.3", "every": "1", "limit": ""}
FACES = {"threshold": "", "against": "", "gallery": "", "top": "5"}
DEFAULTS = COMMON | FACES | DETECTOR


def predict(words: Sequence[str]) -> dict[str, Any]:
    """Runs the command with ``words``.

    Returns:
        ``images`` (or frames), ``detections, drawn`` (counts), ``output`` (folder), ``pictures`` (the folder or video with the
        drawings) and ``notes`` (lines about a video). For faces: see `cvexp.predict_faces.predict_faces`.

    Raises:
        UserError: a word, the checkpoint or the source cannot be used, or an option is for another kind of checkpoint.
    """
    from cvexp.video import kind_of

    typed = _options(words)
    kind = kind_of(typed["source"])
    own = [name for name in FACES if name in typed and name not in DETECTOR]
    if not own:
        return (_predict_images if kind is None else _predict_video)(COMMON | DETECTOR | typed)
    _check_faces(typed, own[0], kind)
    from cvexp.predict_faces import predict_faces

    return predict_faces(COMMON | FACES | typed)


def _check_faces(typed: dict[str, str], own: str, kind: str | None) -> None:
    """Whether everything typed goes with ``own``, an option that only a face model has."""
    if kind is not None:
        raise UserError(
            f"{own}={typed[own]}: faces are compared in pictures, and the source is a {kind}."
            " Fix: cut the faces out of its frames and give source=<picture or folder>"
        )
    for name in DETECTOR:
        if name in typed and name not in FACES:
            raise UserError(f"{name}={typed[name]}: is for videos; {own}= compares pictures. Fix: leave it out")


def _predict_images(options: dict[str, str]) -> dict[str, Any]:
    for name in ("every", "limit"):
        if options[name] != DEFAULTS[name]:
            raise UserError(f"{name}={options[name]}: is for videos, cameras and streams. Fix: leave it out")
    files, base = find_images(options["source"])
    threshold, size = number(options, "threshold"), int(number(options, "batch_size"))
    predictor = _load_detector(options, "pictures")
    output = Path(options["output"]).expanduser()
    drawn = 0
    with Tables(output, predictor.classes, ()) as tables:
        for path, picture, detection in _batches(predictor, files, size, min(threshold, FILE_THRESHOLD)):
            name = path.relative_to(base).as_posix()
            tables.add({"file_name": name, "height": picture.shape[1], "width": picture.shape[2]}, detection)
            drawing, count = _drawing(picture, detection, predictor.classes, threshold)
            _save(drawing, output / "pictures" / name)
            drawn += count
    return _done(tables, drawn, output, output / "pictures", [])


def _predict_video(options: dict[str, str]) -> dict[str, Any]:
    from cvexp.video import Frames, Limit, kind_of, name_of, stopping

    threshold, size = number(options, "threshold"), int(number(options, "batch_size"))
    every, limit = int(number(options, "every")), Limit.parse(options["limit"])
    output = Path(options["output"]).expanduser()
    name = name_of(options["source"])
    target = output / "videos" / f"{Path(name).stem if kind_of(options['source']) == 'video' else name}.mp4"
    if target.resolve() == Path(options["source"]).expanduser().resolve():
        raise UserError(f"output={options['output']}: would write over {target}. Fix: output=<another folder>")
    with stopping() as asked, Frames(options["source"], every, limit, asked.is_set) as frames:
        predictor = _load_detector(options, "videos")
        with Tables(output, predictor.classes, ("frame", "seconds")) as tables:
            drawn = _draw_video(predictor, frames, size, threshold, target, tables, name)
    notes = frames.notes + ([f"stopped after {tables.count:,} frames, all of them written"] if asked.is_set() else [])
    return _done(tables, drawn, output, target, notes)


def _draw_video(
    predictor: Any, frames: Frames, size: int, threshold: float, target: Path, tables: Tables, name: str
) -> int:
    """Predicts, draws and writes all frames; the number of boxes drawn."""
    from contextlib import ExitStack

    import numpy as np

    from cvexp.inference import as_tensor
    from cvexp.video import VideoWriter

    writer, drawn = None, 0
    with ExitStack() as stack:
        for chunk in _chunks(_progress(frames), 1 if frames.live else size):
            pictures = [as_tensor(frame.pixels) for frame in chunk]
            found = predictor.predict_batch(pictures, min(threshold, FILE_THRESHOLD))
            for frame, picture, detection in zip(chunk, pictures, found, strict=True):
                if writer is None:
                    rate = frames.fps if frames.live else frames.fps / frames.every
                    writer = stack.enter_context(VideoWriter(target, rate, frame.pixels.shape[:2]))
                row = {"file_name": name, "frame": frame.number, "seconds": round(frame.seconds, 4)}
                tables.add(row | {"height": picture.shape[1], "width": picture.shape[2]}, detection)
                drawing, count = _drawing(picture, detection, predictor.classes, threshold)
                writer.write(np.asarray(drawing), frame.seconds if frames.live else None)
                drawn += count
    return drawn


def _done(tables: Tables, drawn: int, output: Path, pictures: Path, notes: list[str]) -> dict[str, Any]:
    counts = {"images": tables.count, "detections": tables.detections, "drawn": drawn}
    what = "image" if pictures.suffix != ".mp4" else "frame"
    said = f"{tables.count} {what}(s), {drawn} object(s) drawn, {tables.detections} written"
    files = [pictures, output / "detections.json", output / "detections.csv"]
    return counts | {"output": output, "pictures": pictures, "notes": notes, "said": [said], "files": files}


def load_checkpoint(options: dict[str, str]) -> Any:
    """What ``ckpt=`` holds, on the device of ``device=``."""
    from cvexp.inference import load

    packages = options["allow_targets"].strip("[]").split(",")
    return load(options["ckpt"], device=options["device"] or None, allow_targets=packages)


def _load_detector(options: dict[str, str], where: str) -> Any:
    predictor = load_checkpoint(options)
    if not hasattr(predictor, "predict_batch"):
        raise UserError(
            f"ckpt={options['ckpt']}: a face model; it compares pictures of faces and finds no objects in {where}."
            " Fix: source=<a face> with against=<another> or gallery=<folder of people>"
        )
    return predictor


def _options(words: Sequence[str]) -> dict[str, str]:
    """What was typed, by name."""
    options: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"{word!r} is not name=value.\n{USAGE}")
        if name not in {*DEFAULTS, "ckpt", "source"}:
            raise UserError(
                f"{word}: there is no option {name!r}; {suggest(name, [*DEFAULTS, 'ckpt', 'source'])}\n{USAGE}"
            )
        options[name] = value
    for name in ("ckpt", "source"):
        if not options.get(name):
            raise UserError(f"{name}= is missing.\n{USAGE}")
    return options


NUMBERS = {
    "threshold": (0.0, 1.0, "a number from 0 to 1"),
    "batch_size": (1.0, 4096.0, "a whole number from 1"),
    "every": (1.0, 1e6, "a whole number from 1"),
    "top": (1.0, 1000.0, "a whole number from 1"),
}


def number(options: dict[str, str], name: str) -> float:
    """An option as a number.

    Raises:
        UserError: none, or out of its range.
    """
    low, high, expected = NUMBERS[name]
    try:
        value = float(options[name])
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (name != "threshold" and value % 1):  # NaN is not between either
        raise UserError(f"{name}={options[name]}: must be {expected}. Fix: {name}={DEFAULTS[name]}")
    return value


def find_images(source: str, option: str = "source") -> tuple[list[Path], Path]:
    """The pictures that ``source`` names, sorted, and the folder that their names are relative to.

    Args:
        option: what it was typed as, for messages.

    Raises:
        UserError: nothing there, or no picture among it.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() == ".txt":
        return _listed(path, option)
    if path.is_file():
        return [path], path.parent
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file() and _seen(p, path))
        if not files:
            raise UserError(
                f"{option}={source}: no picture in this folder. Fix: it should hold {', '.join(sorted(ENDINGS))} files"
            )
        return files, path
    parts = path.parts
    wild = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts) - 1)
    base = Path(*parts[:wild])
    files = sorted(p for p in base.glob("/".join(parts[wild:])) if p.is_file() and p.suffix.lower() in ENDINGS)
    if not files:
        raise UserError(
            f"{option}={source}: no such image or folder, and no picture fits it as a pattern. Fix: check the path"
        )
    return files, base


def _seen(file: Path, folder: Path) -> bool:
    """Whether a file is none of those that macOS hides beside its pictures (``._photo.jpg``, ``__MACOSX/``)."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(folder).parts)


def _listed(path: Path, option: str) -> tuple[list[Path], Path]:
    """The pictures of a list: one path a line, relative to the list's folder; empty lines and those with # are left out.

    Raises:
        UserError: not a text, a picture that is not there, or none at all.
    """
    try:
        rows = [row.strip() for row in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{option}={path}: not a text in UTF-8. Fix: one path on each line") from None
    files = [path.parent / row for row in rows if row and not row.startswith("#")]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        what = f"{missing[0]}: no such file ({len(missing)} of {len(files)})" if missing else "no picture in this list"
        raise UserError(f"{option}={path}: {what}. Fix: one path on each line, relative to the list's folder")
    files = [Path(name) for name in dict.fromkeys(os.path.abspath(file) for file in files)]  # noqa: PTH100 (keeps links)
    return files, Path(os.path.commonpath([file.parent for file in files]))


def _chunks(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Lists of ``size`` frames; the last may be shorter."""
    chunk: list[Frame] = []
    for frame in frames:
        chunk.append(frame)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _progress(frames: Frames) -> Iterator[Frame]:
    """The frames with a bar: of known length, or a mere count for a camera."""
    from rich import progress as bars

    times = (bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    columns = (bars.TextColumn("predicting"), bars.BarColumn(), bars.MofNCompleteColumn(), *times)
    with bars.Progress(*columns) as progress:
        task = progress.add_task("", total=frames.expected)
        for frame in frames:
            yield frame
            progress.advance(task)


def _batches(predictor: Any, files: list[Path], size: int, threshold: float) -> Iterator[tuple[Path, Any, Detection]]:
    from rich.progress import track

    from cvexp.inference import as_tensor

    starts = range(0, len(files), size)
    for start in track(starts, description="predicting", disable=len(files) <= size):
        chunk = files[start : start + size]
        pictures = [as_tensor(path) for path in chunk]
        yield from zip(chunk, pictures, predictor.predict_batch(pictures, threshold), strict=True)


def _rows(detection: Detection, image_id: int) -> list[dict[str, Any]]:
    """COCO results: ``bbox`` is left, top, width, height in pixels; categories are numbered from 1; masks are run lengths."""
    rows: list[dict[str, Any]] = [
        {
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for (x1, y1, x2, y2), score, label in zip(
            detection.boxes.tolist(), detection.scores.tolist(), detection.labels.tolist(), strict=True
        )
    ]
    if detection.encoded is not None:
        for row, mask in zip(rows, detection.encoded, strict=True):
            row["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")}
    return rows


def _drawing(picture: Any, detection: Detection, classes: Sequence[str], threshold: float) -> tuple[Image.Image, int]:
    """The picture with the boxes and masks from ``threshold`` on, and their number."""
    from cvexp.viz import draw_detections

    return draw_detections(picture, detection, classes, threshold), int((detection.scores >= threshold).sum())


def _save(drawing: Image.Image, path: Path) -> None:
    """One picture per source name, whatever its format; formats that Pillow cannot write well become PNG."""
    from cvexp.viz import save

    known = path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
    try:
        save(drawing, path if known else path.with_name(path.name + ".png"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Fix: output=<a folder you may write>") from None


def cell(text: str) -> str:
    """A name for a table. What a spreadsheet would take for a formula begins with an apostrophe; JSON has it unchanged."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


class Tables:
    """``detections.json`` and ``detections.csv``, written row by row beside their places and moved there at the end.

    An hour of video has millions of rows; they do not stay in memory. After an exception nothing is left.

    Args:
        folder: made with the first row.
        classes: names in label order.
        columns: of the image that go into the CSV besides its name.
    """

    def __init__(self, folder: Path, classes: Sequence[str], columns: Sequence[str]) -> None:
        self.folder, self.classes, self.columns = folder, classes, columns
        self.count = self.detections = 0
        self._images: list[str] = []
        self._json: TextIO | None = None
        self._csv: TextIO | None = None

    def add(self, image: dict[str, Any], detection: Detection) -> None:
        """An image (``file_name, height, width`` and the further columns) and what was found in it."""
        json_file, csv_file = self._open()
        rows = _rows(detection, self.count)
        self._images.append(json.dumps({"id": self.count, **image}))
        writer = csv.writer(csv_file, lineterminator="\n")
        for row in rows:
            json_file.write(("," if self.detections else "") + "\n  " + json.dumps(row))
            self.detections += 1
            x, y, width, height = row["bbox"]
            corners = [x, y, round(x + width, 2), round(y + height, 2)]
            own = [cell(image["file_name"]), *(image[name] for name in self.columns)]
            writer.writerow([*own, cell(self.classes[row["category_id"] - 1]), row["score"], *corners])
        self.count += 1

    def _part(self, ending: str) -> Path:
        return self.folder / f".detections.{ending}.part"

    def _open(self) -> tuple[TextIO, TextIO]:
        if self._json is None or self._csv is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._json = self._part("json").open("w", encoding="utf-8")
                odd = "backslashreplace"  # names of files need not be text
                self._csv = self._part("csv").open("w", encoding="utf-8", newline="", errors=odd)
            except OSError as error:
                raise UserError(
                    f"output={self.folder}: {error.strerror}. Fix: output=<a folder you may write>"
                ) from None
            self._json.write('{"annotations": [')
            self._csv.write(",".join(["image", *self.columns, "class", "score", "x1", "y1", "x2", "y2"]) + "\n")
        return self._json, self._csv

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            json_file, _ = self._open()
            categories = json.dumps([{"id": i + 1, "name": name} for i, name in enumerate(self.classes)])
            images = ",\n  ".join(self._images)
            json_file.write(f'\n ],\n "categories": {categories},\n "images": [\n  {images}\n ]\n}}\n')
        for file, ending in ((self._json, "json"), (self._csv, "csv")):
            if file is not None:
                file.close()
                part = self._part(ending)
                part.replace(self.folder / f"detections.{ending}") if kind is None else part.unlink(missing_ok=True)


@report_errors
def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    done = predict(words)
    for line in (*done["notes"], *done["said"], *(f"  {path}" for path in done["files"])):
        print(one_line(line))


if __name__ == "__main__":
    main()
