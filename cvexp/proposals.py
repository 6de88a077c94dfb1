"""How good are proposals: ``python -m cvexp.proposals data=voc methods=[selective_search,edge_boxes]``.

Heavy imports happen inside the functions, so that ``--help`` answers in a second.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvexp.config import Composer, check_config, check_overrides, register_resolvers, report_errors, suggest
from cvexp.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

    from cvexp.data.module import DetectionData
    from cvexp.data.proposals import Proposer
    from cvexp.types import GroundTruth

USAGE = """usage: python -m cvexp.proposals data=voc [key=value ...]
       [methods=selective_search,edge_boxes,segments,sliding_window,constant] [split=test] [images=100]
       [numbers=10,50,100,300,1000,2000] [output=runs/proposals/<time>]

Measures which share of a split's objects is found by the first n proposals of each image, at IoU 0.5 and 0.7 and on the mean
of 0.5 to 0.95 (AR); how many proposals an image has, and how many seconds making them takes. Difficult objects and crowds
are left out. `constant` learns its boxes from the training split first.

images=100      the first so many; images=all measures the whole split
numbers=...     n; past the end of a method's boxes its recall stays
other words     overrides of the data, as of cvexp.train: data.root=/my/set data.proposal_workers=4 data.proposal_cache=null

Writes recall.csv, recall.json, recall.png and recall.svg. Proposals are kept by image
(data.proposal_cache), so a training finds them.
Ctrl-C ends in good order: methods that are done are written, images that are done are kept."""

DEFAULTS = {
    "methods": "selective_search,edge_boxes,segments,sliding_window,constant",
    "split": "test",
    "numbers": "10,50,100,300,1000,2000",
    "images": "100",
    "output": "",
}
SPLITS = ("train", "val", "test")
IOUS = (0.5, 0.7)
Record = dict[str, Any]


def measure(words: Sequence[str]) -> dict[str, Any]:
    """Runs the command with ``words``.

    Returns:
        ``conditions``, ``rows`` (one for each method and number), ``output`` (folder), ``files`` (names), ``stopped``
        (by Ctrl-C).

    Raises:
        UserError: a word, the data or a method cannot be used.
    """
    options, overrides = read_words(words)
    numbers = _numbers(options["numbers"])
    methods = _methods(options["methods"])
    output = _output(options["output"])
    data = _data(overrides, options)
    split = options["split"]
    source = data.source(split)  # type: ignore[arg-type]
    truth = source.ground_truth()
    conditions = _conditions(overrides, split, truth, data.proposal_workers)
    if not conditions["objects"]:
        raise UserError(f"split={split}: its images have no object that counts. Fix: more images=, or another split=")
    rows: list[Record] = []
    stopped = False
    try:
        for proposer in methods:
            rows += rows_of(proposer, data, split, truth, numbers)
    except KeyboardInterrupt:
        stopped = True
    files = write(rows, conditions, output) if rows else []
    return {"conditions": conditions, "rows": rows, "output": output, "files": files, "stopped": stopped}


def rows_of(
    proposer: Proposer, data: DetectionData, split: str, truth: GroundTruth, numbers: Sequence[int]
) -> list[Record]:
    """A method's rows; numbers are in 0..1, ``seconds`` and ``boxes`` of an image in the mean."""
    from cvexp.data.proposals import ProposalStore
    from cvexp.data.proposals.recall import average_recall, recall

    if getattr(proposer, "learns", False):
        proposer.fit(data.source("train").ground_truth())
    cache = None if data.proposal_cache is None else Path(data.proposal_cache).expanduser()
    store = ProposalStore(proposer, cache, data.proposal_workers)
    found = store.of(data.source(split), split)  # type: ignore[arg-type]
    values, averages = recall(found, truth, numbers, IOUS), average_recall(found, truth, numbers)
    about = {"method": proposer.name, "seconds": store.seconds(split), "boxes": sum(map(len, found)) / len(found)}
    return [
        about
        | {"number": number}
        | {f"recall_{iou:g}": float(value) for iou, value in zip(IOUS, values[i], strict=True)}
        | {"average_recall": float(averages[i])}
        for i, number in enumerate(numbers)
    ]


def read_words(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The command's options with their defaults, and the overrides of the data.

    Raises:
        UserError: a word that neither the command nor a configuration knows, or no ``data=``.
    """
    options, overrides = dict(DEFAULTS), []
    for word in words:
        name, sign, value = word.partition("=")
        if not sign and not word.startswith("~"):
            hint = suggest(word, [*DEFAULTS, "data"])
            raise UserError(f"{word!r} is not key=value; {hint} Fix: see python -m cvexp.proposals --help")
        if name in DEFAULTS:
            options[name] = value.strip().strip("[]")
        elif name.lstrip("+~").split(".")[0] in ("data", "paths", "seed"):
            overrides.append(word)
        else:
            known = ", ".join([*DEFAULTS, "data"])
            hint = suggest(name, [*DEFAULTS, "data"])
            raise UserError(f"{word}: there is no option '{name}'; {hint} Fix: one of {known}, or data.<key>=<value>")
    if not any(word.startswith("data=") for word in overrides):
        raise UserError(f"data= is missing. Fix: data=voc\n{USAGE}")
    if options["split"] not in SPLITS:
        raise UserError(
            f"split={options['split']}: choose from {', '.join(SPLITS)}; {suggest(options['split'], SPLITS)} Fix: split=test"
        )
    return options, overrides


def _listed(text: str) -> list[str]:
    """``a, b`` without empty entries, each once."""
    return list(dict.fromkeys(part for part in (piece.strip() for piece in text.split(",")) if part))


def _number(name: str, text: str, high: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= high:
        raise UserError(f"{name}={text}: must be a whole number from 1 to {high}. Fix: {name}={DEFAULTS[name]}")
    return int(text)


def _numbers(text: str) -> list[int]:
    found = sorted({_number("numbers", part, 1_000_000) for part in _listed(text)})
    if not found:
        raise UserError(f"numbers= names none. Fix: numbers={DEFAULTS['numbers']}")
    return found


def _methods(text: str) -> list[Proposer]:
    from cvexp.data.proposals import make_proposer

    names = _listed(text)
    if not names:
        raise UserError(f"methods= names none. Fix: methods={DEFAULTS['methods']}")
    return [make_proposer(name) for name in names]


def _output(text: str) -> Path:
    folder = Path(text).expanduser() if text else Path("runs/proposals") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={folder}: is a file. Fix: output=<a folder>")
    return folder


def _data(overrides: Sequence[str], options: dict[str, str]) -> DetectionData:
    """The data of the overrides, of the split the first ``images``, without proposals of its own."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from cvexp.build import SUPPLIED, quiet

    register_resolvers()
    quiet()
    limit = [] if options["images"] == "all" else [_number("images", options["images"], 100_000_000)]
    typed = [*overrides, "data.proposals=null", *(f"data.limit_{options['split']}={number}" for number in limit)]
    data_name = next(word for word in overrides if word.startswith("data=")).partition("=")[2]
    if data_name.endswith("faces"):
        raise UserError(f"data={data_name}: faces have no boxes to find. Fix: data=voc, coco_mini, shapes ...")
    check_overrides(typed)
    config = Composer().compose([*typed, "paths.output=."])
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    check_config(config, origin=lambda _: "on the command line", supplied=SUPPLIED)
    made: DetectionData = instantiate(config.data)
    return made


def _conditions(overrides: Sequence[str], split: str, truth: GroundTruth, workers: int) -> Record:
    from cvexp.manifest.machine import platform_state

    counted = int((~(truth.difficult | truth.crowd)).sum())
    return {
        "data": " ".join(overrides),
        "split": split,
        "images": len(truth.image_ids),
        "objects": counted,
        "left_out": len(truth.boxes) - counted,
        "cpu": platform_state()["cpu"],
        "workers": workers,
    }


def write(rows: Sequence[Record], conditions: Record, output: Path) -> list[str]:
    """``recall.csv``, ``recall.json`` and the plot; their names."""
    from cvexp.results import write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / "recall.csv", text.getvalue())
    write_text(output / "recall.json", json.dumps({"conditions": conditions, "rows": list(rows)}, indent=2) + "\n")
    drawn = draw(rows, conditions, output / "recall")
    return ["recall.csv", "recall.json", *(path.name for path in drawn)]


def draw(rows: Sequence[Record], conditions: Record, stem: Path) -> tuple[Path, Path]:
    """A panel for each IoU: recall over the number of proposals, a line for each method.

    Returns:
        PNG and SVG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from cvexp.viz.figures import save_figures

    figure = Figure(figsize=(9.6, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(IOUS), sharey=True)
    for axes, iou in zip(panels, IOUS, strict=True):
        _panel(axes, rows, iou)
    panels[0].set_ylabel(f"recall of {conditions['objects']:,} objects")
    panels[-1].legend(loc="upper left", fontsize=8, frameon=False)
    data = conditions["data"].split()[0].partition("=")[2].replace("$", r"\$")
    title = f"Proposals: {data}, {conditions['split']}, {conditions['images']:,} images"
    figure.suptitle(title, fontsize=10, wrap=True)
    return save_figures(figure, stem)


def _panel(axes: Axes, rows: Sequence[Record], iou: float) -> None:
    for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        x, y = [row["number"] for row in own], [row[f"recall_{iou:g}"] for row in own]
        axes.plot(x, y, marker="os^Dv<>"[i % 7], markersize=4, linewidth=1.6, color=f"C{i % 10}", label=method)
    ticks = sorted({row["number"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set(ylim=(0, 1), xlabel="proposals per image", title=f"IoU {iou:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def show(rows: Sequence[Record], conditions: Record, console: Console) -> None:
    """The table on the screen: a line for each method, recall at both IoUs for each number."""
    from rich import box
    from rich.table import Table

    numbers = list(dict.fromkeys(row["number"] for row in rows))
    text = f"{conditions['images']:,} images, {conditions['objects']:,} objects ({conditions['left_out']:,} left out)"
    console.print(f"{text}; {conditions['cpu']}", soft_wrap=True, highlight=False, markup=False)
    for iou in IOUS:
        table = Table(title=f"recall at IoU {iou:g}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("proposals", no_wrap=True)
        for name in [*(f"{number:,}" for number in numbers), "boxes", "s/image"]:
            table.add_column(name, justify="right", no_wrap=True)
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            cells = [f"{row[f'recall_{iou:g}']:.3f}" for row in own]
            table.add_row(method, *cells, f"{own[0]['boxes']:,.0f}", f"{own[0]['seconds']:.3g}")
        console.print(table)


@report_errors
def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    from rich.console import Console

    result = measure(words)
    console = Console()
    if result["rows"]:
        show(result["rows"], result["conditions"], console)
        names = ", ".join(result["files"])
        console.print(f"written to {result['output']}: {names}", soft_wrap=True, highlight=False, markup=False)
    if result["stopped"]:
        console.print("stopped by Ctrl-C: what was done until then is kept", highlight=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
