"""``metrics.csv``: one row for each time something is logged; a resumed run goes on with the same file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import rank_zero_only
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class CSV(CSVLogger):
    """Lightning's logger, which begins a new file each time, made to go on with an old one.

    Args:
        folder: of the run.
        resume: anything but None goes on with the file that is there; None removes it.
    """

    def __init__(self, folder: str, resume: str | None = None) -> None:
        super().__init__(folder, name="", version="")
        self.resume = resume

    @property
    def experiment(self) -> Any:
        """The writer; see Lightning. Other processes than the first get one that does nothing."""
        return self._writer()

    @rank_zero_only
    def _writer(self) -> Writer:
        if self._experiment is None:
            self._experiment: Writer | None = Writer(self.log_dir, self.resume is not None)
        return self._experiment

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Removes what was logged at ``step`` and later: a resumed run logs it again."""
        self.experiment.rewind(step)


class Writer(ExperimentWriter):
    """Writes rows; where the columns change, the file is replaced as a whole.

    Args:
        folder: of the file.
        keep: an existing file is gone on with.
    """

    def __init__(self, folder: str, keep: bool) -> None:
        self.keep = keep
        super().__init__(folder)
        self.hparams: dict[str, Any] = {}
        path = Path(self.metrics_file_path)
        if keep and path.exists():
            with path.open(newline="") as stream:
                self.metrics_keys = next(csv.reader(stream), [])

    def rewind(self, step: int) -> None:
        """Keeps the rows before ``step``; one that a kill cut off goes too."""
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        with path.open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if whole(row) and int(row["step"]) < step]
        self._replace(rows, self.metrics_keys)

    def _check_log_dir_exists(self) -> None:
        if not self.keep:
            Path(self.metrics_file_path).unlink(missing_ok=True)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        self._replace(rows, fieldnames)

    def _replace(self, rows: list[dict[str, Any]], fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        part = path.with_name(f".{path.name}.part")
        with part.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
        part.replace(path)


def whole(row: dict[Any, Any]) -> bool:
    """Whether a row of the file is complete: a field for each column, numbers in all that are filled."""
    if None in row or None in row.values():
        return False
    try:
        return all(float(value) is not None for value in row.values() if value) and row["step"].isdigit()
    except ValueError:
        return False
