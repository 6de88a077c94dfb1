"""What a run costs: seconds an image, memory, floating-point operations."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from resuming import train_here
from torch import Tensor, nn

from cvexp.callbacks import costs
from cvexp.callbacks.costs import Costs, measured, peak_memory, per_image
from cvexp.results import flops_of_one_image

MEBIBYTE = 2**20


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([], None),  # nothing was tested
        ([(4, 2.0)], 0.5),  # a single batch is all there is
        ([(4, 9.0), (4, 2.0)], 0.5),  # the first of several warms up
        ([(4, 9.0), (4, 2.0), (2, 1.0)], 0.5),  # by images, not by batches: 3 / 6
        ([(1, 9.0), (4, 1.0), (1, 4.0)], 1.0),
    ],
)
def test_per_image(passes: list[tuple[int, float]], expected: float | None) -> None:
    assert per_image(passes) == expected


class Slow(nn.Module):
    """Takes a tenth of a second."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.turns = 1

    def forward(self, images: Tensor) -> Tensor:
        clock.now += 0.1
        return images + self.weight


class Clock:
    """Time that passes only where somebody says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


clock = Clock()


class Measuring(LightningModule):
    """Asks its model ``turns`` times a batch, and measures for an hour."""

    def __init__(self, turns: int = 1) -> None:
        super().__init__()
        self.model, self.turns = Slow(), turns

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        for _ in range(self.turns):
            self.model(batch)
        clock.now += 3600.0


def test_run(folder: Path, module: LightningModule, size: int) -> Trainer:
    data = torch.utils.data.DataLoader(torch.zeros(size, 1), batch_size=4)
    trainer = Trainer(
        callbacks=[Costs()], accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(module, data, verbose=False)
    return trainer


test_run.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("size", "turns", "expected"),
    [
        (4, 1, 0.025),  # a tenth of a second for four images, and not the hour of the metric
        (8, 1, 0.025),
        (10, 1, 0.2 / 6),  # the last batch has two images
        (8, 2, 0.05),  # an image and its mirror image
    ],
)
def test_only_the_model_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, turns: int, expected: float
) -> None:
    monkeypatch.setattr(costs, "time", clock)
    found = measured(test_run(tmp_path, Measuring(turns), size))
    assert found["test/seconds_per_image"] == pytest.approx(expected)
    assert found["test/batch_size"] == 4
    assert found["peak/memory_bytes"] > 50 * MEBIBYTE
    assert "peak/gpu_memory_bytes" not in found


def test_no_hook_stays(tmp_path: Path) -> None:
    module = Measuring()
    test_run(tmp_path, module, 4)
    assert not module.model._forward_hooks
    assert not module.model._forward_pre_hooks


def test_a_task_without_a_network(tmp_path: Path) -> None:
    """Its memory is known, its speed is not."""

    class Plain(LightningModule):
        def test_step(self, batch: Tensor, batch_idx: int) -> None:
            pass

    assert measured(test_run(tmp_path, Plain(), 4)).keys() == {"peak/memory_bytes"}


def test_what_a_gpu_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier run of the process does not count, and the device is waited for before each look at the clock."""
    said: list[str] = []
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: said.append(f"reset {device}"))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 7 * MEBIBYTE)
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: said.append(f"waited for {device}"))
    gpu = torch.device("cuda", 1)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=gpu), world_size=1)
    callback, model = Costs(), SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=gpu)]))
    for stage in ("fit", "test"):
        callback.setup(trainer, None, stage)  # type: ignore[arg-type]
    callback._begin(model, None)  # type: ignore[arg-type]
    callback._end(model, None, None)  # type: ignore[arg-type]
    callback.on_test_end(trainer, None)  # type: ignore[arg-type]
    assert said == ["reset cuda:1", "waited for cuda:1", "waited for cuda:1"]
    assert callback.results["peak/gpu_memory_bytes"] == 7 * MEBIBYTE


def test_without_the_callback_there_is_nothing() -> None:
    assert measured(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)) == {}


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_peak_is_what_was_there_at_most(tmp_path: Path) -> None:
    """A process that had 200 MiB for a moment; its own parent has more, which is not counted."""
    held = bytearray(300 * MEBIBYTE)
    program = (
        "from cvexp.callbacks.costs import peak_memory\nbefore = peak_memory()\n"
        "held = bytearray(b'x') * (200 * 2**20)\ndel held\nprint(before, peak_memory())"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    before, after = map(int, out.split())
    assert 195 * MEBIBYTE < after - before < 220 * MEBIBYTE
    assert peak_memory() > len(held) / 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t   512 kB\nVmRSS:\t 100 kB\n", 512 * 1024),
        ("Name:\tVmHWM: 5 kB\n", None),  # a name that looks like it
        ("", None),  # another system's
    ],
)
def test_where_linux_tells_it(tmp_path: Path, content: str, expected: int | None) -> None:
    path = tmp_path / "status"
    path.write_text(content)
    assert (peak_memory(path) == expected) == (expected is not None)
    assert peak_memory(path) > 0
    assert peak_memory(tmp_path / "none") > 50 * MEBIBYTE  # in bytes


# --- operations ------------------------------------------------------------------------------------------------------


class Images:
    """Data of one image ``[3, 10, 10]``."""

    def test_dataloader(self) -> Any:
        class Batch:
            images = torch.zeros(1, 3, 10, 10)

        class Keys(dict):
            def __missing__(self, key: tuple[int, int]) -> int:
                return 0

        loader = type("Loader", (), {})()
        loader.dataset, loader.collate_fn = Keys(), lambda samples: Batch()
        return loader


def test_two_for_each_multiplication() -> None:
    """2 * 3 * 3 * 3 * 8 * 100 = 43,200; what was in training stays so, what was not does not begin."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    model.train()
    model[1].eval()
    assert flops_of_one_image(model, Images()) == 43_200
    assert [module.training for module in (model, *model)] == [True, True, False]
    assert model[1].num_batches_tracked == 0
    with torch.inference_mode():
        assert flops_of_one_image(model, Images()) == 43_200


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (nn.Conv2d(5, 8, 3), Images()),  # it takes other images
        (nn.Conv2d(3, 8, 3), None),  # no data
        (nn.Identity(), Images()),  # it computes nothing
    ],
)
def test_what_cannot_be_counted_is_left_out(model: nn.Module, data: Any) -> None:
    assert flops_of_one_image(model, data) is None


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_tells_its_costs(tmp_path: Path, tiny: list[str]) -> None:
    start = time.perf_counter()
    found = train_here(tmp_path, *tiny, "data.test_size=6", "data.eval_batch_size=4")
    assert 0 < found["test/seconds_per_image"] < time.perf_counter() - start
    assert (found["test/batch_size"], found["train/images"]) == (4, 16)
    assert found["peak/memory_bytes"] > 100 * MEBIBYTE
    assert found["model/flops"] == 27_988_992  # as of `python -m cvexp.bench`


def test_without_the_callbacks_a_run_is_a_run(tmp_path: Path, tiny: list[str]) -> None:
    found = train_here(tmp_path, *tiny, "callbacks.costs=null", "callbacks.budget=null")
    assert found["train/images"] == 16
    assert not {"test/seconds_per_image", "peak/memory_bytes"} & found.keys()
