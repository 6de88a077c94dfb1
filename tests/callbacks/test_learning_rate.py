"""Too high a learning rate: curves made up and curves of real training, the alarm in a fit, its numbers and its resume."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cvexp.callbacks.learning_rate import BLOCK, Curve, TooHigh, grown, sizes
from cvexp.errors import UserError

NAN = math.nan


def verdicts(losses: Sequence[float], norms: Sequence[float] | None = None, growth: float = NAN, **options: Any) -> str:
    """The first verdict along the curve, and at which point; empty without one."""
    curve = Curve()
    for k, loss in enumerate(losses):
        curve.add(loss, NAN if norms is None else norms[k], growth)
        if text := curve.verdict(**options):
            return f"{k}: {text}"
    return ""


def falling(points: int, start: float = 8.0, end: float = 2.0) -> list[float]:
    """A healthy curve without noise."""
    return [end + (start - end) * math.exp(-5 * k / points) for k in range(points)]


def noisy(points: int, spread: float, seed: int = 0) -> list[float]:
    """The same with the noise of a mean of 20 batches whose losses vary by ``spread`` of their mean (never below 0)."""
    rng = random.Random(seed)
    return [x * fmean_of(rng, spread) for x in falling(points)]


def fmean_of(rng: random.Random, spread: float) -> float:
    shape = 1 / spread**2  # gamma: skewed, as losses are
    return sum(rng.gammavariate(shape, 1 / shape) for _ in range(BLOCK)) / BLOCK


@pytest.mark.parametrize(
    "losses",
    [
        [],
        [1.0],
        [NAN] * 20,  # for another alarm
        falling(200),
        [3.0] * 50,  # it learns nothing, which has many reasons
        [0.01 * k for k in range(12)][::-1],  # down to 0
        [8.0] * 5 + [0.01] * 5 + [0.09] * 20,  # known by heart, with a hiccup: the docstring's
        [8.0, 4.0, 2.0, 2.0, 2.0, 60.0, 70.0, 2.0, 2.0, 2.0, 2.0],  # two bad points
        [2.0] * 10 + [5.5] * 20,  # 2.75 times: new layers, other augmentation
        [6.0, 5.0, 4.0] + [3.0, 3.2] * 20,  # a ripple
        [0.9, 0.84, 0.86, 0.89, 0.94, 0.9, 1.1, 1.15, 1.1, 1.2],  # Faster R-CNN finds regions, which then cost something
        # real ones, means of 20 batches: yolo, facenet, faster_rcnn, yolov1, face_resnet with their defaults
        [6.861, 6.388, 5.962, 5.553, 5.134, 4.71, 4.4, 4.01, 3.9, 3.6, 3.5, 3.124],
        [0.1308, 0.1277, 0.1247, 0.1231, 0.1253, 0.12, 0.122, 0.1177, 0.119, 0.121, 0.118, 0.1212],
        [1.442, 0.9556, 1.042, 1.118, 1.13, 1.12, 1.14, 1.15],
        [8.734, 5.917, 5.675, 5.437, 5.219, 5.03, 4.9, 4.768],
    ],
)  # fmt: skip
def test_no_alarm(losses: list[float]) -> None:
    assert verdicts(losses) == ""


@pytest.mark.parametrize("spread", [0.3, 1.0, 1.5])
def test_noise_is_no_alarm(spread: float) -> None:
    """Forty curves of 300 points (6,000 steps each); batches whose losses vary by up to 1.5 of their mean."""
    assert [verdicts(noisy(300, spread, seed)) for seed in range(40)] == [""] * 40


@pytest.mark.parametrize("seed", range(5))
def test_batches_with_and_without_objects_are_no_alarm(seed: int) -> None:
    """Half of the batches cost 0.1 and half 2: their means of 20 vary by a fifth."""
    rng = random.Random(seed)
    losses = [sum(rng.choice((0.1, 2.0)) for _ in range(BLOCK)) / BLOCK for _ in range(1000)]
    assert verdicts(losses) == ""


@pytest.mark.parametrize(
    ("losses", "options", "text"),
    [
        # the lowest level is the median of 8, 4, 2, 2, 2; three of the last five points are high at the 9th
        ([8, 4, 2, 2, 2, 2, 9, 9, 9], {}, "8: the loss has risen from 2 to 9 and stays there"),
        ([2.0] * 10 + [5.5] * 20, {"rise": 2.5}, "12: the loss has risen from 2 to 5.5"),
        (
            [22.3, 23.7, 23.3, 48.5, 96.0, 85, 90, 110, 99],
            {},
            "6: the loss has risen from 23.7 to 85",
        ),  # SGD, 1000 times
        # 5 and 1 by turns: all differences are 4, the mean 3; levels are 5 and 1, so that only a rise by more is none
        ([5.0, 1.0] * 10, {"rise": 6}, "10: the loss swings between 1 and 5 and does not fall"),
        ([5.0, 1.0] * 10, {}, "6: the loss has risen from 1 to 5"),
        (noisy(100, 0.3) + [1e3 * 2**k for k in range(5)], {}, "102: the loss has risen from"),
        # growth: lr 0.1 and 1 for AdamW in yolo, 0.1 in Faster R-CNN
        ([6.355, 6.023, 5.928, 5.92, 5.908], {"growth": 11.0}, "4: the weights have grown to 11 times"),
        ([963.9, 2.931, 16.15, 0.542, 0.5253], {"growth": 8.3}, "4: the weights have grown to 8 times"),
    ],
)
def test_alarm_of_the_loss(losses: list[float], options: dict[str, Any], text: str) -> None:
    assert verdicts(losses, **options).startswith(text)


@pytest.mark.parametrize(
    ("losses", "growth"),
    [
        (falling(20), 1.3),  # as the networks here
        (falling(20), 4.9),  # from tiny weights
        ([8, 4, 2, 1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1], 9.0),  # it grows and learns, once the first level is left behind
    ],
)
def test_growing_weights_that_learn_are_no_alarm(losses: list[float], growth: float) -> None:
    curve = Curve()
    for loss in losses[:8]:
        curve.add(loss, NAN, 1.0)
    for loss in losses[8:]:
        curve.add(loss, NAN, growth)
    assert curve.verdict() == ""


@pytest.mark.parametrize(
    ("losses", "norms", "clip", "alarm"),
    [
        ([3.0] * 20, [12.0] * 10 + [60.0] * 10, 10.0, True),
        ([3.0] * 20, [12.0] * 10 + [60.0] * 10, None, False),  # nothing is clipped
        ([3.0] * 20, [12.0] * 10 + [60.0, 60.0, 40.0] * 4, 50.0, False),  # not in nearly every step
        ([3.0] * 20, [12.0] * 10 + [40.0] * 10, 10.0, False),  # 3.3 times
        ([3.0 - 0.1 * k for k in range(20)], [12.0] * 10 + [60.0] * 10, 10.0, False),  # and it learns
        ([3.0] * 20, [12.0] * 10 + [60.0, NAN] * 5, 10.0, False),  # not all are known
        ([3.0] * 20, [80.0] * 20, 10.0, False),  # always clipped, not growing
    ],
)
def test_clipped_gradients(losses: list[float], norms: list[float], clip: float | None, alarm: bool) -> None:
    assert ("gradients are clipped in nearly every step and grow" in verdicts(losses, norms, clip=clip)) is alarm


def test_growth_is_of_weights_alone() -> None:
    """Norms 5 and 1; after a step 10 and 1.5, the bias does not count: growth is between 2 and 1.5."""
    model: Any = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    model[0].weight.data, model[1].weight.data = torch.tensor([[3.0, 4.0]]), torch.ones(1, 1)
    model[0].bias.data = torch.full((1,), 1e-9)
    before = sizes(model)
    assert before == pytest.approx({"0.weight": 5.0, "1.weight": 1.0})
    for parameter in model.parameters():
        parameter.data *= 2
    model[1].weight.data = torch.full((1, 1), 1.5)
    assert grown(before, sizes(model)) == pytest.approx(1.75)
    assert grown({"a": 1, "b": 2, "c": 3}, {"a": 2, "b": 10, "c": 3}) == 2, "the docstring's"
    assert math.isnan(grown({}, {}))
    assert math.isnan(grown({"a": 0.0}, {"a": 1.0})), "began at 0"


# --- in a fit --------------------------------------------------------------------------------------------------------


class Quadratic(LightningModule):
    """``(w x)^2 / 2`` by gradient descent: x = 1 converges below a rate of 2 and diverges above."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.model, self.rate = nn.Linear(1, 1, bias=False), rate
        nn.init.ones_(self.model.weight)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.model(batch[0]).square().mean() / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def fit(
    folder: Path, rate: float, steps: int = 240, callback: TooHigh | None = None, **options: Any
) -> tuple[Any, Trainer]:
    callback = callback or TooHigh(str(folder))
    trainer = Trainer(
        **{
            "max_steps": steps, "accelerator": "cpu", "logger": False, "callbacks": [callback], "log_every_n_steps": 10,
            "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
            "default_root_dir": folder,
        } | options
    )  # fmt: skip
    trainer.fit(Quadratic(rate), DataLoader(TensorDataset(torch.ones(steps, 1)), batch_size=1))
    return callback, trainer


def test_a_rate_that_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``w <- (1 - 2.006) w``: the loss grows by 1.006^2 a step, 1.27 times from point to point, 3 times in 5 points."""
    callback, _ = fit(tmp_path, 2.006, gradient_clip_val=None)
    text = callback.alarms["learning_rate"]
    assert text.startswith("step 200: ")
    for part in ("the loss has risen from", "now 2.01", "optimizer.lr=0.2006 (here 2.006)", "gradient_clip_val=10"):
        assert part in text
    assert capsys.readouterr().err.count("ALARM") == 1
    assert len((tmp_path / "alarms.txt").read_text().splitlines()) == 1


def test_a_rate_that_converges(tmp_path: Path) -> None:
    callback, trainer = fit(tmp_path, 0.01)
    assert callback.alarms == {}
    assert not (tmp_path / "alarms.txt").exists()
    # point k is the mean of 20 steps of 0.99^(2 n) / 2; the last is that of steps 221 to 240
    expected = sum(0.99 ** (2 * n) / 2 for n in range(220, 240)) / 20
    assert callback.curve.losses[-1] == pytest.approx(expected, rel=1e-4)
    assert len(callback.curve.losses) == 10
    assert float(trainer.callback_metrics["train/gradient_norm"]) == pytest.approx(0.99**239, rel=1e-4)


def test_accumulated_batches_have_the_loss_of_one(tmp_path: Path) -> None:
    callback, _ = fit(tmp_path, 0.0, steps=60, accumulate_grad_batches=4)
    assert callback.curve.losses == pytest.approx([0.5] * len(callback.curve.losses))
    assert len(callback.curve.losses) == 6, "60 steps of 4 batches, a point each 10 steps"


def test_stop_ends_training(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"(?s)stopped at step \d+: the weights have grown.*callbacks\.learning_rate\.stop=false"
    ):
        fit(tmp_path, 2.05, callback=TooHigh(str(tmp_path), stop=True))


def test_the_curve_survives_a_resume(tmp_path: Path) -> None:
    """Before: a level of 0.1 or lower. Afterwards the loss is 0.5: risen, which a new callback would not know."""
    first = TooHigh(str(tmp_path))
    for loss in (0.2,) * 5 + (0.1,) * 5:
        first.curve.add(loss)
    torch.save(first.state_dict(), tmp_path / "state")
    second = TooHigh(str(tmp_path))
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    fit(tmp_path, 0.0, steps=60, callback=second)
    assert "risen from 0.1 to 0.5" in second.alarms["learning_rate"]
    assert fit(tmp_path, 0.0, steps=60)[0].alarms == {}


def test_refusal() -> None:
    with pytest.raises(UserError, match=r"callbacks\.learning_rate\.rise=1 is not above 1\. Fix"):
        TooHigh("x", rise=1)
    with pytest.raises(UserError, match=r"rise=nan"):
        TooHigh("x", rise=NAN)
