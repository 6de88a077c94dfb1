"""Pairs for a set of faces that comes without a list: as many of one person as of two, spread evenly over the people."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from math import comb

import torch

from cvexp.types import Pairs


def drawn_pairs(people: Sequence[str], images: Sequence[Sequence[int]], count: int, seed: int, name: str) -> Pairs:
    """Up to ``count`` pairs of the same and as many of different people, a function of names, images and seed.

    Nobody has two pairs of a kind more than another while either has images left: round by round each person gets one pair.

    Args:
        people: names, each once.
        images: of each of them, image ids.
        count: of each kind.
        seed: of the choice.
        name: of the list.

    Returns:
        The same pairs, then the different ones; fewer than ``count`` of each where there are not so many of one kind.
    """
    order = sorted(range(len(people)), key=lambda i: people[i])
    random.Random(f"{seed}/people").shuffle(order)
    rounds = [_same_pairs(images[i], count, random.Random(f"{seed}/{people[i]}")) for i in order]
    longest = max(map(len, rounds), default=0)
    same = [pairs[turn] for turn in range(longest) for pairs in rounds if turn < len(pairs)]
    total = len({image for some in images for image in some})
    different_ones = comb(total, 2) - sum(comb(len(some), 2) for some in images)
    count = min(count, len(same), different_ones)
    different = _different_pairs([images[i] for i in order if images[i]], count, different_ones, seed)
    both = torch.tensor([*same[:count], *different], dtype=torch.int64).reshape(-1, 2)
    return Pairs(
        first=both[:, 0].clone(),
        second=both[:, 1].clone(),
        same=torch.arange(2 * count) < count,
        fold=torch.zeros(2 * count, dtype=torch.int64),
        name=name,
    )


def _same_pairs(images: Sequence[int], limit: int, rng: random.Random) -> list[tuple[int, int]]:
    """Up to ``limit`` pairs of one person's images in random order, none twice."""
    n = len(images)
    chosen = rng.sample(range(comb(n, 2)), min(limit, comb(n, 2)))
    return [(images[i], images[j]) for i, j in (_pair_number(k, n) for k in chosen)]


def _pair_number(k: int, n: int) -> tuple[int, int]:
    """The ``k``-th pair of ``0 <= i < j < n``: (0, 1), (0, 2) ... (1, 2) ..."""
    i = 0
    while k >= n - 1 - i:
        k -= n - 1 - i
        i += 1
    return i, i + 1 + k


def _different_pairs(images: Sequence[Sequence[int]], count: int, available: int, seed: int) -> list[tuple[int, int]]:
    """``count`` pairs of two people's images, none twice; everybody is the first of a pair in turn."""
    rng = random.Random(f"{seed}/different")
    if available <= 2 * count:  # too few to draw until one is new
        every = [(a, b) for one, other in combinations(images, 2) for a in one for b in other]
        return rng.sample(every, count)
    found: dict[frozenset[int], tuple[int, int]] = {}
    while len(found) < count:
        for here, mine in enumerate(images):
            there = rng.randrange(len(images) - 1)
            pair = rng.choice(mine), rng.choice(images[there + (there >= here)])
            found.setdefault(frozenset(pair), pair)
    return list(found.values())[:count]
