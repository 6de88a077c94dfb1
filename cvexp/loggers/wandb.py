"""Weights & Biases without surprises: never a prompt, never a hang; offline when there is nobody to log in as.

One step axis: every record, pictures and tables too, is logged at the step of Lightning's scalars, as W&B's own step (which is
all that its media panels know) and as ``trainer/global_step`` (for charts).

A run that goes on in its folder goes on at W&B: ``wandb_run.txt`` there holds the id. Steps that it repeats because it went
back to its checkpoint are not sent again where W&B has them; an offline part does not know, and holds them a second time with
the same values.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from cvexp.loggers.shown import Boxed, Captioned, Curves, Shows, masks_of
from cvexp.types import UserError

Mode = Literal["online", "offline", "disabled"]
Artifacts = Literal["none", "best", "all"]
INIT_TIMEOUT = 30
"""Seconds to wait for W&B's server before the run is logged offline."""
AXIS = "trainer/global_step"
RUN_FILE = "wandb_run.txt"
PREEMPTED = 143
"""Exit code of a run that SIGTERM ended: W&B then says preempted, not failed."""


def wandb(
    folder: str,
    project: str = "cvexp",
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = "train",
    tags: Sequence[str] = (),
    notes: str | None = None,
    entity: str | None = None,
    mode: Mode | None = None,
    artifacts: Artifacts = "none",
) -> WandbRun:
    """A W&B logger whose run has begun, so that a refusal is met here and not in the first step.

    Args:
        folder: of the run; an offline run is kept below it. Where it holds ``wandb_run.txt``, that run goes on.
        project, group, job_type, tags, notes, entity: W&B's.
        name: None takes the folder's name, with its parent's where it is a mere number, as in a sweep.
        mode: None takes ``WANDB_MODE``, else online with stored credentials, else offline.
        artifacts: checkpoints to upload: ``none``; ``best``: the best one when training has ended; ``all``: each that becomes
            the best, and the last.

    Raises:
        UserError: an unknown choice of artifacts, or a ``wandb_run.txt`` that holds no id.
    """
    if artifacts not in get_args(Artifacts):
        raise UserError(
            f"logger.wandb.artifacts={artifacts} is none of none, best, all. Fix: logger.wandb.artifacts=best"
        )
    settings = {
        "project": project, "name": name or run_name(Path(folder)), "group": group, "job_type": job_type,
        "tags": list(tags), "notes": notes, "entity": entity, "dir": folder,
    }  # fmt: skip
    return WandbRun(folder, project, _begin(settings, mode), artifacts)


def run_name(folder: Path) -> str:
    """``2026-01-31_10-00-00``; of a sweep's job ``2026-01-31_10-00-00/3``."""
    folder = folder.absolute()
    return f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name


class WandbRun(WandbLogger, Shows):
    """Lightning's logger on one step axis, with boxes, tables, curves and the best values as summary.

    Args:
        folder: of the run.
        project: W&B's.
        run: of the library, begun; None in other processes than the first.
        artifacts: see `wandb`.
    """

    def __init__(self, folder: str, project: str, run: Any, artifacts: Artifacts = "none") -> None:
        super().__init__(project=project, save_dir=folder, experiment=run)
        self.artifacts = artifacts
        self._floor = run.starting_step if getattr(run, "resumed", False) else 0  # W&B has what is below
        self._last = self._shift = 0
        self._stage_ended = False
        self._ranked: set[str] = set()  # names whose summary is that of the best validation
        self._uploaded: dict[str, int] = {}  # time of each checkpoint that was uploaded
        self._checkpoints: Any = None

    # -- scalars and the axis ------------------------------------------------------------------------------------------

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Scalars; without a step, at the last one."""
        self.send(dict(metrics), step)

    @rank_zero_only
    def send(self, values: dict[str, Any], step: int | None = None) -> None:
        """Anything W&B takes, at a step of the trainer; left out where W&B has that step from before an interruption.

        What a test says is not left out: it may not have come to it before.
        """
        at = self._last if step is None else self._placed(step)
        if at < self._floor:
            if not any(name.startswith("test/") for name in values):
                return
            at = self._floor
        self._last = at
        self.experiment.log(values | {AXIS: at}, step=at)

    def _placed(self, step: int) -> int:
        """The step on an axis that never falls: a further stage of a recipe, which counts from 0, follows the one before."""
        at = step + self._shift
        if at < self._last:
            if not self._stage_ended:
                return self._last
            self._shift += self._last + 1 - at
            at = self._last + 1
        self._stage_ended = False
        return at

    @rank_zero_only
    def show_best(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """The summary of these names is from now on that of the best validation, not of the last."""
        for name in values.keys() - self._ranked:
            self.experiment.define_metric(name, step_metric=AXIS, summary="none")
        self._ranked |= values.keys()
        self.experiment.summary.update({**values, "best/step": step + self._shift, "best/epoch": epoch})

    # -- media ---------------------------------------------------------------------------------------------------------

    @rank_zero_only
    def show_images(self, key: str, images: Sequence[Boxed], classes: Sequence[str], step: int, drawn: float) -> None:
        """One panel: both sets of boxes can be switched on and off, and scores have a slider, so ``drawn`` has no say."""
        self.send({key: [image_with_boxes(image, classes) for image in images]}, step)

    @rank_zero_only
    def show_pictures(self, key: str, pictures: Sequence[Captioned], step: int) -> None:
        import wandb as library

        self.send({key: [library.Image(p.picture, caption=p.caption) for p in pictures]}, step)

    @rank_zero_only
    def show_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import wandb as library

        cells = [[None if isinstance(v, float) and math.isnan(v) else v for v in row] for row in rows]
        self.send({key: library.Table(columns=list(columns), data=cells)}, step)

    @rank_zero_only
    def show_curves(self, key: str, curves: Curves, step: int) -> None:
        import wandb as library

        xs, ys = [list(xs) for xs, _ in curves.lines.values()], [list(ys) for _, ys in curves.lines.values()]
        if xs:
            chart = library.plot.line_series(xs, ys, keys=list(curves.lines), title=curves.title, xname=curves.x)
            self.send({key: chart}, step)

    # -- checkpoints and the end ---------------------------------------------------------------------------------------

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Lightning's hook."""
        if getattr(checkpoint_callback, "best_model_path", ""):
            self._checkpoints = checkpoint_callback
            if self.artifacts == "all":
                self._upload(Path(checkpoint_callback.best_model_path), "best")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Lightning's hook at the end of each fit and test."""
        self._stage_ended = True
        if status == "success" and self.artifacts != "none" and self._checkpoints is not None:
            best = Path(self._checkpoints.best_model_path)
            self._upload(best, "best")
            if self.artifacts == "all":
                self._upload(best.with_name("last.ckpt"), "last")

    def _upload(self, path: Path, alias: str) -> None:
        """A checkpoint as a version of the run's artifact, once for each time it was written."""
        import wandb as library

        if not path.is_file() or self._uploaded.get(path.name) == path.stat().st_mtime_ns:
            return
        self._uploaded[path.name] = path.stat().st_mtime_ns
        score = self._checkpoints.best_model_score if alias == "best" else None
        about = {
            "step": self._last,
            "monitor": self._checkpoints.monitor,
            "score": None if score is None else float(score),
        }
        artifact = library.Artifact(f"model-{self.experiment.id}", type="model", metadata=about)
        artifact.add_file(str(path), name=path.name)
        self.experiment.log_artifact(artifact, aliases=[alias, f"step-{self._last}"])

    @rank_zero_only
    def finish(self, code: int = 0) -> None:
        if self._experiment is None:
            return
        if code == PREEMPTED:
            self._experiment.mark_preempting()
        self._experiment.finish(exit_code=code)


def image_with_boxes(shown: Boxed, classes: Sequence[str]) -> Any:
    """A ``wandb.Image`` with the sets ``ground_truth`` and ``predictions``, of boxes and, where there are some, of masks.

    Class ids are labels + 1: 0 is the ground of a mask.
    """
    import wandb as library

    names = {label + 1: name for label, name in enumerate(classes)}
    target, found = shown.target, shown.found
    texts = [names[label + 1] + " (ignored)" * ignored for label, ignored in _labels(target.labels, target.ignored)]
    boxes = {
        "ground_truth": {"box_data": _boxes(target.boxes, target.labels, texts), "class_labels": names},
        "predictions": {"box_data": _scored_boxes(found, names), "class_labels": names},
    }
    truth_map, found_map = masks_of(shown)
    maps = {"ground_truth": truth_map, "predictions": found_map}
    masks = {
        name: {"mask_data": values, "class_labels": names | {0: "ground"}}
        for name, values in maps.items()
        if values is not None
    }
    picture = shown.image.permute(1, 2, 0).contiguous().cpu().numpy()
    return library.Image(picture, caption=shown.name, boxes=boxes, masks=masks or None, file_type="jpg")


def _labels(labels: Any, flags: Any) -> list[tuple[int, bool]]:
    return list(zip(labels.tolist(), flags.tolist(), strict=True))


def _boxes(boxes: Any, labels: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    """W&B's form of boxes ``[N, 4]`` xyxy, in pixels of the image."""
    rows = zip(boxes.cpu().double().tolist(), labels.tolist(), texts, strict=True)
    return [
        {
            "position": {"minX": round(x1, 2), "maxX": round(x2, 2), "minY": round(y1, 2), "maxY": round(y2, 2)},
            "domain": "pixel",
            "class_id": label + 1,
            "box_caption": text,
        }
        for (x1, y1, x2, y2), label, text in rows
    ]


def _scored_boxes(found: Any, names: Mapping[int, str]) -> list[dict[str, Any]]:
    scores = [round(score, 4) for score in found.scores.cpu().tolist()]
    texts = [f"{names[label + 1]} {score:.2f}" for label, score in zip(found.labels.tolist(), scores, strict=True)]
    rows = _boxes(found.boxes, found.labels, texts)
    return [row | {"scores": {"score": score}} for row, score in zip(rows, scores, strict=True)]


# -- beginning a run ---------------------------------------------------------------------------------------------------


@rank_zero_only
def _begin(settings: dict[str, Any], mode: Mode | None) -> Any:
    """The run; the first process decides between online and offline for all."""
    import wandb as library

    os.environ.setdefault("WANDB_SILENT", "true")
    folder = Path(settings["dir"])
    folder.mkdir(parents=True, exist_ok=True)
    own = library.Settings(init_timeout=INIT_TIMEOUT, console="off")
    settings = settings | {"settings": own} | _former_run(folder)
    chosen: Any = mode or os.environ.get("WANDB_MODE") or _reachable(library)
    run = _online(library, settings) if chosen == "online" else None
    if run is None:
        chosen = "offline" if chosen == "online" else chosen
        run = library.init(mode=chosen, **settings)
    if chosen != "disabled":
        _remember(folder / RUN_FILE, run.id)
        run.define_metric(AXIS)
        run.define_metric("*", step_metric=AXIS, step_sync=True)
    if chosen == "offline":
        rank_zero_info(f"W&B: offline. To upload this run later: {sync_command(folder, run.id)}")
    return run


def _online(library: Any, settings: dict[str, Any]) -> Any:
    """The run, or None where the server cannot be reached or refuses."""
    try:
        return library.init(mode="online", **settings)
    except (library.errors.CommError, library.errors.AuthenticationError, library.errors.UsageError) as error:
        rank_zero_info(f"W&B cannot be reached ({str(error).splitlines()[0]}); this run is logged offline.")
        return None


def sync_command(folder: Path, run_id: str) -> str:
    """What uploads the offline parts of a run; W&B joins them, in order of their start, because they have one id."""
    names = (f"offline-run-*-{run_id}", f"offline-run-*-{run_id}-*")  # the second: two in the same second
    parts = sorted(str(path) for name in names for path in (folder / "wandb").glob(name))
    return shlex.join(["wandb", "sync", *parts])


def _former_run(folder: Path) -> dict[str, str]:
    """The settings by which the run of this folder goes on; none for a new one.

    Raises:
        UserError: the file holds no id.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    run_id = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[\w-]{1,128}", run_id, flags=re.ASCII):
        raise UserError(
            f"{path}: {run_id[:40]!r} is no id of a W&B run. Fix: write the id there (the end of the run's address), or remove"
            " the file to begin a new run at W&B"
        )
    return {"id": run_id, "resume": "allow"}


def _remember(path: Path, run_id: str) -> None:
    """Writes the id whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(f"{run_id}\n", encoding="utf-8")
    part.replace(path)


def _reachable(library: Any) -> Mode:
    try:
        return "online" if library.login(prompt=False, verify=False) else "offline"
    except Exception:  # no key, no terminal, no network: all mean the same to a run
        return "offline"
