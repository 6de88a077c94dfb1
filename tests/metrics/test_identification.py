"""Ranks among strangers and all pairs: against plain loops, in any block size, and where there is nobody to find."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import cvexp.metrics.identification as module
from cvexp.metrics.identification import all_pairs, cmc, identify
from cvexp.metrics.verification import roc
from cvexp.types import UserError


def negative_distance(a: Tensor, b: Tensor) -> Tensor:
    return -(a[:, None] - b[None]).square().sum(dim=-1)


def faces(seed: int, people: int = 12, strangers: int = 15, steps: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings on a coarse grid, so that many scores are equal; people have one to five images, mixed up."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.arange(people) % 5 + 1
    labels = torch.repeat_interleave(torch.arange(people), counts)[torch.randperm(int(counts.sum()), generator=g)]
    centres = torch.randn(people + strangers, 3, generator=g)
    found = centres[labels] + 0.7 * torch.randn(len(labels), 3, generator=g)
    return (found * steps).round() / steps, labels, (centres[people:] * steps).round() / steps


def plain_ranks(a: Tensor, labels: Tensor, strangers: Tensor, others: bool) -> list[int]:
    ranks = []
    for p in range(len(a)):
        for mate in range(len(a)):
            if mate != p and labels[mate] == labels[p]:
                gallery = [x for x, label in zip(a, labels, strict=True) if others and label != labels[p]]
                gallery += list(strangers)
                score = -(a[p] - a[mate]).square().sum()
                ranks.append(1 + sum(bool(-(a[p] - x).square().sum() >= score) for x in gallery))
    return ranks


def plain_nearest(a: Tensor, labels: Tensor, strangers: Tensor) -> list[bool]:
    found = []
    for p in range(len(a)):
        own = [-(a[p] - a[m]).square().sum() for m in range(len(a)) if m != p and labels[m] == labels[p]]
        rest = [-(a[p] - a[m]).square().sum() for m in range(len(a)) if labels[m] != labels[p]]
        rest += [-(a[p] - x).square().sum() for x in strangers]
        if own:
            found.append(bool(max(own) > max(rest)))
    return found


@pytest.mark.parametrize("block", [1, 300, 1 << 20])  # row by row, some rows, all at once
@pytest.mark.parametrize("others", [True, False])
def test_ranks_equal_plain_loops(monkeypatch, block: int, others: bool) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    a, labels, strangers = faces(0)
    found = identify(negative_distance, a, labels, strangers, others=others)
    expected = plain_ranks(a, labels, strangers, others)
    assert found.ranks.tolist() == expected
    assert 1 in expected
    assert max(expected) > 3
    assert found.nearest.tolist() == plain_nearest(a, labels, strangers[:0])
    assert found.nearest_of_all.tolist() == plain_nearest(a, labels, strangers)
    assert 0 < found.rank1_distractors < found.rank1 < 1


def test_without_distractors() -> None:
    a, labels, strangers = faces(1)
    alone = identify(negative_distance, a, labels)
    assert alone.ranks.tolist() == plain_ranks(a, labels, strangers[:0], True)
    assert alone.rank1 == alone.rank1_distractors
    # MegaFace's own check: nobody but the mate in the gallery
    assert set(identify(negative_distance, a, labels, others=False).ranks.tolist()) == {1}


def test_a_point_for_all_finds_nobody() -> None:
    """Ties stand before the mate: else a collapsed network would be perfect."""
    found = identify(negative_distance, torch.zeros(6, 4), torch.tensor([0, 0, 1, 1, 2, 3]), torch.zeros(3, 4))
    assert found.ranks.tolist() == [8, 8, 8, 8]  # four images of others, three distractors
    assert (found.rank1, found.rank1_distractors) == (0, 0)


def test_nobody_to_find() -> None:
    for a, labels in ((torch.zeros(0, 4), torch.zeros(0).long()), (torch.randn(3, 4), torch.arange(3))):
        found = identify(negative_distance, a, labels, torch.zeros(2, 4))
        assert found.ranks.size == 0
        assert math.isnan(found.rank1)
        assert np.isnan(cmc(found.ranks, 3)).all()


def test_one_person_and_no_stranger() -> None:
    found = identify(negative_distance, torch.randn(3, 4), torch.zeros(3).long())
    assert found.ranks.tolist() == [1] * 6
    assert found.rank1 == 1


def test_cmc_worked_example() -> None:
    curve = cmc([1, 1, 2, 5], 6)
    assert curve.tolist() == [0.5, 0.75, 0.75, 0.75, 1, 1]
    assert (np.diff(curve) >= 0).all()
    assert cmc([7], 2).tolist() == [0, 0]  # all beyond the end
    with pytest.raises(UserError, match=r"Fix: ranks are counted from 1"):
        cmc([0, 1], 3)
    with pytest.raises(UserError, match=r"CMC up to 0"):
        cmc([1], 0)


@pytest.mark.parametrize("block", [1, 200, 1 << 20])
def test_all_pairs_equal_the_roc_of_a_list(monkeypatch, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    a, labels, _ = faces(2)
    found = all_pairs(negative_distance, a, labels)
    i, j = np.triu_indices(len(a), 1)
    same = (labels[i] == labels[j]).numpy()
    curve = roc(negative_distance(a, a).numpy()[i, j], same)
    assert (found.same, found.different) == (same.sum(), (~same).sum())
    assert found.auc() == pytest.approx(curve.auc(), abs=1e-12)
    for far in (0.01, 0.05, 0.3):
        assert found.tar_at_far(far) == pytest.approx(curve.tar_at_far(far), abs=1e-12)
    assert math.isnan(found.tar_at_far(1e-4))
    assert 0.6 < found.auc() < 0.99


@pytest.mark.parametrize(
    "labels",
    [
        [0, 0, 0],  # no different pair
        [0, 1, 2],  # no same pair
        [0],  # no pair
        [],  # nobody
    ],
)
def test_all_pairs_of_one_kind(labels: list[int]) -> None:
    found = all_pairs(negative_distance, torch.randn(len(labels), 4), torch.tensor(labels, dtype=torch.int64))
    assert math.isnan(found.auc())
    assert math.isnan(found.tar_at_far(0.5))


def test_bad_scores() -> None:
    a, labels, _ = faces(0)
    a[3, 1] = math.nan
    for function in (all_pairs, identify):
        with pytest.raises(UserError, match=r"NaN or infinite. Fix: "):
            function(negative_distance, a, labels)
