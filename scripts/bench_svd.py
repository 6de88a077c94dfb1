"""Truncated SVD of Fast R-CNN's fully connected layers (section 3.1): what a pass in test gains, at random weights.

    python scripts/bench_svd.py --image 320 --ranks 1024 256

The time of a pass does not depend on the weights' values, so none need be trained; what AP it costs does, and
``python -m cvexp.evaluate ckpt=... model.svd=[1024,256]`` measures that. Rounds alternate between whole and cut layers, so that a
slower moment of the machine meets both; the table gives medians, and their ratio of the same run.
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
from torch import Tensor

from cvexp.build import build_model
from cvexp.config import conf_dir, register_resolvers
from cvexp.models.fast_rcnn import FastRCNN

CLASSES = 20


def network(size: str, image: int, ranks: list[int], device: torch.device) -> FastRCNN:
    """Of the paper (VGG-16) or tiny, with random weights and the ranks of its two layers."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = ["model=fast_rcnn", f"model.size={size}", f"model.image_size={image}", f"model.svd={ranks}"]
        cfg = compose("train", words)
    torch.manual_seed(0)
    return build_model(cfg.model, CLASSES).to(device).eval()  # type: ignore[return-value]


def regions(count: int, image: int, device: torch.device) -> Tensor:
    """Random boxes ``[count, 4]``, from 16 pixels to the whole image."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, count, 2, generator=generator).sort(dim=0).values * (image - 16)
    return torch.cat([corners[0], corners[1] + 16], dim=1).to(device)


def measure(model: FastRCNN, image: int, boxes: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of the fully connected layers and of a whole pass, with the layers whole and cut."""
    device = boxes.device
    images = torch.randint(0, 256, (1, 3, image, image), dtype=torch.uint8, device=device)
    padded, usable = model.padded([boxes])
    cut = model.body()  # decomposed once, before the clock runs
    seconds: dict[str, dict[str, list[float]]] = {"whole": {}, "cut": {}}
    with torch.inference_mode():
        pooled = model.pool(model.features(images), padded)
        for index in range(rounds + 1):
            for name in ("whole", "cut") if index % 2 else ("cut", "whole"):
                body = None if name == "whole" else cut
                steps = {
                    "fully connected layers": lambda body=body: model.head(pooled, body),
                    "whole pass": lambda body=body: model.detect(
                        model.features(images), padded, usable, images.shape[-2:], body
                    ),
                }
                for what, step in steps.items():
                    start = time.perf_counter()
                    step()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    if index:  # the first round warms up
                        seconds[name].setdefault(what, []).append(time.perf_counter() - start)
    return {name: {what: statistics.median(v) for what, v in rows.items()} for name, rows in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("base", "tiny"), default="base", help="model.size; base is VGG-16")
    parser.add_argument("--image", type=int, default=320, help="side of the image, pixels")
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--ranks", type=int, nargs=2, default=[1024, 256], help="of fc6 and fc7")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    args = parser.parse_args()
    device = torch.device(args.device)
    model = network(args.size, args.image, args.ranks, device)
    start = time.perf_counter()
    small = model.body()
    assert small is not None
    took = time.perf_counter() - start
    times = measure(model, args.image, regions(args.proposals, args.image, device), args.rounds)
    parameters = [sum(p.numel() for p in body.parameters()) for body in (model.head.body, small)]
    table = Table(
        title=f"Fast R-CNN {args.size}, {args.image} px, {args.proposals} proposals, {device.type},"
        f" {torch.get_num_threads()} threads; decomposed once in {took:.1f} s"
    )
    for column in ("", "whole, s", "cut, s", "whole / cut"):
        table.add_column(column, justify="right" if column else "left")
    lines = ["| | whole, s | cut, s | whole / cut |", "|---|---|---|---|"]
    for what in times["whole"]:
        a, b = times["whole"][what], times["cut"][what]
        table.add_row(what, f"{a:.4f}", f"{b:.4f}", f"{a / b:.2f}")
        lines.append(f"| {what} | {a:.4f} | {b:.4f} | {a / b:.2f} |")
    a, b = parameters
    table.add_row("parameters of these layers", f"{a:,}", f"{b:,}", f"{a / b:.2f}")
    lines.append(f"| parameters of these layers | {a:,} | {b:,} | {a / b:.2f} |")
    Console().print(table)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
