"""The order of training samples: it depends on (seed, epoch) alone, never on processes or workers.

Global batches are cut first and every process takes its share of each, so 1, 2 or 8 processes see the same batches and the
loader's whole state is (epoch, batch). Keys are ``(epoch, index)``: a sample's randomness is seeded by (seed, epoch, index).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

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
    """

    def __init__(
        self, sampler: EpochOrder, batch_size: int, rank: int = 0, world_size: int = 1, drop_last: bool = False
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} is not a multiple of {world_size} processes")
        self.sampler, self.batch_size, self.rank, self.world_size = sampler, batch_size, rank, world_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return max(full, 1) if self.drop_last else full + bool(rest)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = list(self.sampler)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            wanted = math.ceil(len(batch) / self.world_size) * self.world_size
            batch += [order[i % len(order)] for i in range(wanted - len(batch))]
            yield batch[self.rank :: self.world_size]
