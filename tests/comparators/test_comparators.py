"""What every comparator does: the same score one by one and as a matrix, gradients, precision, checkpoints, configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from cvexp.comparators.chi_square import WeightedChiSquare
from cvexp.comparators.comparator import Comparator
from cvexp.comparators.cosine import Cosine
from cvexp.comparators.siamese import Siamese
from cvexp.comparators.squared_l2 import SquaredL2
from cvexp.types import UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "model" / "comparator"
NAMES = {"squared_l2": SquaredL2, "cosine": Cosine, "weighted_chi_square": WeightedChiSquare, "siamese": Siamese}
LEARNING = [WeightedChiSquare, Siamese]


def embeddings(count: int, dim: int = 6, seed: int = 0) -> Tensor:
    """Not negative, some components 0: fit for all comparators."""
    return (torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + 0.3).clamp(min=0)


def made(kind: type[Comparator], dim: int = 6) -> Comparator:
    """With weights of both signs where it has weights."""
    comparator = kind(dim)
    if kind in LEARNING:
        comparator.weight.copy_(torch.tensor([2.0, -0.5, 1, 0, 3, 0.25])[:dim])
        comparator.bias.fill_(0.75)
    return comparator


def by_loop(kind: type[Comparator], a: list[float], b: list[float]) -> float:
    weights, bias = [2.0, -0.5, 1, 0, 3, 0.25], 0.75
    pairs = list(zip(a, b, strict=True))
    if kind is SquaredL2:
        return -sum((x - y) ** 2 for x, y in pairs)
    if kind is Cosine:
        return sum(x * y for x, y in pairs) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    if kind is WeightedChiSquare:
        return bias - sum(w * (x - y) ** 2 / (x + y) for w, (x, y) in zip(weights, pairs, strict=True) if x + y > 0)
    return bias - sum(w * abs(x - y) for w, (x, y) in zip(weights, pairs, strict=True))


@pytest.mark.parametrize("kind", NAMES.values())
def test_score_is_the_formula(kind) -> None:
    comparator = made(kind)
    a, b = embeddings(20, seed=1).double(), embeddings(20, seed=2).double()
    a[:, 0] += 0.1  # no vector of zeros
    b[:, 0] += 0.1
    expected = [by_loop(kind, x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert comparator.score(a, b).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", NAMES.values())
@pytest.mark.parametrize("shape", [(7, 11), (1, 1), (3000, 20), (0, 5), (5, 0), (0, 0)])
def test_matrix_is_the_score_of_every_pair(kind, shape) -> None:
    comparator = made(kind)
    a, b = embeddings(shape[0], seed=1), embeddings(shape[1], seed=2)
    matrix = comparator.matrix(a, b)
    assert matrix.shape == shape
    torch.testing.assert_close(matrix, comparator.score(a[:, None], b[None]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", NAMES.values())
def test_larger_is_more_alike(kind) -> None:
    """Of a face, the same face is the most alike, and what is shown agrees with ``falling``."""
    comparator = kind(6)
    a = embeddings(9) + 0.01
    matrix = comparator.matrix(a, a)
    assert matrix.argmax(dim=1).tolist() == list(range(9))
    assert comparator.shown(-1.5) == (1.5 if comparator.falling else -1.5)
    assert comparator.measure
    torch.testing.assert_close(matrix, matrix.T)


@pytest.mark.parametrize("kind", NAMES.values())
def test_gradients_are_finite_where_faces_are_equal(kind) -> None:
    comparator = made(kind)
    for values in (embeddings(3), torch.zeros(3, 6), torch.full((3, 6), 1e-20)):
        a, b = values.clone().requires_grad_(), values.clone().requires_grad_()
        comparator.score(a, b).sum().backward()
        assert a.grad.isfinite().all()
        assert b.grad.isfinite().all()


@pytest.mark.parametrize("kind", NAMES.values())
def test_half_precision_and_autocast_are_computed_in_float32(kind) -> None:
    comparator = made(kind)
    a, b = embeddings(5, seed=1).bfloat16(), embeddings(8, seed=2).bfloat16()
    expected = comparator.matrix(a.float(), b.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found in (
            comparator.matrix(a, b),
            comparator.matrix(a.float(), b.float()),
            comparator.score(a[:, None], b),
        ):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", NAMES.values())
def test_state_dict_brings_the_scores_back(kind) -> None:
    a, b = embeddings(60, seed=1), embeddings(60, seed=2)
    fitted, fresh = kind(6), kind(6)
    fitted.fit(a, b, torch.arange(60) % 2 == 0)
    if kind in LEARNING:
        assert not torch.equal(fitted.score(a, b), fresh.score(a, b)), "something was learned"
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fitted.score(a, b), fresh.score(a, b))
    assert not list(fitted.parameters()), "an optimizer has nothing to train"


@pytest.mark.parametrize("name", NAMES)
def test_yaml_takes_the_dimension_from_the_model(name: str) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    comparator = instantiate(config)(6)
    assert type(comparator) is NAMES[name]
    assert comparator.dim == 6
    for key in set(config) - {"_target_", "_partial_"}:
        assert getattr(comparator, key) == getattr(NAMES[name](6), key), key


@pytest.mark.parametrize("kind", NAMES.values())
def test_no_dimension(kind) -> None:
    with pytest.raises(UserError, match=r"length 0. Fix: "):
        kind(0)
