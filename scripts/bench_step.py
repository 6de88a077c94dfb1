"""What the framework costs: our training step against a bare PyTorch loop, our VOC loader against plain torchvision ones.

    python scripts/bench_step.py                       both parts
    python scripts/bench_step.py --part step model.image_size=128 data.batch_size=32
    python scripts/bench_step.py --part loader --data /data/VOCdevkit/VOC2012

Rivals run by turns in one process, so that a busy machine slows all of them alike, and the ratio is the median over the
rounds of two neighbours in time. The first two rounds are warm-up and are not counted.

**step**: `lightning.Trainer` with `DetectionTask`, the configured logger, learning-rate schedule and gradient clipping and the
callbacks of ``--callbacks``; timed from the end of one block of steps to the end of the next, so with every hook in between.
No validation, no checkpoint. The bare loop has the same class of model with the same weights, the same parameter groups,
optimizer, schedule and clipping, and moves the same pre-built batches to the device; it logs nothing.

On a machine that others use too, the processor's time is the better of the two: it counts this process's work alone.

**loader**: one epoch over the same images in batches of 16 through two worker processes, letterbox to 320 and flips, no
colour; nothing is done with the batches. Annotations are parsed and pixels checked before the clock starts on our side
(that is how `cvexp.data` works); the plain loaders parse XML for each item, as torchvision's VOCDetection does, and warp to
320 x 320. They decode with PIL; one transforms PIL images, the other uint8 tensors.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from cvexp.build import build_model, quiet
from cvexp.config import conf_dir, register_resolvers
from cvexp.data.voc import read_list
from cvexp.types import Batch

WARM_UP = 2
"""Rounds that are run and not counted."""


class Span(NamedTuple):
    """Milliseconds by the clock on the wall, and of this process's work (worker processes are not in it)."""

    wall: float
    work: float = math.nan


Times = dict[str, list[Span]]
"""Title to one span for each round; ours comes first."""


def configure(overrides: list[str], output: str) -> DictConfig:
    """The composed configuration with its run folder at ``output``."""
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("train", overrides=[f"paths.output={output}", f"hydra.run.dir={output}", *overrides])


# -- the training step -------------------------------------------------------------------------------------------------


class BareLoop:
    """The same training step in plain PyTorch."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Any, clip: float | None
    ) -> None:
        self.model, self.optimizer, self.clip = model.train(), optimizer, clip
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.scheduler = schedule and LambdaLR(optimizer, schedule)
        self.device = self.parameters[0].device

    def step(self, batch: Batch) -> None:
        batch = batch.to(self.device)
        loss = torch.stack(list(self.model(batch.images, batch.targets).values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        if self.scheduler:
            self.scheduler.step()


class Repeat(Dataset):
    """Pre-built batches over and over, as one long epoch."""

    def __init__(self, batches: list[Batch], count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Batch:
        return self.batches[i % len(self.batches)]


class Turns(Callback):
    """Runs a block of bare steps after each block of Lightning's steps and times both, in milliseconds a step."""

    def __init__(self, make_bare: Callable[[LightningModule], BareLoop], batches: list[Batch], steps: int) -> None:
        self.make_bare, self.batches, self.steps = make_bare, batches, steps
        self.ours: list[Span] = []
        self.bare: list[Span] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.loop = self.make_bare(pl_module)
        self.since = self._now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        done = trainer.global_step
        if done % self.steps:
            return
        now = self._now()
        self.ours.append(self._span(self.since, now))
        for index in range(done - self.steps, done):
            self.loop.step(self.batches[index % len(self.batches)])
        self.since = self._now()
        self.bare.append(self._span(now, self.since))

    def _now(self) -> Span:
        if self.loop.device.type == "cuda":
            torch.cuda.synchronize(self.loop.device)
        return Span(time.perf_counter(), time.process_time())

    def _span(self, start: Span, end: Span) -> Span:
        return Span((end.wall - start.wall) / self.steps * 1e3, (end.work - start.work) / self.steps * 1e3)


def bench_step(steps: int, rounds: int, callbacks: list[str], overrides: list[str]) -> Times:
    """Milliseconds a step of each round, for ``Trainer + DetectionTask`` and for the bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = configure(["model=yolo", "data=shapes", "data.train_size=160", *overrides], folder)
        seed_everything(cfg.seed, verbose=False)
        total = steps * (rounds + WARM_UP)
        data = instantiate(cfg.data)
        batches = list(data.train_dataloader())[:10]
        model = build_model(cfg.model, len(data.class_names))
        copy = build_model(cfg.model, len(data.class_names))
        copy.load_state_dict(model.state_dict())

        def make_bare(task: Any) -> BareLoop:
            copy.to(task.device)
            groups = type(task)(
                copy, task.make_optimizer, None, task.classes, None, task.backbone_lr
            ).parameter_groups()
            schedule = task.scheduler and (lambda step: task.scheduler(min(step / total, 1.0)))
            return BareLoop(copy, task.make_optimizer(groups), schedule, cfg.trainer.gradient_clip_val)

        task = instantiate(
            cfg.task, model=model, optimizer=instantiate(cfg.optimizer), scheduler=instantiate(cfg.scheduler),
            metric=None, classes=data.class_names,
        )  # fmt: skip
        turns = Turns(make_bare, batches, steps)
        chosen = [c for name in callbacks if (c := instantiate(cfg.callbacks[name])) is not None]
        loggers = [logger for logger in instantiate(cfg.logger).values() if logger is not None]
        trainer = instantiate(
            cfg.trainer, callbacks=[*chosen, turns], logger=loggers, enable_checkpointing=False, max_epochs=-1,
            max_steps=total, limit_val_batches=0, enable_progress_bar="progress" in callbacks,
        )  # fmt: skip
        trainer.fit(task, train_dataloaders=DataLoader(Repeat(batches, total), batch_size=None))
    return {"Trainer + DetectionTask": turns.ours[WARM_UP:], "bare loop": turns.bare[WARM_UP:]}


# -- the loader --------------------------------------------------------------------------------------------------------


class PlainVOC(Dataset):
    """What torchvision's VOCDetection and its transforms do for an item, for any list of names."""

    def __init__(self, root: Path, names: list[str], classes: list[str], transform: Callable[..., Any]) -> None:
        self.root, self.names, self.transform = root, names, transform
        self.index = {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = Image.open(self.root / "JPEGImages" / f"{self.names[i]}.jpg").convert("RGB")
        objects = ElementTree.parse(self.root / "Annotations" / f"{self.names[i]}.xml").getroot().findall("object")
        corners = [[float(o.findtext(f"bndbox/{k}") or 0) for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        boxes = tv_tensors.BoundingBoxes(
            torch.tensor(corners).reshape(-1, 4), format="XYXY", canvas_size=(image.height, image.width)
        )
        labels = torch.tensor([self.index[o.findtext("name") or ""] for o in objects])
        return self.transform(image, {"boxes": boxes, "labels": labels})


def plain_collate(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Stacks the images, lists the targets."""
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


PLAIN = {
    "plain torchvision, PIL transforms": lambda: [v2.Resize((320, 320)), v2.RandomHorizontalFlip(), v2.ToImage()],
    "plain torchvision, tensor transforms": lambda: [v2.ToImage(), v2.Resize((320, 320)), v2.RandomHorizontalFlip()],
}


def loaders(root: Path, images: int, folder: Path) -> dict[str, DataLoader]:
    """Ours and the plain ones over the first ``images`` of the training list."""
    names = read_list(root / "ImageSets" / "Main" / "train.txt")[:images]
    (folder / "list.txt").write_text("\n".join(names))
    off = [f"data.augment.{key}=0" for key in ("jitter", "brightness", "contrast", "saturation")]
    lists = [f"data.root={root}", *(f"data.{split}={folder}/list.txt" for split in ("train", "val", "test"))]
    cfg = configure(
        ["model=yolo", "data=voc", "model.image_size=320", "data.batch_size=16", "data.num_workers=2", *off, *lists],
        str(folder),
    )
    data = instantiate(cfg.data)
    made = {"cvexp": data.train_dataloader()}
    for title, steps in PLAIN.items():
        made[title] = DataLoader(
            PlainVOC(root, names, data.class_names, v2.Compose(steps())),
            batch_size=16, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True,
            collate_fn=plain_collate, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
    return made


def bench_loader(root: Path, images: int, rounds: int) -> Times:
    """Milliseconds an image of each round, for each loader."""
    times: Times = {}
    with tempfile.TemporaryDirectory() as folder:
        made = loaders(root, images, Path(folder))
        for number in range(rounds + WARM_UP):
            for title in random.sample(sorted(made), len(made)):  # in a new order each round
                if title == "cvexp":
                    made[title].batch_sampler.sampler.set_epoch(number)  # type: ignore[union-attr]
                start = time.perf_counter()
                count = sum(len(images_of(batch)) for batch in made[title])
                times.setdefault(title, []).append(Span((time.perf_counter() - start) / count * 1e3))
    ours = times.pop("cvexp")
    return {"cvexp": ours[WARM_UP:]} | {title: times[title][WARM_UP:] for title in PLAIN}


def images_of(batch: Any) -> Tensor:
    """The images of our batch or of a plain tuple."""
    return batch.images if isinstance(batch, Batch) else batch[0]


# -- the table ---------------------------------------------------------------------------------------------------------


def rows(part: str, unit: str, times: Times) -> Iterator[str]:
    """Lines of the Markdown table; the ratios are those of the other's time to ours."""
    (_, ours), *_ = times.items()
    for title, spans in times.items():
        walls, works = [s.wall for s in spans], [s.work for s in spans if not math.isnan(s.work)]
        ratio = statistics.median(s.wall / o.wall for s, o in zip(spans, ours, strict=True))
        cells = [f"{statistics.median(walls):.3f}", f"{min(walls):.3f}", f"{ratio:.3f}", "", ""]
        if works:
            ratio = statistics.median(s.work / o.work for s, o in zip(spans, ours, strict=True))
            cells[3:] = [f"{statistics.median(works):.3f}", f"{ratio:.3f}"]
        yield f"| {part} | {title} | {unit} | {' | '.join(cells)} |"


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("step", "loader", "both"), default="both")
    parser.add_argument("--steps", type=int, default=10, help="training steps of a block")
    parser.add_argument("--rounds", type=int, default=12, help="blocks (step) and epochs (loader) of each rival")
    parser.add_argument("--images", type=int, default=320, help="images of an epoch of the loader part")
    parser.add_argument("--data", type=Path, help="VOC folder; default: voc/VOCdevkit/VOC2012 below paths.data")
    parser.add_argument(
        "--callbacks", default="budget,lr", help="names in conf/callbacks; `ema` does work that the bare loop does not"
    )
    options, overrides = parser.parse_known_intermixed_args(arguments)
    lines: list[str] = []
    quiet()
    if options.part != "loader":
        chosen = [name for name in options.callbacks.split(",") if name]
        lines += rows("step", "ms/step", bench_step(options.steps, options.rounds, chosen, overrides))
    if options.part != "step":
        root = options.data or Path(OmegaConf.select(configure([], "."), "paths.data")) / "voc/VOCdevkit/VOC2012"
        lines += rows("loader", "ms/image", bench_loader(root, options.images, options.rounds))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.rounds} rounds\n")
    print("| part | what | unit | wall, median | wall, best | wall / ours | processor, median | processor / ours |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
