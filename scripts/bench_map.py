"""How long mAP takes at COCO-val size: ours, the official pycocotools, torchmetrics; and ours on two processes.

Everything in one run on the same detections: 5,000 images, 36,000 objects of 80 classes, 100 detections an image. Ours and
torchmetrics' are timed as a training uses them: ``update`` for batches of 16 images, then ``compute``. pycocotools gets its
dictionaries ready-made; making them and indexing is timed apart. The numbers of all must be equal.

    python scripts/bench_map.py [--images 5000] [--rounds 3] [--skip torchmetrics] [--markdown table.md]

Needs the extra ``test`` (pycocotools, faster-coco-eval).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from cvexp.metrics.detection import DetectionMAP
from cvexp.types import Detection, GroundTruth

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BATCH = 16


@dataclass
class Timed:
    """Seconds of the parts of one evaluation, and its twelve numbers."""

    seconds: dict[str, float]
    numbers: list[float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def drawn(images: int, per_image: int = 100, classes: int = 80, seed: int = 0) -> tuple[GroundTruth, list[Detection]]:
    """A random set like COCO's: 7.2 objects an image; a third of the detections are near an object, the rest anywhere."""
    rng = np.random.default_rng(seed)
    objects = round(images * 7.2)
    image = np.sort(rng.integers(0, images, objects))
    boxes = random_boxes(rng, objects)
    labels = rng.integers(0, classes, objects)
    flags = torch.zeros(objects, dtype=torch.bool)
    gt = GroundTruth(
        classes=[f"class {k}" for k in range(classes)], image_ids=torch.arange(images) * 3 + 1,
        sizes=torch.full((images, 2), 640), image_index=torch.from_numpy(image), boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels), difficult=flags, crowd=torch.from_numpy(rng.random(objects) < 0.01),
        area=torch.from_numpy((boxes[:, 2:] - boxes[:, :2]).prod(1) * rng.uniform(0.4, 1, objects)),
    )  # fmt: skip
    starts = np.searchsorted(image, np.arange(images + 1))
    found = []
    for n in range(images):
        mine = np.arange(starts[n], starts[n + 1])
        near = rng.choice(mine, per_image // 3) if mine.size else np.zeros(0, int)
        size = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
        jittered = boxes[near] + rng.normal(0, 0.1, (len(near), 4)) * size
        jittered = np.concatenate(
            [np.minimum(jittered[:, :2], jittered[:, 2:]), np.maximum(jittered[:, :2], jittered[:, 2:])], 1
        )
        rest = per_image - len(near)
        scores = np.sort(rng.random(per_image))[::-1].copy()
        order = rng.permutation(per_image)
        both = np.concatenate([jittered, random_boxes(rng, rest)])[order]
        names = np.concatenate([labels[near], rng.integers(0, classes, rest)])[order]
        found.append(
            Detection(torch.from_numpy(both).float(), torch.from_numpy(scores).float(), torch.from_numpy(names))
        )
    return gt, found


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """``[N, 4]`` xyxy within 640 pixels, small ones as frequent as large ones."""
    size = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    low = rng.uniform(0, 1, (count, 2)) * (640 - size)
    return np.concatenate([low, low + size], axis=1)


# -- those that are compared -------------------------------------------------------------------------------------------


def ours(gt: GroundTruth, found: Sequence[Detection]) -> Timed:
    """`DetectionMAP`, batch by batch."""
    metric = DetectionMAP()
    metric.set_ground_truth(gt)
    ids = gt.image_ids.tolist()
    start = time.perf_counter()
    for n in range(0, len(ids), BATCH):
        metric.update(ids[n : n + BATCH], found[n : n + BATCH])
    updated = time.perf_counter()
    numbers = metric.compute()
    seconds = {"update": updated - start, "compute": time.perf_counter() - updated}
    return Timed(seconds, [numbers[name].item() for name in NUMBERS])


def official(gt: GroundTruth, found: Sequence[Detection]) -> Timed:
    """pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in gt.image_ids.tolist()],
        "categories": [{"id": k, "name": name} for k, name in enumerate(gt.classes)],
        "annotations": [
            {"id": n + 1, "image_id": image, "category_id": label, "bbox": [*b[:2], b[2] - b[0], b[3] - b[1]],
             "area": area, "iscrowd": crowd}
            for n, (image, label, b, area, crowd) in enumerate(zip(
                gt.image_ids[gt.image_index].tolist(), gt.labels.tolist(), gt.boxes.tolist(), gt.area.tolist(),
                gt.crowd.int().tolist(), strict=True))
        ],
    }  # fmt: skip
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        rows = [
            {"image_id": image, "category_id": label, "score": score, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
            for image, d in zip(gt.image_ids.tolist(), found, strict=True)
            for b, score, label in zip(d.boxes.double().tolist(), d.scores.tolist(), d.labels.tolist(), strict=True)
        ]
        loaded = truth.loadRes(rows)
        ready = time.perf_counter()
        engine = COCOeval(truth, loaded, "bbox")
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
    seconds = {"load": ready - start, "evaluate and accumulate": time.perf_counter() - ready}
    return Timed(seconds, [float(x) for x in engine.stats])


def torchmetrics_own(gt: GroundTruth, found: Sequence[Detection]) -> Timed:
    """torchmetrics' MeanAveragePrecision as it comes, but for the thresholds in float64, with its fastest engine."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(), rec_thresholds=np.linspace(0, 1, 101).tolist(),
        backend="faster_coco_eval",
    )  # fmt: skip
    bounds = np.searchsorted(gt.image_index.numpy(), np.arange(len(gt.image_ids) + 1)).tolist()
    truth = [
        {"boxes": gt.boxes[a:b], "labels": gt.labels[a:b], "area": gt.area[a:b], "iscrowd": gt.crowd[a:b].int()}
        for a, b in pairwise(bounds)
    ]
    results = [{"boxes": d.boxes, "scores": d.scores, "labels": d.labels} for d in found]
    start = time.perf_counter()
    for n in range(0, len(truth), BATCH):
        metric.update(results[n : n + BATCH], truth[n : n + BATCH])
    updated = time.perf_counter()
    raw = metric.compute()
    seconds = {"update": updated - start, "compute": time.perf_counter() - updated}
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100",
             "mar_small", "mar_medium", "mar_large")  # fmt: skip
    return Timed(seconds, [float(raw[name]) for name in names])


def two_processes(gt: GroundTruth, found: Sequence[Detection], folder: Path) -> Timed:
    """`DetectionMAP` on two processes, each with every second batch; the time of the slower one, without starting them."""
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, (2, folder, gt, found, answers), nprocs=2)
    ranks = [answers.get() for _ in range(2)]
    assert ranks[0].numbers == ranks[1].numbers
    return max(ranks, key=lambda rank: rank.total)


def _rank(rank: int, world: int, folder: Path, gt: GroundTruth, found: Sequence[Detection], answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    small, few = drawn(8)
    warm = DetectionMAP()  # imports and first messages, as in a training the validation before has done
    warm.set_ground_truth(small)
    warm.update(small.image_ids.tolist(), few)
    warm.compute()
    metric = DetectionMAP()
    metric.set_ground_truth(gt)
    ids = gt.image_ids.tolist()
    dist.barrier()
    start = time.perf_counter()
    for n in range(rank * BATCH, len(ids), world * BATCH):
        metric.update(ids[n : n + BATCH], found[n : n + BATCH])
    dist.barrier()
    updated = time.perf_counter()
    numbers = metric.compute()
    seconds = {"update": updated - start, "compute": time.perf_counter() - updated}
    answers.put(Timed(seconds, [numbers[name].item() for name in NUMBERS]))
    dist.destroy_process_group()


# -- the comparison ----------------------------------------------------------------------------------------------------


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument(
        "--rounds", type=int, default=3, help="of ours; the slow ones run once a round up to --slow-rounds"
    )
    parser.add_argument("--slow-rounds", type=int, default=1)
    parser.add_argument("--skip", nargs="*", default=[], choices=["pycocotools", "torchmetrics", "two"])
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Encountered more than 100 detections")
    console = Console()
    gt, found = drawn(args.images)
    console.print(
        f"{args.images} images, {len(gt.labels)} objects of {len(gt.classes)} classes, {sum(map(len, found))} detections;"
        f" {torch.get_num_threads()} threads"
    )
    ours(*drawn(8))  # imports
    ways: dict[str, tuple[Callable[[], Timed], int]] = {"cvexp": (lambda: ours(gt, found), args.rounds)}
    if "two" not in args.skip:
        ways["cvexp, two processes"] = (lambda: _in_folder(gt, found), args.rounds)
    if "torchmetrics" not in args.skip:
        ways["torchmetrics (faster_coco_eval)"] = (lambda: torchmetrics_own(gt, found), args.slow_rounds)
    if "pycocotools" not in args.skip:
        ways["pycocotools"] = (lambda: official(gt, found), args.slow_rounds)
    times: dict[str, list[Timed]] = {name: [] for name in ways}
    for round_ in range(max(count for _, count in ways.values())):
        for name, (way, count) in ways.items():
            if round_ < count:
                with console.status(f"round {round_ + 1}: {name}"):
                    times[name].append(way())
    report(times, console, args.markdown)


def _in_folder(gt: GroundTruth, found: Sequence[Detection]) -> Timed:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return two_processes(gt, found, Path(folder))


def report(times: dict[str, list[Timed]], console: Console, path: Path | None) -> None:
    """The table: medians, ratios, and by how much the twelve numbers differ from ours."""
    base = times["cvexp"][0].numbers
    ours_total = statistics.median(t.total for t in times["cvexp"])
    table = Table(title=f"mAP at this size; AP {base[0]:.6f}, AP50 {base[1]:.6f}")
    lines = [
        "| way | seconds (median) | parts | times cvexp | largest difference of the twelve numbers |",
        "|---|---|---|---|---|",
    ]
    for column in ("way", "seconds (median)", "parts", "times cvexp", "largest difference"):
        table.add_column(column)
    for name, runs in times.items():
        total = statistics.median(t.total for t in runs)
        middle = min(runs, key=lambda run: abs(run.total - total))
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in middle.seconds.items())
        worst = max(abs(a - b) for run in runs for a, b in zip(run.numbers, base, strict=True))
        row = [
            f"{name} ({len(runs)} run{'s' * (len(runs) > 1)})",
            f"{total:.2f}",
            parts,
            f"{total / ours_total:.1f}",
            f"{worst:.2g}",
        ]
        table.add_row(*row)
        lines.append(f"| {' | '.join(row)} |")
    console.print(table)
    if path is not None:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
