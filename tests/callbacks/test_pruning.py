"""Pruning: what a trial reports, when it ends, what a resume changes, and a study that is gone."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from cvexp.callbacks.pruning import Pruning
from cvexp.callbacks.trial_file import STUDY, STUDY_NAME, TrialFile, open_storage
from cvexp.errors import Pruned, UserError

optuna = pytest.importorskip("optuna", reason="needs the extra sweep")


@cache
def empty(direction: str) -> bytes:
    """A study without trials; to make its tables takes longer than the rest of a test."""
    with TemporaryDirectory() as folder:
        storage = open_storage(Path(folder) / STUDY)
        optuna.create_study(study_name=STUDY_NAME, storage=storage, direction=direction)
        storage.engine.dispose()
        return (Path(folder) / STUDY).read_bytes()


def study_of(folder: Path, direction: str = "maximize") -> Any:
    if not (folder / STUDY).exists():
        (folder / STUDY).write_bytes(empty(direction))
    return optuna.load_study(study_name=STUDY_NAME, storage=open_storage(folder / STUDY))


def ended(study: Any, *curves: list[float]) -> None:
    """Trials that have ended with these values at validation 1, 2, ..."""
    for curve in curves:
        trial = optuna.trial.create_trial(value=curve[-1], intermediate_values=dict(enumerate(curve, 1)))
        study.add_trial(trial)


def asked(study: Any, job: Path, **settings: Any) -> int:
    """A trial that runs in the folder ``job``."""
    number = int(study.ask().number)
    TrialFile(f"../{STUDY}", number, **settings).write(job)
    return number


def trainer_with(value: float | None, **options: Any) -> Any:
    metrics = {} if value is None else {"val/AP": torch.tensor(value)}
    common = {"world_size": 1, "is_global_zero": True, "sanity_checking": False, "fast_dev_run": False}
    return SimpleNamespace(callback_metrics=metrics, **common | options)


def validate(callback: Pruning, *values: float | None, **options: Any) -> None:
    """A fit whose validations have these values."""
    callback.on_fit_start(trainer_with(None, **options), None)  # type: ignore[arg-type]
    for value in values:
        callback.on_validation_end(trainer_with(value, **options), None)  # type: ignore[arg-type]


def reported(folder: Path, trial: int) -> dict[int, float]:
    return study_of(folder).trials[trial].intermediate_values


def callback_of(job: Path) -> Pruning:
    return Pruning(str(job), "val/AP")


THREE = ([0.1, 0.2, 0.3], [0.2, 0.4, 0.6], [0.3, 0.6, 0.9])
"""At validation 2 their median is 0.4."""


@pytest.mark.parametrize(
    ("direction", "values", "ends_at"),
    [
        ("maximize", (0.25, 0.39), 2),  # just below the median, 0.4
        ("maximize", (0.25, 0.41, 0.61), None),  # just above, each time
        ("maximize", (0.1, 0.2), 1),  # below 0.2 at once
        ("maximize", (0.5, 0.1, 0.1), 3),  # its best so far counts: 0.5 is above 0.4, but not above 0.6
        ("minimize", (0.15, 0.41), None),  # its best so far, 0.15, is below the median
        ("minimize", (0.45,), 1),
    ],
)
def test_a_trial_below_the_median_ends(
    direction: str, values: tuple[float, ...], ends_at: int | None, tmp_path: Path
) -> None:
    study = study_of(tmp_path, direction)
    ended(study, *THREE)
    number = asked(study, tmp_path / "3", after_trials=3)
    callback = callback_of(tmp_path / "3")
    if ends_at is None:
        validate(callback, *values)
        assert reported(tmp_path, number) == pytest.approx(dict(enumerate(values, 1)))
        return
    with pytest.raises(Pruned, match=rf"after validation {ends_at} .*Fix: ") as error:
        validate(callback, *values)
    assert error.value.value == pytest.approx(values[ends_at - 1])
    assert sorted(reported(tmp_path, number)) == list(range(1, ends_at + 1))


@pytest.mark.parametrize(
    "settings",
    [
        {"after_trials": 4},  # three have ended
        {"after_trials": 3, "after_validations": 3},  # it has two
        {"pruner": None},  # it only reports
    ],
)
def test_it_is_left_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    study = study_of(tmp_path)
    ended(study, *THREE)
    number = asked(study, tmp_path / "3", **settings)
    validate(callback_of(tmp_path / "3"), 0.01, 0.01)
    assert reported(tmp_path, number) == pytest.approx({1: 0.01, 2: 0.01})


def test_halving_keeps_the_best_quarter(tmp_path: Path) -> None:
    """Of fewer than four the best so far."""
    study = study_of(tmp_path)
    pruned = []
    for job, value in enumerate((0.5, 0.4, 0.6, 0.55)):
        asked(study, tmp_path / str(job), pruner="halving")
        try:
            validate(callback_of(tmp_path / str(job)), value)
        except Pruned:
            pruned.append(job)
    assert pruned == [1, 3]


def test_a_resume_reports_no_validation_twice(tmp_path: Path) -> None:
    """Killed after validation 2, which the checkpoint does not know: it is made again, and stays as it was reported."""
    study = study_of(tmp_path)
    number = asked(study, tmp_path / "0")
    first = callback_of(tmp_path / "0")
    validate(first, 0.1)
    saved = first.state_dict()
    validate(first, 0.2)
    again = callback_of(tmp_path / "0")
    again.load_state_dict(json.loads(json.dumps(saved)))
    validate(again, 0.25, 0.3)
    assert again.validations == 3
    assert reported(tmp_path, number) == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})


def test_without_a_trial_nothing_happens(tmp_path: Path) -> None:
    callback = callback_of(tmp_path)
    validate(callback, 0.1, 0.2)
    assert callback.validations == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (None, {}),  # the value was not logged
        (float("nan"), {}),  # nor is this one
        (0.01, {"fast_dev_run": True}),
        (0.01, {"sanity_checking": True}),
        (0.01, {"is_global_zero": False}),  # the first process asks
    ],
)
def test_what_is_not_reported(value: float | None, options: dict[str, Any], tmp_path: Path) -> None:
    study = study_of(tmp_path)
    ended(study, *THREE)
    number = asked(study, tmp_path / "3", after_trials=3)
    validate(callback_of(tmp_path / "3"), value, **options)
    assert reported(tmp_path, number) == {}


def test_a_study_that_cannot_be_asked_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(tmp_path)
    asked(study, tmp_path / "0")
    callback = callback_of(tmp_path / "0")
    validate(callback, 0.1)
    (tmp_path / STUDY).write_bytes(b"broken" * 1000)
    with caplog.at_level(logging.WARNING):
        callback.on_validation_end(trainer_with(0.2), None)  # type: ignore[arg-type]
    assert "the search was not asked after validation 2" in caplog.text


def test_a_trial_that_was_told_meanwhile_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its conductor has given it up; what it trains is still its own."""
    study = study_of(tmp_path)
    number = asked(study, tmp_path / "0")
    study.tell(number, state=optuna.trial.TrialState.FAIL)
    validate(callback_of(tmp_path / "0"), 0.1)
    assert "was not asked" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "",  # empty
        "[]",  # no mapping
        "{}",  # nothing said
        '{"study": "../study.db", "trial": "7"}',
        '{"study": "../study.db", "trial": -1}',
        '{"study": "../study.db", "trial": 1, "pruner": "os.system"}',
        '{"study": 5, "trial": 1}',
        '{"study": "../study.db", "trial": 1, "more": 1}',
        '{"study": "../gone.db", "trial": 1}',
    ],
)
def test_a_file_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / STUDY).touch()
    job = tmp_path / "0"
    job.mkdir()
    (job / "trial.json").write_text(content)
    with pytest.raises(UserError, match=r"trial\.json: .*Fix: "):
        validate(callback_of(job), 0.1)


class Falling(LightningModule):
    """Logs 0.4, 0.3, 0.2 ..."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return (self.weight - batch).square().mean()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/AP", 0.4 - 0.1 * self.current_epoch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_real_training_ends(tmp_path: Path) -> None:
    """Epoch 1: 0.4 is above 0.2; epoch 2: its best, 0.4, is not below 0.4; epoch 3: 0.4 is below 0.6."""
    study = study_of(tmp_path)
    ended(study, *THREE)
    number = asked(study, tmp_path / "3", after_trials=3)
    loader = DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]
    trainer = Trainer(
        max_epochs=5, accelerator="cpu", callbacks=[callback_of(tmp_path / "3")], logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(Pruned, match="after validation 3") as error:
        trainer.fit(Falling(), loader, loader)
    assert error.value.value == pytest.approx(0.2)
    assert reported(tmp_path, number) == pytest.approx({1: 0.4, 2: 0.3, 3: 0.2})
