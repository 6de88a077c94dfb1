"""``debug=replay``: the step at which a loss was NaN or infinite, once more, with what every module took and gave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from cvexp.callbacks.not_finite import begins, image_names
from cvexp.callbacks.step_file import find_step, read_step, repeat_step, unpack
from cvexp.callbacks.trace import Range, Trace
from cvexp.types import UserError

BAD = "bold red"
WIDTH = 130
"""Of the tables, characters."""


def replay_step(
    make_trainer: Callable[[], Trainer], task: LightningModule, data: Any, path: str | None = None
) -> dict[str, float]:
    """A recipe that trains nothing: repeats a saved step and prints modules, loss terms and gradient norms.

    Args:
        path: of the step, or of the run's folder.

    Returns:
        ``replay/finite`` (1 or 0), ``replay/modules`` (calls), ``replay/loss`` and each ``replay/loss_<term>``.

    Raises:
        UserError: no path, no such file, or one whose weights do not fit the model.
    """
    if path is None:
        raise UserError("debug=replay needs the step. Fix: replay=<run folder>, or python -m cvexp.replay <run folder>")
    file = find_step(path)
    content = read_step(file)
    found = repeat_step(task, content, make_trainer(), file)
    show(found, content)
    results = {"finite": float(found.finite), "modules": float(len(found.readings)), "loss": found.loss}
    results |= {f"loss_{name}": value for name, value in found.terms.items()}
    return {f"replay/{name}": value for name, value in results.items()}


def show(found: Trace, content: dict[str, Any]) -> None:
    """The three tables and the verdict; what was bad first is marked."""
    console = Console()
    console.width = max(console.width, WIDTH)  # else names are cut where the output goes to a file
    for table in (module_table(found), term_table(found), gradient_table(found)):
        if table.row_count:
            console.print(table)
    where = f"step {content['step'] + 1} (epoch {content['epoch']}, batch {content['batch_idx']})"
    console.print(f"{where}, images {image_names(unpack(content['batch']))}", soft_wrap=True, highlight=False)
    if found.finite:
        console.print(f"loss {found.loss:.6g}, all gradients finite.", soft_wrap=True, highlight=False)
    if not found.finite or content["processes"] == 1:
        console.print(begins(found), style=BAD, soft_wrap=True, highlight=False, markup=False)
    if content["processes"] > 1:
        console.print(
            f"The step ran on {content['processes']} processes; here only the batch of process {content['rank']} is repeated, so"
            " that what is averaged over all of them differs.",
            soft_wrap=True, highlight=False,
        )  # fmt: skip


def module_table(found: Trace) -> Table:
    """One row for each call, in the order of their returns."""
    culprit = found.culprit
    table = Table("module", "kind", "input", "output", "", title="modules, in their order")
    for reading in found.readings:
        first = culprit is not None and culprit.kind in ("module", "input") and culprit.name == reading.name
        style = BAD if first else "red" if not reading.outputs.finite else None
        sides = (bounds(reading.inputs), bounds(reading.outputs))
        table.add_row(reading.name, reading.kind, *sides, "<- first" if first else "", style=style)
    return table


def term_table(found: Trace) -> Table:
    table = Table("loss term", "value", "", title="loss")
    values = found.terms | {"sum": found.loss}
    for name, value in values.items():
        first = found.culprit is not None and found.culprit == ("term", name)
        bad = not math.isfinite(value)
        table.add_row(name, f"{value:.6g}", "<- first" if first else "", style=BAD if bad else None)
    return table


def gradient_table(found: Trace) -> Table:
    table = Table("gradient of", "norm", "", title="gradients, in the order of the way back")
    first = next((name for name, value in found.gradients.items() if not math.isfinite(value)), None)
    for name, value in found.gradients.items():
        mark = "<- first" if name == first and math.isfinite(found.loss) else ""
        table.add_row(name, f"{value:.4g}", mark, style=None if math.isfinite(value) else "red")
    return table


def bounds(side: Range) -> str:
    """``-1 .. 2050, 3 of 400 not finite``; empty where there is no number."""
    if not side.size:
        return ""
    if side.broken == side.size:
        return "nothing finite"
    rest = f", {side.broken:,} of {side.size:,} not finite" if side.broken else ""
    return f"{side.low:.4g} .. {side.high:.4g}{rest}"
