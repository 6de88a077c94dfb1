"""Test data for mAP, and the official evaluation of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cvexp.types import Detection, GroundTruth

DATA = Path(os.environ.get("CVEXP_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
NUMBERS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@dataclass
class Detections:
    """N detections as columns: image id ``[N]``, xyxy boxes ``[N, 4]``, score ``[N]``, label ``[N]``."""

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def columns(self) -> tuple[np.ndarray, ...]:
        return self.image, self.boxes, self.scores, self.labels

    def of(self, image_id: int) -> Detection:
        rows = self.image == image_id
        return Detection(*(torch.from_numpy(c[rows]) for c in self.columns()[1:]))


def ground_truth(
    image_ids: list[int],
    objects: list[tuple],
    classes: tuple[str, ...] = ("a", "b", "c"),
    area: list[float] | None = None,
) -> GroundTruth:
    """Objects are rows (image id, x1, y1, x2, y2, label, difficult, crowd)."""
    table = np.array(objects, dtype=np.float64).reshape(-1, 8)
    boxes = torch.from_numpy(table[:, 1:5].copy())
    index = [image_ids.index(int(i)) for i in table[:, 0]]
    return GroundTruth(
        classes=classes,
        image_ids=torch.tensor(image_ids, dtype=torch.int64),
        sizes=torch.full((len(image_ids), 2), 600),
        image_index=torch.tensor(index, dtype=torch.int64),
        boxes=boxes,
        labels=torch.from_numpy(table[:, 5]).long(),
        difficult=torch.from_numpy(table[:, 6]).bool(),
        crowd=torch.from_numpy(table[:, 7]).bool(),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(1) if area is None else torch.tensor(area, dtype=torch.float64),
    )


def detections(rows: list[tuple]) -> Detections:
    """Rows are (image id, x1, y1, x2, y2, score, label)."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return Detections(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5], table[:, 6].astype(np.int64))


def random_set(seed: int, images: int = 12, classes: int = 5, per_image: int = 8) -> tuple[GroundTruth, Detections]:
    """Jittered objects plus noise, with everything that is easy to get wrong.

    Images without objects, without detections and without both; a class without objects and one that is never
    detected; crowds and difficult objects; scores on a grid of 0.05, hence ties within and between images; objects of
    all sizes; ids that are neither sorted nor contiguous; image 0 has more than 100 detections of one class.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(100, 100 + 7 * images, 7)).tolist()
    objects, found = [], []
    for n, image in enumerate(ids):
        for _ in range(0 if n in (1, 3) else rng.integers(1, per_image)):
            x, y, w, h = rng.uniform(0, 300), rng.uniform(0, 300), *np.exp(rng.uniform(2, 5.5, 2))
            label = int(rng.integers(0, classes - 1))  # the last class has no object
            objects.append((image, x, y, x + w, y + h, label, rng.random() < 0.15, rng.random() < 0.15))
            for _ in range(0 if n in (2, 3) else rng.integers(0, 4)):
                jitter = rng.normal(0, 0.06, 4) * [w, h, w, h]
                guess = label if rng.random() < 0.8 else classes - 1
                if guess != 1:  # class 1 is never detected
                    found.append((image, *(np.array([x, y, x + w, y + h]) + jitter), rng.random(), guess))
        for _ in range(130 if n == 0 else 3 * (n not in (2, 3))):
            x, y, w, h = rng.uniform(0, 300), rng.uniform(0, 300), *rng.uniform(5, 200, 2)
            found.append((image, x, y, x + w, y + h, rng.random() * 0.7, 0))
    rows = [(*row[:5], round(row[5] * 20) / 20, row[6]) for row in found]
    area = [(o[3] - o[1]) * (o[4] - o[2]) * rng.uniform(0.4, 1.0) for o in objects]  # as of a mask
    return ground_truth(ids, objects, tuple("abcdefgh"[:classes]), area), detections(rows)


def pycocotools(
    gt: GroundTruth,
    found: Detections,
    *,
    difficult: str = "ignore",
    image_ids: list[int] | None = None,
    masks: list | None = None,
    size_limits: tuple[float, float] = (1024, 9216),
):
    """The official evaluation; returns its COCOeval after summarize. With masks of the detections: by IoU of masks."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    ignored = gt.crowd | gt.difficult if difficult == "ignore" else gt.crowd
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": i, "height": h, "width": w}
                   for i, (h, w) in zip(gt.image_ids.tolist(), gt.sizes.tolist(), strict=True)],
        "categories": [{"id": k, "name": c} for k, c in enumerate(gt.classes)],
        "annotations": [
            {"id": n + 1, "image_id": image, "category_id": label, "bbox": [*b[:2], b[2] - b[0], b[3] - b[1]],
             "area": area, "iscrowd": int(crowd)}
            for n, (image, label, b, area, crowd) in enumerate(zip(
                gt.image_ids[gt.image_index].tolist(), gt.labels.tolist(), gt.boxes.tolist(), gt.area.tolist(),
                ignored.tolist(), strict=True))
        ],
    }  # fmt: skip
    results = [
        {"image_id": i, "category_id": label, "score": s, "bbox": [*b[:2], b[2] - b[0], b[3] - b[1]]}
        for i, b, s, label in zip(*(c.tolist() for c in found.columns()), strict=True)
    ]
    if masks is not None:
        for entry, mask in zip(truth.dataset["annotations"], gt.masks or [], strict=True):
            entry["segmentation"] = mask
        for entry, mask in zip(results, masks, strict=True):
            del entry["bbox"]  # else the official code takes the box's area
            entry["segmentation"] = mask
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        official = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox" if masks is None else "segm")
        small, large = size_limits
        official.params.areaRng = [[0, 1e10], [0, small], [small, large], [large, 1e10]]
        if image_ids is not None:
            official.params.imgIds = image_ids
        official.evaluate()
        official.accumulate()
        official.summarize()
    return official


def random_masks(seed: int, gt: GroundTruth, found: Detections, size: int = 450) -> list:
    """Gives every object an elliptic mask and returns one for every detection, as run lengths; some are empty."""
    rle = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5

    def ellipse(box: np.ndarray) -> dict:
        (x1, y1, x2, y2), squeeze = box, rng.uniform(0.8, 1.2)
        across, down = (x2 - x1) / 2, max((y2 - y1) / 2 * squeeze, 1e-6)
        inside = ((x - (x1 + x2) / 2) / max(across, 1e-6)) ** 2 + ((y - (y1 + y2) / 2) / down) ** 2 <= 1
        return rle.encode(np.asfortranarray(inside.astype(np.uint8)))

    gt.masks = [ellipse(box) for box in gt.boxes.numpy()]
    gt.sizes = torch.full((len(gt.image_ids), 2), size)
    return [ellipse(box if rng.random() > 0.03 else box * 0) for box in found.boxes]


def need_data(folder: str) -> Path:
    """The folder with real data; the test is skipped, with the reason, where it is absent."""
    path = DATA / folder
    if not path.is_dir():
        pytest.skip(f"no {folder} under {DATA}; set CVEXP_DATA to the data folder")
    return path


def coco_fixture() -> tuple[GroundTruth, Detections]:
    """100 images of COCO val2014 and 734 real detections."""
    folder = need_data("metrics_fixtures/coco_eval")
    truth = json.loads((folder / "ground_truth.json").read_text())
    found = json.loads((folder / "detections.json").read_text())["annotations"]
    categories = sorted(truth["categories"], key=lambda c: c["id"])
    label = {c["id"]: k for k, c in enumerate(categories)}
    corner = lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])  # noqa: E731
    objects = [
        (a["image_id"], *corner(a["bbox"]), label[a["category_id"]], 0, a["iscrowd"]) for a in truth["annotations"]
    ]
    gt = ground_truth(
        [i["id"] for i in truth["images"]], objects, tuple(c["name"] for c in categories),
        [a["area"] for a in truth["annotations"]],
    )  # fmt: skip
    return gt, detections([(d["image_id"], *corner(d["bbox"]), d["score"], label[d["category_id"]]) for d in found])


def voc_fixture() -> tuple[GroundTruth, Detections]:
    """100 VOC images and 452 real detections, boxes as written in the files (1-based corners on both sides)."""
    folder = need_data("voc")
    devkit = folder / "VOCdevkit" / "VOC2012"
    names = (devkit / "ImageSets" / "Main" / "test20.txt").read_text().split()
    classes = (folder / "detections_test20.names").read_text().split()
    objects, found = [], []
    for n, name in enumerate(names):
        for o in ET.parse(devkit / "Annotations" / f"{name}.xml").getroot().iter("object"):
            box = [float(o.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            objects.append((n, *box, classes.index(o.findtext("name")), int(o.findtext("difficult")), 0))
        file = folder / "detections_test20" / f"{name}.txt"
        for line in file.read_text().splitlines() if file.exists() else []:
            label, score, *box = map(float, line.split())
            found.append((n, *box, score, label))
    return ground_truth(list(range(len(names))), objects, tuple(classes)), detections(found)
