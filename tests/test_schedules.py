"""Schedules at their corner points."""

from __future__ import annotations

import pytest

from cvexp.schedules import Constant, Steps, WarmupCosine


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        pytest.param(0, 1e-3, id="oracle 9: starts at .001"),
        pytest.param(1.35, 1e-2, id="after the warm-up .01"),
        pytest.param(74.9, 1e-2, id="75 epochs of it"),
        pytest.param(75, 1e-3, id="then .001"),
        pytest.param(104.9, 1e-3, id="for 30 epochs"),
        pytest.param(105, 1e-4, id="then .0001 to the end"),
    ],
)
def test_yolov1(compose, epoch: float, rate: float) -> None:
    from hydra.utils import instantiate

    schedule = instantiate(compose("scheduler=yolov1").scheduler)
    assert 1e-2 * schedule(epoch / 135) == pytest.approx(rate)


def test_cosine() -> None:
    schedule = WarmupCosine(warmup=0.1, final=0.02)
    assert schedule(0) == pytest.approx(0.01)
    assert schedule(0.1) == pytest.approx(1)
    assert schedule(0.55) == pytest.approx(0.51)  # half way down
    assert schedule(1) == schedule(1.2) == pytest.approx(0.02)


def test_steps_and_constant() -> None:
    assert [Steps(milestones=[0.5], gamma=0.1)(p) for p in (0, 0.49, 0.5, 1)] == pytest.approx([1, 1, 0.1, 0.1])
    assert Constant()(0.3) == 1
