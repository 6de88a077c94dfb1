"""The order of training samples: it depends on (seed, epoch) alone, never on processes or workers.

Global batches are cut first and every process takes its share of each, so 1, 2 or 8 processes see the same batches and the
loader's whole state is (epoch, batch): a resumed run starts there (``begin``). Keys are ``(epoch, index)``: a sample's
randomness is seeded by (seed, epoch, index).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import torch

from cvexp.types import UserError


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

    Attributes:
        begin: ``(epoch, batch)`` where a resumed run goes on; that epoch's batches before it are left out. The length stays
            that of a whole epoch.
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
        self.begin = (0, 0)

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return max(full, 1) if self.drop_last else full + bool(rest)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = list(self.sampler)
        if self.groups is not None:
            order = by_group(order, self.groups, self.batch_size)
        for number in range(first_batch(self.begin, self.sampler.epoch), len(self)):
            start = number * self.batch_size
            batch = order[start : start + self.batch_size]
            wanted = math.ceil(len(batch) / self.world_size) * self.world_size
            batch += [order[i % len(order)] for i in range(wanted - len(batch))]
            yield batch[self.rank :: self.world_size]


def first_batch(begin: tuple[int, int], epoch: int) -> int:
    """The first batch of an epoch: 0, but for the epoch in which a resumed run goes on."""
    return begin[1] if epoch == begin[0] else 0


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


class IdentityOrder:
    """The global batches of one epoch for learning from pairs and triplets: P people x K images (FaceNet, section 3.2).

    A function of (seed, epoch). A batch has exactly ``batch_size`` images; the people in it differ, and each has K images, or
    all where there are fewer: then more people fill the batch. The last one is cut to the room that is left; where that is one
    image, it has no positive in its batch and serves the others as a negative.

    ``balance="identities"``: people come in permutations, one after the other, so that all are seen equally often. A person
    gives the next K of their shuffled images; after the last comes the first again, never twice in one batch.
    ``balance="images"``: every image comes once in an epoch (less an incomplete last batch). A person's images are parted into
    chunks as equal as possible of at most K, spread evenly over the epoch. Nobody is twice in a batch but those with more
    chunks than there are batches, and what is left over for the last batches.

    Args:
        labels: of each image, the person in any numbering.
        batch_size: B = P * K, over all processes.
        images_per_identity: K.
        seed: of the order.
        balance: see above.

    Raises:
        UserError: K below 2, B is not a multiple of K, or there are too few people for a batch.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        images_per_identity: int,
        seed: int,
        balance: Literal["identities", "images"] = "identities",
    ) -> None:
        self.batch_size, self.per_identity, self.seed, self.balance = batch_size, images_per_identity, seed, balance
        self.epoch = 0
        self.labels = torch.as_tensor(labels, dtype=torch.int64).unique(return_inverse=True)[1]
        self.counts: list[int] = self.labels.bincount().tolist() if len(self.labels) else []
        check_batch(batch_size, images_per_identity)
        room = sum(min(count, images_per_identity) for count in self.counts)
        if room < batch_size:
            fit = room // images_per_identity * images_per_identity
            raise UserError(
                f"data.batch_size={batch_size} is {batch_size // images_per_identity} people with"
                f" {images_per_identity} images each, the data has {len(self.counts)} people with {room} images at up to"
                f" {images_per_identity} each. Fix: "
                + (f"data.batch_size={fit} or less" if fit else "add images, or smaller data.images_per_identity")
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return max(len(self.labels) // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        shuffled = torch.randperm(len(self.labels), generator=generator)
        shuffled = shuffled[self.labels[shuffled].argsort(stable=True)]  # person by person
        queues = [part.tolist() for part in shuffled.split(self.counts)]
        turns = self._identities(generator) if self.balance == "identities" else self._chunks(generator)
        places = [0] * len(queues)
        for turns_of_batch in self._cut(turns):
            batch: list[tuple[int, int]] = []
            for person, size in turns_of_batch:
                queue, place = queues[person], places[person]
                batch += [(self.epoch, queue[i % len(queue)]) for i in range(place, place + size)]
                places[person] = (place + size) % len(queue)
            yield batch

    def _identities(self, generator: torch.Generator) -> Iterator[tuple[int, int]]:
        """``(person, images)`` without end, permutation after permutation."""
        while True:
            for person in torch.randperm(len(self.counts), generator=generator).tolist():
                yield person, min(self.counts[person], self.per_identity)

    def _chunks(self, generator: torch.Generator) -> Iterator[tuple[int, int]]:
        """``(person, images)``: everybody's chunks once, chunk j of m somewhere between j / m and (j + 1) / m of the epoch."""
        counts = torch.tensor(self.counts)
        chunks = (counts + self.per_identity - 1) // self.per_identity
        person = torch.arange(len(counts)).repeat_interleave(chunks)
        number = torch.arange(len(person)) - (chunks.cumsum(0) - chunks)[person]
        share, rest = counts // chunks, counts % chunks
        size = share[person] + (number < rest[person])
        place = (number + torch.rand(len(person), generator=generator)) / chunks[person]
        order = place.argsort(stable=True)
        return iter(list(zip(person[order].tolist(), size[order].tolist(), strict=True)))

    def _cut(self, turns: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """The turns of each batch; a person who is in it already waits for the next."""
        whole = self.balance == "images"
        batches = len(self)
        limit = [-(-count // (self.per_identity * batches)) if whole else 1 for count in self.counts]
        ahead: deque[tuple[int, int]] = deque()
        for _ in range(batches):
            held: list[tuple[int, int]] = []
            found: list[tuple[int, int]] = []
            times: dict[int, int] = {}
            room = self.batch_size
            while room:
                turn = ahead.popleft() if ahead else next(turns, None)
                if turn is not None and times.get(turn[0], 0) >= limit[turn[0]]:
                    held.append(turn)
                    continue
                person, size = turn or held.pop(0)  # at the end only people who are in the batch may be left
                times[person] = times.get(person, 0) + 1
                taken = min(size, room)
                found.append((person, taken))
                room -= taken
                if whole and taken < size:
                    held.append((person, size - taken))
            ahead.extendleft(reversed(held))
            yield found


class IdentityBatches:
    """This process's share of the batches of an `IdentityOrder`: every ``world_size``-th image of each.

    Args:
        sampler: the global batches; Lightning finds it here and calls its `set_epoch`.
        rank, world_size: this process among all; the batch size is a multiple of ``world_size``.

    Attributes:
        begin: as `GlobalBatches`'.
    """

    def __init__(self, sampler: IdentityOrder, rank: int = 0, world_size: int = 1) -> None:
        if sampler.batch_size % world_size:
            raise ValueError(f"batch_size={sampler.batch_size} is not a multiple of {world_size} processes")
        self.sampler, self.rank, self.world_size = sampler, rank, world_size
        self.begin = (0, 0)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in islice(self.sampler, first_batch(self.begin, self.sampler.epoch), None):
            yield batch[self.rank :: self.world_size]


def check_batch(batch_size: int, images_per_identity: int) -> None:
    """Whether a batch can be P people with K images each.

    Raises:
        UserError: K below 2, or the batch size is not a multiple of K.
    """
    if images_per_identity < 2:
        raise UserError(
            f"data.images_per_identity={images_per_identity}: an anchor needs another image of the same person."
            " Fix: data.images_per_identity=4"
        )
    if batch_size < images_per_identity or batch_size % images_per_identity:
        fit = max(batch_size // images_per_identity, 2) * images_per_identity
        raise UserError(
            f"data.batch_size={batch_size} is not a multiple of data.images_per_identity={images_per_identity}."
            f" Fix: data.batch_size={fit}"
        )
