"""MLflow: a database in the run's folder, or a server; pictures, tables and curves as artifacts.

A run that goes on in its folder goes on at MLflow: ``mlflow_run.txt`` there holds the id.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from cvexp.loggers.shown import Boxed, Captioned, Curves, Shows, draw_curves, drawn_page
from cvexp.types import UserError

RUN_FILE = "mlflow_run.txt"


def check() -> None:
    """Whether the packages are there; asked before any data is read.

    Raises:
        UserError: they are not.
    """
    if not all(importlib.util.find_spec(name) for name in ("mlflow", "sqlalchemy")):
        raise UserError('logger=mlflow: the package is missing. Fix: pip install "cvexp[mlflow]"')


def mlflow(
    folder: str,
    experiment: str = "cvexp",
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    uri: str | None = None,
) -> MLflowRun | Silent:
    """An MLflow logger whose run has begun.

    Args:
        folder: of the run.
        experiment, tags: MLflow's.
        name: of the run; None takes the folder's.
        uri: of a server; None: ``<folder>/mlflow.db``.

    Returns:
        The logger; in other processes than the first one that does nothing.

    Raises:
        UserError: a package is missing, the run of ``mlflow_run.txt`` is not in the store, or the store cannot be used.
    """
    check()
    if rank_zero_only.rank != 0:
        return Silent()
    return MLflowRun(Path(folder), experiment, name or Path(folder).absolute().name, dict(tags or {}), uri)


class Silent(Logger, Shows):
    """In other processes than the first, which must not open the database at the same time."""

    name = version = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...
    def log_hyperparams(self, *_: Any) -> None: ...
    def show_images(self, *_: Any) -> None: ...
    def show_pictures(self, *_: Any) -> None: ...
    def show_table(self, *_: Any) -> None: ...
    def show_curves(self, *_: Any) -> None: ...
    def show_best(self, *_: Any) -> None: ...
    def finish(self, code: int = 0) -> None: ...


class MLflowRun(MLFlowLogger, Shows):
    """Lightning's logger with pictures, tables and curves; arguments: `mlflow`."""

    def __init__(self, folder: Path, experiment: str, name: str, tags: dict[str, str], uri: str | None) -> None:
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # that it creates its tables
        self._file = folder / RUN_FILE
        super().__init__(
            experiment_name=experiment,
            run_name=name,
            tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}",
            tags=tags,
            artifact_location=None if uri else (folder / "mlflow_artifacts").as_uri(),
            run_id=self._file.read_text(encoding="utf-8").strip() if self._file.is_file() else None,
        )
        self._begin(uri)

    def _begin(self, uri: str | None) -> None:
        """Creates the run or finds the former one, so that a refusal is met here and not in the first step."""
        from mlflow.exceptions import MlflowException

        logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # that it creates the experiment
        former = self._run_id
        try:
            run_id = self.run_id
            if former is not None:
                self.experiment.update_run(run_id, status="RUNNING")
        except (MlflowException, OSError) as error:
            place = uri or self._tracking_uri
            fix = (
                f"remove {self._file} to begin a new run"
                if former
                else "logger.mlflow.uri=<a server that answers>, or null"
            )
            raise UserError(f"MLflow at {place}: {str(error).splitlines()[0]}. Fix: {fix}") from error
        part = self._file.with_name(f".{RUN_FILE}.part")
        part.write_text(f"{run_id}\n", encoding="utf-8")
        part.replace(self._file)
        if uri is None:
            rank_zero_info(f"MLflow: mlflow ui --backend-store-uri {self._tracking_uri}")

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Every leaf of the configuration by its dotted key, cut to 250 characters.

        MLflow's parameters never change: one that a resumed run has otherwise is a tag ``resumed/<key>`` beside it.
        """
        flat = dict(_leaves(params))
        former = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({key: value for key, value in flat.items() if key not in former})
        for key, value in flat.items():
            if former.get(key, value) != value:
                self.experiment.set_tag(self.run_id, f"resumed/{key}", value)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Scalars; what MLflow does not allow in a name becomes ``_`` (``TAR@1e-2``: ``TAR_1e-2``)."""
        super().log_metrics({_allowed(name): value for name, value in metrics.items()}, step)

    def show_images(self, key: str, images: Sequence[Boxed], classes: Sequence[str], step: int, drawn: float) -> None:
        self.experiment.log_image(self.run_id, drawn_page(images, classes, drawn), _file(key, step, "png"))

    def show_pictures(self, key: str, pictures: Sequence[Captioned], step: int) -> None:
        for i, shown in enumerate(pictures):
            self.experiment.log_image(self.run_id, shown.picture, _file(key, step, f"{i}.png"))

    def show_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        table = [dict(zip(columns, (None if v != v else v for v in row), strict=True)) for row in rows]
        self.experiment.log_dict(self.run_id, {"rows": table}, _file(key, step, "json"))

    def show_curves(self, key: str, curves: Curves, step: int) -> None:
        self.experiment.log_figure(self.run_id, draw_curves(curves), _file(key, step, "png"))

    def show_best(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """As metrics ``best/<name>``: MLflow's table of runs shows the latest of each."""
        self.log_metrics({f"best/{name}": value for name, value in values.items()} | {"best/epoch": epoch}, step)

    def finish(self, code: int = 0) -> None:
        self.finalize("success" if code == 0 else "failed")


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """``("model.size", "tiny")``; lists are leaves."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else _allowed(str(name)))
    else:
        yield prefix, str(node)[:250]


def _allowed(name: str) -> str:
    return re.sub(r"[^\w/. :-]", "_", name, flags=re.ASCII)


def _file(key: str, step: int, ending: str) -> str:
    """``val/images/00000120.png``."""
    return f"{_allowed(key)}/{step:08d}.{ending}"
