"""What was measured, as rows of plain values, and as Markdown, CSV, JSON and a table on the screen."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cvexp.benchmark.flops import Flops
from cvexp.benchmark.timing import STAGES, Plan, Row
from cvexp.config.messages import one_line
from cvexp.results import write_text

PROTOCOL = Plan()
COLUMNS = {
    "model": "model", "batch": "batch", "precision": "precision", "preprocess_ms": "preprocess", "proposals_ms": "proposals",
    "network_ms": "network", "postprocess_ms": "post-process", "total_ms": "total", "total_p95_ms": "p95",
    "images_per_second": "images/s", "timed": "timed", "parameters": "parameters", "gflops": "GFLOPs", "input": "input",
    "max_detections": "max det", "score_threshold": "score >", "suppression": "NMS", "weights": "weights",
    "test_ap": "test AP",
}  # fmt: skip
"""Name in the files and in the tables; the screen shows `TIMES` and `MODELS`."""
TIMES = (
    *("model", "batch", "precision", "preprocess_ms", "proposals_ms", "network_ms", "postprocess_ms", "total_ms"),
    *("total_p95_ms", "images_per_second"),
)
MODELS = (
    "model",
    "input",
    "parameters",
    "gflops",
    "max_detections",
    "score_threshold",
    "suppression",
    "weights",
    "test_ap",
)
SHORT = {"precision": "type", "preprocess_ms": "pre", "proposals_ms": "prop.", "network_ms": "net", "postprocess_ms": "post",
         "images_per_second": "img/s", "max_detections": "max", "score_threshold": "score >"}  # fmt: skip
"""Narrower names on the screen, of 80 columns or more; two tables, as one would not fit."""


def as_record(row: Row, flops: Flops | None) -> dict[str, Any]:
    """A row as plain values; None where there is none. Times are milliseconds per image, ``gflops`` per image."""
    subject, limits = row.subject, row.subject.limits
    times: dict[str, Any] = {}
    for name in (*STAGES, "total"):
        times |= {f"{name}_ms": row.median(name), f"{name}_p95_ms": row.p95(name)}
    threshold = limits["nms_threshold"]
    suppression = limits["nms"] and (limits["nms"] if threshold is None else f"{limits['nms']} IoU {threshold:g}")
    return {
        "model": subject.name,
        "batch": row.batch,
        "precision": row.precision,
        **times,
        "images_per_second": row.images_per_second,
        "timed": len(row.passes),
        "warmup": row.warmed,
        "parameters": subject.parameters,
        "gflops": None if flops is None else flops.total / 1e9,
        "not_counted": None if flops is None else ", ".join(flops.unknown),
        "input": "x".join(map(str, row.shape[2:])) if row.shape else None,
        "max_detections": limits["max_detections"],
        "score_threshold": limits["score_threshold"],
        "candidates": limits["candidates"],
        "suppression": suppression,
        "classes": subject.classes,
        "weights": "trained" if subject.trained else "random weights",
        "test_ap": subject.score.value,
        "tested_on": subject.score.data or None,
        "note": row.failure or subject.score.note or None,
    }


def notes(records: Sequence[Mapping[str, Any]], plan: Plan, conditions: Mapping[str, Any], stopped: bool) -> list[str]:
    """The sentences without which the numbers cannot be compared with others."""
    found = [
        "Times are milliseconds per image: medians of whole batches divided by the batch; p95 is that of the total.",
        "Decoding of image files is not included. Preprocess: resize, pad, batch, move to the device. Network: with"
        " normalisation. Post-process: scores, NMS, boxes in original pixels on the CPU. '-': the model has no such stage.",
        "The device is synchronised at both ends of each stage; a pipeline that overlaps them is faster.",
        "images/s = 1000 / median total, at that batch. GFLOPs: 2 x MAC of convolutions and matrix products of one image at"
        " the input size of the table; element-wise work, norms and pooling are not counted.",
    ]
    uncounted = sorted({name for record in records for name in (record["not_counted"] or "").split(", ") if name})
    if uncounted:
        found.append(f"Not counted in GFLOPs either: {', '.join(uncounted)}.")
    if any(record["weights"] != "trained" for record in records):
        found.append(
            "Random weights have random scores: their proposals and post-process see other candidates than a trained"
            " model's. Only checkpoints (ckpt=) have a meaningful time there."
        )
    if plan.repeats < PROTOCOL.repeats or plan.warmup < PROTOCOL.warmup:
        found.append(
            f"warmup={plan.warmup} and repeats={plan.repeats} are below the protocol's {PROTOCOL.warmup} and"
            f" {PROTOCOL.repeats}: an impression, no measurement."
        )
    elif short := [r for r in records if r["timed"] < PROTOCOL.repeats and not (stopped or r["total_ms"] is None)]:
        found.append(
            f"{len(short)} row(s) reached seconds={plan.seconds:g} before {plan.repeats} timed passes: see 'timed'."
        )
    if conditions["device_type"] == "cuda" and conditions["tf32"]:
        found.append(f"fp32 on this GPU lets {conditions['tf32']} compute in TF32.")
    if stopped:
        found.append("Stopped by Ctrl-C: what was measured until then.")
    return found


def write_tables(
    folder: Path, records: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any], said: Sequence[str]
) -> None:
    """``bench.md``, ``bench.csv`` and ``bench.json``."""
    write_text(folder / "bench.md", markdown(records, conditions, said))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _safe(value) for name, value in record.items()} for record in records)
    write_text(folder / "bench.csv", text.getvalue())
    whole = {"conditions": dict(conditions), "notes": list(said), "rows": list(records)}
    write_text(folder / "bench.json", json.dumps(whole, indent=2) + "\n")


def markdown(records: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any], said: Sequence[str]) -> str:
    """The table with its conditions and notes."""
    names = [name for name in COLUMNS]
    lines = ["# Speed", "", told(conditions), ""]
    lines += [_line(COLUMNS[name] for name in names)]
    lines += [_line("---" if name in ("model", "precision", "weights", "suppression") else "---:" for name in names)]
    lines += [_line(shown(name, record[name]) for name in names) for record in records]
    reasons = reasons_of(records)
    lines += ["", *(f"- {sentence}" for sentence in [*said, *reasons])]
    return "\n".join(lines) + "\n"


def reasons_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why rows have no time or no score, each once."""
    found = []
    for record in records:
        where = f"{one_line(record['model'])}, batch {record['batch']}, {record['precision']}"
        if record["total_ms"] is None:
            found.append(
                f"{where}: not measured: {record['note'] if record['warmup'] == 0 or record['note'] else 'stopped'}."
            )
        elif record["test_ap"] is None and record["note"]:
            found.append(f"{one_line(record['model'])}: no test AP: {record['note']}.")
    return list(dict.fromkeys(found))


def told(conditions: Mapping[str, Any]) -> str:
    """The conditions in a sentence."""
    return (
        f"{conditions['device']}, {conditions['threads']} thread(s), torch {conditions['torch']}; {conditions['pictures']}."
        f" {conditions['warmup']} passes of warm-up and {conditions['repeats']} timed ones"
        + (f", at most {conditions['seconds']:g} s a row" if conditions["seconds"] is not None else "")
        + ", in rounds over all rows."
    )


def show(
    records: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any], said: Sequence[str], console: Console
) -> None:
    """The table on the screen, and what it does not say."""
    console.print(told(conditions), soft_wrap=True, highlight=False, markup=False)
    console.print(_on_screen("milliseconds per image (median)", TIMES, records))
    distinct = {record["model"]: record for record in records}
    console.print(_on_screen("models", MODELS, list(distinct.values())))
    for sentence in [*said, *reasons_of(records)]:
        console.print(f"- {sentence}", soft_wrap=True, highlight=False, markup=False)


def _on_screen(title: str, names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Table:
    """Some columns of the rows; long names of models are folded, numbers never."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        text = name in ("model", "precision", "weights", "suppression", "input")
        folded = name in ("model", "suppression")
        table.add_column(
            SHORT.get(name, COLUMNS[name]), justify="left" if text else "right", no_wrap=not folded, overflow="fold",
            min_width=6 if folded else None,
        )  # fmt: skip
    for record in records:
        table.add_row(*(shown(name, record[name]) for name in names))
    return table


def shown(name: str, value: Any) -> str:
    """A value as the tables show it; ``-`` where there is none."""
    if value is None:
        return "-"
    if name.endswith("_ms"):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    if name == "images_per_second":
        return f"{value:.1f}"
    if name == "gflops":
        return f"{value:.4g}"
    if name == "test_ap":
        return f"{value:.4f}"
    return f"{value:,}" if name == "parameters" else one_line(str(value))


def _line(cells: Any) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _safe(value: Any) -> Any:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
