"""The order of training samples: it depends on (seed, epoch) alone, never on processes or workers.

Global batches are cut first and every process takes its share of each, so 1, 2 or 8 processes see the same batches and the
loader's whole state is (epoch, batch). Keys are ``(epoch, index)``: a sample's randomness is seeded by (seed, epoch, index).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch


class EpochOrder:
    """The permutation of ``size`` samples in one epoch; Lightning calls `set_epoch` before each."""

    def __init__(self, size: int, seed: int, shuffle: bool) -> None:
        self.size, self.seed, self.shuffle, self.epoch = size, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        else:
            order = list(range(self.size))
        return ((self.epoch, index) for index in order)


class GlobalBatches:
    """Cuts the global order into batches of ``batch_size`` and yields this process's share of each.

    Every process gets the same number of batches and the same number of samples in each, at least one: the last global
    batch is filled up from the start of the order (a metric drops the copies by image id) or, with ``drop_last``, left out.

    Args:
        sampler: the global order.
        batch_size: over all processes; a multiple of ``world_size``.
        rank, world_size: this process among all.
        drop_last: leave out an incomplete last batch, unless it is the only one.
        groups: of each sample; batches are then of one group each, except the last ones. None: no groups.
    """

    def __init__(
        self,
        sampler: EpochOrder,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        groups: Sequence[int] | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} is not a multiple of {world_size} processes")
        self.sampler, self.batch_size, self.rank, self.world_size = sampler, batch_size, rank, world_size
        self.drop_last, self.groups = drop_last, groups

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return max(full, 1) if self.drop_last else full + bool(rest)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = list(self.sampler)
        if self.groups is not None:
            order = by_group(order, self.groups, self.batch_size)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            wanted = math.ceil(len(batch) / self.world_size) * self.world_size
            batch += [order[i % len(order)] for i in range(wanted - len(batch))]
            yield batch[self.rank :: self.world_size]


def by_group(order: list[tuple[int, int]], groups: Sequence[int], batch_size: int) -> list[tuple[int, int]]:
    """The order with whole batches of one group first come, first served; what fills none stands at the end.

    Example: groups 0 1 0 1 1 and batches of two: samples 0 2, 1 3, 4.
    """
    waiting: dict[int, list[tuple[int, int]]] = {}
    out: list[tuple[int, int]] = []
    for key in order:
        queue = waiting.setdefault(groups[key[1]], [])
        queue.append(key)
        if len(queue) == batch_size:
            out += queue
            queue.clear()
    return out + [key for group in sorted(waiting) for key in waiting[group]]
