"""What all alarms share: once, to the file, the screen and the loggers, over a resume, with and without stopping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cvexp.callbacks.alarm import Alarm, learning_rate, lower_rate, write_alarm
from cvexp.errors import UserError


class Logger:
    """Keeps what it is told; with ``alert`` it has what W&B's has."""

    def __init__(self, alert: bool) -> None:
        self.metrics: list[tuple[dict[str, float], int]] = []
        self.alerts: list[tuple[str, str]] = []
        told = {"alert": lambda title, text: self.alerts.append((title, text))} if alert else {}
        self.experiment = SimpleNamespace(**told)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append((metrics, step))


def trainer(step: int = 7, loggers: Sequence[Any] = (), **options: Any) -> Any:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=step - 1))
    found = {"world_size": 1, "is_global_zero": True, "fast_dev_run": False, "log_every_n_steps": 1} | options
    return SimpleNamespace(global_step=step, loggers=loggers, fit_loop=loop, **found)


def test_an_alarm_is_raised_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [Logger(alert=False), Logger(alert=True)]
    alarm = Alarm(str(tmp_path))
    for step, found in ((7, {"a": "broken [red]"}), (8, {"a": "still", "b": "too"}), (9, {})):
        alarm.report(trainer(step, loggers), found)
    assert alarm.alarms == {"a": "step 7: broken [red]", "b": "step 8: too"}
    assert (tmp_path / "alarms.txt").read_text() == "step 7: broken [red]\nstep 8: too\n"
    said = capsys.readouterr().err
    assert said.count("ALARM at step") == 2
    assert "broken [red]" in said, "no markup"
    for logger in loggers:
        assert logger.metrics == [({"alarm/a": 1.0}, 6), ({"alarm/b": 1.0}, 7)]
    assert [text for _, text in loggers[1].alerts] == list(alarm.alarms.values())
    assert {path.name for path in tmp_path.iterdir()} == {"alarms.txt"}, "nothing half-written"


def test_stop_ends_training_with_what_the_first_process_found(tmp_path: Path) -> None:
    alarm = Alarm(str(tmp_path), stop=True)
    strategy = SimpleNamespace(broadcast=lambda found: {"a": "of the first"})
    other = trainer(world_size=2, is_global_zero=False, strategy=strategy)
    with pytest.raises(UserError, match=r"^stopped at step 7: of the first\. Fix: .*callbacks\.health\.stop=false"):
        alarm.report(other, {})
    assert not (tmp_path / "alarms.txt").exists(), "only the first process writes"
    with pytest.raises(
        UserError, match="stopped at step 9"
    ):  # a known one stops a training that goes on in spite of it
        alarm.report(trainer(9), {"a": "again"})


def test_without_stop_processes_need_not_agree(tmp_path: Path) -> None:
    Alarm(str(tmp_path)).report(trainer(world_size=2, strategy=None), {})  # a broadcast would fail


def test_state_survives_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Alarm(str(tmp_path)), Alarm(str(tmp_path))
    first.report(trainer(), {"a": "x"})
    torch.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    capsys.readouterr()
    second.report(trainer(20), {"a": "y", "b": "z"})
    assert second.alarms == {"a": "step 7: x", "b": "step 20: z"}
    assert "ALARM at step 7" not in capsys.readouterr().err


def test_alarms_of_several_callbacks_share_the_file(tmp_path: Path) -> None:
    for text in ("one", "two\nlines", "one"):
        write_alarm(tmp_path / "run" / "alarms.txt", text)
    assert (tmp_path / "run" / "alarms.txt").read_text() == "one\ntwo lines\n"


@pytest.mark.parametrize(
    ("step", "every", "looks"),
    [(20, 20, [True, False]), (19, 20, [False, False]), (1, 1, [True, False])],  # the second: of the same step
)
def test_a_step_is_one_look(step: int, every: int, looks: list[bool]) -> None:
    alarm, run = Alarm("x"), trainer(step, log_every_n_steps=every)
    assert [alarm.is_look(run), alarm.is_look(run)] == looks


def test_a_tenth_of_the_rate() -> None:
    weight = torch.zeros(1, requires_grad=True)
    run: Any = SimpleNamespace(optimizers=[torch.optim.SGD([{"params": [weight], "lr": 0.3, "initial_lr": 0.5}])])
    assert learning_rate(run) == 0.5
    assert lower_rate(run, SimpleNamespace()) == "optimizer.lr=0.05 (here 0.5)"
    described: Any = SimpleNamespace(description={"config": {"optimizer": {"lr": 0.2}}})  # 0.5 is scaled by the batch
    assert lower_rate(run, described) == "optimizer.lr=0.02 (here 0.2)"
    assert lower_rate(SimpleNamespace(optimizers=[]), SimpleNamespace()) == "a lower optimizer.lr"
