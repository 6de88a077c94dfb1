"""Loss or gradients that are NaN, each provoked in a real fit: what the alarm says and keeps, and the step repeated from it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cvexp.callbacks.not_finite import NotFinite, broken_input, good_checkpoint, gradients_finite, image_names, overflow
from cvexp.callbacks.replay import replay_step
from cvexp.callbacks.step_file import find_step, pack, read_step, repeat_step, unpack
from cvexp.callbacks.trace import Range, Reading, Trace
from cvexp.errors import UserError
from cvexp.tasks.detection import DetectionTask
from cvexp.types import Batch, FaceBatch, Target

STEPS = 6
BAD_STEP = 4  # counted from 1, as the alarm does


class Net(nn.Module):
    """A detector of the mean colour with a batch norm, dropout and a counter; ``fault`` happens to the images whose id is 30."""

    def __init__(self, fault: str = "none") -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 2)
        self.fault = fault
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.frozen = nn.BatchNorm1d(2).eval()

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        self.draws += 1
        hidden = self.drop(self.backbone(images.float() / 255).mean(dim=(2, 3)))
        if self.fault == "module" and targets[0].image_id == 30:
            hidden = self.head(hidden * 1e38 * 1e38)
        else:
            hidden = self.frozen(self.head(hidden))
        size = torch.stack([(t.boxes[:, 2] - t.boxes[:, 0]).sum() for t in targets])
        wide = hidden[:, 0] - size.log() if self.fault == "box" else hidden[:, 0]
        steep = (
            hidden[:, 1].abs().sqrt()
            if self.fault != "gradient" or targets[0].image_id != 30
            else (hidden[:, 1] * 0).sqrt()
        )
        return {"box": wide.square().mean(), "score": steep.mean()}


def batch(k: int, fault: str) -> Batch:
    """Two images, ids ``10 k`` and ``10 k + 1``."""
    rng = torch.Generator().manual_seed(k)
    images = torch.randint(0, 256, (2, 3, 4, 4), generator=rng, dtype=torch.uint8)
    targets = []
    for i in range(2):
        width = 0.0 if fault == "box" and (k, i) == (BAD_STEP - 1, 1) else 2.0
        no = torch.zeros(1, dtype=torch.bool)
        targets.append(
            Target(
                boxes=torch.tensor([[1.0, 1.0, 1.0 + width, 3.0]]), labels=torch.zeros(1, dtype=torch.int64), difficult=no,
                crowd=no, area=torch.ones(1), image_id=10 * k + i, size=(4, 4), original_size=(4, 4),
                to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
            )
        )  # fmt: skip
    return Batch(images, targets)


def task_of(fault: str, lr: float = 0.01) -> DetectionTask:
    torch.manual_seed(0)
    module = DetectionTask(Net(fault), partial(torch.optim.SGD, lr=lr, momentum=0.9), None, ["a"])
    module.description = {"classes": ["a"], "config": {"optimizer": {"lr": lr}}, "version": "0"}
    return module


def fit(folder: Path, fault: str, lr: float = 0.01, more: tuple[Callback, ...] = (), **options: Any) -> tuple[Any, ...]:
    """Task, callback and trainer of a fit, and the error that ended it."""
    given = {name: options.pop(name) for name in ("stop", "every_step") if name in options}
    task, callback = task_of(fault, lr), NotFinite(str(folder), **given)
    trainer = Trainer(
        **{
            "max_steps": STEPS, "accelerator": "cpu", "logger": False, "callbacks": [*more, callback],
            "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
            "gradient_clip_val": 10.0, "log_every_n_steps": 1, "default_root_dir": folder,
        } | options
    )  # fmt: skip
    loader = DataLoader([batch(k, fault) for k in range(STEPS)], batch_size=None, shuffle=False)
    error = ""
    try:
        trainer.fit(task, loader)
    except UserError as raised:
        error = str(raised)
    return task, callback, trainer, error


@pytest.mark.parametrize(
    ("fault", "texts"),
    [
        ("box", ["the loss is inf: of its terms box is (epoch 0, batch 3)", "it begins in the loss term box",
                 "image 31 has a box without width or height", "[1.0, 1.0, 1.0, 3.0]"]),
        ("module", ["the loss is nan: of its terms box, score are (epoch 0, batch 3)",
                    "What goes into head (Linear) is not finite; drop before it is in order"]),
        ("gradient", ["but gradients are NaN or infinite", "On the way back it begins at frozen.weight"]),
    ],
)  # fmt: skip
def test_alarm(fault: str, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, callback, trainer, error = fit(tmp_path, fault)
    assert trainer.global_step == BAD_STEP - 1, "the update is not made"
    assert error.startswith(f"stopped at step {BAD_STEP}: ")
    assert "Fix: as advised; callbacks.not_finite.stop=false" in error
    for text in (*texts, "Images of the batch: 30, 31.", "python -m cvexp.replay"):
        assert text in error
    assert "trainer.gradient_clip_val" not in error, "it is on"
    assert (tmp_path / "alarms.txt").read_text().strip() == callback.alarms["not_finite"]
    assert {p.name for p in (tmp_path / "nan").iterdir()} == {f"step_{BAD_STEP:07}.pt"}
    assert all(p.isfinite().all() for p in task.parameters())
    assert "ALARM" not in capsys.readouterr().err, "the error says it"


def test_healthy_training_is_left_alone_bit_for_bit(tmp_path: Path) -> None:
    """No alarm, no file, and the weights of a training without the callback."""
    watched, callback, _, error = fit(tmp_path, "none")
    assert error == ""
    assert callback.alarms == {}
    assert list(tmp_path.iterdir()) == []
    plain = task_of("none")
    Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=10.0, log_every_n_steps=1,
    ).fit(plain, DataLoader([batch(k, "none") for k in range(STEPS)], batch_size=None))  # fmt: skip
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


class Before(Callback):
    """What the bad step began with, and its loss."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.momentum = [s["momentum_buffer"].clone() for s in trainer.optimizers[0].state.values()]
        self.batch = batch

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in pl_module.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fault", ["box", "gradient"])
def test_the_step_is_kept_as_it_began_and_repeats_itself(fault: str, tmp_path: Path) -> None:
    """Weights, buffers, momentum, random numbers (dropout): gradients of the repeated step are those of the step."""
    before = Before()
    fit(tmp_path, fault, more=(before,))
    content = read_step(find_step(tmp_path))
    assert content["state_dict"].keys() == before.state.keys()
    for name, value in before.state.items():
        assert torch.equal(content["state_dict"][name], value), name
    assert int(content["state_dict"]["model.draws"]) == BAD_STEP - 1
    kept = [s["momentum_buffer"] for s in content["optimizer_states"][0]["state"].values()]
    assert all(map(torch.equal, kept, before.momentum))
    assert len(kept) == len(before.momentum) > 0
    assert torch.equal(unpack(content["batch"]).images, before.batch.images)
    assert content["resting"] == ["frozen"]
    torch.manual_seed(99)  # repeating does not depend on it
    new = task_of(fault)
    found = repeat_step(new, content, Trainer(accelerator="cpu", logger=False), "x")
    expected = {name: float(gradient.norm()) for name, gradient in before.gradients.items()}
    assert found.gradients == pytest.approx(expected, nan_ok=True, rel=1e-6)
    assert int(new.model.draws) == BAD_STEP


def test_accumulated_batches_are_looked_at_one_by_one(tmp_path: Path) -> None:
    _, _, trainer, error = fit(tmp_path, "box", accumulate_grad_batches=3)
    assert trainer.global_step == 1, "three batches make the first step; the fourth is bad"
    assert "stopped at step 2: the loss is inf: of its terms box is (epoch 0, batch 3)" in error


@pytest.mark.parametrize(
    ("options", "found_at"),
    [
        ({"log_every_n_steps": 2}, 4),  # step 4 is one of those that are looked at
        ({"log_every_n_steps": 3}, 6),  # the weights are spoilt by then
        ({"log_every_n_steps": 3, "every_step": True}, 4),
    ],
)
def test_an_accelerator_is_looked_at_now_and_then(options: dict[str, Any], found_at: int, tmp_path: Path) -> None:
    _, _, _, error = fit(tmp_path, "box", **({"every_step": False} | options))
    assert error.startswith(f"stopped at step {found_at}: ")
    spoilt = found_at != BAD_STEP
    assert ("The weights were so before this step: backbone.0.weight" in error) is spoilt
    assert ("after step 3, the last one that was looked at" in error) is spoilt
    assert ("callbacks.not_finite.every_step=true" in error) is spoilt


def test_it_may_go_on_and_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, callback, trainer, error = fit(tmp_path, "box", stop=False)
    assert error == ""
    assert trainer.global_step == STEPS
    assert capsys.readouterr().err.count("ALARM at step 4") == 1
    assert len((tmp_path / "alarms.txt").read_text().splitlines()) == 1
    assert callback.alarms.keys() == {"not_finite"}


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    _, _, _, error = fit(tmp_path, "box", fast_dev_run=STEPS)
    assert "stopped at step 4" in error
    assert "replay" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_hide_the_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file\nmore")

    monkeypatch.setattr(torch, "save", full)
    _, _, _, error = fit(tmp_path, "box")
    assert "image 31 has a box without width" in error
    assert "The step is not saved" in error
    assert "PytorchStreamWriter failed" in error
    assert list((tmp_path / "nan").iterdir()) == [], "nothing half-written"


def test_a_rate_that_blows_the_weights_up_is_named(tmp_path: Path) -> None:
    _, _, _, error = fit(tmp_path, "none", lr=1e30, gradient_clip_val=None)
    assert "weights have grown to" in error
    assert "optimizer.lr=1e+29 (here 1e+30)" in error
    assert "gradients are not clipped: trainer.gradient_clip_val=10" in error


def test_the_last_good_checkpoint_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert good_checkpoint(tmp_path) == ""
    torch.save({"state_dict": {"w": torch.zeros(2)}, "global_step": 40}, folder / "best.ckpt")
    torch.save({"state_dict": {"w": torch.tensor([1.0, math.nan])}, "global_step": 60}, folder / "last.ckpt")
    assert f"those of step 40: init_from={folder / 'best.ckpt'}" in good_checkpoint(tmp_path)
    averaged = {"state_dict": {"w": torch.zeros(2)}, "current_model_state": {"w": torch.tensor([math.inf])}}
    torch.save(averaged, folder / "best.ckpt")
    assert good_checkpoint(tmp_path) == "", "the live weights are spoilt"
    (folder / "last.ckpt").write_bytes(b"half a file")
    assert good_checkpoint(tmp_path) == ""


@pytest.mark.parametrize(
    ("gradients", "scale", "finite"),
    [
        ([], None, True),  # nothing is trained
        ([1.0, -2.0], None, True),
        ([1e30, 1e30], None, True),  # only their norm overflows
        ([1.0, math.inf], None, False),
        ([math.nan], None, False),
        ([math.inf], 65536.0, True),  # fp16: this update is skipped and the loss scaled down
        ([math.inf], 0.5, False),  # and that does not help
    ],
)
def test_gradients_finite(gradients: list[float], scale: float | None, finite: bool) -> None:
    task: Any = nn.ParameterList([torch.zeros(1) for _ in gradients])
    for parameter, value in zip(task, gradients, strict=True):
        parameter.grad = torch.tensor([value])
    scaler: Any = None if scale is None else type("Scaler", (), {"get_scale": lambda self: scale})()
    assert gradients_finite(task, scaler) is finite


def test_fp16_is_blamed_where_it_is_used() -> None:
    found = Trace([Reading("a", "Conv2d", Range(0, 1, 0, 1), Range(-61000, 5, 2, 9))], {}, math.nan)
    assert overflow(found, "32-true") == overflow(found, "bf16-mixed") == []
    (text,) = overflow(found, "16-mixed")
    for part in ("65504", "6.1e+04, out of a", "trainer.precision=bf16-mixed"):
        assert part in text


def test_broken_input_and_names() -> None:
    assert broken_input(batch(0, "none")) == []
    assert broken_input("something else") == []
    bad = batch(0, "none")
    bad.targets[1].boxes[0, 2] = math.nan
    bad.images = torch.full((2, 3, 4, 4), math.inf)
    assert len(broken_input(bad)) == 2
    assert "image 1 has a box that is not finite" in broken_input(bad)[1]
    faces = FaceBatch(torch.zeros(20, 3, 2, 2), torch.zeros(20), torch.arange(20))
    assert broken_input(faces) == []
    assert image_names(faces) == f"{', '.join(map(str, range(16)))} and 4 more"
    assert image_names(batch(3, "none")) == "30, 31"
    assert image_names(None) == "unknown"


# --- the file and its repetition -------------------------------------------------------------------------------------


def test_batches_are_packed_and_unpacked() -> None:
    detection = batch(1, "none")
    detection.extras = {"proposals": [torch.ones(2, 4), torch.zeros(0, 4)]}
    back: Any = unpack(pack(detection))
    assert torch.equal(back.images, detection.images)
    assert [t.image_id for t in back.targets] == [10, 11]
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(back.targets, detection.targets, strict=True))
    assert [len(p) for p in back.extras["proposals"]] == [2, 0]
    faces = FaceBatch(torch.ones(2, 3, 2, 2), torch.tensor([1, 2]), torch.tensor([5, 6]))
    assert unpack(pack(faces)).image_ids.tolist() == [5, 6]
    with pytest.raises(UserError, match=r"a batch of list cannot be saved\. Fix"):
        pack([1])


def test_replay_shows_what_was_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, "box")
    results = replay_step(partial(Trainer, accelerator="cpu", logger=False), task_of("box"), None, str(tmp_path))
    assert results["replay/finite"] == 0
    assert results["replay/loss"] == results["replay/loss_box"] == math.inf
    assert math.isfinite(results["replay/loss_score"])
    said = capsys.readouterr().out
    for text in ("backbone.0", "BatchNorm2d", "<- first", "head.bias", "step 4 (epoch 0, batch 3), images 30, 31"):
        assert text in said
    (row,) = [line for line in said.splitlines() if "<- first" in line]
    assert "box" in row
    healthy = replay_step(partial(Trainer, accelerator="cpu", logger=False), task_of("none"), None, str(tmp_path))
    assert healthy["replay/finite"] == 1, "the same weights, batch and random numbers in a model without the fault"
    assert "all gradients finite" in capsys.readouterr().out


def test_replay_refuses_what_does_not_fit(tmp_path: Path) -> None:
    make: Any = partial(Trainer, accelerator="cpu", logger=False)
    with pytest.raises(UserError, match=r"debug=replay needs the step\. Fix: replay=<run folder>"):
        replay_step(make, task_of("box"), None, None)
    with pytest.raises(UserError, match=r"no saved step there .*Fix: give the folder"):
        replay_step(make, task_of("box"), None, str(tmp_path))
    fit(tmp_path, "box")
    other = task_of("box")
    other.model.head = nn.Linear(4, 3)
    with pytest.raises(UserError, match=r"its weights do not fit this model .*Fix: python -m cvexp\.replay"):
        replay_step(make, other, None, str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": {}},  # no kind
        {"batch": {"kind": "Batch", "images": 3}},
        {"batch": {"kind": "FaceBatch", "images": torch.zeros(1), "more": 1}},
        {"random": {}},
        {"random": {"torch": torch.zeros(3, dtype=torch.uint8)}},
        {"frozen": ["no.such"]},
        {"state_dict": {}},
        {"step": "1"},
        {"cvexp": {}},
    ],
)
def test_a_file_that_was_meddled_with_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    fit(tmp_path, "box")
    path = find_step(tmp_path)
    torch.save(torch.load(path, weights_only=True) | changes, path)
    with pytest.raises(UserError, match=r"^replay=.*Fix: "):
        replay_step(partial(Trainer, accelerator="cpu", logger=False), task_of("box"), None, str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",  # cut off
        b"no archive",
        {"state_dict": {}},  # a checkpoint of something else
        {"cvexp": 3, "batch": {}},
        [1, 2],
        {"code": print},  # an object: it is not loaded
    ],
)
def test_files_that_are_no_step_are_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"replay=.*step_1\.pt: .*Fix: give"):
        read_step(path)


def test_the_last_step_of_a_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "nan").mkdir()
    for name in ("step_0000009.pt", "step_0000010.pt"):
        (tmp_path / "nan" / name).write_bytes(b"x")
    first = tmp_path / "nan" / "step_0000009.pt"
    assert find_step(tmp_path).name == find_step(tmp_path / "nan").name == "step_0000010.pt"
    assert find_step(first) == first


# --- several processes -----------------------------------------------------------------------------------------------


def worker(rank: int, folder: str) -> None:
    """One of two processes; only the second one's fourth batch has the fault."""
    torch.manual_seed(0)
    callback = NotFinite(folder)
    trainer = Trainer(
        max_steps=STEPS, accelerator="cpu", devices=2, strategy="ddp", logger=False, callbacks=[callback],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=10.0,
        log_every_n_steps=1, default_root_dir=folder, use_distributed_sampler=False,
    )  # fmt: skip
    batches = [batch(k, "box" if rank == 1 else "none") for k in range(STEPS)]
    try:
        trainer.fit(task_of("box"), DataLoader(batches, batch_size=None))
    except UserError as error:
        Path(folder, f"error{rank}").write_text(str(error))


def spawned(rank: int, folder: str, port: int) -> None:
    import os

    os.environ |= {
        "LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    worker(rank, folder)


@pytest.mark.slow
def test_processes_agree_and_the_guilty_one_speaks(tmp_path: Path) -> None:
    """The gradients of both are NaN, since they are averaged; the batch that is kept is the second one's."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(spawned, args=(str(tmp_path), port), nprocs=2)
    first, second = ((tmp_path / f"error{rank}").read_text() for rank in range(2))
    assert first == second
    assert "stopped at step 4: the loss is inf: of its terms box is (epoch 0, batch 3, process 1)" in first
    assert "image 31 has a box without width" in first
    assert [path.name for path in (tmp_path / "nan").iterdir()] == ["step_0000004_process1.pt"]
    assert len((tmp_path / "alarms.txt").read_text().splitlines()) == 1
    content = read_step(find_step(tmp_path))
    assert (content["rank"], content["processes"]) == (1, 2)
    replay_step(partial(Trainer, accelerator="cpu", logger=False), task_of("box"), None, str(tmp_path))
