"""One checkpoint measured in several ways: ``python -m cvexp.evaluate ckpt=<checkpoint> ablation=nms``.

A preset is a list of variants, each a name and the words that make it (``conf/ablation/nms.yaml``). Every variant is an
evaluation of its own in a folder of its own; beside them stand ``ablation.json``, ``ablation.md`` and ``ablation.csv``.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cvexp.config import conf_dir, suggest
from cvexp.config.messages import listing, shown
from cvexp.errors import UserError

MEASURES = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AR100": "AR100",
    "detections_per_image": "detections per image",
    "seconds": "seconds",
}
"""Columns of the tables, by their name in ``ablation.json``; seconds are those of the whole evaluation, data included."""
_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*")
_FORM = "variants: [{name: greedy, overrides: [model/nms=greedy]}]"


@dataclass(frozen=True)
class Variant:
    """One row of the table: a name, also of its folder, and words as they would be typed."""

    name: str
    overrides: tuple[str, ...]


def read_preset(preset: str) -> list[Variant]:
    """The variants of ``conf/ablation/<preset>.yaml``, or of a YAML file that ``preset`` names.

    Raises:
        UserError: there is none, or it is not a list of variants with different names.
    """
    own = preset.endswith((".yaml", ".yml"))
    known = sorted(path.stem for path in (conf_dir() / "ablation").glob("*.yaml"))
    if not own and preset not in known:
        fix = f"{suggest(preset, known)} choices: {listing(known)}, or a file of your own: ablation=<file>.yaml"
        raise UserError(f"ablation={preset}: there is no such preset. Fix: {fix.strip()}")
    path = Path(preset).expanduser() if own else conf_dir() / "ablation" / f"{preset}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"ablation={preset} cannot be read: {reason}. Fix: a YAML file with {_FORM}") from None
    rows = content.get("variants") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"ablation={preset} has no list 'variants'. Fix: {_FORM}")
    variants = [_variant(row, preset) for row in rows]
    names = [variant.name.lower() for variant in variants]  # folders, also where capital letters are not told apart
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"ablation={preset} has two variants '{twice}'. Fix: a name of its own for each")
    return variants


def _variant(row: Any, preset: str) -> Variant:
    if not isinstance(row, dict) or set(row) != {"name", "overrides"}:
        raise UserError(f"ablation={preset}: a variant has a name and overrides, this is {shown(row)}. Fix: {_FORM}")
    name, overrides = row["name"], row["overrides"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"ablation={preset}: the variant {shown(name)} names a folder. Fix: letters, digits, '-', '_' and '.', in quotes"
        )
    own = ("ckpt=", "output=", "ablation=", "split=")
    if not isinstance(overrides, list) or not all(
        isinstance(word, str) and "=" in word and not word.startswith(own) for word in overrides
    ):
        raise UserError(
            f"ablation={preset}: the overrides of '{name}' are no list of key=value: {shown(overrides)}. Fix: {_FORM};"
            f" {', '.join(own)} belong to the command line"
        )
    return Variant(name, tuple(overrides))


def run_ablation(
    ckpt: str | None, preset: str, words: Sequence[str], output: str | None = None
) -> tuple[list[dict[str, Any]], Path]:
    """Evaluates the checkpoint once for every variant, prints the table and writes it.

    Args:
        ckpt: the checkpoint.
        preset: see `read_preset`.
        words: further words of ``cvexp.evaluate`` (``split=val``, ``data.root=...``), the same for all; a variant's come last.
        output: a folder; by default ``ablation-<preset>`` beside the checkpoint's folder.

    Returns:
        A row for each variant (name, overrides, `MEASURES`), and the folder.

    Raises:
        UserError: the preset is none, or a variant cannot be evaluated; then no table is written.
    """
    from cvexp.results import write_text

    if not ckpt:
        raise UserError("ckpt= is missing. Fix: python -m cvexp.evaluate ckpt=<checkpoint> ablation=nms")
    variants = read_preset(preset)
    default = Path(ckpt).expanduser().resolve().parent.parent / f"ablation-{Path(preset).stem}"
    folder = Path(output) if output else default
    rows = [_row(variant, ckpt, preset, words, folder) for variant in variants]
    about = {"checkpoint": ckpt, "preset": preset, "split": _split(words), "words": list(words), "variants": rows}
    write_text(folder / "ablation.json", json.dumps(about, indent=2) + "\n")
    write_text(folder / "ablation.md", markdown(rows, preset, _split(words)))
    write_text(folder / "ablation.csv", table(rows))
    show_rows(rows, preset, folder)
    return rows, folder


def _row(variant: Variant, ckpt: str, preset: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    from cvexp.evaluate import evaluate

    typed = [f"ckpt={ckpt}", *words, *variant.overrides, f"output={folder / variant.name}"]
    start = time.perf_counter()
    try:
        results, _ = evaluate(typed)
    except UserError as error:
        raise UserError(f"ablation={preset}, variant '{variant.name}': {error}") from error
    results = {**results, f"{_split(words)}/seconds": time.perf_counter() - start}
    values = {name: results.get(f"{_split(words)}/{name}") for name in MEASURES}
    known = {name: None if value != value else value for name, value in values.items()}  # NaN: nothing to measure
    return {"name": variant.name, "overrides": list(variant.overrides), **known}


def _split(words: Sequence[str]) -> str:
    """The split that is measured, as `cvexp.evaluate` reads it."""
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith("split=")), "test")


def _cells(row: dict[str, Any]) -> list[str]:
    """A row's measures as texts, ``-`` where there is none."""
    forms = {"detections_per_image": ".1f", "seconds": ".1f"}
    return ["-" if row[name] is None else format(row[name], forms.get(name, ".4f")) for name in MEASURES]


def markdown(rows: Sequence[dict[str, Any]], preset: str, split: str) -> str:
    """The rows as a table of a text; the best AP is bold."""
    best = max((row["AP"] for row in rows if row["AP"] is not None), default=None)
    lines = [f"# Ablation {preset}, {split}", "", f"| variant | {' | '.join(MEASURES.values())} | words |"]
    lines.append("|---|" + "---:|" * len(MEASURES) + "---|")
    for row in rows:
        cells = _cells(row)
        cells[0] = f"**{cells[0]}**" if row["AP"] is not None and row["AP"] == best else cells[0]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | `{' '.join(row['overrides'])}` |")
    return "\n".join(lines) + "\n"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV, numbers in full; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *MEASURES, "overrides"])
    for row in rows:
        writer.writerow([row["name"], *(row[name] for name in MEASURES), " ".join(row["overrides"])])
    return text.getvalue()


def show_rows(rows: Sequence[dict[str, Any]], preset: str, folder: Path) -> None:
    """Prints the table and where it lies; with several processes only the first does."""
    from lightning.pytorch.utilities import rank_zero_only
    from rich.console import Console
    from rich.table import Table

    if rank_zero_only.rank != 0:
        return
    shown_table = Table(title=f"ablation {preset}")
    shown_table.add_column("variant", no_wrap=True)
    for title in MEASURES.values():
        shown_table.add_column(title, justify="right")
    for row in rows:
        shown_table.add_row(row["name"], *_cells(row))
    console = Console()
    console.print(shown_table)
    console.print(f"table: {folder / 'ablation.md'}", soft_wrap=True, highlight=False)
