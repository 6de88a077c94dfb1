"""The generalised distance transform against all pairs of positions, and its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cvexp.ops.distance_transform import distance_transform, distance_transform_1d


def brute_force(scores: torch.Tensor, costs: tuple[float, ...], reach: int | None = None) -> torch.Tensor:
    """``[H, W]``, every place for every position."""
    height, width = scores.shape
    a_x, b_x, a_y, b_y = costs
    out = torch.full_like(scores, -torch.inf)
    for y in range(height):
        for x in range(width):
            for v in range(height):
                for u in range(width):
                    dx, dy = x - u, y - v
                    if reach is None or max(abs(dx), abs(dy)) <= reach:
                        value = scores[v, u] - a_x * dx * dx - b_x * dx - a_y * dy * dy - b_y * dy
                        out[y, x] = max(out[y, x], value)
    return out


def test_the_worked_example() -> None:
    scores = torch.tensor([0.0, 5.0, 0.0, 0.0])
    values, place = distance_transform_1d(scores, torch.tensor([1.0]), torch.tensor([0.0]))
    assert values.tolist() == [4, 5, 4, 1]  # 5 - 1, 5, 5 - 1, 5 - 4
    assert place.tolist() == [1, 1, 1, 1]


def test_the_linear_cost_has_a_direction() -> None:
    # p - q = -1 costs 1 - 0.5, p - q = 1 costs 1 + 0.5
    values, _ = distance_transform_1d(torch.tensor([0.0, 5.0, 0.0]), torch.tensor([1.0]), torch.tensor([0.5]))
    assert values.tolist() == [4.5, 5.0, 3.5]


@pytest.mark.parametrize(
    ("costs", "reach"),
    [
        ((0.1, 0.0, 0.1, 0.0), None),  # the release's first costs
        ((0.02, 0.3, 0.7, -0.2), None),  # lopsided, different along both axes
        ((0.02, 0.3, 0.7, -0.2), 2),  # the window cuts it off
        ((0.0, 0.0, 0.0, 0.0), 3),  # free in the window
        ((0.5, 0.0, 0.5, 0.0), 50),  # a reach beyond the map
        ((0.5, 0.0, 0.5, 0.0), 0),  # no move at all
    ],
)
def test_equals_brute_force(costs: tuple[float, ...], reach: int | None) -> None:
    scores = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pooled = distance_transform(scores, torch.tensor(costs, dtype=torch.float64), reach)
    torch.testing.assert_close(pooled.values, brute_force(scores, costs, reach), atol=1e-6, rtol=0)
    y, x = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    dx, dy = x - pooled.column, y - pooled.row
    again = scores[pooled.row, pooled.column]
    again = again - costs[0] * dx * dx - costs[1] * dx - costs[2] * dy * dy - costs[3] * dy
    torch.testing.assert_close(pooled.values, again)


def test_separable_in_any_order() -> None:
    scores = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0))
    a, b = torch.tensor([[[0.2]], [[0.05]]]), torch.tensor([[[0.1]], [[-0.3]]])
    rows_first = distance_transform_1d(distance_transform_1d(scores, a, b, -2)[0], 2 * a, -b, -1)[0]
    columns_first = distance_transform_1d(distance_transform_1d(scores, 2 * a, -b, -1)[0], a, b, -2)[0]
    torch.testing.assert_close(rows_first, columns_first)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_without_cost_it_is_max_pooling(radius: int) -> None:
    scores = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    pooled = distance_transform(scores, torch.zeros(4), radius).values
    assert torch.equal(pooled, F.max_pool2d(scores, 2 * radius + 1, stride=1, padding=radius))


def test_a_sufficient_reach_changes_nothing() -> None:
    """Values within R of each other: a reach^2 >= R is enough."""
    scores = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) * 1.8
    costs = torch.tensor([0.2, 0.0, 0.2, 0.0])  # 0.2 * 3^2 = 1.8
    assert torch.equal(distance_transform(scores, costs, 3).values, distance_transform(scores, costs).values)


def test_ties_go_to_the_nearest_and_blocked_places_to_nobody() -> None:
    pooled = distance_transform(torch.zeros(3, 5), torch.zeros(4), 2)
    assert torch.equal(pooled.column, torch.arange(5).expand(3, 5))
    blocked = torch.full((1, 5), -torch.inf)
    assert torch.equal(distance_transform(blocked, torch.ones(4)).values, blocked)
    blocked[0, 4] = 1.0
    assert distance_transform(blocked, torch.tensor([1.0, 0.0, 1.0, 0.0])).values.tolist() == [
        [-15.0, -8.0, -3.0, 0.0, 1.0]
    ]


@pytest.mark.parametrize("shape", [(0, 4, 4), (1, 1, 1), (1, 1, 6)])  # no map; one position; one row
def test_degenerate_maps(shape: tuple[int, int, int]) -> None:
    scores = torch.randn(shape)
    pooled = distance_transform(scores, torch.ones(shape[0], 4), 3)
    assert pooled.values.shape == pooled.row.shape == pooled.column.shape == shape


def test_gradients_go_to_the_chosen_place_and_to_the_costs() -> None:
    scores = torch.tensor([[0.0, 5.0, 0.0, 0.0]], requires_grad=True)
    costs = torch.tensor([1.0, 0.0, 1.0, 0.0], requires_grad=True)
    distance_transform(scores, costs).values.sum().backward()
    assert scores.grad is not None
    assert costs.grad is not None
    assert scores.grad.tolist() == [[0, 4, 0, 0]]
    assert costs.grad.tolist() == [-6, -2, 0, 0]  # -(1 + 0 + 1 + 4), -(-1 + 0 + 1 + 2)


def test_gradients_equal_differences() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    costs = torch.rand(3, 4, dtype=torch.float64).mul(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, d: distance_transform(s, d, 2).values, (scores, costs))
