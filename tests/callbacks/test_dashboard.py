"""What the dashboard callbacks hand to the loggers: which images and pairs, which detections, tables, curves, best values."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.loggers.logger import Logger

from cvexp.callbacks.best_values import BestValues
from cvexp.callbacks.dashboard import (
    Dashboard,
    class_rows,
    evenly_spread,
    gathered,
    name_of,
    objects_by_class,
    precision_recall,
    sure,
)
from cvexp.callbacks.dashboard_faces import FaceDashboard, fixed_pairs, judged_pair
from cvexp.data.shapes import ShapesData
from cvexp.errors import UserError
from cvexp.loggers.shown import Boxed, Captioned, Curves, Shows
from cvexp.metrics.detection import DetectionMAP
from cvexp.types import Batch, Detection, FaceTruth, GroundTruth, Pairs
from cvexp.viz.faces import RIGHT, WRONG


class Noted(Logger, Shows):
    """A logger that keeps what it is shown."""

    name = version = None

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[str, list[int]] = {}
        self.shown: list[tuple[str, int, Any]] = []
        self.best: list[tuple[dict[str, float], int, int]] = []

    def log_hyperparams(self, *_: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name in metrics:
            self.scalars.setdefault(name, []).append(-1 if step is None else step)

    def show_images(self, key: str, images: Sequence[Boxed], classes: Sequence[str], step: int, drawn: float) -> None:
        self.shown.append((key, step, list(images)))

    def show_pictures(self, key: str, pictures: Sequence[Captioned], step: int) -> None:
        self.shown.append((key, step, list(pictures)))

    def show_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self.shown.append((key, step, [list(columns), *map(list, rows)]))

    def show_curves(self, key: str, curves: Curves, step: int) -> None:
        self.shown.append((key, step, curves))

    def show_best(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        self.best.append((dict(values), step, epoch))

    def finish(self, code: int = 0) -> None: ...

    def of(self, key: str) -> list[tuple[int, Any]]:
        return [(step, what) for name, step, what in self.shown if name == key]


def data() -> ShapesData:
    return ShapesData(train_size=4, val_size=7, test_size=5, batch_size=3, num_workers=0)


def trainer(logger: Any, step: int = 5, **more: Any) -> Any:
    """As much of a trainer as the callbacks ask for."""
    state = {
        "is_global_zero": True, "sanity_checking": False, "fast_dev_run": 0, "loggers": [logger], "world_size": 1,
        "num_val_batches": [3], "num_test_batches": [2], "datamodule": data(), "current_epoch": 2, "callback_metrics": {},
        "fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=step)),
    }  # fmt: skip
    return SimpleNamespace(**state | more)


def measure(callback: Dashboard, at: Any, split: str = "val", module: Any = None) -> None:
    """Hands all batches of a split to the callback, with every object found, at scores 0.9, 0.5, 0.1, -0.3 ..."""
    hook = {"val": "validation", "test": "test"}[split]
    getattr(callback, f"on_{hook}_start")(at, module)
    source = at.datamodule.source(split)
    for start in range(0, len(source), 3):
        samples = [source.read(i) for i in range(start, min(start + 3, len(source)))]
        targets = [target for _, target in samples]
        found = [Detection(t.boxes, 0.9 - 0.4 * torch.arange(len(t)), t.labels) for t in targets]
        images = torch.stack([image for image, _ in samples])
        getattr(callback, f"on_{hook}_batch_end")(at, module, found, Batch(images, targets), start // 3)
    getattr(callback, f"on_{hook}_end")(at, module)


# -- detection ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "positions"),
    [
        (3, 10, [0, 4, 9]),
        (1, 10, [0]),
        (9, 3, [0, 1, 2]),  # more than there are
        (0, 10, []),
        (3, 0, []),  # an empty split
    ],
)
def test_positions(count: int, size: int, positions: list[int]) -> None:
    assert evenly_spread(count, size) == positions


def test_the_same_images_and_only_sure_detections() -> None:
    logger, callback = Noted(), Dashboard(images=3, threshold=0.45)
    for step in (5, 9):
        measure(callback, trainer(logger, step))
    assert [step for step, _ in logger.of("val/images")] == [5, 9]
    source = data().source("val")
    for _, shown in logger.of("val/images"):
        assert [int(image.name.split("id ")[1].rstrip(")")) for image in shown] == [0, 3, 6]
        for position, image in zip((0, 3, 6), shown, strict=True):
            picture, target = source.read(position)
            assert torch.equal(image.image, picture)
            assert torch.equal(image.target.boxes, target.boxes)
            assert len(image.found) == min(len(target), 2), "scores 0.9 and 0.5, not 0.1"
            assert torch.equal(image.found.boxes, target.boxes[:2])


@pytest.mark.parametrize(
    ("scores", "threshold", "most", "kept"),
    [
        ([0.9, 0.5, 0.1], 0.5, 9, 2),  # on the threshold
        ([0.9, 0.5, 0.1], 0.0, 1, 1),
        ([0.2], 0.5, 9, 0),
        ([], 0.0, 9, 0),  # nothing found
    ],
)
def test_sure_detections(scores: list[float], threshold: float, most: int, kept: int) -> None:
    count = len(scores)
    found = Detection(torch.rand(count, 4), torch.tensor(scores), torch.arange(count), torch.rand(count, 2, 2))
    left = sure(found, threshold, most)
    assert (len(left.boxes), len(left.scores), len(left.labels)) == (kept, kept, kept)
    assert left.masks is not None
    assert len(left.masks) == kept
    assert left.labels.tolist() == list(range(kept))


@pytest.mark.parametrize(
    "state",
    [
        {"loggers": []},  # csv alone shows nothing
        {"sanity_checking": True},
        {"fast_dev_run": 1},
        {"is_global_zero": False},  # another process
    ],
)
def test_nobody_is_shown_anything(state: dict[str, Any]) -> None:
    logger = Noted()
    measure(Dashboard(), trainer(logger, **state))
    assert logger.shown == []


def test_a_limited_run_shows_what_it_has_seen() -> None:
    """One batch of three: positions 0, 1, 2 and not the whole split's."""
    logger = Noted()
    measure(Dashboard(images=2), trainer(logger, num_val_batches=[1]))
    ((_, shown),) = logger.of("val/images")
    assert [image.name.split("id ")[1] for image in shown] == ["0)", "2)"]


def test_table_and_curves_after_the_test() -> None:
    logger, metric = Noted(), DetectionMAP()
    source = data().source("test")
    metric.set_ground_truth(source.ground_truth())
    for position in range(len(source)):
        target = source.read(position)[1]
        perfect = Detection(target.boxes, torch.full((len(target),), 0.9), target.labels)
        metric.update([target.image_id], [perfect])
    metric.compute()
    measure(Dashboard(images=2), trainer(logger), "test", SimpleNamespace(metric=metric))
    ((step, table),) = logger.of("test/classes")
    labels = source.ground_truth().labels
    assert step == 5
    assert table[0] == ["class", "AP", "AP50", "objects"]
    for label, row in enumerate(table[1:]):
        assert row == [source.classes[label], pytest.approx(1), pytest.approx(1), int((labels == label).sum())]
    ((_, curves),) = logger.of("test/pr_curves")
    assert list(curves.lines) == list(source.classes)
    assert all(len(xs) == 101 and set(ys) == {1.0} for xs, ys in curves.lines.values())
    assert len(logger.of("test/images")) == 1


def truth() -> GroundTruth:
    """Two images (ids 7, 3); objects of classes 0, 1, 1, 0 in 7, 7, 3, 3, the second difficult, the last a crowd."""
    difficult, crowd = torch.tensor([False, True, False, False]), torch.tensor([False, False, False, True])
    columns = {
        "classes": ["a", "b", "c"], "image_ids": torch.tensor([7, 3]), "sizes": torch.full((2, 2), 9),
        "image_index": torch.tensor([0, 0, 1, 1]), "boxes": torch.zeros(4, 4).double(),
        "labels": torch.tensor([0, 1, 1, 0]), "difficult": difficult, "crowd": crowd, "area": torch.ones(4),
    }  # fmt: skip
    return GroundTruth(**columns)


@pytest.mark.parametrize(
    ("seen", "ignore", "counts"),
    [
        ({7, 3}, True, [1, 1, 0]),  # neither the difficult nor the crowd
        ({7, 3}, False, [1, 2, 0]),  # metric.difficult=count
        ({7}, True, [1, 0, 0]),  # a limited test
        (set(), True, [0, 0, 0]),
    ],
)
def test_objects_by_class(seen: set[int], ignore: bool, counts: list[int]) -> None:
    assert objects_by_class(truth(), seen, ignore) == counts


class Result:
    """Three classes at recalls 0, 0.5, 1: perfect, reaching half, without objects."""

    classes = ("a", "b", "c")

    def __init__(self, thresholds: list[float]) -> None:
        self.iou_thresholds = np.array(thresholds)

    def curves(self, iou: float) -> tuple[np.ndarray, ...]:
        assert iou in self.iou_thresholds
        precision = np.array([[1.0, 1, 1], [0.8, 0.4, 0], [np.nan] * 3])
        return np.array([0, 0.5, 1]), precision, precision

    def average_precision(self, iou: float | None) -> np.ndarray:
        return np.array([0.7, 0.2, np.nan]) + (0.1 if iou else 0)


def test_curves_end_where_recall_does() -> None:
    curves = precision_recall(Result([0.5, 0.75]))
    assert curves.title.endswith("0.50")
    assert curves.lines == {"a": ([0, 0.5, 1], [1, 1, 1]), "b": ([0, 0.5], [0.8, 0.4])}, "c has no objects"
    assert precision_recall(Result([0.75])).title.endswith("0.75"), "where 0.5 was not evaluated"


def test_rows_of_classes() -> None:
    rows = class_rows(Result([0.5]), [3, 2, 0])
    assert [row[0] for row in rows] == ["a", "b", "c"]
    assert [row[3] for row in rows] == [3, 2, 0]
    assert rows[0][1:3] == (pytest.approx(0.7), pytest.approx(0.8))
    assert rows[2][1] != rows[2][1], "NaN, not 0"


def test_names_of_images() -> None:
    assert name_of(SimpleNamespace(names=["x.jpg", "y.jpg"]), 1, 9) == "y.jpg (id 9)"
    assert name_of(SimpleNamespace(), 1, 9) == "id 9"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": -1}, r"dashboard\.images=-1 is below 0\. Fix: "),
        ({"most": 0}, r"dashboard\.most=0 is below 1\. Fix: "),
        ({"side": 1}, r"dashboard\.side=1 is below 16\. Fix: "),
    ],
)
def test_numbers_that_mean_nothing(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dashboard(**settings)
    if "side" in settings:
        with pytest.raises(UserError, match=message):
            FaceDashboard(**settings)


def _two(rank: int, folder: str) -> None:
    """One of two processes: each has seen another half of the validation, and both have seen image 0."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=30))
    logger, callback = Noted(), Dashboard(images=7, threshold=0)
    at = trainer(logger, world_size=2, is_global_zero=rank == 0)
    callback.on_validation_start(at, None)  # type: ignore[arg-type]
    source = at.datamodule.source("val")
    for position in (0, 2, 4) if rank == 0 else (0, 1, 3, 5):
        image, target = source.read(position)
        found = Detection(torch.ones(1, 4), torch.tensor([0.5 + 0.1 * rank]), torch.zeros(1, dtype=torch.int64))
        callback.on_validation_batch_end(at, None, [found], Batch(image[None], [target]), 0)  # type: ignore[arg-type]
    callback.on_validation_end(at, None)  # type: ignore[arg-type]
    assert gathered(at, rank) == ([0, 1] if rank == 0 else [])
    torch.save(
        [(i.name, float(i.found.scores[0])) for _, shown in logger.of("val/images") for i in shown], f"{folder}/{rank}"
    )
    dist.destroy_process_group()


def test_two_processes_send_once(tmp_path: Path) -> None:
    """The first sends the images of both; of one that both have seen its own."""
    mp.start_processes(_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    shown = torch.load(tmp_path / "0", weights_only=True)
    assert torch.load(tmp_path / "1", weights_only=True) == []
    assert [name.split("id ")[1] for name, _ in shown] == ["0)", "1)", "2)", "3)", "4)", "5)"], "in order, each once"
    assert [round(score, 1) for _, score in shown] == [0.5, 0.6, 0.5, 0.6, 0.5, 0.6]


# -- faces -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("same", "count", "chosen"),
    [
        ([1, 0, 1, 0, 1, 0], 2, [0, 4, 1, 5]),  # the first and the last of each kind
        ([1, 1, 1], 2, [0, 2]),  # one kind only
        ([0, 1], 6, [1, 0]),  # fewer than asked for
        ([], 6, []),
    ],
)
def test_fixed_pairs(same: list[int], count: int, chosen: list[int]) -> None:
    assert fixed_pairs(torch.tensor(same, dtype=torch.bool), count) == chosen


def faces() -> tuple[Any, FaceTruth, Any]:
    """Images 10, 11 of Ann, 12 of Bob; three pairs in the list, the first of which was not judged."""
    pairs = Pairs(
        torch.tensor([12, 10, 10]), torch.tensor([11, 11, 12]), torch.tensor([False, True, False]), torch.zeros(3).long(),
        "list",
    )  # fmt: skip
    about = FaceTruth(torch.tensor([10, 11, 12]), torch.tensor([0, 0, 1]), ["Ann", "Bob"], torch.zeros(3).bool(), pairs)
    result = SimpleNamespace(
        index=np.array([1, 2]), scores=np.array([-0.25, -1.5]), same=np.array([True, False]), falling=True,
        measure="squared distance",
    )  # fmt: skip
    source = SimpleNamespace(read=lambda i: (torch.full((3, 8, 8), 60 * i, dtype=torch.uint8), 0, 10 + i))
    return result, about, source


@pytest.mark.parametrize(
    ("i", "threshold", "caption", "ink"),
    [
        (0, -1.0, "Ann (id 10), Ann (id 11): same person; squared distance 0.2500, taken for one: right", RIGHT),
        (0, -0.1, "Ann (id 10), Ann (id 11): same person; squared distance 0.2500, taken for two: wrong", WRONG),
        (1, -1.0, "Ann (id 10), Bob (id 12): two people; squared distance 1.5000, taken for two: right", RIGHT),
        (1, -2.0, "Ann (id 10), Bob (id 12): two people; squared distance 1.5000, taken for one: wrong", WRONG),
        (1, None, "Ann (id 10), Bob (id 12): two people; squared distance 1.5000", None),  # no threshold yet
    ],
)
def test_a_judged_pair(i: int, threshold: float | None, caption: str, ink: Any) -> None:
    shown = judged_pair(*faces(), i, threshold, 40)
    assert shown.caption == caption
    pixels = np.asarray(shown.picture)
    for colour in (RIGHT, WRONG):
        assert ((pixels == colour).all(axis=2).sum() > 200) == (colour == ink)


def test_pairs_at_each_validation() -> None:
    result, about, source = faces()
    module = SimpleNamespace(metric=SimpleNamespace(result=result, truth=about), verification={"threshold": -1.0})
    logger, callback = Noted(), FaceDashboard(pairs=2)
    for step in (3, 7):
        at = trainer(logger, step, datamodule=SimpleNamespace(source=lambda split: source))
        callback.on_validation_end(at, module)  # type: ignore[arg-type]
    assert [step for step, _ in logger.of("val/pairs")] == [3, 7]
    captions = [[pair.caption for pair in shown] for _, shown in logger.of("val/pairs")]
    assert captions[0] == captions[1]
    assert len(captions[0]) == 2
    empty = SimpleNamespace(same=np.array([]), scores=np.array([]))
    for nothing in (None, empty):  # a dry run, or one in which no pair was whole
        module.metric.result = nothing
        callback.on_validation_end(trainer(logger), module)  # type: ignore[arg-type]
    assert len(logger.shown) == 2


# -- the best values ---------------------------------------------------------------------------------------------------


def validated(callback: BestValues, logger: Noted, step: int, **values: float) -> None:
    metrics = {name.replace("_", "/", 1): torch.tensor(value) for name, value in values.items()}
    callback.on_validation_end(trainer(logger, step, callback_metrics=metrics, current_epoch=step // 2), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("max", [0.1, 0.5, 0.3], 1),
        ("min", [0.1, 0.5, 0.3], 0),
        ("max", [0.5, 0.5], 0),  # equal is not better: the checkpoint stays too
        ("max", [float("nan"), 0.2], 1),  # nothing to average at first
    ],
)
def test_the_best_validation(mode: Any, scores: list[float], best: int) -> None:
    logger, callback = Noted(), BestValues("val/AP", mode)
    for i, score in enumerate(scores):
        validated(callback, logger, 10 * i, val_AP=score, val_loss=float(i), train_loss=9.0)
    values, step, epoch = logger.best[-1]
    assert values == {"val/AP": pytest.approx(scores[best]), "val/loss": best}, "of one validation, and nothing else"
    assert (step, epoch) == (10 * best, 5 * best)
    assert len(logger.best) == sum(score == score for score in scores), "told after every validation"


def test_the_best_survives_a_resume(tmp_path: Path) -> None:
    logger, callback = Noted(), BestValues("val/AP")
    validated(callback, logger, 4, val_AP=0.6)
    torch.save(callback.state_dict(), tmp_path / "state")
    other, resumed = Noted(), BestValues("val/AP")
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    validated(resumed, other, 8, val_AP=0.5)
    assert other.best == [({"val/AP": pytest.approx(0.6)}, 4, 2)]


def test_a_monitor_that_is_not_logged_says_nothing() -> None:
    logger = Noted()
    validated(BestValues("val/AP"), logger, 4, val_loss=1.0)
    assert logger.best == []
    with pytest.raises(UserError, match=r"monitor_mode=best .*Fix: "):
        BestValues("val/AP", "best")  # type: ignore[arg-type]


# -- by the command ----------------------------------------------------------------------------------------------------


def test_facenet_shows_pairs_on_the_axis(compose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of a face run: pairs stand at the steps of the scores, the best values have the threshold's AUC."""
    from contextlib import contextmanager

    import cvexp.build
    from cvexp.train import train

    logger = Noted()

    @contextmanager
    def only(cfg: Any) -> Any:
        yield [logger]

    monkeypatch.setattr(cvexp.build, "open_loggers", only)
    train(
        compose(
            "model=facenet", "model.size=tiny", "data=drawn_faces", "data.batch_size=16", "data.train_identities=8",
            "data.val_identities=4", "data.test_identities=4", "data.train_images=4", "trainer.max_epochs=2",
            "trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false",
            "trainer.log_every_n_steps=1", "callbacks.dashboard.pairs=2",
        )
    )  # fmt: skip
    shown = logger.of("val/pairs")
    assert [step for step, _ in shown] == logger.scalars["val/AUC"]
    assert len(shown) == 2
    parts = [[pair.caption.split(":")[0] for pair in pairs] for _, pairs in shown]
    assert parts[0] == parts[1]
    assert [pair.caption.count("same person") for pair in shown[0][1]] == [1, 1, 0, 0]
    assert all("taken for" in pair.caption for pair in shown[0][1])
    assert {"val/AUC", "val/EER"} <= logger.best[-1][0].keys()
    assert {key for key, _, _ in logger.shown} == {"val/pairs", "test/roc", "test/embedding_map", "test/pairs"}
