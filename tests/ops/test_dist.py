"""The normaliser of a batch and the batch of all processes, over one process and over two."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cvexp.losses.triplet import Triplet
from cvexp.ops.dist import gather, global_mean
from cvexp.ops.distances import squared_l2
from cvexp.ops.mining import RandomNegative, SemiHard, pair_keys


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (7.0, 7.0),
        (0.0, 1.0),  # no sample at all: nothing is divided by zero
        (0.25, 1.0),  # at least 1
    ],
)
def test_one_process(count: float, expected: float) -> None:
    assert global_mean(torch.tensor(count)).item() == expected


def test_it_is_a_constant_and_leaves_its_input_alone() -> None:
    weight = torch.zeros((), requires_grad=True)
    count = weight * 2
    result = global_mean(count)
    assert not result.requires_grad
    result += 5
    assert count.item() == 0


COUNTS = ((3.0, 8.0), (0.0, 1.0), (0.0, 0.0), (0.0, 64.0))


def _process(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    given = [torch.tensor(pair[rank]) for pair in COUNTS]
    found = [global_mean(count).item() for count in given]
    kept = [count.item() for count in given]
    torch.save((found, kept), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """The mean of both, and only then at least 1: (0, 1) is 0.5 and becomes 1, (0, 64) is 32 on both."""
    mp.start_processes(_process, args=(str(tmp_path),), nprocs=2, start_method="fork")  # no second import of torch
    for rank in range(2):
        found, kept = torch.load(tmp_path / f"{rank}.pt")
        assert found == [5.5, 1.0, 1.0, 32.0]
        assert kept == [pair[rank] for pair in COUNTS]


# -- the batch of all processes ----------------------------------------------------------------------------------------


def test_gather_in_one_process_is_the_tensor_itself() -> None:
    x = torch.zeros(3, 2, requires_grad=True)
    assert gather(x) is x


LABELS = {  # of the twelve images, the first six of which are rank 0's
    "every other": [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0],  # every positive is the other process'
    "all pairs on one rank": [0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7],  # the other process has no triplet
    "no pair at all": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    "few and many": [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2],
}
RULES = {
    "random, active": (SemiHard(0.5), Triplet(0.5)),
    "closest or furthest, sum": (SemiHard(0.5, "closest", "furthest"), Triplet(0.5, reduction="sum")),
    "any, all": (RandomNegative(0.5), Triplet(0.5, reduction="all")),
}


def _gradient(rule: str, labels: str, order: list[int], rank: int = 0, world: int = 1) -> tuple[float, torch.Tensor]:
    """Loss and flat gradient of a small network over this process' share of the images in ``order``."""
    generator = torch.Generator().manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    images = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    mine = torch.tensor(order).chunk(world)[rank]
    people = torch.tensor(LABELS[labels])[mine]
    embeddings = torch.nn.functional.normalize(network(images[mine]))
    references, own = gather(embeddings), torch.arange(len(mine)) + rank * len(mine)
    keys = pair_keys(mine, gather(mine), torch.tensor(3))
    miner, loss = RULES[rule]
    t = miner(embeddings, people, references, gather(people), own, keys)
    between = squared_l2(embeddings, references)
    value = loss(between[t.anchor, t.positive], between[t.anchor, t.negative], t.valid)
    value.backward()
    return value.item(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def _gathering(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/gather", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    integers = gather(torch.tensor([[rank, 7]]))
    transposed = gather((torch.arange(6.0).view(2, 3) + 10 * rank).T)  # not contiguous
    x = torch.full((2,), 1.0 + rank, requires_grad=True)
    (gather(x) * torch.tensor([1.0, 2, 3, 4]) * (rank + 1)).sum().backward()
    found = {(rule, labels): _gradient(rule, labels, list(range(12)), rank, 2) for rule in RULES for labels in LABELS}
    torch.save((integers, transposed, x.grad, found), Path(folder, f"gather{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> list:
    folder = tmp_path_factory.mktemp("gather")
    mp.start_processes(_gathering, args=(str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"gather{rank}.pt") for rank in range(2)]


def test_rows_of_all_in_the_order_of_ranks(gathered: list) -> None:
    for integers, transposed, _, _ in gathered:
        assert integers.tolist() == [[0, 7], [1, 7]]
        assert not integers.is_floating_point()
        assert transposed.tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]


def test_the_gradient_is_the_sum_over_all_processes_losses(gathered: list) -> None:
    """Rank 0 weighs the four rows with (1, 2, 3, 4), rank 1 with twice that: three times, each for its own two."""
    assert [entry[2].tolist() for entry in gathered] == [[3, 6], [9, 12]]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("rule", RULES)
def test_two_processes_have_the_gradient_of_one(gathered: list, rule: str, labels: str) -> None:
    """Averaged over the ranks; the one process has the images in another order."""
    losses, gradients = zip(*(entry[3][rule, labels] for entry in gathered), strict=True)
    value, expected = _gradient(rule, labels, [5, 0, 11, 2, 7, 9, 1, 8, 10, 3, 6, 4])
    assert (value > 0) == (labels != "no pair at all")
    assert sum(losses) / 2 == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(sum(gradients) / 2, expected, atol=1e-9, rtol=0)
    assert (expected.abs().max() > 1e-3) == (labels != "no pair at all")
    assert labels == "no pair at all" or not torch.allclose(gradients[0], expected, atol=1e-3)  # half is not the whole
