"""The mean over processes: with one process and with two."""

from __future__ import annotations

import torch
from torch import distributed

from cvexp.ops.dist import global_mean


def test_one_process_keeps_its_count():
    count = torch.tensor(3)
    assert global_mean(count) is count


def _worker(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    count = torch.tensor(3 + 4 * rank)
    mean = global_mean(count)
    assert mean.item() == 5.0  # (3 + 7) / 2
    assert count.item() == 3 + 4 * rank  # not changed in place
    distributed.destroy_process_group()


def test_two_processes_share_the_mean(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
