"""Find objects in pictures: ``python -m cvexp.predict ckpt=... source=<image, folder or glob>``.

Writes every picture with its boxes under its own name, ``detections.json`` (COCO results with the list of images and
classes) and ``detections.csv``.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvexp.config import report_errors, suggest
from cvexp.errors import UserError

if TYPE_CHECKING:
    from cvexp.types import Detection

USAGE = """usage: python -m cvexp.predict ckpt=<checkpoint> source=<image, folder or 'glob'>
           [threshold=0.3] [output=predictions] [device=cpu] [batch_size=8]
           [allow_targets=<your package>]

Draws what the checkpoint finds and writes detections.json (COCO results) and detections.csv, in pixels of each picture.
Detections from threshold on are drawn; all above 0.01 are written to the files, unless threshold is lower still."""

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
FILE_THRESHOLD = 0.01
DEFAULTS = {"threshold": "0.3", "output": "predictions", "device": "", "batch_size": "8", "allow_targets": ""}


def predict(words: Sequence[str]) -> dict[str, Any]:
    """Runs the command with ``words``.

    Returns:
        ``images, detections, drawn`` (counts) and ``output`` (folder).

    Raises:
        UserError: a word, the checkpoint or the source cannot be used.
    """
    from cvexp.inference import load

    options = _options(words)
    files, base = find_images(options["source"])
    threshold = _float(options, "threshold")
    packages = options["allow_targets"].strip("[]").split(",")
    predictor = load(options["ckpt"], device=options["device"] or None, allow_targets=packages)
    output = Path(options["output"]).expanduser()
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    drawn = 0
    for path, picture, detection in _batches(
        predictor, files, int(_float(options, "batch_size")), min(threshold, FILE_THRESHOLD)
    ):
        name = path.relative_to(base).as_posix()
        images.append({"id": len(images), "file_name": name, "height": picture.shape[1], "width": picture.shape[2]})
        found += _rows(detection, images[-1]["id"])
        drawn += _draw(picture, detection, predictor.classes, threshold, output / "pictures" / name)
    _write(output, images, found, predictor.classes)
    return {"images": len(images), "detections": len(found), "drawn": drawn, "output": output}


def _options(words: Sequence[str]) -> dict[str, str]:
    options = dict(DEFAULTS)
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


def _float(options: dict[str, str], name: str) -> float:
    low, high, expected = (
        (0.0, 1.0, "a number from 0 to 1") if name == "threshold" else (1.0, 4096.0, "a whole number from 1")
    )
    try:
        value = float(options[name])
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (name == "batch_size" and value % 1):  # NaN is not between either
        raise UserError(f"{name}={options[name]}: must be {expected}. Fix: {name}={DEFAULTS[name]}")
    return value


def find_images(source: str) -> tuple[list[Path], Path]:
    """The pictures that ``source`` names, sorted, and the folder that their names are relative to.

    Raises:
        UserError: nothing there, or no picture among it.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path], path.parent
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        if not files:
            raise UserError(
                f"source={source}: no picture in this folder. Fix: it should hold {', '.join(sorted(ENDINGS))} files"
            )
        return files, path
    parts = path.parts
    wild = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts) - 1)
    base = Path(*parts[:wild])
    files = sorted(p for p in base.glob("/".join(parts[wild:])) if p.is_file() and p.suffix.lower() in ENDINGS)
    if not files:
        raise UserError(
            f"source={source}: no such image or folder, and no picture fits it as a pattern. Fix: check the path"
        )
    return files, base


def _batches(predictor: Any, files: list[Path], size: int, threshold: float) -> Iterator[tuple[Path, Any, Detection]]:
    from rich.progress import track

    from cvexp.inference import as_tensor

    starts = range(0, len(files), size)
    for start in track(starts, description="predicting", disable=len(files) <= size):
        chunk = files[start : start + size]
        pictures = [as_tensor(path) for path in chunk]
        yield from zip(chunk, pictures, predictor.predict_batch(pictures, threshold), strict=True)


def _rows(detection: Detection, image_id: int) -> list[dict[str, Any]]:
    """COCO results: ``bbox`` is left, top, width, height in pixels; categories are numbered from 1."""
    return [
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


def _draw(picture: Any, detection: Detection, classes: Sequence[str], threshold: float, path: Path) -> int:
    from cvexp.viz import draw_boxes, save

    keep = detection.scores >= threshold
    drawn = draw_boxes(picture, detection.boxes[keep], detection.labels[keep], classes, detection.scores[keep])
    # One picture per source name, whatever its format; formats that Pillow cannot write well become PNG.
    target = (
        path
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
        else path.with_name(path.name + ".png")
    )
    save(drawn, target)
    return int(keep.sum())


def _write(output: Path, images: list[dict], found: list[dict], classes: Sequence[str]) -> None:
    from cvexp.results import write_text

    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    content = {"images": images, "categories": categories, "annotations": found}
    write_text(output / "detections.json", json.dumps(content, indent=1) + "\n")
    names = {image["id"]: image["file_name"] for image in images}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "class", "score", "x1", "y1", "x2", "y2"])
    for row in found:
        x, y, width, height = row["bbox"]
        corners = [x, y, round(x + width, 2), round(y + height, 2)]
        writer.writerow([names[row["image_id"]], classes[row["category_id"] - 1], row["score"], *corners])
    write_text(output / "detections.csv", table.getvalue())


@report_errors
def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    done = predict(words)
    folder = done["output"]
    print(f"{done['images']} image(s), {done['drawn']} object(s) drawn, {done['detections']} written")
    for name in ("pictures", "detections.json", "detections.csv"):
        print(f"  {folder / name}")


if __name__ == "__main__":
    main()
