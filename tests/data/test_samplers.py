"""The order of samples: a function of (seed, epoch) alone, shared out to 1, 2 or 3 processes."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from cvexp.data.samplers import EpochOrder, GlobalBatches, IdentityBatches, IdentityOrder, by_group
from cvexp.types import UserError


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


# -- P people x K images -----------------------------------------------------------------------------------------------


def people_of(counts: list[int]) -> list[int]:
    """Labels of images: counts 2 1 give 0 0 1."""
    return [person for person, count in enumerate(counts) for _ in range(count)]


def epoch_of(counts: list[int], batch: int, per: int, balance: str = "identities", epoch: int = 0, seed: int = 0):
    """Batches of image indices."""
    sampler = IdentityOrder(people_of(counts), batch, per, seed, balance)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert {e for b in batches for e, _ in b} == {epoch}
    return [[index for _, index in b] for b in batches]


SETS = [
    [4] * 8,  # everybody has K
    [20] * 8,  # more than K
    [2] * 40,  # fewer than K
    [530, *[2] * 60, 7, 5, 3, 9],  # one with very many, as in LFW
    [1] * 30 + [6] * 6,  # singles
    [4] * 4,  # exactly one batch
]


@pytest.mark.parametrize("balance", ["identities", "images"])
@pytest.mark.parametrize("counts", SETS)
def test_batches_of_people_are_exact(counts, balance):
    labels = people_of(counts)
    batches = epoch_of(counts, 16, 4, balance, epoch=3)
    assert len(batches) == max(len(labels) // 16, 1)
    for batch in batches:
        assert len(batch) == 16
        assert len(set(batch)) == 16  # no image twice


@pytest.mark.parametrize("counts", SETS)
def test_balanced_people_come_once_in_a_batch_with_up_to_k_images(counts):
    labels = people_of(counts)
    for batch in epoch_of(counts, 16, 4):
        found = Counter(labels[i] for i in batch)
        whole = [person for person, n in found.items() if n == min(counts[person], 4)]
        assert max(found.values()) <= 4
        assert len(whole) >= len(found) - 1  # only the last one is cut
        # each person's images stand together, the cut one's at the end
        assert [person for person, _ in groupby(labels[i] for i in batch)] == list(found)
        assert set(found) - set(whole) <= {labels[batch[-1]]}


def test_everybody_is_seen_equally_often_and_images_come_in_turn():
    counts = [4, 8, 40, 6, 5]
    seen = Counter(i for batch in epoch_of(counts * 4, 16, 4) for i in batch)
    labels = people_of(counts * 4)
    turns = Counter(labels[i] for batch in epoch_of(counts * 4, 16, 4) for i in set(batch))
    # 252 images are 15 batches of 4 people: 60 turns for 20 people, 3 each
    assert set(turns.values()) == {12}
    for person in range(20):
        times = [seen[i] for i in range(len(labels)) if labels[i] == person]
        assert max(times) - min(times) <= 1  # nobody's image again before the others were shown


def test_worked_batch_of_people():
    # people with 4, 2, 1 and 4 images, batches of 8: three of them fill 8 only if the last is cut or all are whole
    batch = epoch_of([4, 2, 1, 4], 8, 4)[0]
    labels = people_of([4, 2, 1, 4])
    sizes = [len(list(group)) for _, group in groupby(labels[i] for i in batch)]
    assert sum(sizes) == 8
    assert all(size == [4, 2, 1, 4][labels[batch[sum(sizes[:k])]]] for k, size in enumerate(sizes[:-1]))


def test_in_balance_by_images_every_image_comes_once():
    for counts in SETS:
        seen = [i for batch in epoch_of(counts, 16, 4, "images") for i in batch]
        assert len(seen) == len(set(seen))
        assert len(seen) == max(sum(counts) // 16, 1) * 16


def test_in_balance_by_images_nobody_is_twice_in_a_batch_where_that_can_be():
    labels = people_of([12] * 16)
    for epoch in range(5):
        for batch in epoch_of([12] * 16, 16, 4, "images", epoch):
            assert max(Counter(labels[i] for i in batch).values()) <= 4
    # 530 images are 133 chunks for 42 batches: four in a batch, and not ten
    counts = [530, *[2] * 60, 7, 5, 3, 9]
    labels = people_of(counts)
    most = [max(Counter(labels[i] for i in batch).values()) for batch in epoch_of(counts, 16, 4, "images")]
    assert max(most[:-5]) <= 16


def test_chunks_are_equal():
    # 5 images with K = 4 are 3 + 2, not 4 + 1 without a positive for the last
    labels = people_of([5] * 20)
    (batch,) = epoch_of([5] * 20, 80, 4, "images")
    runs = [len(list(group)) for _, group in groupby(labels[i] for i in batch)]
    assert set(runs[:-1]) <= {2, 3, 5}  # 5 where both chunks of a person stand side by side
    assert {2, 3} <= set(runs)


@pytest.mark.parametrize("balance", ["identities", "images"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_batches_of_people(balance, world):
    counts = [3, 5, 9, 2, 4, 4, 6, 8, 2, 7]
    alone = epoch_of(counts, 16, 4, balance, epoch=2)
    parts = []
    for rank in range(world):
        sampler = IdentityOrder(people_of(counts), 16, 4, 0, balance)
        sampler.set_epoch(2)
        batches = IdentityBatches(sampler, rank, world)
        parts.append([[index for _, index in b] for b in batches])
        assert len(parts[-1]) == len(batches)
    assert [join([part[n] for part in parts]) for n in range(len(alone))] == alone


@pytest.mark.parametrize("balance", ["identities", "images"])
def test_epochs_of_people_differ_and_can_be_resumed(balance):
    counts = [5] * 12
    first, second = (epoch_of(counts, 16, 4, balance, epoch) for epoch in (0, 1))
    assert first != second
    assert epoch_of(counts, 16, 4, balance, 1) == second  # a fresh process that starts in epoch 1
    assert epoch_of(counts, 16, 4, balance, 0, seed=1) != first
    sampler = IdentityOrder(people_of(counts), 16, 4, 0, balance)
    assert list(sampler) == list(sampler)  # asking changes nothing


def test_labels_may_be_any_numbers():
    assert [len(b) for b in IdentityOrder([7, 7, 900, 900, 7, -3, -3], 4, 2, 0)] == [4]


@pytest.mark.parametrize(
    ("counts", "batch", "per", "words"),
    [
        (
            [4] * 8,
            18,
            4,
            r"data.batch_size=18 is not a multiple of data.images_per_identity=4. Fix: data.batch_size=16",
        ),
        ([4] * 8, 2, 4, r"not a multiple.*Fix: data.batch_size=8"),  # smaller than K
        ([4] * 8, 16, 1, r"data.images_per_identity=1: an anchor needs.*Fix"),
        (
            [4] * 3,
            16,
            4,
            r"batch_size=16 is 4 people with 4 images each, the data has 3 people.*Fix: data.batch_size=12",
        ),
        ([100] * 3, 16, 4, r"3 people with 12 images at up to 4 each"),  # many images, but of too few
        ([1, 1], 4, 4, r"Fix: add images"),
        ([], 4, 2, r"the data has 0 people"),
    ],
)
def test_refused_batches_of_people(counts, batch, per, words):
    with pytest.raises(UserError, match=words):
        IdentityOrder(people_of(counts), batch, per, 0)


def test_a_batch_of_people_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch_size=16 is not a multiple of 3 processes"):
        IdentityBatches(IdentityOrder(people_of([4] * 8), 16, 4, 0), 0, 3)


def test_lightning_finds_the_order_of_people():
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    batches = IdentityBatches(IdentityOrder(people_of([4] * 8), 16, 4, 0))
    loader = DataLoader([0] * 32, batch_sampler=batches)  # type: ignore[arg-type]
    _set_sampler_epoch(loader, 4)
    assert batches.sampler.epoch == 4
    assert len(loader) == 2


# --- going on within an epoch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("batch", [0, 1, 3, 5])
def test_a_resumed_epoch_leaves_out_what_was_seen(world: int, batch: int) -> None:
    """Of epoch 4 the batches before ``batch``; of epoch 5 none. The length stays that of a whole epoch."""
    for rank in range(world):
        whole, resumed = (GlobalBatches(EpochOrder(20, 1, shuffle=True), 4, rank, world) for _ in range(2))
        resumed.begin = (4, batch)
        for epoch in (4, 5):
            whole.sampler.set_epoch(epoch)
            resumed.sampler.set_epoch(epoch)
            assert list(resumed) == list(whole)[batch if epoch == 4 else 0 :]
        assert len(resumed) == 5


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_people_of_a_resumed_epoch(batch: int) -> None:
    labels = [person for person in range(6) for _ in range(4)]
    whole, resumed = (IdentityBatches(IdentityOrder(labels, 8, 2, seed=3)) for _ in range(2))
    resumed.begin = (2, batch)
    for epoch in (2, 3):
        whole.sampler.set_epoch(epoch)
        resumed.sampler.set_epoch(epoch)
        assert list(resumed) == list(whole)[batch if epoch == 2 else 0 :]
    assert len(resumed) == 3
