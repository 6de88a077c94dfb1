"""Builds a workspace that compares runs: ``python scripts/wandb_workspace.py --entity me --project cvexp --like runs/<run>``.

Sections: scores, losses by name, the score of each class, speed, pictures. With ``--json file`` nothing is sent anywhere.
Needs the extra `workspace`.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvexp.config import report_errors
from cvexp.errors import UserError

STEP = "trainer/global_step"
TIME = "RelativeTime(Process)"
SCORES = {"detection": ("AP", "AP50", "AP75"), "embedding": ("AUC", "EER", "best_accuracy")}
MEDIA = {
    "detection": ("val/images", "test/images"),
    "embedding": ("val/pairs", "test/pairs", "test/embedding_map", "test/roc"),
}


@dataclass
class Names:
    """What the runs log, as far as a run that is already there tells.

    Attributes:
        kind: ``detection`` or ``embedding``.
        losses: names of the training's losses; empty: one chart for all that there are.
        classes: the same for the validation's score of each class.
    """

    kind: str = "detection"
    losses: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


def names_of(folder: Path) -> Names:
    """The names that a run logs.

    Args:
        folder: of the run.

    Raises:
        UserError: there is no ``metrics.csv``, or it is not a run's.
    """
    path = folder / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            columns = next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}). Fix: --like=<folder of a run>") from None
    if "step" not in columns:
        raise UserError(f"{path}: has no column 'step', so it is not a run's. Fix: --like=<folder of a run>")
    losses = [name for name in columns if name.startswith("train/loss")]
    classes = [name for name in columns if name.startswith("val/AP/")]
    return Names("embedding" if "val/AUC" in columns else "detection", losses, classes)


def workspace(
    entity: str, project: str, name: str, names: Names, group: str | None = None, by_group: bool = False
) -> Any:
    """The workspace of `wandb_workspaces`, not saved.

    Args:
        entity, project, name: where it will be.
        names: see `Names`.
        group: only runs of this group.
        by_group: one line for each group, with its spread, rather than one for each run.

    Raises:
        UserError: the package is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError('wandb-workspaces is missing. Fix: pip install "cvexp[workspace]"') from error

    def line(title: str, y: Sequence[str] = (), regex: str | None = None, x: str = STEP, log: bool = False) -> Any:
        return panels.LinePlot(title=title, x=x, y=list(y), metric_regex=regex, log_y=log or None)

    scores = SCORES[names.kind]
    sections = {
        "Scores": [
            *(line(f"val/{score}", [f"val/{score}"]) for score in scores),
            panels.BarPlot(
                title=f"val/{scores[0]} of the best validation", metrics=[panels.SummaryMetric(f"val/{scores[0]}")]
            ),
            panels.BarPlot(title=f"test/{scores[0]}", metrics=[panels.SummaryMetric(f"test/{scores[0]}")]),
        ],
        "Losses": [line(loss, [loss], log=True) for loss in names.losses]
        or [line("training losses", regex="train/loss.*", log=True)],
        "Classes": [line(score, [score]) for score in names.classes] or [line("AP of each class", regex="val/AP/.*")],
        "Speed": [
            line(f"val/{scores[0]} over time", [f"val/{scores[0]}"], x=TIME),
            line("steps over time", [STEP], x=TIME),
            line("system", regex="system/(cpu|gpu.*|proc.*memory.*)", x=TIME),
        ],
        "Pictures": [
            panels.MediaBrowser(title=key, media_keys=[key], mode="grid", grid_x_axis="step", grid_y_axis="run")
            for key in MEDIA[names.kind]
        ],
    }
    if names.kind == "embedding":
        del sections["Classes"]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[ws.Section(name=title, panels=content, is_open=True) for title, content in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == group) if group else "",
            groupby=[ws.Metric("Group")] if by_group else [],
        ),
    )


def as_json(built: Any) -> str:
    """What would be sent to W&B's server, without asking it."""
    spec = json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps({"entity": built.entity, "project": built.project, "name": built.name, "spec": spec}, indent=2)


@report_errors
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--entity", default="", help="user or team")
    parser.add_argument("--project", default="cvexp", help="default: %(default)s")
    parser.add_argument("--name", default="cvexp: comparison", help="of the workspace (default: %(default)s)")
    parser.add_argument(
        "--kind", default="detection", choices=list(SCORES), help="of task, where --like does not say it"
    )
    parser.add_argument("--like", type=Path, help="folder of a run, whose losses and classes get a chart each")
    parser.add_argument("--group", help="only the runs of this group")
    parser.add_argument(
        "--by-group", action="store_true", help="one line for each group, with its spread: seeds together"
    )
    parser.add_argument("--json", type=Path, help="write it to this file and send nothing")
    words = parser.parse_args()
    if not words.entity and words.json is None:
        raise UserError("--entity is missing. Fix: --entity=<your W&B user or team>, or --json=workspace.json")
    names = names_of(words.like) if words.like else Names(words.kind)
    built = workspace(words.entity, words.project, words.name, names, words.group, words.by_group)
    if words.json is None:
        built.save()
        return
    words.json.parent.mkdir(parents=True, exist_ok=True)
    part = words.json.with_name(f".{words.json.name}.part")
    part.write_text(as_json(built) + "\n", encoding="utf-8")
    part.replace(words.json)
    print(words.json)


if __name__ == "__main__":
    main()
