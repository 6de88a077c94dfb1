"""The mean over processes; the collective itself is replaced here and runs for real in the tests of the task."""

from __future__ import annotations

import torch

from cvexp.ops import dist
from cvexp.ops.dist import global_mean


def test_one_process_keeps_its_count():
    count = torch.tensor(3)
    assert global_mean(count) is count


def test_two_processes_share_the_mean(monkeypatch):
    monkeypatch.setattr(dist.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist.dist, "all_reduce", lambda total: total.add_(7))  # what the other process counted
    count = torch.tensor(3)
    mean = global_mean(count)
    assert (mean.item(), mean.dtype) == (5.0, torch.float32)  # (3 + 7) / 2
    assert count.item() == 3  # the given count is not changed in place
