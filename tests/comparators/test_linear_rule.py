"""The rule is the minimum of what it minimises, does not depend on scale, order or chance, and finds what was planted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cvexp.comparators.linear_rule import fit_linear_rule, logistic, squared_hinge
from cvexp.types import UserError

LOSSES = [squared_hinge, logistic]
TRUE = torch.tensor([-3.0, 0, -1, -0.5], dtype=torch.float64)


def planted(count: int = 4000, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Features, and the answer that ``TRUE x + 2.2`` gives to them."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(count, 4, generator=g, dtype=torch.float64)
    return x, x @ TRUE + 2.2 + noise * torch.randn(count, generator=g, dtype=torch.float64) > 0


def direction(w: Tensor) -> Tensor:
    return w / w.norm()


@pytest.mark.parametrize("loss", LOSSES)
def test_slope_and_curvature_are_derivatives(loss) -> None:
    m = torch.linspace(-3, 3, 41, dtype=torch.float64)  # none on the hinge at 1
    value, slope, curvature = loss(m)
    step = 1e-5
    torch.testing.assert_close(slope, (loss(m + step)[0] - loss(m - step)[0]) / (2 * step), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(curvature, (loss(m + step)[1] - loss(m - step)[1]) / (2 * step), atol=1e-8, rtol=1e-6)
    assert (value >= 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cost", [1e-3, 1.0, 1e3])
def test_the_slope_is_zero_at_the_minimum(loss, cost: float) -> None:
    x, same = planted(300, noise=0.3)
    w, b = fit_linear_rule(x, same, loss, cost)
    scale = x.std(dim=0).mean()
    w, b = (w * scale).requires_grad_(), b.clone().requires_grad_()
    total = w.square().sum() / 2 + cost * loss((same * 2.0 - 1) * (x / scale @ w + b))[0].sum()
    total.backward()
    assert w.grad.abs().max() < 1e-4 * max(cost, 1)
    assert b.grad.abs().max() < 1e-4 * max(cost, 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_finds_planted_weights(loss) -> None:
    x, same = planted()
    w, b = fit_linear_rule(x, same, loss, 100.0)
    assert (direction(w) @ direction(TRUE)).item() > 0.9999
    assert (b / w.norm() * TRUE.norm()).item() == pytest.approx(2.2, abs=0.02)
    assert ((x @ w + b > 0) == same).double().mean() > 0.995


@pytest.mark.parametrize("loss", LOSSES)
def test_neither_scale_nor_order_nor_precision_matters(loss) -> None:
    x, same = planted(500, noise=0.3)
    w, b = fit_linear_rule(x, same, loss, 1.0)
    again = fit_linear_rule(x, same, loss, 1.0)
    assert torch.equal(w, again[0])
    assert torch.equal(b, again[1])
    w2, b2 = fit_linear_rule(1e-4 * x, same, loss, 1.0)
    torch.testing.assert_close(1e-4 * w2, w, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(b2, b, rtol=1e-6, atol=1e-8)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fit_linear_rule(x[order], same[order], loss, 1.0)[0], w, rtol=1e-6, atol=1e-8)
    assert fit_linear_rule(x.float(), same, loss, 1.0)[0].dtype == torch.float64


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(10, 3),  # nothing differs
        torch.cat([torch.zeros(5, 3), torch.ones(5, 3)]),  # perfectly separated
        torch.eye(10),  # more dimensions than it takes
    ],
)
def test_degenerate_features_give_finite_rules(loss, x: Tensor) -> None:
    w, b = fit_linear_rule(x, torch.arange(10) < 5, loss, 1e3)
    assert w.isfinite().all()
    assert b.isfinite()


@pytest.mark.parametrize(
    ("x", "same", "message"),
    [
        (torch.zeros(3, 2), torch.ones(3).bool(), r"3 same and 0 different pairs.*Fix: "),
        (torch.zeros(3, 2), torch.zeros(3).bool(), r"0 same and 3 different pairs.*Fix: "),
        (torch.zeros(0, 2), torch.zeros(0).bool(), r"0 same and 0 different pairs.*Fix: "),
        (torch.full((2, 2), torch.nan), torch.tensor([True, False]), r"NaN or infinite. Fix: "),
    ],
)
def test_nothing_to_learn_from(x: Tensor, same: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_linear_rule(x, same, squared_hinge, 1.0)
