"""The share of time that training waits for data: by a clock that the test turns, so that no second is waited."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cvexp.callbacks import starving
from cvexp.callbacks.starving import Starving, Step, advice, share_of
from cvexp.errors import UserError


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self, device: torch.device) -> float:
        return self.time


class Items(Dataset):
    """Takes ``wait[i]`` seconds for item i."""

    def __init__(self, clock: Clock, wait: list[float]) -> None:
        self.clock, self.wait = clock, wait

    def __len__(self) -> int:
        return len(self.wait)

    def __getitem__(self, index: int) -> Tensor:
        self.clock.time += self.wait[index]
        return torch.ones(1)


class Data(LightningDataModule):
    image_size, pad = 96, "square"

    def __init__(self, clock: Clock, wait: list[float]) -> None:
        super().__init__()
        self.clock, self.wait = clock, wait

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Items(self.clock, self.wait), batch_size=1, shuffle=False)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Items(self.clock, [50.0]), batch_size=1)


class Task(LightningModule):
    """One second a step."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.model, self.clock = nn.Linear(1, 1), clock
        self.logged: list[tuple[float, float]] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.clock.time += 1.0
        return self.model(batch).sum()

    def validation_step(self, batch: Tensor, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Noted(Callback):
    """What is logged, by step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        found = trainer.callback_metrics
        if trainer.global_step % trainer.log_every_n_steps == 0 and "time/data_share" in found:
            self.rows.append((trainer.global_step, float(found["time/data_share"]), float(found["time/step_seconds"])))


def fit(
    folder: Path, monkeypatch: Any, wait: list[float], epochs: int = 1, every: int = 5, **options: Any
) -> tuple[Any, Any]:
    clock, noted = Clock(), Noted()
    monkeypatch.setattr(starving, "now", clock)
    callback = Starving(str(folder), **{"window": 8} | options)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[callback, noted], log_every_n_steps=every,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Task(clock), datamodule=Data(clock, wait))
    return callback, noted


def test_share_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items of 3 s and steps of 1 s: 3 / 4. Batches 1 and 2 begin the epoch and are left out, so is the one after a log."""
    callback, noted = fit(tmp_path, monkeypatch, [3.0] * 15)
    assert noted.rows == [(step, pytest.approx(0.75), pytest.approx(4.0)) for step in (5, 10, 15)]
    assert callback.alarms == {}, "the first epoch is not judged"
    assert len(callback.steps) == 0


def test_validation_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 50 s, between the batches of two epochs."""
    callback, noted = fit(tmp_path, monkeypatch, [0.25] * 10, epochs=3)
    assert {round(share, 6) for _, share, _ in noted.rows} == {0.2}
    assert {step.wait for step in callback.steps} == {0.25}


def test_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(starving, "cores_of_machine", lambda: 8)
    callback, _ = fit(tmp_path, monkeypatch, [3.0] * 20, epochs=2)
    text = callback.alarms["starving"]
    for part in (
        "training waits for data 75% of its time: 3 s of the 4 s of a step, over the last 8 steps",
        "data.num_workers=3 (here 0; there are 8 cores)",
        "smaller images on the disk (the model sees 96 px)",
        "data.pad=batch",
    ):
        assert part in text
    assert capsys.readouterr().err.count("ALARM") == 1
    with pytest.raises(UserError, match=r"callbacks\.starving\.stop=false"):
        fit(tmp_path / "other", monkeypatch, [3.0] * 20, epochs=2, stop=True)


def test_a_slow_moment_is_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of 100 s; 0.4 of all time, but only in one quarter of the window."""
    assert fit(tmp_path, monkeypatch, [0.1] * 12 + [100.0] + [0.1] * 7, epochs=2)[0].alarms == {}


@pytest.mark.parametrize(
    ("steps", "starves"),
    [
        ([], False),
        ([Step(3, 1)] * 7, False),  # not a whole window
        ([Step(3, 1)] * 8, True),
        ([Step(0, 1)] * 8, False),
        ([Step(0.42, 1)] * 8, False),  # 0.296
        ([Step(0.44, 1)] * 8, True),  # 0.306
        ([Step(6, 1), Step(0, 1)] * 4, True),  # two workers bring their batches together
        ([Step(6, 1)] * 6 + [Step(0, 1)] * 2, False),  # over by now
        ([Step(0, 0)] * 8, False),
    ],
)
def test_starves(steps: list[Step], starves: bool) -> None:
    callback = Starving("x", window=8)
    callback.steps.extend(steps)
    assert callback.starves() is starves


def test_share_of() -> None:
    assert share_of([Step(1, 4), Step(3, 2)]) == 0.4, "the docstring's"
    assert share_of([]) == 0


@pytest.mark.parametrize(
    ("wait", "work", "workers", "cores", "devices", "text"),
    [
        (3.0, 1.0, 0, 8, 1, "data.num_workers=3 (here 0; there are 8 cores)"),  # 3 s of loading during 1 s of work
        (3.0, 1.0, 2, 16, 1, "data.num_workers=8 (here 2;"),  # two workers need 8 s for a batch
        (0.5, 1.0, 4, 16, 1, "data.num_workers=6 (here 4;"),
        (3.0, 1.0, 2, 4, 1, "data.num_workers=4 (here 2;"),  # no more than cores
        (3.0, 1.0, 4, 4, 1, "more cores (data.num_workers=4 uses the 4 that there are)"),
        (3.0, 1.0, 2, 16, 4, "data.num_workers=4 (here 2; there are 4 cores for each process)"),
        (3.0, 1.0, 0, 1, 1, "data.num_workers=1 (here 0;"),
        (1.0, 0.0, 0, 4, 1, "data.num_workers=4"),  # nothing but waiting
    ],
)
def test_advice(
    wait: float, work: float, workers: int, cores: int, devices: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starving, "cores_of_machine", lambda: cores)
    trainer: Any = SimpleNamespace(
        num_devices=devices, datamodule=None, train_dataloader=SimpleNamespace(num_workers=workers)
    )
    assert advice(wait, work, trainer).startswith(text)


def test_device_marks_are_read_in_its_own_time() -> None:
    """As events of a GPU are: the second is waited for, the difference is in milliseconds."""
    waited = []
    first = SimpleNamespace(elapsed_time=lambda other: 250.0)
    second = SimpleNamespace(synchronize=lambda: waited.append(True))
    assert starving.seconds(first, second) == 0.25
    assert waited == [True]
    assert starving.seconds(1.0, 3.5) == 2.5


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.0}, {"share": float("nan")}, {"window": 3}])
def test_refusal(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"callbacks\.starving\.\w+=.* is .*Fix: callbacks\.starving"):
        Starving("x", **options)
