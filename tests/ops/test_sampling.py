"""Balanced samples: exact counts, equal distribution, and a draw that belongs to the image alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cvexp.ops.sampling import _mix, keys_of_parts, random_keys, sample
from cvexp.types import Match


def a_match(positive: list[int], negative: list[int], ignored: list[int]) -> Match:
    """One image for each entry: so many positive, negative and ignored priors, in shuffled order."""
    total = positive[0] + negative[0] + ignored[0]
    kinds = torch.stack([
        torch.repeat_interleave(torch.arange(3), torch.tensor(row))[torch.randperm(total, generator=GENERATOR)]
        for row in zip(positive, negative, ignored, strict=True)
    ])  # fmt: skip
    index = torch.arange(total).expand(len(positive), -1)
    return Match(index, kinds == 0, kinds == 2, torch.ones(kinds.shape))


GENERATOR = torch.Generator().manual_seed(0)


def keys_of(ids: list[int], count: int, draw: int = 0) -> Tensor:
    return random_keys(torch.tensor(ids), torch.tensor(draw), count)


@pytest.mark.parametrize(
    ("positive", "negative", "ignored", "count", "share", "expected"),
    [
        (200, 10_000, 0, 256, 0.5, (128, 128)),  # oracle 8
        (5, 10_000, 0, 256, 0.5, (5, 251)),  # oracle 8: negatives fill up
        (40, 2000, 300, 128, 0.25, (32, 96)),  # Faster R-CNN's regions
        (16, 30, 50, 64, 0.25, (16, 30)),  # too few negatives: the sample stays small, ignored ones are not taken
        (100, 0, 10, 64, 0.25, (16, 0)),  # no negative: positives do not fill up
        (0, 100, 0, 64, 0.25, (0, 64)),  # an image without objects
        (3, 4, 2, 1000, 0.5, (3, 4)),  # more wanted than there are priors
        (0, 0, 9, 64, 0.5, (0, 0)),  # everything ignored
        (9, 9, 0, 6, 0.0, (0, 6)),  # no positive wanted
        (9, 9, 0, 6, 1.0, (6, 0)),  # no negative wanted
    ],
)
def test_counts(positive, negative, ignored, count, share, expected) -> None:
    match = a_match([positive], [negative], [ignored])
    total = positive + negative + ignored
    drawn = sample(match, keys_of([7], total), count, share)
    weight = drawn.weight > 0
    assert (int((weight & match.positive).sum()), int((weight & ~match.positive & ~match.ignored).sum())) == expected
    assert not (weight & match.ignored).any()
    assert set(drawn.weight.unique().tolist()) <= {0.0, 1.0}
    for name in ("target_index", "positive", "ignored"):
        assert torch.equal(getattr(drawn, name), getattr(match, name))


def test_counts_are_those_of_each_image() -> None:
    match = a_match([5, 200, 0], [1000, 805, 1000], [0, 0, 5])
    drawn = sample(match, keys_of([1, 2, 3], 1005), 64, 0.5).weight > 0
    assert (drawn & match.positive).sum(dim=1).tolist() == [5, 32, 0]
    assert (drawn & ~match.positive).sum(dim=1).tolist() == [59, 32, 64]


def test_those_with_the_largest_keys_are_drawn() -> None:
    match = Match(
        torch.zeros(1, 6, dtype=torch.int64),
        torch.tensor([[True, True, True, False, False, False]]),
        torch.tensor([[False, False, False, False, False, True]]),
        torch.ones(1, 6),
    )
    keys = torch.tensor([[0.1, 0.9, 0.5, 0.0, 0.3, 1.0]])  # a key of 0 may be drawn as well
    assert sample(match, keys, 2, 0.5).weight.tolist() == [[0, 1, 0, 0, 1, 0]]
    assert sample(match, keys, 4, 0.5).weight.tolist() == [[0, 1, 1, 1, 1, 0]]


def test_the_second_list_does_not_depend_on_the_padding_of_the_first() -> None:
    ids, draw = torch.tensor([3, 8]), torch.tensor(5)
    short, long = keys_of_parts(ids, draw, (10, 4)), keys_of_parts(ids, draw, (25, 6))
    assert torch.equal(short[:, :10], long[:, :10])
    assert torch.equal(short[:, 10:], long[:, 25:29])
    assert len(long.unique()) == long.numel()
    assert not torch.isin(keys_of_parts(ids, draw + 1, (25, 6)), long).any()


def test_no_prior_at_all() -> None:
    match = Match(*(torch.zeros(2, 0, dtype=d) for d in (torch.int64, torch.bool, torch.bool, torch.float32)))
    assert sample(match, torch.zeros(2, 0), 64, 0.5).weight.shape == (2, 0)


# -- keys --------------------------------------------------------------------------------------------------------------


def splitmix64(value: int) -> int:
    """The published finaliser over unsigned numbers."""
    mask = 2**64 - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_mixing_is_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    assert splitmix64(golden) == 0xE220A8397B1DCDAF  # the first output of the generator with seed 0
    values = [0, 1, 2**62, 2**63 - 1, golden, 2**64 - 1, 2**63]
    signed = torch.tensor([v - 2**64 if v >= 2**63 else v for v in values])
    assert [v % 2**64 for v in _mix(signed).tolist()] == [splitmix64(v) for v in values]


def test_keys_are_equally_distributed() -> None:
    keys = keys_of(list(range(40)), 2500)
    assert keys.dtype == torch.float32
    assert keys.min() >= 0
    assert keys.max() < 1
    counts = torch.histc(keys, 50, 0, 1)  # 100,000 numbers in 50 bins of 2000
    assert ((counts - 2000) ** 2 / 2000).sum() < 85.4  # chi squared, 49 degrees of freedom: 0.1 per cent


@pytest.mark.parametrize("kind", ["images", "draws", "priors"])
def test_neighbours_are_independent(kind: str) -> None:
    """Consecutive ids, draws and priors: no correlation beyond chance (4 standard deviations of 1 / sqrt(n))."""
    table = {
        "images": lambda: keys_of(list(range(200)), 500),
        "draws": lambda: torch.cat([keys_of([3], 500, draw) for draw in range(200)]),
        "priors": lambda: keys_of(list(range(500)), 200).T,
    }[kind]()
    a, b = table[:-1].flatten() - 0.5, table[1:].flatten() - 0.5
    assert abs((a * b).mean() * 12) < 4 / len(a) ** 0.5


@pytest.mark.parametrize("ids", [[0], [2**62, 2**63 - 1], [-1, -(2**63)], [2007_000_001, 9]])
def test_any_image_id_will_do(ids: list[int]) -> None:
    keys = keys_of(ids, 1000, draw=2**40)
    assert 0.45 < keys.mean() < 0.55
    assert len(keys.unique()) > 0.99 * keys.numel()


def test_every_prior_is_drawn_equally_often() -> None:
    """1000 draws of 5 of 20 positive and 5 of 30 negative priors: 250 and 167 times each, within 5 deviations."""
    match = Match(
        torch.zeros(1000, 60, dtype=torch.int64),
        (torch.arange(60) < 20).expand(1000, -1),
        (torch.arange(60) >= 50).expand(1000, -1),
        torch.ones(1000, 60),
    )
    by_image = sample(match, keys_of(list(range(1000)), 60), 10, 0.5).weight.sum(dim=0)
    keys = torch.cat([keys_of([7], 60, draw) for draw in range(1000)])
    by_draw = sample(match, keys, 10, 0.5).weight.sum(dim=0)
    for counts in (by_image, by_draw):
        assert (counts[:20] - 250).abs().max() < 5 * (1000 * 0.25 * 0.75) ** 0.5
        assert (counts[20:50] - 1000 / 6).abs().max() < 5 * (1000 / 6 * 5 / 6) ** 0.5
        assert counts[50:].sum() == 0


# -- a function of image, draw and prior -------------------------------------------------------------------------------


def test_an_image_has_its_sample_in_every_batch() -> None:
    one = a_match([30], [400], [70])
    three = Match(*(torch.cat([getattr(one, f)] * 3) for f in ("target_index", "positive", "ignored", "weight")))
    alone = sample(one, keys_of([42], 500, draw=3), 64, 0.25).weight[0]
    for ids in ([42, 1, 2], [1, 42, 2], [9, 8, 42]):
        together = sample(three, keys_of(ids, 500, draw=3), 64, 0.25).weight
        assert torch.equal(together[ids.index(42)], alone)
        others = [together[i] for i, image in enumerate(ids) if image != 42]
        assert not any(torch.equal(other, alone) for other in others)


def test_another_draw_is_another_sample() -> None:
    match = a_match([30], [400], [70])
    first, again, second = (sample(match, keys_of([42], 500, draw), 64, 0.25).weight for draw in (0, 0, 1))
    assert torch.equal(first, again)
    shared = int((first * second).sum())
    assert shared < 40  # 64 of 430: 16 of 30 positive and 48 of 400 negative would share 14 by chance


def test_keys_do_not_depend_on_the_number_of_priors() -> None:
    """Padding proposals of one image (more of them in the batch) does not change the draw of the first ones."""
    assert torch.equal(keys_of([5], 100), keys_of([5], 130)[:, :100])
