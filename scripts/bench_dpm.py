"""The deformable part model against its fast variant, with one training: what a picture costs, and what it costs in AP.

    python scripts/bench_dpm.py --checkpoint <run of model=dpm>/checkpoints/best.ckpt
    python scripts/bench_dpm.py --size base --height 375 --width 500

With a checkpoint both read its weights and are measured on the test pictures of `shapes` (``--images``); without one the weights
are random and only time is measured. Rounds alternate between the two, so that a slower moment of the machine meets both; the
table gives medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from cvexp.build import build_model
from cvexp.config import conf_dir, register_resolvers
from cvexp.data.shapes import ShapesData
from cvexp.metrics.detection import DetectionMAP
from cvexp.ops.stages import clock
from cvexp.types import UserError

NAMES = ("dpm", "dpm_fast")


def models(size: str, classes: int, checkpoint: Path | None) -> dict[str, nn.Module]:
    """Both with the same weights.

    Raises:
        UserError: a checkpoint that is missing or of another model.
    """
    register_resolvers()
    made = {}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for name in NAMES:
            torch.manual_seed(0)
            made[name] = build_model(compose("train", [f"model={name}", f"model.size={size}"]).model, classes).eval()
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise UserError(f"{checkpoint}: no such file. Fix: train with model=dpm model.size={size} first")
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        weights = {name.removeprefix("model."): v for name, v in content.items() if name.startswith("model.")}
        for model in made.values():
            try:
                model.load_state_dict(weights)
            except RuntimeError:
                raise UserError(f"{checkpoint}: is of another model. Fix: one of model=dpm model.size={size}") from None
    return made


@torch.no_grad()
def timed(made: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a picture, of its whole pass and of the features alone: medians."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for turn in range(rounds + 1):  # the first warms up
        image = images[turn % len(images)][None]
        for name, model in made.items():
            start = time.perf_counter()
            with clock() as stages:
                model(image)
            if turn:
                seen[name].append((time.perf_counter() - start, stages.seconds["features"]))
    return {
        name: {key: statistics.median(column) for key, column in zip(("pass", "features"), zip(*rows, strict=True), strict=True)}
        for name, rows in seen.items()
    }  # fmt: skip


@torch.no_grad()
def ap50(model: nn.Module, data: ShapesData, images: int) -> float:
    """Of the first so many test pictures."""
    metric = DetectionMAP()
    source = data.source("test")
    metric.set_ground_truth(source.ground_truth())
    for index in range(images):
        image, target = source.read(index)
        metric.update([target.image_id], model(image[None]))
    return float(metric.compute()["AP50"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--size", default="tiny", choices=("tiny", "base"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=100, help="pictures of the AP")
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--classes", type=int, default=3)
    options = parser.parse_args()
    made = models(options.size, options.classes, options.checkpoint)
    data = ShapesData(test_size=options.images)
    if (options.height, options.width) == (96, 96):
        images = torch.stack([data.source("test").read(i)[0] for i in range(min(options.images, 20))])
    else:
        images = torch.randint(0, 256, (1, 3, options.height, options.width), dtype=torch.uint8)
    times = timed(made, images, options.rounds)
    table = Table("", "ms a picture", "of these features", "times as fast", "AP50")
    for name, model in made.items():
        score = "" if options.checkpoint is None else f"{ap50(model, data, options.images):.4f}"
        ratio = times[NAMES[0]]["pass"] / times[name]["pass"]
        table.add_row(
            name, f"{times[name]['pass'] * 1e3:.1f}", f"{times[name]['features'] * 1e3:.1f}", f"{ratio:.2f}", score
        )
    Console().print(table)


if __name__ == "__main__":
    main()
