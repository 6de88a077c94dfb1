"""Schedules at their corner points, and numbers that are refused."""

from __future__ import annotations

import math

import pytest

from cvexp.errors import UserError
from cvexp.schedules import Constant, Poly, Steps, WarmupCosine


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
    assert schedule(0.05) == pytest.approx(0.505)  # half way up
    assert schedule(0.1) == pytest.approx(1)
    assert schedule(0.55) == pytest.approx(0.51)  # half way down
    assert schedule(1) == schedule(1.2) == pytest.approx(0.02)


def test_steps_and_constant() -> None:
    assert [Steps(milestones=[0.5], gamma=0.1)(p) for p in (0, 0.49, 0.5, 1)] == pytest.approx([1, 1, 0.1, 0.1])
    assert Constant()(0.3) == 1


@pytest.mark.parametrize(
    ("progress", "factor"),
    [
        (0.0, 1.0),  # no warm-up: the full rate at once
        (0.19, 0.81**2),
        (0.5, 0.25),  # (1 - 0.5)^2
        (1.0, 0.0),  # down to nothing
        (1.5, 0.0),  # and never a power of a negative number, which would be complex for 0.9
    ],
)
def test_poly(progress: float, factor: float) -> None:
    assert Poly(power=2)(progress) == pytest.approx(factor)


def test_poly_begins_where_the_warm_up_ends() -> None:
    """Warm-up over 0.2: at 0.6 half of the rest is done, so 0.5^0.9 = 0.5359 is left."""
    schedule = Poly(power=0.9, warmup=0.2, start=0.1)
    assert [schedule(p) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0.1, 0.55, 1, 0.535887, 0], abs=1e-6)


def test_linear_is_a_straight_line(compose) -> None:
    from hydra.utils import instantiate

    schedule = instantiate(compose("scheduler=linear").scheduler)
    assert [schedule(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0])


@pytest.mark.parametrize("name", ["warmup_cosine", "poly", "linear", "steps", "constant"])
def test_every_schedule_can_warm_up(compose, name: str) -> None:
    """By the same two keys: from 0.2 at the first step over 0.6 to the full rate after a tenth of training."""
    from hydra.utils import instantiate

    schedule = instantiate(compose(f"scheduler={name}", "scheduler.warmup=0.1", "scheduler.start=0.2").scheduler)
    assert [schedule(p) for p in (0, 0.05, 0.1)] == pytest.approx([0.2, 0.6, 1])


@pytest.mark.parametrize(
    ("kind", "numbers", "message"),
    [
        (WarmupCosine, {"warmup": 500}, r"scheduler\.warmup=500 must be a share"),  # steps: the rate would never rise
        (Poly, {"warmup": 1.0}, r"scheduler\.warmup=1\.0"),  # nothing left after the warm-up
        (Constant, {"warmup": -0.1}, r"scheduler\.warmup=-0\.1"),
        (Constant, {"warmup": math.nan}, r"scheduler\.warmup=nan"),
        (Steps, {"start": 2.0}, r"scheduler\.start=2\.0"),
        (WarmupCosine, {"final": 1.5}, r"scheduler\.final=1\.5"),
        (Steps, {"milestones": [60, 85]}, r"milestones=\[60, 85\] must be shares"),  # epochs: it would never fall
        (Steps, {"gamma": 0.0}, r"scheduler\.gamma=0\.0"),
        (Poly, {"power": 0}, r"scheduler\.power=0"),  # a constant in disguise
        (Poly, {"power": math.inf}, r"scheduler\.power=inf"),
    ],
)
def test_what_is_refused(kind, numbers: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        kind(**numbers)
    assert "Fix: scheduler." in str(refused.value)


@pytest.mark.parametrize("kind", [Constant, Steps, Poly, WarmupCosine])
def test_no_warm_up_is_no_division_by_zero(kind) -> None:
    assert kind(warmup=0)(0) == 1


def test_no_milestones_is_a_constant() -> None:
    assert [Steps(milestones=[])(p) for p in (0, 1)] == [1, 1]
