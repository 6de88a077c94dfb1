"""Balanced random samples of priors, drawn for a whole batch at once.

The draw is a function of (image, number of the draw, prior) and not of a generator's state: the same image gets the same
sample on any number of processes, and a resumed run goes on as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvexp.types import Match


def random_keys(image_ids: Tensor, draw: Tensor, count: int) -> Tensor:
    """A number for each prior of each image, equally distributed over 0..1 (two rounds of splitmix64's mixing).

    Args:
        image_ids: int64 ``[B]``.
        draw: int64 ``[]``, the number of the draw.
        count: P.

    Returns:
        float32 ``[B, P]``.
    """
    seed = _mix(image_ids * 0x9E3779B97F4A7C + draw * 0xD1B54A32D192ED)
    keys = _mix(seed[:, None] + torch.arange(count, device=seed.device) * 0x1E3779B97F4A7C15)
    return ((keys >> 39) & 0xFFFFFF).float() / 2**24


def keys_of_parts(image_ids: Tensor, draw: Tensor, counts: Sequence[int]) -> Tensor:
    """`random_keys` of several lists one after the other, as proposals and objects, each with numbers of its own.

    A list is padded to the longest of the batch. If one row of numbers ran through all lists, those of the second would
    depend on the padding of the first, and an image's sample on the images beside it.

    Args:
        image_ids: int64 ``[B]``.
        draw: int64 ``[]``, the number of the draw.
        counts: length of each list.

    Returns:
        float32 ``[B, sum of counts]``.
    """
    parts = (random_keys(image_ids, draw * len(counts) + part, count) for part, count in enumerate(counts))
    return torch.cat(list(parts), dim=1)


def _mix(x: Tensor) -> Tensor:
    """Splitmix64's finaliser; int64 wraps around as its unsigned twin does."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def sample(match: Match, keys: Tensor, count: int, positive_share: float) -> Match:
    """At most ``count`` priors of each image, of them at most ``positive_share`` positive; the rest negative.

    Args:
        match: which priors are positive and which are ignored.
        keys: float ``[B, P]`` in 0..1; of each kind those with the largest are drawn.
        count: of an image; when there are too few negatives it is not reached.
        positive_share: 0..1.

    Returns:
        The match with weight 1 where drawn and 0 elsewhere.

    Example: 200 positive and 10,000 negative priors, count 256, share 0.5: 128 + 128. Of 5 positive ones: 5 + 251.
    """
    limit = round(count * positive_share)
    positive = _draw(torch.where(match.positive, keys, -1.0), match.positive.new_ones(()) * limit, limit)
    rest = count - positive.sum(dim=1, keepdim=True)
    negative = _draw(torch.where(match.positive | match.ignored, -1.0, keys), rest, count)
    return Match(match.target_index, match.positive, match.ignored, (positive | negative).to(match.weight.dtype))


def _draw(keys: Tensor, count: Tensor, limit: int) -> Tensor:
    """bool ``[B, P]``: the ``count`` largest keys of each row that are not negative; ``count`` is at most ``limit``."""
    top, index = keys.topk(min(limit, keys.shape[1]), dim=1)
    drawn = (top >= 0) & (torch.arange(top.shape[1], device=keys.device) < count)
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, index, drawn)
