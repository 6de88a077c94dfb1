"""Our Faster R-CNN against torchvision's, at equal settings and equal weights: a training step and a pass in test.

    python scripts/bench_faster_rcnn.py --rounds 5

Both are ResNet-50 with FPN under torchvision's numbers (2,000 and 1,000 proposals, 512 regions, 100 detections), on the same
random images and objects. Rounds alternate between the two, so that a slower moment of the machine meets both; the table gives
medians and their ratio. ``--frozen`` compares the usual fine-tuning instead: batch norms frozen on both sides (ours folded).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d

from cvexp.build import build_model
from cvexp.config import conf_dir, register_resolvers
from cvexp.types import Target

CLASSES = 20


def models(size: int, frozen: bool, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Ours and torchvision's, with the same weights."""
    norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    theirs = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=size, max_size=size,
        norm_layer=norm,
    )  # fmt: skip
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = ["model=faster_rcnn_fpn", f"model.image_size={size}", f"model.backbone.fold_norm={frozen}"]
        cfg = compose("train", overrides)
    ours = build_model(cfg.model, CLASSES)
    translated = ours.translate(theirs.state_dict())  # type: ignore[operator]
    ours.load_state_dict({name: value for name, value in translated.items() if name in ours.state_dict()}, strict=False)
    return ours.to(device), theirs.to(device)


def batch(count: int, size: int, device: torch.device) -> tuple[Tensor, list[Target]]:
    """Random images, five objects in each."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device)
    targets = []
    for index in range(count):
        low = torch.rand(5, 2) * size * 0.6
        boxes = torch.cat([low, low + 16 + torch.rand(5, 2) * size * 0.3], dim=1)
        none = torch.zeros(5, dtype=torch.bool)
        target = Target(
            boxes=boxes, labels=torch.randint(0, CLASSES, (5,)), difficult=none, crowd=none, area=torch.ones(5),
            image_id=index, size=(size, size), original_size=(size, size), to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        )  # fmt: skip
        targets.append(target.to(device))
    return images, targets


def train_step(model: nn.Module, call: Callable[[], dict[str, Tensor]]) -> Callable[[], None]:
    def step() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        torch.stack(list(call().values())).sum().backward()

    return step


def test_pass(model: nn.Module, call: Callable[[], object]) -> Callable[[], None]:
    def step() -> None:
        model.eval()
        with torch.inference_mode():
            call()

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, the order alternating from round to round; one round before does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds + 1):
        names = list(steps) if index % 2 else list(steps)[::-1]
        for name in names:
            start = time.perf_counter()
            steps[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if index:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=320, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frozen", action="store_true", help="frozen batch norms")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    args = parser.parse_args()
    device = torch.device(args.device)
    ours, theirs = models(args.size, args.frozen, device)
    images, targets = batch(args.batch, args.size, device)
    floats = [image.float() / 255 for image in images]
    labelled = [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets]
    rows = {}
    steps = {
        "training step": {
            "cvexp": train_step(ours, lambda: ours(images, targets)),
            "torchvision": train_step(theirs, lambda: theirs(floats, labelled)),
        },
        "pass in test": {
            "cvexp": test_pass(ours, lambda: ours(images)),
            "torchvision": test_pass(theirs, lambda: theirs(floats)),
        },
    }
    for what, pair in steps.items():
        rows[what] = measure(pair, args.rounds, device)
    table = Table(
        title=f"ResNet-50 FPN, {args.size} px, batch {args.batch}, {device.type}, {torch.get_num_threads()} threads,"
        f" {'frozen' if args.frozen else 'trained'} batch norms"
    )
    for column in ("", "cvexp, s", "torchvision, s", "torchvision / cvexp"):
        table.add_column(column, justify="right" if column else "left")
    lines = ["| | cvexp, s | torchvision, s | torchvision / cvexp |", "|---|---|---|---|"]
    for what, medians in rows.items():
        a, b = medians["cvexp"], medians["torchvision"]
        table.add_row(what, f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}")
        lines.append(f"| {what} | {a:.3f} | {b:.3f} | {b / a:.2f} |")
    Console().print(table)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
