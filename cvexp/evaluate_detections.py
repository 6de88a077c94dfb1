"""Score detections of any tool: ``python -m cvexp.evaluate detections=dets.json annotations=gt.json``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cvexp.config.messages import suggest
from cvexp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cvexp.data.coco_results import Results
    from cvexp.metrics.coco_engine import CocoResult
    from cvexp.report.evaluation import ReadImage

OWN = {
    "detections": "", "annotations": "", "output": "", "masks": "false", "unknown": "error", "images": "",
    "max_detections": "[1,10,100]", "iou_thresholds": "null", "size_limits": "[1024,9216]", "score_threshold": "null",
}  # fmt: skip


def evaluate_detections(words: list[str]) -> tuple[dict[str, Any], Path]:
    """Runs the command with ``words``; see ``python -m cvexp.evaluate --help``.

    Returns:
        The flat results that ``result.json`` holds too (COCO's twelve numbers, classes, other definitions of AP, errors) and
        the folder it was written to.

    Raises:
        UserError: a word or a file cannot be used.
    """
    from cvexp.data.coco_results import read_results
    from cvexp.metrics.coco_engine import Columns, evaluate_columns, settings_in_words

    given = _words(words)
    masks = _plain(given, "masks")
    if not isinstance(masks, bool):
        raise UserError(f"masks={given['masks']} is neither true nor false. Fix: masks=true")
    options = {name: _plain(given, name) for name in ("max_detections", "iou_thresholds", "size_limits")}
    _check_numbers(options)
    detections, annotations = (Path(given[name]).expanduser() for name in ("detections", "annotations"))
    for name, path in (("detections", detections), ("annotations", annotations)):
        if not path.is_file():
            raise UserError(f"{name}={path}: no such file. Fix: {name}=<JSON file in COCO's format>")
    read = read_results(detections, annotations, masks, given["unknown"])
    truth = read.truth
    position = {image_id: index for index, image_id in enumerate(truth.image_ids.tolist())}
    objects = Columns(
        truth.image_index.numpy(),
        truth.labels.numpy(),
        read.truth_xywh,
        area=truth.area.numpy(),
        ignored=truth.crowd.numpy(),
    )
    found = Columns(_numbers(read.image, position), read.label, read.xywh, scores=read.scores)
    size = (tuple(truth.classes), len(position))
    result = evaluate_columns(*size, objects, found, **options)
    by_masks = None
    if masks:
        with_masks = replace(objects, masks=truth.masks), replace(found, masks=read.masks)
        by_masks = evaluate_columns(*size, *with_masks, **options)
    settings = settings_in_words(result.max_detections, result.iou_thresholds, "count", result.size_limits)
    folder = Path(given["output"] or detections.with_name(f"{detections.stem}-evaluation"))
    return _report(read, (result, by_masks), settings.split("; difficult")[0], given, folder), folder


def _report(
    read: Results,
    results: tuple[CocoResult, CocoResult | None],
    settings: str,
    given: dict[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Writes the report and ``result.json``; returns what that holds."""
    from cvexp.metrics.explanation import Explanation
    from cvexp.metrics.findings import Findings
    from cvexp.report.evaluation import Galleries, write_report
    from cvexp.results import write_text

    result, by_masks = results
    columns = (read.image, read.boxes, read.scores, read.label)
    findings = Findings.gather(read.truth, read.truth.image_ids, *columns, limit=result.max_detections[-1])
    explanation = Explanation(findings, _threshold(given))
    facts = {"measured by": settings, "detections": given["detections"], "annotations": given["annotations"]}
    if read.left_out:
        facts["left out"] = f"{read.left_out} detections of images or categories that the annotations do not know"
    galleries = Galleries(_reader(Path(given["images"]).expanduser(), read.files)) if given["images"] else None
    title = f"{Path(given['detections']).name} on {Path(given['annotations']).name}"
    numbers = result.summary() | explanation.numbers()
    if by_masks is not None:
        numbers |= {f"mask/{name}": value for name, value in by_masks.summary().items()}
    flat: dict[str, Any] = {name: value for name, value in numbers.items() if value == value}  # JSON has no NaN
    flat |= {
        "images": result.images, "objects": int(findings.objects.sum()), "detections": len(read.scores),
        "detections_left_out": read.left_out, "metric/settings": settings,
    }  # fmt: skip
    write_text(folder / "result.json", json.dumps(flat, indent=2) + "\n")  # first: an image may be unreadable
    write_report(explanation, result, folder, title=title, facts=facts, mask_result=by_masks, galleries=galleries)
    return flat


def _reader(folder: Path, files: list[str]) -> ReadImage:
    """Reads the images of a folder by the names in the annotation file.

    Raises:
        UserError: no such folder, or it has not all of them; a name that leads out of it.
    """
    from cvexp.data.records import decode

    fix = "Fix: images=<folder to which the file_name of the annotation file is relative>"
    if not folder.is_dir():
        raise UserError(f"images={folder}: no such folder. {fix}")
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"images={folder}: the annotation file names {name!r}, outside of it. {fix}")
        if not (folder / name).is_file():
            raise UserError(f"images={folder}: has no {name or 'file for an image without file_name'}. {fix}")

    def read(index: int) -> tuple[Tensor, str]:
        return decode(folder / files[index]), files[index]

    return read


def _threshold(given: dict[str, str]) -> float | None:
    value = _plain(given, "score_threshold")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"score_threshold={value} is not a number. Fix: score_threshold=0.25, or null for the best F1")
    return value


def _numbers(ids: Any, position: dict[int, int]) -> Any:
    import numpy as np

    return np.array([position[i] for i in ids.tolist()], np.int64)


def _words(words: list[str]) -> dict[str, str]:
    """The options, with their defaults.

    Raises:
        UserError: a word that is none of them, or a missing file.
    """
    given = dict(OWN)
    for word in words:
        name, sign, value = word.partition("=")
        name = name.removeprefix("metric.")
        if not sign or name not in OWN:
            fix = suggest(name, list(OWN)) or f"one of {', '.join(OWN)}"
            raise UserError(f"unknown word {word!r} beside detections=. Fix: {fix}")
        given[name] = value
    for name in ("detections", "annotations"):
        if not given[name]:
            raise UserError(
                f"{name}= is missing. Fix: python -m cvexp.evaluate detections=<file> annotations=<file>, both in COCO's JSON"
            )
    return given


def _plain(given: dict[str, str], name: str) -> Any:
    try:
        return yaml.safe_load(given[name])
    except yaml.YAMLError:
        raise UserError(f"{name}={given[name]} cannot be read. Fix: {name}={OWN[name]}") from None


def _check_numbers(options: dict[str, Any]) -> None:
    for name, value in options.items():
        listed = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        if not listed and not (value is None and name == "iou_thresholds"):
            raise UserError(f"{name}={value} is not a list of numbers. Fix: {name}={OWN[name]}")
