"""A budget of images: the exact step at which a training ends, the schedule's way there, after an interruption as without."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig
from resuming import CutError, cut_words, last, train_here

from cvexp.callbacks.budget import Budget
from cvexp.errors import UserError
from cvexp.resume import plan

Compose = Callable[..., DictConfig]
ENDLESS = ("trainer.max_epochs=-1", "trainer.log_every_n_steps=1", "data.num_workers=0", "callbacks.pictures=null")


class Line(LightningModule):
    """Notes in each step the share that it finds and that the rate of the next step is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clock, self.images_used = 0.0, None
        self.found: list[float | None] = []
        self.for_the_next: list[float | None] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.found.append(self.images_used)
        return self.weight.sum()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.for_the_next.append(self.images_used)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(folder: Path, budget: Budget, size: int = 10, batch: int = 4, **options: Any) -> tuple[Line, Trainer]:
    data = torch.utils.data.DataLoader(torch.zeros(size, 1), batch_size=batch)
    module = Line()
    trainer = Trainer(
        callbacks=[budget], max_epochs=options.pop("max_epochs", -1), accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return module, trainer


@pytest.mark.parametrize(
    ("images", "accumulate", "steps", "seen"),
    [
        (1, 1, 1, 4),  # less than a batch: one step
        (4, 1, 1, 4),  # exactly one
        (5, 1, 2, 8),  # the step that reaches them is the last
        (9, 1, 3, 10),  # the third batch of an epoch of 10 images has two
        (10, 1, 3, 10),  # exactly an epoch
        (11, 1, 4, 14),  # the next epoch's first
        (30, 1, 9, 30),  # three epochs
        (4, 2, 1, 8),  # not half a step of two batches
        (9, 2, 2, 10),  # the last batch of an epoch is a step of its own
    ],
)
def test_the_step_that_reaches_them_is_the_last(
    tmp_path: Path, images: int, accumulate: int, steps: int, seen: int
) -> None:
    budget = Budget(images=images)
    module, trainer = fit(tmp_path, budget, accumulate_grad_batches=accumulate)
    assert (trainer.global_step, budget.seen) == (steps, seen)
    assert len(module.for_the_next) == steps


def test_without_a_limit_they_are_only_counted(tmp_path: Path) -> None:
    budget = Budget()
    module, trainer = fit(tmp_path, budget, max_epochs=2)
    assert (trainer.global_step, budget.seen) == (6, 20)
    assert module.found == [None] * 6


def test_epochs_may_end_first(tmp_path: Path) -> None:
    budget = Budget(images=1000)
    assert fit(tmp_path, budget, max_epochs=2)[1].global_step == 6
    assert budget.seen == 20


def test_the_clock_may_end_first(tmp_path: Path) -> None:
    budget = Budget(minutes=1e-9, images=1000)
    assert fit(tmp_path, budget)[1].global_step == 1


def test_the_share_is_that_of_what_is_done(tmp_path: Path) -> None:
    """16 images in fours: before the steps 0, 1/4, 2/4, 3/4; for the rate of the next one 1/4 ... 1."""
    module, _ = fit(tmp_path, Budget(images=16), size=8)
    assert module.found == [0, 0.25, 0.5, 0.75]
    assert module.for_the_next == [0.25, 0.5, 0.75, 1]


def test_what_was_seen_is_kept() -> None:
    budget = Budget(images=10)
    budget.load_state_dict({"elapsed": 3.0, "images": 8})
    assert budget.state_dict() == {"elapsed": 3.0, "images": 8}


def test_a_checkpoint_that_does_not_tell(tmp_path: Path) -> None:
    """Written before images were counted: they are as many as its steps' batches had, and all are used."""

    class Steps(Trainer):
        global_step = 5  # type: ignore[assignment]

    budget = Budget(images=20)
    budget.load_state_dict({"elapsed": 3.0})
    trainer = Steps(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.datamodule = type("Data", (), {"batch_size": 4})()  # type: ignore[attr-defined]
    budget.on_train_start(trainer, Line())
    assert budget.seen == 20
    assert trainer.should_stop


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": 0}, "budget.images=0 is not a whole number above 0. Fix: budget.images=100000, or null"),
        ({"images": -5}, "budget.images=-5 is not"),
        ({"images": 1e6}, "budget.images=1000000.0 is not a whole number"),  # 1e6 is no whole number in YAML
        ({"images": True}, "budget.images=True is not"),
        ({"images": "many"}, "budget.images=many is not"),
        ({"minutes": 0}, "budget.minutes=0 is not a number above 0. Fix: budget.minutes=12, or null"),
        ({"minutes": -1.5}, "budget.minutes=-1.5 is not"),
        ({"minutes": math.nan}, "budget.minutes=nan is not"),
        ({"minutes": math.inf}, "budget.minutes=inf is not"),  # null says it
    ],
)
def test_what_is_no_budget(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        Budget(**values)


# --- whole runs ------------------------------------------------------------------------------------------------------


def rates(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as stream:
        found = csv.DictReader(stream)
        return [float(row["lr/head"]) for row in found if row.get("lr/head")]


def assert_equal_weights(a: Path, b: Path) -> None:
    one, other = last(a)["state_dict"], last(b)["state_dict"]
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_run_ends_with_its_schedule(tmp_path: Path, tiny: list[str]) -> None:
    """40 images in batches of 8 are five steps; linear decay gives 1, 0.8, 0.6, 0.4, 0.2 as with ``max_steps=5``."""
    words = [*tiny, *ENDLESS, "scheduler=linear", "scheduler.warmup=0", "budget.minutes=null"]
    results = train_here(tmp_path / "images", *words, "budget.images=40")
    train_here(tmp_path / "steps", *words, "trainer.max_steps=5")
    assert (results["train/images"], results["train/steps"]) == (40, 5)
    assert rates(tmp_path / "images") == pytest.approx([1e-3 * share for share in (1, 0.8, 0.6, 0.4, 0.2)])
    assert rates(tmp_path / "images") == rates(tmp_path / "steps")
    assert_equal_weights(tmp_path / "images", tmp_path / "steps")


def test_resumed_it_ends_at_the_same_step(tmp_path: Path, tiny: list[str]) -> None:
    """Cut off after four of six steps: what was seen until the last save counts, what was lost is trained again."""
    words = [*tiny, *ENDLESS, "budget.images=48", "budget.minutes=null", "callbacks.last.steps=3"]
    whole = train_here(tmp_path / "whole", *words)
    with pytest.raises(CutError):
        train_here(tmp_path / "cut", *words, *cut_words("on_train_batch_end", 4))
    assert last(tmp_path / "cut")["position"]["step"] in (2, 3)
    resumed = train_here(tmp_path / "cut", *words, f"resume={tmp_path}/cut/checkpoints/last.ckpt")
    assert (whole["train/images"], whole["train/steps"]) == (resumed["train/images"], resumed["train/steps"]) == (48, 6)
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")


def test_more_images_let_a_run_go_on(tmp_path: Path, tiny: list[str]) -> None:
    words = [*tiny, *ENDLESS, "budget.minutes=null"]
    train_here(tmp_path, *words, "budget.images=16")
    found = train_here(tmp_path, *words, "budget.images=40", f"resume={tmp_path}/checkpoints/last.ckpt")
    assert (found["train/images"], found["train/steps"]) == (40, 5)
    assert plan([f"resume={tmp_path}", *words, "budget.images=40"]).ended
    assert not plan([f"resume={tmp_path}", *words, "budget.images=48"]).ended


@pytest.mark.slow
def test_two_processes_count_together(tmp_path: Path, tiny: list[str]) -> None:
    """Batches of 8 over both: 20 images are three steps, as with one process."""
    words = [*tiny, *ENDLESS, "trainer.devices=2", "budget.images=20", "budget.minutes=null", "hydra.run.dir=run"]
    subprocess.run([sys.executable, "-m", "cvexp.train", *words], check=True, cwd=tmp_path, capture_output=True)
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (found["train/images"], found["train/steps"]) == (24, 3)


def test_the_configuration_hands_it_on(compose: Compose) -> None:
    assert compose("data=voc").callbacks.budget.images is None
    assert compose("data=voc", "budget.images=1_000_000").callbacks.budget.images == 1_000_000
