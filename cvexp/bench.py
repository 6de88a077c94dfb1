"""Compare the speed of detectors, stage by stage: ``python -m cvexp.bench models=[yolo,faster_rcnn_fpn]``.

Heavy imports happen inside the functions, so that ``--help`` answers in a second.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvexp.config import Composer, report_errors, suggest
from cvexp.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cvexp.benchmark.subjects import Subject
    from cvexp.benchmark.timing import Plan, Row

USAGE = """usage: python -m cvexp.bench models=[yolo,faster_rcnn_fpn] [key=value ...]
       python -m cvexp.bench ckpt=[runs/a/checkpoints/best.ckpt,runs/b/checkpoints/best.ckpt] [key=value ...]
       both: [batch=1,8] [precision=fp32,bf16] [device=cuda] [warmup=10] [repeats=50] [seconds=<limit of a row>]
             [source=<image, folder or list>] [pictures=16] [num_classes=20] [output=runs/bench/<time>]
             [allow_targets=<your package>]

Measures preprocess, proposals, network, post-process and total of each model, at each batch and precision, in turn, from
decoded pictures in memory to boxes in their pixels; with parameters and FLOPs (2 x MAC). models= and ckpt= may be given together.

models=...          of conf/model, with random weights: the time of proposals and post-process says little then
ckpt=...            trained; with the test AP of its run (result.json) it is in the picture of speed and accuracy
precision=bf16      autocast; a device that cannot do it is told in the row
seconds=20          ends a row early; the table says how many passes were timed
source=photos/      pictures to measure with, at most pictures= of them; without it as many are drawn, 480 x 480 pixels
num_classes=20      of models=
other words         overrides for every model, as of cvexp.train: model.size=tiny model.score_threshold=0.05 data.resize=warp

Writes bench.md, bench.csv, bench.json, stages.png and speed_accuracy.png (both also as .svg). Ctrl-C ends in good order: what was
measured until then is kept."""

DEFAULTS = {
    **{
        "models": "",
        "ckpt": "",
        "batch": "1,8",
        "precision": "fp32,bf16",
        "device": "",
        "warmup": "10",
        "repeats": "50",
    },
    **{"seconds": "", "source": "", "pictures": "16", "num_classes": "20", "output": "", "allow_targets": ""},
}
PRECISIONS = ("fp32", "bf16")
DRAWN_SIZE = 480
"""Side of a drawn picture, pixels: about a photograph of VOC, so that every model has something to resize."""


def bench(words: Sequence[str]) -> dict[str, Any]:
    """Runs the command with ``words``.

    Returns:
        ``conditions``, ``notes`` (sentences), ``rows`` (see `cvexp.benchmark.tables.as_record`), ``output`` (folder), ``files``
        (pictures), ``stopped`` (by Ctrl-C).

    Raises:
        UserError: a word, a model, a checkpoint or the pictures cannot be used, or no row at all could be measured.
    """
    from cvexp.benchmark.timing import measure, plan_rows

    options, overrides = read_words(words)
    plan, batches, precisions = _plan(options), _batches(options), _precisions(options)
    device, output = _device(options["device"]), _output(options["output"])
    subjects = _subjects(options, overrides)
    images, about = _pictures(options)
    rows: list[Row] = []
    conditions = _conditions(device, about, plan)
    stopped = False
    try:
        for subject in subjects:
            subject.model.to(device)
        operations = {subject.name: _flops(subject, images[0], device) for subject in subjects}
        rows = list(plan_rows(subjects, batches, precisions))
        with _Progress(rows, plan) as progress:
            stopped = not measure(rows, images, plan, device, progress.tell)
    except KeyboardInterrupt:
        stopped = True
    result = _write(rows, operations if rows else {}, plan, conditions, stopped, output)
    if rows and not stopped and all(row.failure for row in rows):
        raise UserError(
            f"no row could be measured, first: {rows[0].failure}. Fix: a smaller batch=, model.size=tiny or another device=;"
            f" all reasons are in {output / 'bench.md'}"
        )
    return result


def read_words(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The command's options with their defaults, and the overrides.

    Raises:
        UserError: a word that is no ``key=value`` or that neither the command nor a configuration knows; no model at all.
    """
    options, overrides, known = dict(DEFAULTS), [], None
    for word in words:
        name, sign, value = word.partition("=")
        bare = name.lstrip("+~")
        if not sign and not word.startswith("~"):
            raise UserError(
                f"{word!r} is not key=value; {suggest(word, DEFAULTS)} Fix: see python -m cvexp.bench --help"
            )
        if name in DEFAULTS:
            options[name] = value.strip().strip("[]")
            continue
        if bare == "model":
            raise UserError(f"{word}: a bench has several. Fix: models={value}")
        known = known or {str(key) for key in Composer().compose(["model=yolo"])}
        if not set(bare) & set("./@") and bare not in known:
            raise UserError(
                f"{word}: there is no option '{bare}'; {suggest(bare, [*DEFAULTS, *sorted(known)]) or 'see --help'}"
                f" Fix: one of {', '.join(sorted(DEFAULTS))}, or an override as model.size=tiny"
            )
        overrides.append(word)
    if not options["models"] and not options["ckpt"]:
        raise UserError(f"models= or ckpt= is missing. Fix: models=[yolo,faster_rcnn_fpn]\n{USAGE}")
    return options, overrides


def _listed(text: str) -> list[str]:
    """``a, b`` without empty entries, each once."""
    return list(dict.fromkeys(part for part in (piece.strip() for piece in text.split(",")) if part))


def _whole(options: dict[str, str], name: str, low: int, high: int) -> int:
    text = options[name]
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise UserError(f"{name}={text}: must be a whole number from {low} to {high}. Fix: {name}={DEFAULTS[name]}")
    return int(text)


def _plan(options: dict[str, str]) -> Plan:
    from cvexp.benchmark.timing import Plan

    text = options["seconds"]
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 < seconds < math.inf:
        raise UserError(f"seconds={text}: must be a number above 0. Fix: seconds=20, or leave it out for no limit")
    return Plan(_whole(options, "warmup", 1, 100_000), _whole(options, "repeats", 1, 1_000_000), seconds)


def _batches(options: dict[str, str]) -> list[int]:
    if not _listed(options["batch"]):
        raise UserError("batch= names no size. Fix: batch=1,8")
    return [_whole({"batch": size}, "batch", 1, 4096) for size in _listed(options["batch"])]


def _precisions(options: dict[str, str]) -> list[str]:
    found = _listed(options["precision"])
    for name in found or [""]:
        if name not in PRECISIONS:
            hint = suggest(name, PRECISIONS)
            raise UserError(f"precision={name}: choose from {', '.join(PRECISIONS)}; {hint} Fix: precision=fp32,bf16")
    return found


def _device(name: str) -> torch.device:
    import torch

    wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"device={wanted}: cannot be used here ({reason}). Fix: device=cpu") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={wanted}: computes nothing. Fix: device=cpu")
    return device


def _output(text: str) -> Path:
    folder = Path(text).expanduser() if text else Path("runs/bench") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={folder}: is a file. Fix: output=<a folder>")
    return folder


def _subjects(options: dict[str, str], overrides: Sequence[str]) -> list[Subject]:
    from cvexp.benchmark.subjects import distinct, fresh, trained
    from cvexp.build import quiet

    quiet()
    packages = _listed(options["allow_targets"])
    classes = _whole(options, "num_classes", 1, 100_000)
    found = [fresh(name, overrides, classes, packages) for name in _listed(options["models"])]
    return distinct(found + [trained(path, overrides, packages) for path in _listed(options["ckpt"])])


def _pictures(options: dict[str, str]) -> tuple[list[Tensor], str]:
    """Decoded pictures, and a sentence about them."""
    count = _whole(options, "pictures", 1, 10_000)
    if not options["source"]:
        from cvexp.data.shapes import ShapesSource

        drawn = ShapesSource(DRAWN_SIZE, count, seed=0, split="test")
        return [drawn.read(i)[0] for i in range(count)], f"{count} drawn pictures of {DRAWN_SIZE} x {DRAWN_SIZE} pixels"
    from cvexp.data.records import decode
    from cvexp.predict import find_images

    found: list[Tensor] = []
    for path in find_images(options["source"])[0][:count]:
        try:
            found.append(decode(path))
        except ValueError as error:
            raise UserError(f"source={path}: {error}. Fix: replace the file or take it away") from None
    areas = [image.shape[1] * image.shape[2] / 1e6 for image in found]
    return found, f"{len(found)} pictures of {options['source']}, {sum(areas) / len(areas):.2f} megapixels in the mean"


def _flops(subject: Subject, picture: Tensor, device: torch.device) -> Any:
    """Operations of one image; None where they cannot be counted, as without memory for it."""
    from cvexp.benchmark.timing import flops_of

    try:
        return flops_of(subject, picture, device)
    except (RuntimeError, NotImplementedError):
        return None


def _conditions(device: torch.device, about: str, plan: Plan) -> dict[str, Any]:
    import torch

    from cvexp.manifest.machine import platform_state, versions

    state = platform_state()
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    loose = [name for name, on in (("convolutions", convolutions), ("matrix products", products)) if on]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else state["cpu"],
        "device_type": device.type,
        "cpu": state["cpu"],
        "threads": state["threads"],
        "torch": torch.__version__,
        "versions": versions(),
        "tf32": " and ".join(loose) if device.type == "cuda" else None,
        "pictures": about,
        "decoding_included": False,
        "warmup": plan.warmup,
        "repeats": plan.repeats,
        "seconds": plan.seconds,
    }


def _write(
    rows: Sequence[Row], operations: dict[str, Any], plan: Plan, conditions: dict[str, Any], stopped: bool, output: Path
) -> dict[str, Any]:
    """Everything that the command leaves behind."""
    from cvexp.benchmark.pictures import draw_speed_accuracy, draw_stages
    from cvexp.benchmark.tables import as_record, notes, write_tables

    records = [as_record(row, operations.get(row.subject.name)) for row in rows]
    said = notes(records, plan, conditions, stopped)
    files: list[Path] = []
    for draw, name in ((draw_stages, "stages"), (draw_speed_accuracy, "speed_accuracy")):
        made, reason = draw(records, conditions["device"], output / name)
        files += made or ()
        said += [f"{reason}."] if reason else []
        for ending in () if made else ("png", "svg"):
            (output / f"{name}.{ending}").unlink(missing_ok=True)  # of a former bench in this folder
    write_tables(output, records, conditions, said)
    return {
        "conditions": conditions,
        "notes": said,
        "rows": records,
        "output": output,
        "files": files,
        "stopped": stopped,
    }


class _Progress:
    """A bar over all passes on the error stream, gone when it is done."""

    def __init__(self, rows: Sequence[Row], plan: Plan) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.plan = plan
        self.rows = rows
        self.task = self.bar.add_task("bench", total=len(rows) * (plan.warmup + plan.repeats))

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def tell(self, row: Row, _passes: int) -> None:
        """After each stretch of a row; a row that is done counts whole."""
        whole = self.plan.warmup + self.plan.repeats
        settled = sum(whole if r.done(self.plan) else r.warmed + len(r.passes) for r in self.rows)
        text = f"{row.subject.name} batch {row.batch} {row.precision}".replace("[", r"\[")
        self.bar.update(self.task, completed=settled, description=text)


@report_errors
def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    from rich.console import Console

    from cvexp.benchmark.tables import show

    result = bench(words)
    console = Console()
    show(result["rows"], result["conditions"], result["notes"], console)
    names = ["bench.md", "bench.csv", "bench.json", *(path.name for path in result["files"])]
    console.print(f"\nwritten to {result['output']}: {', '.join(names)}", soft_wrap=True, highlight=False, markup=False)
    if result["stopped"]:
        sys.exit(130)


if __name__ == "__main__":
    main()
