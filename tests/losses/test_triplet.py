"""The triplet loss: the sheet's worked triplets, its three reductions, and gradients that are never NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cvexp.errors import UserError
from cvexp.losses.triplet import Triplet

POSITIVE = [0.4] * 4
NEGATIVE = [2.0, 0.8, 0.58578644, 0.08]  # oracle 4: losses 0, 0, 0.01421356, 0.52


def loss(positive: list[float], negative: list[float], valid: list[bool], **options) -> Tensor:
    tensors = torch.tensor(positive), torch.tensor(negative), torch.tensor(valid, dtype=torch.bool)
    return Triplet(**options)(*tensors)


@pytest.mark.parametrize(
    ("negative", "expected"),
    [
        (2.0, 0),  # far beyond the margin
        (0.8, 0),
        (0.58578644, 0.01421356),  # semi-hard
        (0.08, 0.52),  # hard
        (0.4, 0.2),  # a collapsed embedding: exactly the margin
    ],
)
def test_one_triplet(negative: float, expected: float) -> None:
    for reduction in ("active", "sum", "all"):
        assert loss([0.4], [negative], [True], reduction=reduction).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("reduction", "valid", "expected"),
    [
        ("sum", [1, 1, 1, 1], 0.53421356),
        ("active", [1, 1, 1, 1], 0.26710678),  # two have a loss
        ("all", [1, 1, 1, 1], 0.13355339),
        ("active", [1, 1, 0, 1], 0.52),  # what is not valid counts nothing, above or below
        ("all", [1, 1, 0, 1], 0.17333333),
        ("active", [1, 1, 0, 0], 0),  # none is active: not 0 / 0
        ("all", [0, 0, 0, 0], 0),
        ("sum", [0, 0, 0, 0], 0),
    ],
)
def test_reductions(reduction: str, valid: list[int], expected: float) -> None:
    found = loss(POSITIVE, NEGATIVE, [bool(v) for v in valid], reduction=reduction)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, abs=1e-7)


def test_a_triplet_on_the_margin_is_solved() -> None:
    """Excesses 0 and 0.25, both exact: one is active."""
    assert loss([0.25, 0.5], [0.5, 0.5], [True, True], margin=0.25).item() == 0.25


def test_margin_and_weight() -> None:
    assert loss([0.4], [0.8], [True], margin=1.0, weight=3.0).item() == pytest.approx(1.8)
    assert loss([0.4], [0.4], [True], margin=0.0).item() == 0  # the order alone


def test_the_gradient_is_that_of_the_active_ones() -> None:
    positive = torch.tensor(POSITIVE, requires_grad=True)
    negative = torch.tensor(NEGATIVE, requires_grad=True)
    Triplet()(positive, negative, torch.tensor([True, True, True, True])).backward()
    assert positive.grad.tolist() == [0, 0, 0.5, 0.5]
    assert negative.grad.tolist() == [0, 0, -0.5, -0.5]


@pytest.mark.parametrize("reduction", ["active", "sum", "all"])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 0.0])
def test_nothing_valid_is_0_with_a_gradient_of_0(reduction: str, junk: float) -> None:
    """Whatever stands where nothing is valid; the loss still hangs on its input, as a process without triplets needs it."""
    positive = torch.tensor([junk, 0.1], requires_grad=True)
    negative = torch.tensor([0.0, junk], requires_grad=True)
    found = Triplet(reduction=reduction)(positive, negative, torch.zeros(2, dtype=torch.bool))
    assert found.item() == 0
    found.backward()
    assert positive.grad.tolist() == negative.grad.tolist() == [0, 0]


@pytest.mark.parametrize("reduction", ["active", "sum", "all"])
def test_no_slot_at_all(reduction: str) -> None:
    empty = torch.zeros(0, requires_grad=True)
    found = Triplet(reduction=reduction)(empty, empty * 1, torch.zeros(0, dtype=torch.bool))
    assert found.item() == 0
    found.backward()
    assert empty.grad.shape == (0,)


def test_a_sum_over_processes_survives_their_averaging(monkeypatch) -> None:
    """Gradients are averaged over the processes: each counts its own part as often as there are processes."""
    monkeypatch.setattr("cvexp.losses.triplet.world_size", lambda: 3)
    found = Triplet(reduction="sum")(torch.tensor([0.5]), torch.tensor([0.4]), torch.tensor([True]))
    assert found.item() == pytest.approx(3 * 0.3)


def test_a_valid_distance_that_is_no_number_is_not_hidden() -> None:
    assert loss([float("nan"), 0.4], [0.1, 0.5], [True, True]).isnan()


def test_more_triplets_than_half_precision_counts() -> None:
    """70,000 active ones: more than float16's largest number."""
    ones = torch.ones(70_000)
    assert Triplet()(ones * 0.4, ones * 0.4, ones.bool()).item() == pytest.approx(0.2, rel=1e-4)
    assert Triplet()(ones.double() * 0.4, ones.double() * 0.4, ones.bool()).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "mean"}, r"reduction='mean' is not one of: active, sum, all\. Fix: "),
        ({"margin": -0.1}, r"margin=-0\.1 .*Fix: "),
        ({"margin": float("nan")}, r"margin=nan .*Fix: "),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Triplet(**options)


def test_space() -> None:
    assert Triplet.space == "distance"
