"""The order of samples: a function of (seed, epoch) alone, shared out to 1, 2 or 3 processes."""

from __future__ import annotations

import pytest

from cvexp.data.samplers import EpochOrder, GlobalBatches, by_group


def order(size: int, seed: int = 0, epoch: int = 0, shuffle: bool = True) -> list[int]:
    sampler = EpochOrder(size, seed, shuffle)
    sampler.set_epoch(epoch)
    return [index for _, index in sampler]


def shares(
    size: int, batch: int, world: int, drop_last: bool = False, epoch: int = 0, seed: int = 0
) -> list[list[list]]:
    """The batches of each process."""
    found = []
    for rank in range(world):
        sampler = EpochOrder(size, seed, shuffle=True)
        sampler.set_epoch(epoch)
        batches = GlobalBatches(sampler, batch, rank, world, drop_last)
        found.append(list(batches))
        assert len(found[-1]) == len(batches)
    return found


def join(parts: list[list]) -> list:
    """The global batch: its samples were dealt out like cards."""
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def test_the_order_depends_on_seed_and_epoch_alone():
    first = order(50, seed=3, epoch=2)
    assert sorted(first) == list(range(50))
    assert order(50, seed=3, epoch=2) == first
    others = [order(50, seed=3, epoch=1), order(50, seed=4, epoch=2), order(50, seed=2, epoch=3), list(range(50))]
    assert all(other != first for other in others)


def test_without_shuffling_it_is_the_list():
    assert order(7, shuffle=False, epoch=5) == list(range(7))


def test_keys_carry_the_epoch():
    sampler = EpochOrder(4, 0, shuffle=True)
    sampler.set_epoch(9)
    assert {epoch for epoch, _ in sampler} == {9}
    assert len(sampler) == 4


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 11, 12, 13, 40])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_shares_join_to_the_global_batches(world, size, drop_last):
    batch = 6
    parts = shares(size, batch, world, drop_last, epoch=1)
    alone = shares(size, batch, 1, drop_last, epoch=1)[0]
    # as many batches on every process, at least one, and as many samples in each, at least one
    assert {len(p) for p in parts} == {len(alone)}
    assert len(alone) >= 1
    for number, whole in enumerate(alone):
        mine = [p[number] for p in parts]
        assert len({len(m) for m in mine}) == 1
        assert len(mine[0]) >= 1
        joined = join(mine)
        assert joined[: len(whole)] == whole
        # padding only repeats samples of the epoch, fewer than one for each process
        assert len(joined) - len(whole) < world
        assert set(joined) <= {(1, i) for i in range(size)}
    # together they are the epoch's order, cut where an incomplete last batch is left out
    seen = [index for whole in alone for _, index in whole]
    kept = (size // batch * batch or size) if drop_last else size
    assert seen == order(size, epoch=1)[:kept]


def test_worked_example():
    # 5 samples, batches of 4, two processes: 4 + 1, and the 1 is filled up with the first of the order
    o = [(0, i) for i in order(5)]
    a, b = shares(5, 4, 2)
    assert a == [[o[0], o[2]], [o[4]]]
    assert b == [[o[1], o[3]], [o[0]]]
    a, b = shares(5, 4, 2, drop_last=True)
    assert a == [[o[0], o[2]]]
    assert b == [[o[1], o[3]]]


def test_a_single_sample_reaches_every_process():
    assert shares(1, 3, 3) == [[[(0, 0)]]] * 3
    assert shares(1, 3, 3, drop_last=True) == [[[(0, 0)]]] * 3


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch_size=5 is not a multiple of 2 processes"):
        GlobalBatches(EpochOrder(9, 0, True), 5, 0, 2)


def test_lightning_finds_the_sampler_and_sets_the_epoch():
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    batches = GlobalBatches(EpochOrder(6, 0, True), 2)
    _set_sampler_epoch(DataLoader([0] * 6, batch_sampler=batches), 4)  # type: ignore[arg-type]
    assert batches.sampler.epoch == 4


def grouped(size: int, batch: int, groups: list[int], world: int = 1, epoch: int = 0) -> list[list[list[int]]]:
    found = []
    for rank in range(world):
        sampler = EpochOrder(size, 0, shuffle=True)
        sampler.set_epoch(epoch)
        batches = GlobalBatches(sampler, batch, rank, world, groups=groups)
        found.append([[index for _, index in b] for b in batches])
    return found


def test_a_group_is_emitted_when_it_fills_a_batch():
    """Samples 0 to 4 of groups 0 1 0 1 1: 0 waits for 2, then 1 for 3; 4 fills none."""
    keys = [(0, i) for i in range(5)]
    assert by_group(keys, [0, 1, 0, 1, 1], 2) == [(0, 0), (0, 2), (0, 1), (0, 3), (0, 4)]


def test_batches_are_of_one_group_but_for_the_rest():
    groups = [int(i % 3 == 0) for i in range(50)]  # 17 and 33
    batches = grouped(50, 4, groups)[0]
    assert sorted(index for b in batches for index in b) == list(range(50))  # each once
    mixed = [b for b in batches if len({groups[i] for i in b}) > 1]
    assert len(mixed) <= 1
    assert mixed in ([], [batches[-1]], [batches[-2]])


def test_grouped_batches_are_shared_out_like_others():
    groups = [int(i % 3 == 0) for i in range(48)]
    alone, parts = grouped(48, 4, groups)[0], grouped(48, 4, groups, world=2)
    assert [[a, b, c, d] for (a, c), (b, d) in zip(*parts, strict=True)] == alone
    assert grouped(48, 4, groups, epoch=1)[0] != alone
