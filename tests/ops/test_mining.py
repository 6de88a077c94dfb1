"""Miners against plain loops: the sheet's triplets, ties, one identity, no positives, other processes' references."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cvexp.errors import UserError
from cvexp.losses.triplet import Triplet
from cvexp.ops.distances import squared_l2
from cvexp.ops.mining import Hardest, Miner, RandomNegative, SemiHard, pair_keys, semi_hard_pairs
from cvexp.types import Triplets


class Case(NamedTuple):
    """What a miner is called with."""

    embeddings: Tensor
    labels: Tensor
    references: Tensor
    reference_labels: Tensor
    own: Tensor

    @classmethod
    def of(cls, x: Tensor, labels: list[int], own: list[int] | None = None) -> Case:
        """Anchors are the references at ``own``, all of them by default."""
        where, all_labels = torch.tensor(range(len(x)) if own is None else own, dtype=torch.int64), torch.tensor(labels)
        return cls(x[where], all_labels[where], x, all_labels, where)


def sphere(count: int, dim: int = 3, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


def grid(count: int, seed: int = 0) -> Tensor:
    """Whole numbers 0..3 in two dimensions: many distances are equal, all are exact."""
    return torch.randint(0, 4, (count, 2), generator=torch.Generator().manual_seed(seed)).float()


def labels(count: int, people: int, seed: int = 0) -> list[int]:
    return torch.randint(0, people, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


CASES = {
    "on the sphere": (Case.of(sphere(24), labels(24, 5)), 0.2),
    "a wide margin": (Case.of(sphere(24), labels(24, 5)), 3.0),
    "nearly collapsed": (Case.of(F.normalize(sphere(24) * 0.05 + 1), labels(24, 5)), 0.2),
    "ties": (Case.of(grid(24), labels(24, 4)), 2.0),
    "two people": (Case.of(grid(12), labels(12, 2)), 3.0),
    "all at one point": (Case.of(torch.ones(8, 2), labels(8, 3)), 0.2),
    "one person: no negative": (Case.of(sphere(6), [7] * 6), 0.2),
    "no positive": (Case.of(sphere(6), list(range(6))), 0.2),
    "references of two processes": (Case.of(sphere(24), labels(24, 5), own=list(range(12, 24))), 0.2),
    "ties, anchors here and there": (Case.of(grid(24), labels(24, 4), own=[20, 3, 9]), 2.0),
    "a single image": (Case.of(sphere(1), [0]), 0.2),
    "no anchor": (Case.of(sphere(5), labels(5, 2), own=[]), 0.2),
}


def by_loop(case: Case, rule: Callable[[float, dict[int, float]], set[int]]) -> dict[tuple[int, int], set[int]]:
    """The negatives that a rule allows for each anchor-positive pair, without pairs that have none."""
    distance = squared_l2(case.embeddings, case.references).tolist()
    found = {}
    for a, (row, own) in enumerate(zip(distance, case.own.tolist(), strict=True)):
        same = [person == case.labels[a].item() for person in case.reference_labels.tolist()]
        negatives = {n: row[n] for n in range(len(row)) if not same[n]}
        for p in range(len(row)):
            if same[p] and p != own and (allowed := rule(row[p], negatives)):
                found[a, p] = allowed
    return found


def semi_hard(margin: float, fallback: bool = False) -> Callable[[float, dict[int, float]], set[int]]:
    def rule(positive: float, negatives: dict[int, float]) -> set[int]:
        limit = (torch.tensor(positive) + margin).item()  # in float32, as the miner
        found = {n for n, d in negatives.items() if positive < d < limit}
        if not found and fallback and negatives and max(negatives.values()) <= positive:
            return {n for n, d in negatives.items() if d == max(negatives.values())}
        return found

    return rule


def nearest(negatives: dict[int, float], among: set[int]) -> set[int]:
    return {n for n in among if negatives[n] == min(negatives[m] for m in among)}


def mined(triplets: Triplets) -> dict[tuple[int, int], int]:
    """Negative by anchor and positive."""
    columns = (triplets.anchor, triplets.positive, triplets.negative)
    rows = torch.stack(columns)[:, triplets.valid].T.tolist()
    assert len({(a, p) for a, p, _ in rows}) == len(rows), "a pair has one negative"
    return {(a, p): n for a, p, n in rows}


def check(case: Case, miner: Miner, allowed: dict[tuple[int, int], set[int]]) -> None:
    count = len(case.embeddings) * len(case.references)
    for seed in range(3):
        torch.manual_seed(seed)
        triplets = miner(*case)
        assert {len(t) for t in (triplets.anchor, triplets.positive, triplets.negative, triplets.valid)} == {count}
        for index, limit in ((triplets.anchor, len(case.embeddings)), (triplets.negative, len(case.references))):
            assert index.dtype == torch.int64
            assert ((index >= 0) & (index < limit)).all()  # where they mean nothing as well: they are looked up
        found = mined(triplets)
        assert found.keys() == allowed.keys()
        assert all(n in allowed[pair] for pair, n in found.items())


@pytest.mark.parametrize("name", CASES)
def test_semi_hard_by_loop(name: str) -> None:
    case, margin = CASES[name]
    allowed = by_loop(case, semi_hard(margin))
    check(case, SemiHard(margin), allowed)
    closest = by_loop(case, lambda d, negatives: nearest(negatives, semi_hard(margin)(d, negatives)))
    check(case, SemiHard(margin, choose="closest"), closest)
    pairs = semi_hard_pairs(*case, margin)
    assert {tuple(pair) for pair in pairs.nonzero().tolist()} == allowed.keys()


@pytest.mark.parametrize("name", CASES)
def test_fallback_by_loop(name: str) -> None:
    case, margin = CASES[name]
    allowed = by_loop(case, semi_hard(margin, fallback=True))
    check(case, SemiHard(margin, fallback="furthest"), allowed)


@pytest.mark.parametrize("name", CASES)
def test_random_and_hardest_by_loop(name: str) -> None:
    case, margin = CASES[name]
    check(case, RandomNegative(margin), by_loop(case, lambda _, negatives: set(negatives)))
    check(case, Hardest(margin), by_loop(case, lambda _, negatives: nearest(negatives, set(negatives))))


def test_the_cases_are_not_all_empty() -> None:
    """What the tests above compare: semi-hard pairs in most cases, and more with the fallback in some."""
    counts = {name: len(by_loop(case, semi_hard(margin))) for name, (case, margin) in CASES.items()}
    filled = {name: len(by_loop(case, semi_hard(margin, fallback=True))) for name, (case, margin) in CASES.items()}
    empty = {name for name, count in counts.items() if not count}
    assert empty == {"all at one point", "one person: no negative", "no positive", "a single image", "no anchor"}
    assert {name for name in CASES if filled[name] > counts[name]} >= {"on the sphere", "ties", "all at one point"}


# -- worked examples ---------------------------------------------------------------------------------------------------

ORACLE = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8], [0.5**0.5, 0.5**0.5], [0.96, 0.28]])


@pytest.mark.parametrize(
    ("miner", "expected"),
    [
        (SemiHard(), 4),  # oracle 4: d = 0.4 < 0.58578644 < 0.6 is the third negative
        (SemiHard(choose="closest"), 4),
        (SemiHard(fallback="furthest"), 4),
        (SemiHard(margin=0.5, choose="closest"), 4),  # 0.8 is semi-hard as well now
        (Hardest(), 5),  # d = 0.08
    ],
)
def test_oracle_4(miner: Miner, expected: int) -> None:
    assert mined(miner(*Case.of(ORACLE, [0, 0, 1, 2, 3, 4])))[0, 1] == expected


def test_oracle_4_without_its_semi_hard_negative() -> None:
    """(0.96, 0.28) alone is nearer than the positive; beside it (0, 1), beyond the margin, leaves nothing to learn."""
    hard = Case.of(ORACLE[[0, 1, 5]], [0, 0, 4])
    assert (0, 1) not in mined(SemiHard()(*hard))
    assert mined(SemiHard(fallback="furthest")(*hard))[0, 1] == 2
    easy = Case.of(ORACLE[[0, 1, 5, 2]], [0, 0, 4, 1])
    assert (0, 1) not in mined(SemiHard(fallback="furthest")(*easy))


def test_oracle_5() -> None:
    """40 images of a person make 780 pairs, 1,560 in both directions; each is trained on."""
    case = Case.of(sphere(50), [0] * 40 + list(range(1, 11)))
    assert int(RandomNegative()(*case).valid.sum()) == 1560


def test_loss_of_closest_with_furthest_is_that_of_tensorflow_addons() -> None:
    """Its rule: the nearest negative beyond the positive, or the farthest of all; the sum of all pairs' losses."""
    for case, margin in ((Case.of(sphere(24, seed=s), labels(24, 4, seed=s)), 0.3) for s in range(4)):
        distance = squared_l2(case.embeddings, case.references)
        expected = 0.0
        for a, p in by_loop(case, lambda _, negatives: set(negatives)):
            negatives = distance[a][case.reference_labels != case.labels[a]]
            beyond = negatives[negatives > distance[a, p]]
            expected += max((distance[a, p] - (beyond.min() if len(beyond) else negatives.max()) + margin).item(), 0)
        t = SemiHard(margin, choose="closest", fallback="furthest")(*case)
        loss = Triplet(margin, reduction="sum")
        found = loss(distance[t.anchor, t.positive], distance[t.anchor, t.negative], t.valid)
        assert expected > 1
        assert found.item() == pytest.approx(expected, rel=1e-4)


# -- what is random ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("miner", [SemiHard(3.0), RandomNegative()])
def test_every_allowed_negative_is_chosen_equally_often(miner: Miner) -> None:
    """2,000 anchors at one place: chi squared at 0.1 per cent; keys from end to end reach the first and the last."""
    x = torch.cat([torch.zeros(2, 1), torch.arange(1, 13)[:, None] / 10])  # squared distances 0.01 ... 1.44
    case = Case.of(x, [0, 0, *range(1, 13)], own=[0] * 2000)
    found = mined(miner(*case, pair_keys(torch.arange(2000), torch.arange(14), torch.tensor(3))))
    assert found.keys() == {(a, 1) for a in range(2000)}
    counts = Counter(found.values())
    assert counts.keys() == set(range(2, 14))
    assert sum((n - 2000 / 12) ** 2 / (2000 / 12) for n in counts.values()) < 31.3  # 11 degrees of freedom
    for key, expected in ((0.0, 2), (1 - 2**-24, 13), (1.0, 13)):
        assert mined(miner(*case, torch.full((2000, 14), key)))[0, 1] == expected


def test_keys_depend_on_both_images_and_on_the_draw() -> None:
    ids, draw = torch.tensor([3, 9, 2**62, -1]), torch.tensor(4)
    keys = pair_keys(ids, ids, draw)
    assert keys.shape == (4, 4)
    assert keys.dtype == torch.float32
    assert len(keys.unique()) == 16  # (a, b) and (b, a) differ too
    assert torch.equal(pair_keys(ids[2:], ids[[1, 0]], draw), keys[2:, [1, 0]])
    assert not (pair_keys(ids, ids, draw + 1) == keys).any()


def test_keys_are_equally_distributed_and_neighbours_independent() -> None:
    ids = torch.arange(300)
    keys = pair_keys(ids, ids, torch.tensor(0))
    assert keys.min() >= 0
    assert keys.max() < 1
    assert ((torch.histc(keys, 50, 0, 1) - 1800) ** 2 / 1800).sum() < 85.4  # 49 degrees of freedom: 0.1 per cent
    for a, b in ((keys[1:], keys[:-1]), (keys[:, 1:], keys[:, :-1]), (keys, keys.T), (keys[1:, 1:], keys[:-1, :-1])):
        off = ~torch.eye(300, dtype=torch.bool) if a is keys else torch.ones_like(a, dtype=torch.bool)
        assert abs(((a - 0.5) * (b - 0.5))[off].mean() * 12) < 4 / math.sqrt(off.sum() / 2)


@pytest.mark.parametrize("miner", [SemiHard(), SemiHard(fallback="furthest"), RandomNegative(), Hardest()])
def test_one_process_and_two_choose_the_same(miner: Miner) -> None:
    """Two processes hold every other image and see the references in the order of their ranks."""
    x, people, ids = sphere(24), torch.tensor(labels(24, 5)), torch.arange(24) + 100
    draw = torch.tensor(7)
    names = lambda t, a, r: {(a[i].item(), r[p].item(), r[n].item()) for (i, p), n in mined(t).items()}  # noqa: E731
    expected = names(miner(*Case.of(x, people.tolist()), pair_keys(ids, ids, draw)), ids, ids)
    order = torch.cat([torch.arange(0, 24, 2), torch.arange(1, 24, 2)])
    found = set()
    for rank in range(2):
        case = Case.of(x[order], people[order].tolist(), own=list(range(12 * rank, 12 * rank + 12)))
        anchors = ids[order][case.own]
        found |= names(miner(*case, pair_keys(anchors, ids[order], draw)), anchors, ids[order])
    assert len(expected) > 20
    assert found == expected


# -- what a device must not be asked -----------------------------------------------------------------------------------


class _Watch(TorchDispatchMode):
    """Remembers the largest tensor, and operators whose result's size or value the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.waits = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.waits.append(str(func))
        return out


@pytest.mark.parametrize(
    "miner", [SemiHard(), SemiHard(choose="closest", fallback="furthest"), RandomNegative(), Hardest()]
)
def test_no_wait_and_nothing_larger_than_anchors_times_references(miner: Miner) -> None:
    case = Case.of(sphere(64), labels(64, 8), own=list(range(32)))
    with _Watch() as watch:
        miner(*case)
        semi_hard_pairs(*case)
    assert watch.waits == []
    assert watch.largest == 32 * 64


def test_mining_takes_no_part_in_the_gradient() -> None:
    case = Case.of(sphere(12).requires_grad_(), labels(12, 3))
    triplets = SemiHard()(*case)
    assert triplets.valid.any()
    assert not any(t.requires_grad for t in (triplets.anchor, triplets.negative, triplets.valid))


def test_half_precision_embeddings() -> None:
    case = Case.of(sphere(24).bfloat16(), labels(24, 5))
    check(case, SemiHard(), by_loop(case, semi_hard(0.2)))


def test_an_embedding_that_is_no_number_is_not_hidden() -> None:
    """Its pairs are triplets, so that the loss is NaN and the run stops; else training would go on without it."""
    x = sphere(8)
    x[3] = float("nan")
    case = Case.of(x, [0, 0, 0, 0, 1, 1, 1, 1])
    for miner in (SemiHard(), RandomNegative(), Hardest()):
        triplets = miner(*case)
        distance = squared_l2(case.embeddings, case.references)
        a, p, n = triplets.anchor, triplets.positive, triplets.negative
        assert Triplet()(distance[a, p], distance[a, n], triplets.valid).isnan()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SemiHard(margin=0), r"model\.miner\.margin=0 .*Fix: "),
        (lambda: Hardest(margin=float("nan")), r"model\.miner\.margin=nan .*Fix: "),
        (lambda: SemiHard(choose="hardest"), r"model\.miner\.choose=hardest is not one of: random, closest\. Fix: "),
        (lambda: SemiHard(fallback="none"), r"model\.miner\.fallback=none is not one of: skip, furthest\. Fix: "),
    ],
)
def test_refusals(make: Callable[[], Miner], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_parity_with_pytorch_metric_learning(seed: int) -> None:
    """Its miner lists all semi-hard triplets: ours are among them, one for each pair that has any."""
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    own = list(range(20, 40)) if seed % 2 else None
    case = Case.of(sphere(60, dim=8, seed=seed), labels(60, 9, seed=seed), own)
    theirs = miners.TripletMarginMiner(
        margin=0.2, type_of_triplets="semihard", distance=distances.LpDistance(normalize_embeddings=False, power=2)
    )
    # given references, it takes an anchor's copy among them for a positive; at distance 0 that one is left out here
    found = theirs(case.embeddings, case.labels, case.references, case.reference_labels)
    listed = {(a, p, n) for a, p, n in torch.stack(found).T.tolist() if case.own[a].item() != p}
    ours = mined(SemiHard(0.2)(*case))
    assert len(ours) > 20
    assert {(a, p, n) for (a, p), n in ours.items()} <= listed
    assert ours.keys() == {(a, p) for a, p, _ in listed}
