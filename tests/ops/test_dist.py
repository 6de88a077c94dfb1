"""The normaliser of a batch over one process and over two."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cvexp.ops.dist import global_mean


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
