"""Truncated SVD of fully connected layers: counts of the paper, the whole rank, the nearest of a rank, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cvexp.ops.truncated_svd import compressed, truncated_svd
from cvexp.types import UserError


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("inputs", "outputs", "rank", "before", "after"),
    [
        (512 * 7 * 7, 4096, 1024, 102_764_544, 29_888_512),  # fc6 of VGG-16
        (4096, 4096, 256, 16_781_312, 2_101_248),  # fc7
    ],
)
def test_the_papers_parameter_counts(inputs: int, outputs: int, rank: int, before: int, after: int) -> None:
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs)
        assert count(layer) == before
        assert count(compressed(layer, rank)) == after


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (1, 5), (5, 1)])  # wide, tall, a single row, a single column
def test_the_whole_rank_reproduces_the_layer(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(*shape), torch.randn(16, shape[0])
    pair = compressed(layer, min(shape))
    assert (pair(x) - layer(x)).abs().max() < 1e-4
    assert not any(p.requires_grad for p in pair.parameters())


def test_a_diagonal_matrix_loses_its_smallest_values() -> None:
    """Singular values 3, 2 and 1 in another order: of rank 2 the 1 is gone."""
    left, right = truncated_svd(torch.diag(torch.tensor([2.0, 1.0, 3.0])), 2)
    torch.testing.assert_close(left @ right, torch.diag(torch.tensor([2.0, 0.0, 3.0])))


def test_what_is_lost_are_the_singular_values_cut_off() -> None:
    """Eckart and Young: the squared distance is the sum of their squares; no other matrix of that rank is nearer."""
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(weight)
    lost = []
    for rank in (1, 7, 29):
        left, right = truncated_svd(weight, rank)
        assert (left.shape, right.shape) == ((30, rank), (rank, 50))
        lost.append(((weight - left @ right) ** 2).sum())
        torch.testing.assert_close(lost[-1], (values[rank:] ** 2).sum(), rtol=1e-3, atol=1e-4)
    assert lost[0] > lost[1] > lost[2] > 0


def test_the_layer_itself_is_left_alone_and_a_missing_bias_stays_missing() -> None:
    layer = nn.Linear(6, 4, bias=False)
    before = layer.weight.detach().clone()
    pair = compressed(layer, 2)
    pair[1].weight.mul_(0)
    assert torch.equal(layer.weight, before)
    assert pair[1].bias is None
    assert compressed(nn.Linear(6, 4), 2)[0].bias is None


@pytest.mark.parametrize("rank", [0, -1, 5, True, 2.0])  # nothing, below it, above min(6, 4), no numbers of layers
def test_ranks_that_are_none(rank: object) -> None:
    with pytest.raises(UserError, match=r"4 x 6 weights: rank .* Fix: "):
        compressed(nn.Linear(6, 4), rank)  # type: ignore[arg-type]
