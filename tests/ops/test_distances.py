"""Squared distances: by hand, by loop, of equal vectors, under autocast, and their gradient where a root has none."""

from __future__ import annotations

import pytest
import torch

from cvexp.ops.distances import squared_l2


def test_by_hand() -> None:
    """Oracle 4 of the face sheet: the anchor (1, 0) with its positive and four negatives."""
    others = torch.tensor([[0.8, 0.6], [0, 1], [0.6, 0.8], [0.5**0.5, 0.5**0.5], [0.96, 0.28]])
    found = squared_l2(torch.tensor([[1.0, 0.0]]), others)
    torch.testing.assert_close(found, torch.tensor([[0.4, 2, 0.8, 0.58578644, 0.08]]))


@pytest.mark.parametrize("shape", [(4, 7, 3), (1, 1, 1), (0, 5, 2), (5, 0, 2), (3, 2, 128)])
def test_by_loop(shape: tuple[int, int, int]) -> None:
    n, m, size = shape
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, size, generator=generator), torch.randn(m, size, generator=generator)
    expected = [[sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for q in b.tolist()] for p in a.tolist()]
    torch.testing.assert_close(squared_l2(a, b), torch.tensor(expected).reshape(n, m), rtol=1e-5, atol=1e-5)


def test_unit_vectors_lie_between_0_and_4() -> None:
    x = torch.nn.functional.normalize(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)))
    x = torch.cat([x, -x])
    found = squared_l2(x, x)
    assert found.min() == 0  # rounding may not push it below
    assert found.max() <= 4 + 1e-6
    torch.testing.assert_close(found, 2 - 2 * x @ x.T, atol=2e-6, rtol=0)  # oracle 13
    torch.testing.assert_close(found.diagonal(), torch.zeros(600), atol=1e-6, rtol=0)


def test_the_gradient_of_equal_vectors_is_0() -> None:
    """d/da |a - b|^2 = 2 (a - b); a root would make it 0 / 0."""
    a = torch.tensor([[0.6, 0.8], [0.6, 0.8]], requires_grad=True)
    squared_l2(a, a.detach())[0, 1].backward()
    assert a.grad.tolist() == [[0, 0], [0, 0]]
    b = torch.tensor([[1.0, 2.0]], requires_grad=True)
    squared_l2(b, torch.tensor([[0.0, 5.0]])).sum().backward()
    assert b.grad.tolist() == [[2, -6]]


def test_gradient_by_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    assert torch.autograd.gradcheck(squared_l2, (a, b))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),  # what a network hands over under autocast
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision(given: torch.dtype, expected: torch.dtype) -> None:
    """Two vectors 0.01 apart: bfloat16, with its three digits, would call them equal or 0.008 apart."""
    a, b = torch.tensor([[1.0, 0.0]], dtype=given), torch.tensor([[1.0, 0.01]], dtype=given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = squared_l2(a, b)
    assert found.dtype == expected
    assert found.item() == pytest.approx(b[0, 1].item() ** 2, rel=1e-2)
