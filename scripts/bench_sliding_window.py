"""What dense evaluation saves: the sliding window scanned window by window against fully convolutional, in one process.

    python scripts/bench_sliding_window.py
    python scripts/bench_sliding_window.py --rounds 9 model.size=base model.image_size=320

Both ways take the same weights and images by turns, so that a busy machine slows both alike; the ratio is the median over the
rounds of two neighbours in time. The first round is warm-up and is not counted. On a CPU one thread works unless
OMP_NUM_THREADS says otherwise. Before anything is timed both must say the same of every window.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from hydra import compose, initialize_config_dir

from cvexp.build import build_model
from cvexp.config import conf_dir, register_resolvers
from cvexp.models.sliding_window import SlidingWindow


def build(words: list[str]) -> SlidingWindow:
    """The model of ``model=sliding_window`` with these overrides."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", ["model=sliding_window", *words])
    model = build_model(cfg.model, 3).eval()
    assert isinstance(model, SlidingWindow)
    return model


def seconds(model: SlidingWindow, mode: str, images: torch.Tensor) -> float:
    """Of a scan of the images."""
    model.mode = mode
    begin = time.perf_counter()
    with torch.inference_mode():
        model.scan(images)
    return time.perf_counter() - begin


def largest_difference(model: SlidingWindow, images: torch.Tensor) -> float:
    """Between the logits of both ways."""
    found = []
    for model.mode in ("dense", "crops"):
        with torch.inference_mode():
            found.append(model.scan(images))
    return float((found[0] - found[1]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="in a batch")
    parser.add_argument("--rounds", type=int, default=7, help="that are counted")
    parser.add_argument("words", nargs="*", default=["model.size=tiny"], help="overrides, as for cvexp.train")
    options = parser.parse_args()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)

    torch.manual_seed(0)
    model = build(options.words)
    side = model.image_size
    images = torch.randint(0, 256, (options.images, 3, side, side), dtype=torch.uint8)
    difference = largest_difference(model, images)
    assert difference < 1e-3, f"the two ways differ by {difference}"
    times = [(seconds(model, "crops", images), seconds(model, "dense", images)) for _ in range(options.rounds + 1)][1:]
    crops, dense = (statistics.median(column) / len(images) * 1000 for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    model.mode = "crops"
    work = model.work(side, side)
    print(f"image {side} x {side}: {work['windows_per_image']:,} windows of {work['possible_boxes']:,} possible boxes")
    print(f"crops {crops:8.1f} ms an image, {work['cnn_passes_per_image']:,} passes of the network")
    model.mode = "dense"
    print(f"dense {dense:8.1f} ms an image, {model.work(side, side)['cnn_passes_per_image']} passes")
    print(f"ratio {ratio:8.2f} (median of {len(times)} rounds), largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
