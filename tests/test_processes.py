"""Several processes equal one and end as one: whole trainings, batches without objects, torchrun, SLURM, sweeps."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cvexp.build import SUPPLIED, build_model
from cvexp.config import check_config, conf_dir, register_resolvers
from cvexp.evaluate import evaluate
from cvexp.sweeps.ledger import Ledger
from cvexp.train import train
from cvexp.types import Target

Compose = Callable[..., DictConfig]
REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = "allow_targets=[process_parts]"
NOTE = "+callbacks.note={_target_: process_parts.Note, folder: '${paths.output}'}"
TWO = "trainer=ddp2_cpu"

# Twelve steps in two epochs, a validation after each, a test of seven images (one is measured twice and counted once).
# Nothing depends on which process draws a random number: no augmentation; the samples of RPN and regions are drawn by image.
SMALL = (
    "model.size=tiny",
    "model.image_size=96",
    "data=shapes",
    "data.train_size=24",
    "data.val_size=6",
    "data.test_size=7",
    "data.batch_size=4",
    "data.augment=null",
    "optimizer=sgd",
    "scheduler=constant",
    "callbacks.ema=null",
    "callbacks.pictures=null",
    "callbacks.report=null",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
)
# Norms without batch statistics: none at all, or frozen ones.
KINDS = {
    "yolo": (
        *("model=yolov1", "model.backbone.batch_norm=false", "model.head.batch_norm=false", "model.head.dropout=0.0"),
        "optimizer.lr=1e-3",
    ),
    "faster_rcnn_fpn": (
        *("model=faster_rcnn_fpn", "freeze.patterns=[*bn*,*conv1.1.*,*conv1.4.*,*downsample.*]"),
        "optimizer.lr=1e-2",
    ),
    # at seed 0 a rounding moves one choice of NMS or of a sample, which is then 5e-4 of what training changes
    "mask_rcnn": (
        *("model=mask_rcnn", "freeze.patterns=[*bn*,*conv1.1.*,*conv1.4.*,*downsample.*]", "seed=1"),
        "optimizer.lr=1e-2",
    ),
    "fast_rcnn": ("model=fast_rcnn", "optimizer.lr=1e-2"),
    "rcnn_minus_r": ("model=rcnn_minus_r", "optimizer.lr=1e-2"),
    "sliding_window": ("model=sliding_window", "recipe.every=1", "optimizer.lr=1e-2"),
    "dpm_cnn": ("model=dpm_cnn", "optimizer.lr=1e-3"),  # at 1e-2 a rounding moves a latent placement
}
ONE_IN_THE_FAST_SUITE = "yolo"


def command(*words: str, cwd: Path, module: str = "cvexp.train", **more: str) -> subprocess.Popen:
    """A command that has been started, its output in ``said.txt``."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with (cwd / "said.txt").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=cwd, env=os.environ | {"PYTHONPATH": path} | more, stdout=said, stderr=said, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def run(*words: str, cwd: Path, module: str = "cvexp.train", seconds: float = 240, **more: str) -> tuple[int, str]:
    """Exit code and output; a command that hangs is a failure."""
    process = command(*words, cwd=cwd, module=module, **more)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(timeout=60)
        pytest.fail(f"still running after {seconds} s:\n{said(cwd)}")
    return code, said(cwd)


def alone(folder: Path, *words: str) -> dict[str, Any]:
    """A training in this process."""
    return train(composed(*words, f"paths.output={folder}"))


def composed(*words: str) -> DictConfig:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("train", list(words))


def said(cwd: Path) -> str:
    return (cwd / "said.txt").read_text(encoding="utf-8")


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def measured(content: dict[str, Any]) -> dict[str, float]:
    costs = ("seconds_per_image", "batch_size")
    return {
        name: value
        for name, value in content.items()
        if name.startswith(("test/", "val/")) and not name.endswith(costs)
    }


def note(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8"))


def assert_same_training(folder: Path, one: str, two: str) -> None:
    """The same weights, but for the order in which float32 numbers were added: 1e-5 of what training has changed.

    A gradient is a sum over the batch. Two processes add the halves first, which changes its last bits: 6e-8 of the largest
    term in each step. Twelve steps of that were measured as 1e-7 of a weight. A sample too many or too few, or a normaliser
    of one process alone, changes a gradient by percents.
    """
    before, first, second = weights(folder / "start", "best"), weights(folder / one), weights(folder / two)
    assert before.keys() == first.keys() == second.keys()
    names = [name for name in first if first[name].is_floating_point()]
    changed = torch.stack([(first[name] - before[name]).norm() for name in names]).norm()
    apart = torch.stack([(first[name] - second[name]).norm() for name in names]).norm()
    assert changed > 0.01, "nothing was trained"
    assert apart < 1e-5 * changed


# --- two processes equal one -----------------------------------------------------------------------------------------


EVERY = [kind if kind == ONE_IN_THE_FAST_SUITE else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module", params=EVERY)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Kind and folder, in which are ``start``, not trained, ``one``, trained by one process, and ``two``."""
    folder = tmp_path_factory.mktemp(request.param)
    kind = (*KINDS[request.param], *SMALL)
    alone(folder / "start", *(word for word in kind if not word.startswith("recipe.")), "recipe=test_only")
    alone(folder / "one", *kind)
    code, text = run(*kind, TWO, PARTS, NOTE, "hydra.run.dir=two", cwd=folder)
    assert code == 0, text
    assert "MEMBER: 2/2" in text
    return request.param, folder


def test_two_processes_equal_one(pair: tuple[str, Path]) -> None:
    _, folder = pair
    assert_same_training(folder, "one", "two")
    one, two = results(folder / "one"), results(folder / "two")
    assert two["train/steps"] == one["train/steps"] == 12
    assert measured(two) == pytest.approx(measured(one), abs=1e-4)
    assert one["test/images"] == two["test/images"] == 7


def test_each_has_its_half_of_every_batch(pair: tuple[str, Path]) -> None:
    notes = [note(pair[1] / "two", rank) for rank in range(2)]
    assert [(n["rank"], n["local_rank"], n["node"], n["world"]) for n in notes] == [(0, 0, 0, 2), (1, 1, 0, 2)]
    halves = [n["images"] for n in notes]
    assert [[len(half) for half in rank] for rank in halves] == [[2] * 12] * 2
    for epoch in (slice(0, 6), slice(6, 12)):
        seen = [image for rank in halves for half in rank[epoch] for image in half]
        assert sorted(seen) == list(range(24)), "every image once"
    assert halves[0][:6] != halves[0][6:], "another order in the next epoch"


@pytest.mark.slow
def test_metrics_of_two_are_those_of_one(pair: tuple[str, Path]) -> None:
    """Every number, to the last digit: nothing is averaged over processes, and no image is counted twice.

    Each process of two sees two images at a time; so does the one, because a convolution may add in another order for another
    number of images.
    """
    _, folder = pair
    words = [f"ckpt={folder / 'one' / 'checkpoints' / 'best.ckpt'}", "callbacks.pictures=null", "callbacks.report=null"]
    evaluate([*words, "data.batch_size=2", f"output={folder / 'measured1'}"])
    more = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4", "output=measured2"]
    code, text = run(*words, *more, cwd=folder, module="cvexp.evaluate")
    assert code == 0, text
    assert "MEMBER: 2/2" in text
    found = [measured(results(folder / name)) for name in ("measured1", "measured2")]
    assert found[0] == found[1]
    assert found[0]["test/images"] == 7
    assert len(found[0]) > 15


# --- batches without objects -----------------------------------------------------------------------------------------

SIDE = 96
BOXES = [[10.0, 12.0, 50.0, 60.0], [40.0, 30.0, 90.0, 88.0], [5.0, 50.0, 30.0, 90.0]]
# Objects of each image of a batch of four; even ones are the first process', odd ones the second's.
OBJECTS = {
    "in all": (1, 2, 3, 1),
    "none on the second": (2, 0, 3, 0),
    "none on the first": (0, 1, 0, 3),
    "none on both": (0, 0, 0, 0),
    "one in all": (0, 0, 0, 1),
}
MODELS = {name: [w for w in KINDS[name] if w.startswith("model")] for name in ("yolo", "faster_rcnn_fpn")}
# Samples that are never full: every prior that is not ignored counts, so their number differs from image to image.
MODELS["faster_rcnn_fpn, all priors"] = [*MODELS["faster_rcnn_fpn"], "model.rpn_batch=9999", "model.roi_batch=999"]


def target(count: int, image_id: int) -> Target:
    flags = torch.zeros(count, dtype=torch.bool)
    return Target(
        boxes=torch.tensor(BOXES[:count]).view(-1, 4),
        labels=torch.arange(count),
        difficult=flags,
        crowd=flags,
        area=torch.ones(count),
        image_id=image_id,
        size=(SIDE, SIDE),
        original_size=(SIDE, SIDE),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )


def gradients(model: nn.Module, images: list[int], rounds: int = 2) -> dict[str, Tensor]:
    """Flat gradient of all parameters for each kind of batch, of which this process has ``images``.

    Twice: DDP finds out in the next step that a parameter had no part in the loss.
    """
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    found = {}
    for name, counts in OBJECTS.items():
        for _ in range(rounds):
            getattr(model, "module", model).draws = torch.zeros((), dtype=torch.int64)  # the same samples each time
            model.zero_grad(set_to_none=True)
            losses = model(pixels[images], [target(counts[i], 100 + i) for i in images])
            torch.stack(list(losses.values())).sum().backward()
        found[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    return found


def _process(rank: int, model: nn.Module, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    torch.save(gradients(DistributedDataParallel(model), [rank, rank + 2]), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def frozen_norms(model: nn.Module) -> nn.Module:
    """In training mode, all but the batch norms."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


@functools.cache
def both(kind: str, folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Gradients of one process with the whole batch, and what each of two has."""
    cfg = composed(*MODELS[kind], "model.size=tiny", f"model.image_size={SIDE}")
    torch.manual_seed(0)
    model = frozen_norms(build_model(cfg.model, num_classes=3))
    context = mp.start_processes(_process, args=(model, str(folder)), nprocs=2, start_method="fork", join=False)
    end = time.monotonic() + 120
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail("the processes wait for each other")
    return gradients(model, [0, 1, 2, 3]), [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return functools.cache(lambda kind: tmp_path_factory.mktemp("gradient"))


@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_without_objects(kind: str, objects: str, place: Callable[[str], Path]) -> None:
    """The gradient of two processes is that of one with the whole batch, whoever has the objects; none waits for the other."""
    whole, parts = both(kind, place(kind))
    expected = whole[objects]
    assert expected.isfinite().all()
    assert expected.norm() > 1e-3
    assert torch.equal(parts[0][objects], parts[1][objects]), "DDP has averaged them"
    assert (parts[0][objects] - expected).norm() < 1e-6 * expected.norm()  # measured: 3e-8 to 1.6e-7


def test_the_batches_are_not_all_the_same(place: Callable[[str], Path]) -> None:
    """Else the test above would compare nothing."""
    for kind in MODELS:
        whole, _ = both(kind, place(kind))
        found = list(whole.values())
        assert all((a - b).norm() > 1e-3 * a.norm() for i, a in enumerate(found) for b in found[:i])


# --- one that dies ---------------------------------------------------------------------------------------------------

LONG = (
    "model=yolo",
    *(word for word in SMALL if not word.startswith("trainer.max_epochs")),
    "trainer.max_epochs=99",
    PARTS,
)
MINUTE = 60.0


def die(rank: int, how: str) -> str:
    return f"+callbacks.die={{_target_: process_parts.Die, rank: {rank}, how: {how}}}"


def hang(rank: int) -> str:
    return f"+callbacks.hang={{_target_: process_parts.Hang, rank: {rank}, folder: '${{paths.output}}'}}"


def running(text: str) -> list[str]:
    """Command lines of trainings that hold a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line and "cvexp.train" in line:
                found.append(line)
    return found


@pytest.mark.parametrize(
    ("words", "code", "texts"),
    [
        # the others cannot feel it: they are busy with something else
        pytest.param(
            [die(1, "user_error"), hang(0)],
            2,
            [
                "error: label 7 of image 3 is not known. Fix: data.classes=[a,b]",
                "process 1 of 2 failed with exit code 2",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param([die(0, "kill"), hang(1)], 137, ["process 0 of 2 was killed by SIGKILL"], marks=pytest.mark.slow),
        # they wait for it in a reduction of gradients, or feel that the connection is gone
        pytest.param(
            [die(1, "error")],
            1,
            ["ZeroDivisionError: no more batches", "process 1 of 2 failed"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [die(0, "error")],
            1,
            ["ZeroDivisionError: no more batches", "process 0 of 2 failed"],
            marks=pytest.mark.slow,
        ),
        pytest.param([die(1, "kill")], 137, ["process 1 of 2 was killed by SIGKILL"], marks=pytest.mark.slow),
        # all have the same error, one tells it
        pytest.param([die(-1, "user_error")], 2, ["process 0 of 2 failed with exit code 2"], marks=pytest.mark.slow),
    ],
)
def test_one_that_dies_ends_all(words: list[str], code: int, texts: list[str], tmp_path: Path) -> None:
    """With whole trainings; the same with processes that train nothing is in tests/test_launch.py."""
    found, text = run(*LONG, TWO, *words, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path, seconds=2 * MINUTE)
    assert found == code, text
    for wanted in texts:
        assert text.count(wanted) == 1, text
    assert "Connection" not in text, "what the others felt of it is no news"
    assert not running(str(tmp_path))


@pytest.mark.slow
def test_a_killed_starter_leaves_nobody_behind(tmp_path: Path) -> None:
    process = command(*LONG, TWO, hang(1), f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    end = time.monotonic() + 2 * MINUTE
    while not (tmp_path / "run" / "hangs").exists() and time.monotonic() < end:
        assert process.poll() is None, said(tmp_path)
        time.sleep(0.2)
    assert len(running(str(tmp_path))) == 3
    process.kill()
    process.wait()
    end = time.monotonic() + MINUTE
    while running(str(tmp_path)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not running(str(tmp_path))


@pytest.mark.slow
def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """SIGTERM to the command: both processes save and end, the way to go on is told once, and works."""
    process = command(*LONG, TWO, "callbacks.last.steps=3", "hydra.run.dir=run", cwd=tmp_path)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 2 * MINUTE
    while not checkpoint.exists() and time.monotonic() < end:
        assert process.poll() is None, said(tmp_path)
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=MINUTE) == 143, said(tmp_path)
    assert said(tmp_path).count("To go on: python -m cvexp.train resume=") == 1
    assert "error" not in said(tmp_path)
    position = torch.load(checkpoint, weights_only=True)["position"]
    assert len(position["random"]) == 2, "the random state of both"
    steps = position["step"] + 2
    code, text = run(f"resume={tmp_path / 'run'}", f"trainer.max_steps={steps}", cwd=tmp_path)
    assert code == 0, text
    assert results(tmp_path / "run")["train/steps"] == steps
    assert text.count("going on with") == 1


# --- presets ---------------------------------------------------------------------------------------------------------

ON_CPU = ("trainer.accelerator=cpu", "trainer.devices=2")


@pytest.mark.parametrize("preset", ["ddp2_cpu", "ddp8_bf16", "slurm"])
def test_presets_pass_the_checks(preset: str, compose: Compose) -> None:
    check_config(compose(f"trainer={preset}"), supplied=SUPPLIED)


def test_what_the_presets_say(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("trainer=ddp8_bf16").trainer
    assert (cfg.accelerator, cfg.devices, cfg.strategy, cfg.precision) == ("gpu", 8, "ddp", "bf16-mixed")
    cfg = compose("trainer=ddp2_cpu").trainer
    assert (cfg.accelerator, cfg.devices, cfg.strategy, cfg.precision) == ("cpu", 2, "ddp", None)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    monkeypatch.setenv("SLURM_NNODES", "3")
    cfg = compose("trainer=slurm").trainer
    assert (cfg.accelerator, cfg.devices, cfg.num_nodes, cfg.strategy) == ("gpu", 4, 3, "ddp")
    assert cfg.plugins[0].auto_requeue is False


@pytest.mark.slow
def test_eight_gpus_in_small(tmp_path: Path) -> None:
    """The preset for GPUs, in bfloat16, with two processes on CPU."""
    words = ["trainer=ddp8_bf16", *ON_CPU, "debug=step", PARTS, NOTE, "hydra.run.dir=run"]
    code, text = run("model=yolo", *SMALL, *words, cwd=tmp_path)
    assert code == 0, text
    assert [note(tmp_path / "run", rank)["precision"] for rank in range(2)] == ["bf16-mixed"] * 2
    assert results(tmp_path / "run")["train/steps"] == 1


# --- started from outside --------------------------------------------------------------------------------------------


def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_torchrun_on_two_nodes(pair: tuple[str, Path]) -> None:
    """Two agents, each of which takes itself for a machine: the same training as one process'."""
    kind, folder = pair
    endpoint = f"--rdzv_endpoint=127.0.0.1:{port()}"
    agent = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", endpoint, "--local_addr=127.0.0.1"]
    words = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp", PARTS, NOTE, "hydra.run.dir=nodes"]
    training = ["-m", "cvexp.train", *KINDS[kind], *SMALL, *words]
    first = command(*agent, *training, cwd=folder, module="torch.distributed.run")
    code, text = run(*agent, *training, cwd=folder, module="torch.distributed.run")
    assert (code, first.wait(timeout=MINUTE)) == (0, 0), text
    notes = [note(folder / "nodes", rank) for rank in range(2)]
    assert [(n["rank"], n["local_rank"], n["world"]) for n in notes] == [(0, 0, 2), (1, 0, 2)]
    assert {n["environment"] for n in notes} == {"TorchElasticEnvironment"}
    assert_same_training(folder, "one", "nodes")
    assert measured(results(folder / "nodes")) == pytest.approx(measured(results(folder / "one")), abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # two clocks would name two folders
        ([], "each of 2 processes would name the folder of the run by its own clock: "),
        (["-m", "seed=1,2"], "a sweep in each of 2 processes. Fix: leave torchrun or srun away"),
    ],
)
def test_what_outside_must_not_do(words: list[str], message: str, tmp_path: Path) -> None:
    code, text = run(*words, "trainer=ddp2_cpu", cwd=tmp_path, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    assert code == 2
    assert f"error: {message}" in text
    assert "Traceback" not in text


# srun in the place of SLURM's: two tasks of one machine; a signal goes to both, the largest exit code comes back.
SRUN = """#!/bin/bash
echo "srun $1" >> calls
shift
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "$@" &
  pids[rank]=$!
done
trap 'kill -TERM "${pids[@]}"' TERM
code=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
  wait "$pid"; one=$?
  if ((one > code)); then code=$one; fi
done
exit $code
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> calls
"""
# A training that saves when it is told to end.
PYTHON = """#!/bin/bash
echo "python $*" >> calls
trap 'mkdir -p "$RUN/checkpoints"; touch "$RUN/checkpoints/last.ckpt"; exit 143' TERM
touch "ready$SLURM_PROCID"
for _ in {1..600}; do sleep 0.1; done
"""
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_JOB_NAME": "cvexp",
}


def slurm(cwd: Path, *words: str, **programs: str) -> subprocess.Popen:
    """The script as SLURM starts it, with other programs in place of its own."""
    folder = cwd / "bin"
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    tests = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    paths = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": tests}
    with (cwd / "said.txt").open("a") as output:
        return subprocess.Popen(
            ["bash", str(REPOSITORY / "scripts" / "slurm" / "train.sh"), *words],
            cwd=cwd, env=os.environ | JOB | paths | {"SLURM_NODELIST": "127.0.0.1", "RUN": "runs/slurm-4711"},
            stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def test_a_slurm_job_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    """Its time ends: both processes get SIGTERM and save, the job is queued again, and then it resumes the same folder."""
    for times in (1, 2):
        job = slurm(tmp_path, "model=yolo", srun=SRUN, scontrol=SCONTROL, python=PYTHON)
        end = time.monotonic() + MINUTE
        while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)) and time.monotonic() < end:
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=MINUTE) == 143
        calls = (tmp_path / "calls").read_text().splitlines()
        assert calls.count("srun --kill-on-bad-exit=1") == times
        assert calls.count("scontrol requeue 4711") == times
        for rank in range(2):
            (tmp_path / f"ready{rank}").unlink()
    started = [call for call in calls if call.startswith("python")]
    words = "python -m cvexp.train trainer=slurm hydra.run.dir='runs/slurm-4711'"
    assert started == [f"{words} model=yolo"] * 2 + [f"{words} resume='runs/slurm-4711' model=yolo"] * 2


def test_a_slurm_job_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    job = slurm(tmp_path, "model=yolo", srun=SRUN, scontrol=SCONTROL, python="#!/bin/bash\nexit 2\n")
    assert job.wait(timeout=MINUTE) == 2
    assert "scontrol" not in (tmp_path / "calls").read_text()


@pytest.mark.slow
def test_two_tasks_of_slurm(pair: tuple[str, Path]) -> None:
    """The whole way, by the script and Lightning's view of SLURM; the port follows from the job's number."""
    kind, folder = pair
    words = [*KINDS[kind], *SMALL, "trainer.accelerator=cpu", PARTS, NOTE]
    job = slurm(folder, *words, srun=SRUN, scontrol=SCONTROL)
    assert job.wait(timeout=4 * MINUTE) == 0, said(folder)
    done = folder / "runs" / "slurm-4711"
    notes = [note(done, rank) for rank in range(2)]
    assert [(n["rank"], n["world"], n["environment"]) for n in notes] == [(r, 2, "SLURMEnvironment") for r in range(2)]
    assert_same_training(folder, "one", "runs/slurm-4711")


# --- sweeps ----------------------------------------------------------------------------------------------------------

STEP = ("model=yolo", *SMALL, TWO, "debug=step", PARTS, NOTE)


def rates(folder: Path) -> list[float]:
    """Learning rate of each process of a job."""
    return [note(folder, rank)["lr"] for rank in range(2)]


@pytest.mark.slow
def test_each_process_of_a_sweep_has_its_jobs_values(tmp_path: Path) -> None:
    words = ["optimizer.lr=1e-3,2e-3", "trainer.devices='2'", "hydra.sweep.dir=a sweep"]
    code, text = run("-m", *STEP, *words, cwd=tmp_path)
    assert code == 0, text
    assert sorted(path.name for path in (tmp_path / "a sweep").iterdir() if path.is_dir()) == ["0", "1"]
    for number, lr in enumerate((1e-3, 2e-3)):
        assert rates(tmp_path / "a sweep" / str(number)) == [lr, lr]
    assert len(list(tmp_path.rglob("result.json"))) == 2, "and no other folder"


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_job_whose_process_failed(tmp_path: Path) -> None:
    words = ["seed=1,2", "hydra.sweep.dir=sweep", die(1, "user_error")]
    code, text = run("-m", *LONG, TWO, *words, cwd=tmp_path)
    assert code == 1
    assert text.count("error: label 7 of image 3 is not known") == 2, text
    jobs = Ledger(tmp_path / "sweep").jobs()
    assert [(job.state, job.attempts) for job in jobs] == [("failed", 1)] * 2
    assert jobs[0].message == "label 7 of image 3 is not known. Fix: data.classes=[a,b]"


@pytest.mark.slow
def test_a_search_reads_what_the_processes_reached(tmp_path: Path) -> None:
    """Each trial's processes share its learning rate; its value is that of the job's result."""
    optuna = pytest.importorskip("optuna", reason="needs the extra sweep")
    small = [word for word in SMALL if not word.startswith("trainer.max_epochs")]
    words = ["trainer.max_epochs=1", "optimizer.lr=interval(1e-4,1e-2)", "hydra.sweep.dir=sweep"]
    words += ["hydra/sweeper=search", "hydra.sweeper.n_trials=2"]
    code, text = run(
        "-m", "model=yolo", *small, TWO, PARTS, NOTE, *words, "monitor=val/loss", "monitor_mode=min", cwd=tmp_path
    )
    assert code == 0, text
    jobs = [tmp_path / "sweep" / str(number) for number in range(2)]
    found = [rates(job) for job in jobs]
    assert all(first == second for first, second in found)
    assert found[0] != found[1]
    study = optuna.load_study(study_name="cvexp", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    values = [results(job)["val/best"] for job in jobs]
    assert [trial.value for trial in study.trials] == values
    assert study.best_value == min(values)
    assert values[0] != values[1]
    assert [trial.params["optimizer.lr"] for trial in study.trials] == pytest.approx([first for first, _ in found])
