"""DetectionMAP: the same number from any number of batches and processes, and errors that say what to do."""

from __future__ import annotations

import copy
import datetime
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from coco_oracle import NUMBERS, Detections, random_masks, random_set
from hydra.utils import instantiate
from omegaconf import OmegaConf

import cvexp.metrics.detection as module
from cvexp.metrics.coco_engine import evaluate
from cvexp.metrics.detection import DetectionMAP
from cvexp.metrics.findings import Findings
from cvexp.types import Detection, GroundTruth, UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "metric"


def filled(gt: GroundTruth, found: Detections, batch: int = 5, **settings) -> DetectionMAP:
    metric = DetectionMAP(**settings)
    metric.set_ground_truth(gt)
    ids = gt.image_ids.tolist()
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        metric.update(part, [found.of(i) for i in part])
    return metric


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit, NaN equal to NaN."""
    return list(a) == list(b) and all(torch.equal(a[k].nan_to_num(-1), b[k].nan_to_num(-1)) for k in a)


@pytest.fixture
def data() -> tuple[GroundTruth, Detections]:
    return random_set(0)


def test_equals_the_engine_for_any_batch_size(data):
    gt, found = data
    expected = evaluate(gt, gt.image_ids, *found.columns()).summary() | {"images": 12.0}
    for batch in (1, 5, 12):
        numbers = filled(gt, found, batch).compute()
        assert same(numbers, {k: torch.tensor(v, dtype=torch.float64) for k, v in expected.items()})
    assert list(numbers)[:12] == NUMBERS
    assert numbers["AP"].shape == ()


def test_settings_reach_the_engine(data):
    gt, found = data
    settings = {"max_detections": [1, 200], "iou_thresholds": [0.5, 0.6], "difficult": "count"}
    expected = evaluate(gt, gt.image_ids, *found.columns(), **settings).summary()
    numbers = filled(gt, found, **settings).compute()
    assert numbers["AP"] == expected["AP"]
    assert numbers["AR200"] == expected["AR200"]
    with pytest.raises(UserError, match=r"metric.difficult is 'drop'"):
        DetectionMAP(difficult="drop")


def test_result_gives_the_curves(data):
    metric = filled(*data)
    assert metric.result is None
    numbers = metric.compute()
    assert metric.result.summary()["AP"] == numbers["AP"]
    metric.reset()
    assert metric.result.images == 12  # a callback may draw after the epoch's reset


def test_only_images_that_were_seen_count(data):
    gt, found = data
    metric = DetectionMAP()
    metric.set_ground_truth(gt)
    part = gt.image_ids[4:7].tolist()
    metric.update(part, [found.of(i) for i in part])
    numbers = metric.compute()
    assert numbers["images"] == 3
    assert numbers["AP"] == evaluate(gt, part, *found.columns()).summary()["AP"]


def test_an_image_that_comes_again_is_counted_once(data):
    gt, found = data
    metric = filled(gt, found)
    once = metric.compute()
    first = gt.image_ids[0].item()
    metric.update([first, first], [Detection.empty(), found.of(first)])
    assert same(metric.compute(), once)
    metric.update([first], [Detection.empty()])  # the latest stands
    assert not same(metric.compute(), once)


def test_the_order_of_updates_does_not_matter(data):
    gt, found = data
    metric = DetectionMAP()
    metric.set_ground_truth(gt)
    for i in reversed(gt.image_ids.tolist()):
        metric.update([i], [found.of(i)])
    assert same(metric.compute(), filled(gt, found).compute())


def test_reset_forgets_detections_and_keeps_the_ground_truth(data):
    gt, found = data
    metric = filled(gt, found)
    expected = metric.compute()
    metric.reset()
    assert metric.compute()["images"] == 0
    metric.update(gt.image_ids.tolist(), [found.of(i) for i in gt.image_ids.tolist()])
    assert same(metric.compute(), expected)
    metric.set_ground_truth(gt)  # a new split: nothing of the old one is left
    assert metric.compute()["images"] == 0


def test_nothing_detected_and_nothing_seen(data):
    gt, _ = data
    metric = DetectionMAP()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # never used at all, then with classes but without update, then with an update of no image
        assert all(v.isnan() for k, v in metric.compute().items() if k != "images")
        metric.set_ground_truth(gt)
        assert all(v.isnan() for k, v in metric.compute().items() if k != "images")
        assert "AP/a" in metric.compute()
        metric.update([], [])
        assert metric.compute()["images"] == 0
        assert metric.compute()["AP"].isnan()
    # images without any detection: missed objects are 0, not NaN
    metric.update(gt.image_ids.tolist(), [Detection.empty() for _ in gt.image_ids])
    assert metric.compute()["AP"] == 0


def test_survives_copy_pickle_and_casts(data):
    metric = filled(*data)
    expected = metric.compute()
    for clone in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.half().to("cpu")):
        assert same(clone.compute(), expected)
    assert not metric.state_dict()  # nothing goes into a checkpoint


def test_torchmetrics_own_sync_is_harmless(data):
    metric = filled(*data)
    expected = metric.compute()
    metric.sync(distributed_available=lambda: True)
    assert same(metric.compute(), expected)
    metric.unsync()
    assert same(metric.compute(), expected)


def test_half_precision_detections(data):
    # bfloat16 scores of a bf16 network; labels above 256 would not survive bfloat16
    gt, found = data
    gt.classes = [str(k) for k in range(400)]
    gt.labels += 301
    found.labels = found.labels + 301
    half = Detections(*found.columns())
    metric = DetectionMAP()
    metric.set_ground_truth(gt)
    for i in gt.image_ids.tolist():
        d = half.of(i)
        metric.update([i], [Detection(d.boxes.float(), d.scores.bfloat16(), d.labels)])
    half.scores = torch.from_numpy(found.scores).bfloat16().double().numpy()
    half.boxes = found.boxes.astype(np.float32)
    assert metric.compute()["AP/301"] == evaluate(gt, gt.image_ids, *half.columns()).summary()["AP/301"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_detections_on_another_device(data):
    gt, found = data
    metric = DetectionMAP()
    metric.set_ground_truth(gt)
    metric.to("cuda").update(gt.image_ids.tolist(), [found.of(i).to("cuda") for i in gt.image_ids.tolist()])
    assert same(metric.compute(), filled(gt, found).compute())


def one(box=(0.0, 0.0, 9.0, 9.0), score=0.5, label=0) -> Detection:
    return Detection(torch.tensor([box]), torch.tensor([score]), torch.tensor([label]))


@pytest.mark.parametrize(
    ("ids", "found", "message"),
    [
        # values that would sort anywhere and give a plausible number
        ([107], [one(score=float("nan"))], r"image 107: a detection is not finite: score nan.*lower optimizer.lr"),
        ([107], [one(score=float("inf"))], r"image 107: a detection is not finite: score inf"),
        # the bad box is found in the second image
        ([100, 107], [one(), one(box=(0.0, float("-inf"), 9.0, 9.0))], r"image 107: .*box \[0.0, -inf, 9.0, 9.0\]"),
        # labels with background, and one too many
        ([100], [one(label=-1)], r"image 100: a detection has label -1, but the data has 5 classes \(0..4"),
        ([100], [one(label=5)], r"label 5, but .* let the model's num_classes be the data's"),
        # another split's id
        ([3], [one()], r"image id 3 is not in the ground truth of 12 images: evaluate the split"),
        # one detection too few
        ([100, 107], [one()], r"2 image ids but 1 detections"),
    ],
)
def test_errors_name_the_value_and_the_fix(data, ids, found, message):
    metric = DetectionMAP()
    metric.set_ground_truth(data[0])
    with pytest.raises(UserError, match=message):
        metric.update(ids, found)
    assert metric.compute()["images"] == 0  # nothing of the bad batch is kept


def with_masks(gt: GroundTruth, found: Detections) -> tuple[list, DetectionMAP]:
    """The masks of all detections, and a metric that was told everything."""
    masks = random_masks(0, gt, found)
    metric = DetectionMAP(masks=True)
    metric.set_ground_truth(gt)
    for i in gt.image_ids.tolist():
        mine = [mask for mask, image in zip(masks, found.image.tolist(), strict=True) if image == i]
        metric.update([i], [replace(found.of(i), encoded=mine)])
    return masks, metric


def test_masks_are_measured_beside_boxes(data):
    gt, found = data
    masks, metric = with_masks(gt, found)
    numbers = metric.compute()
    boxes = evaluate(gt, gt.image_ids, *found.columns()).summary()
    expected = evaluate(gt, gt.image_ids, *found.columns(), det_masks=masks).summary()
    assert numbers["AP"].item() == boxes["AP"] != expected["AP"] == numbers["mask/AP"].item()
    assert [name for name in numbers if name.startswith("mask/")] == [f"mask/{name}" for name in expected]


def test_masks_of_several_ranks_and_repeated_images(data):
    gt, found = data
    _, metric = with_masks(gt, found)
    whole = module._pack(metric._rows, metric._encoded)
    ids = whole.ids.tolist()
    parts = (ids[:5], [], ids[3:])  # two images twice
    shards = [module._pack({i: metric._rows[i] for i in mine}, {i: metric._encoded[i] for i in mine}) for mine in parts]
    joined, alone = module._unique_images(shards), module._unique_images([whole])
    assert joined.masks == alone.masks
    assert np.array_equal(joined.rows, alone.rows)


def test_masks_that_are_missing(data):
    gt, found = data
    metric = DetectionMAP(masks=True)
    with pytest.raises(UserError, match=r"metric.masks=true, but the data has no masks. Fix: data.masks=true"):
        metric.set_ground_truth(gt)
    random_masks(0, gt, found)
    metric.set_ground_truth(gt)
    with pytest.raises(UserError, match=r"image 100: metric.masks=true, but the detections have no masks"):
        metric.update([100], [one()])
    metric.update([100], [Detection.empty()])
    assert metric.compute()["images"] == 1


def test_findings_are_what_was_evaluated(data):
    gt, found = data
    metric = filled(gt, found, max_detections=[1, 20])
    assert metric.findings is None
    metric.compute()
    findings = metric.findings
    expected = Findings.gather(gt, gt.image_ids, *found.columns(), limit=20)
    assert np.array_equal(findings.det_boxes, expected.det_boxes)
    assert np.array_equal(findings.det_scores, expected.det_scores)
    metric.reset()
    assert metric.findings is not None  # for what is drawn after the epoch
    metric.set_ground_truth(gt)
    assert metric.findings is None


def test_used_in_the_wrong_order(data):
    with pytest.raises(UserError, match=r"no ground truth: call metric.set_ground_truth"):
        DetectionMAP().update([1], [one()])
    with pytest.raises(NotImplementedError, match=r"metric.update"):
        filled(*data)([100], [one()])
    data[0].labels[0] = 9
    with pytest.raises(UserError, match=r"labels of the ground truth are 0..9"):
        DetectionMAP().set_ground_truth(data[0])


@pytest.mark.parametrize("name", ["coco", "torchmetrics"])
def test_yaml_gives_the_defaults(name, data):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    metric = instantiate(config)
    default = type(metric)()
    for key in set(config) - {"_target_"}:
        assert np.array_equal(getattr(metric, key), getattr(default, key)), key
    metric.set_ground_truth(data[0])
    metric.update([100], [one()])
    assert metric.compute()["images"] == 1


def shares(case: str, ids: list[int], world: int) -> list[list[int]]:
    """Which images each rank sees."""
    return {
        # round robin, as a distributed sampler
        "even": [ids[r::world] for r in range(world)],
        # one image on the first rank, none between, the rest on the last
        "uneven": [ids[:1]] + [[]] * (world - 2) + [ids[1:]],
        # the rank that evaluates has no image (and calls update with none)
        "first empty": [[]] + [ids[r::world - 1] for r in range(world - 1)],
        # a rank without any image
        "last empty": [ids[r::world - 1] for r in range(world - 1)] + [[]],
        # padded shards: the first images on every rank again
        "padded": [ids[r::world] + ids[:3] for r in range(world)],
        # image 3 of the random set has no detection (image 2 neither): a rank with images but without boxes
        "no detection": [ids[2:4]] + [[]] * (world - 2) + [ids[:2] + ids[4:]],
    }[case]  # fmt: skip


CASES = ("even", "uneven", "first empty", "last empty", "padded", "no detection")


def distributed_worker(rank: int, folder: str) -> None:
    """Runs every case with two processes, then with three, and writes what the rank got."""
    for world in (2, 3):
        if rank >= world:
            continue
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world,
            timeout=datetime.timedelta(seconds=60),
        )  # fmt: skip
        gt, found = random_set(0)
        metric = DetectionMAP()
        metric.set_ground_truth(gt)
        got: dict[str, object] = {}
        for case in CASES:
            metric.reset()
            part = shares(case, gt.image_ids.tolist(), world)[rank]
            metric.update(part, [found.of(i) for i in part])
            got[case] = (metric.compute(), metric.result)
        metric.reset()
        got["never updated"] = (metric.compute(), metric.result)
        got["failure"] = fail(metric, rank)
        Path(folder, f"{world}-{rank}.pkl").write_bytes(pickle.dumps(got))
        dist.destroy_process_group()


def fail(metric: DetectionMAP, rank: int) -> str:
    """An evaluation that fails on rank 0 must end the others' waiting, with the same error."""

    def broken(*_: object, **__: object) -> None:
        raise UserError("no evaluation today")

    whole, module.evaluate = module.evaluate, broken
    try:
        metric.compute()
    except UserError as error:
        return str(error)
    finally:
        module.evaluate = whole
    return "no error"


@pytest.fixture(scope="module")
def distributed(tmp_path_factory) -> dict[int, list[dict]]:
    """World size -> what each rank got; one start of three processes serves all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(distributed_worker, args=(str(folder),), nprocs=3)
    return {w: [pickle.loads((folder / f"{w}-{r}.pkl").read_bytes()) for r in range(w)] for w in (2, 3)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_gives_the_same(distributed, world, case):
    gt, found = random_set(0)
    single = filled(gt, found)
    expected = single.compute()
    assert 0 < expected["AP"] < 1
    for got in distributed[world]:
        numbers, result = got[case]
        assert same(numbers, expected)
        np.testing.assert_array_equal(result.precision, single.result.precision)
        np.testing.assert_array_equal(result.scores, single.result.scores)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_without_images_and_failing_processes(distributed, world):
    for got in distributed[world]:
        assert got["never updated"][0]["AP"].isnan()
        assert got["never updated"][0]["images"] == 0
        assert got["failure"] == "no evaluation today"
