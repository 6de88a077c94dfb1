"""Clusters of boxes: worked numbers, every degenerate set, the same result twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cvexp.ops.clusters import _lloyd, cluster_boxes


def spread(points: Tensor, centres: Tensor) -> float:
    """Mean squared distance to the nearest centre."""
    return float((torch.cdist(points, centres) ** 2).min(dim=1).values.mean())


def test_two_heaps_on_a_line() -> None:
    centres = cluster_boxes(torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.0]]), 2)
    assert centres.sort(dim=0).values.flatten().tolist() == [0.5, 11.0]


def test_equal_points_weigh_as_many() -> None:
    """Three times 0 and once 1 in one cluster: their mean is 0.25, not 0.5."""
    points = torch.tensor([[0.0], [0.0], [0.0], [1.0], [50.0]])
    assert cluster_boxes(points, 2).sort(dim=0).values.flatten().tolist() == [0.25, 50.0]


@pytest.mark.parametrize(
    ("points", "n"),
    [
        (torch.full((5, 4), 0.5), 1),  # one place
        (torch.full((5, 4), 0.5), 3),  # fewer different boxes than asked for
        (torch.rand(3, 4), 3),  # each its own
        (torch.rand(1, 4), 20),  # a single object
        (torch.rand(40, 4), 39),  # nearly each its own
        (torch.tensor([[0.0], [1e-200], [1.0]], dtype=torch.float64), 2),  # distances whose squares vanish
    ],
)
def test_degenerate_sets_give_n_different_finite_centres(points: Tensor, n: int) -> None:
    found = cluster_boxes(points, n)
    assert found.shape == (n, points.shape[1])
    assert found.dtype == points.dtype
    assert torch.isfinite(found).all()
    assert len(found.unique(dim=0)) == n


def test_all_objects_stand_first_when_more_is_asked_for() -> None:
    points = torch.rand(6, 4)
    found = cluster_boxes(points, 10)
    assert found[:6].sort(dim=0).values.equal(points.sort(dim=0).values)


def test_the_same_for_the_same_seed_alone() -> None:
    points = torch.rand(200, 4, generator=torch.Generator().manual_seed(1))
    one, again, other = (cluster_boxes(points, 20, seed) for seed in (3, 3, 4))
    assert one.equal(again)
    assert not one.equal(other)


def test_more_centres_lie_nearer() -> None:
    points = torch.rand(500, 4, generator=torch.Generator().manual_seed(2))
    by_n = [spread(points, cluster_boxes(points, n)) for n in (1, 5, 25, 125)]
    assert by_n[0] == pytest.approx(float(points.var(dim=0, correction=0).sum()), rel=1e-5)  # one centre: the variance
    assert by_n == sorted(by_n, reverse=True)


def test_lloyd_leaves_no_cluster_empty() -> None:
    """The third centre is nobody's nearest; it takes the box that is worst represented, 9."""
    points = np.array([[0.0], [1.0], [8.0], [9.0]])
    found = _lloyd(points, np.ones(4), np.array([[0.5], [8.0], [100.0]]))
    assert sorted(found.ravel().tolist()) == [0.5, 8.0, 9.0]


@pytest.mark.parametrize(
    ("points", "n"),
    [
        (torch.zeros(0, 4), 1),  # no object
        (torch.tensor([[float("nan")]]), 1),
        (torch.rand(3, 4), 0),
        (torch.rand(3), 1),  # not a table
    ],
)
def test_refuses(points: Tensor, n: int) -> None:
    with pytest.raises(ValueError, match="cluster_boxes needs"):
        cluster_boxes(points, n)
