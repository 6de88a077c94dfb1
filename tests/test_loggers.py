"""What the loggers write, read back record by record from their own files; W&B offline, without an account."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from cvexp.data.shapes import ShapesData
from cvexp.errors import UserError
from cvexp.loggers import mlflow as mlflow_module
from cvexp.loggers import tensorboard as tensorboard_module
from cvexp.loggers.shown import Boxed, Captioned, Curves, class_map, markdown, shrunk
from cvexp.loggers.wandb import WandbRun, image_with_boxes, run_name, sync_command, wandb
from cvexp.types import Detection

CLASSES = ["ellipse", "rectangle", "triangle"]
Offline = Callable[..., WandbRun]


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record of the last W&B run below a run's folder."""
    parts = sorted(folder.glob("wandb/offline-run-*"))
    out = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(parts[-1])],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [json.loads(line) for line in out.splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["item"] for record in of_type(found, "history")]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for record in of_type(found, "summary"):
        merged |= record.get("update", {})
    return merged


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Offline]:
    """``begin(**settings)``: an offline W&B logger in ``tmp_path``, ended when the test is."""
    begun: list[WandbRun] = []

    def started(**settings: Any) -> WandbRun:
        begun.append(wandb(str(tmp_path), mode="offline", **settings))
        return begun[-1]

    yield started
    for logger in begun:
        logger.finish()


def drawn(masks: bool = False) -> Boxed:
    """An image of `shapes` with its objects; found are all of them, and the first once more."""
    image, target = ShapesData(train_size=4, val_size=4, test_size=4, masks=masks).load("val").read(1)
    order = [*range(len(target)), 0]
    scores = torch.linspace(0.9, 0.4, len(order))
    found = Detection(target.boxes[order] + 0.25, scores, target.labels[order])
    return Boxed(image, target, found, "one.png (id 1)")


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """Three epochs of a tiny detector on W&B: its folder, its records, its results."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from cvexp.config import conf_dir
    from cvexp.train import train

    folder = tmp_path_factory.mktemp("loggers") / "the_run"
    words = [
        *(word for word in tiny if word != "callbacks.report=null"),
        *("trainer.max_epochs=3", "trainer.log_every_n_steps=1", "data.val_size=6", "callbacks.dashboard.images=3"),
        "callbacks.dashboard.threshold=0.0", "callbacks.dashboard.most=5", "logger=wandb", "logger.wandb.tags=[a,b]",
        "logger.wandb.group=g", "logger.wandb.notes=why", "logger.wandb.artifacts=all", f"paths.output={folder}",
    ]  # fmt: skip
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        results = train(hydra.compose("train", words))
    return folder, records(folder), results


def test_who_the_run_is(run) -> None:
    folder, found, _ = run
    (about,) = of_type(found, "run")
    assert about["display_name"] == "the_run"
    assert (about["project"], about["run_group"], about["job_type"]) == ("cvexp", "g", "train")
    assert (about["tags"], about["notes"]) == (["a", "b"], "why")
    assert (folder / "wandb_run.txt").read_text().strip() == about["run_id"]
    config: dict[str, Any] = {}
    for record in of_type(found, "config"):
        config |= record.get("update", {})
    assert config["model"]["_target_"] == "cvexp.models.yolo.v1.YOLOv1"
    assert config["callbacks"]["dashboard_best"]["monitor"] == "val/AP", "resolved"
    assert "${" not in json.dumps({key: value for key, value in config.items() if not key.startswith("_wandb")})
    assert of_type(found, "exit")[-1].get("exit_code", 0) == 0


def test_everything_has_the_one_axis(run) -> None:
    """W&B's own step, which its media panels know alone, is the trainer's; it never falls, and media stand at their scores."""
    _, found, _ = run
    history = rows(found)
    steps = [row["_step"] for row in history]
    assert steps == sorted(set(steps)) == list(range(7)), "two steps in each of three epochs, then the test"
    assert [row["trainer/global_step"] for row in history] == steps
    assert [row["_step"] for row in history if "val/AP" in row] == [1, 3, 5]
    assert [row["_step"] for row in history if row.get("val/images._type") == "images/separated"] == [1, 3, 5]
    assert {"test/AP", "test/images._type", "test/classes._type", "test/pr_curves_table._type"} <= history[-1].keys()
    figures = {f"test/report/{name}._type" for name in ("pr_curves", "f1_confidence", "confusion", "errors", "sizes")}
    assert figures <= history[-1].keys()  # the report's figures
    assert {"test/definitions/voc07", "test/errors/missed/dAP", "test/F1/best"} <= history[-1].keys()
    globs = [m for m in of_type(found, "metric") if m.get("glob_name") == "*"]
    assert [m["step_metric"] for m in globs] == ["trainer/global_step"]


def test_the_same_images_at_each_validation(run) -> None:
    _, found, _ = run
    shown = [row["val/images.captions"] for row in rows(found) if "val/images._type" in row]
    assert len(shown) == 3
    assert shown[0] == shown[1] == shown[2]
    assert [caption.split("id ")[1] for caption in shown[0]] == ["0)", "2)", "5)"], (
        "0, 2.5 rounded to even, and 5 of 0..5"
    )


def test_boxes_are_the_ground_truths(run) -> None:
    """Both sets in one panel with class names; the numbers are those of the annotations, in pixels of the image."""
    folder, found, _ = run
    (files,) = folder.glob("wandb/offline-run-*/files")
    shown = [row["val/images.all_boxes"] for row in rows(found) if "val/images._type" in row]
    source = ShapesData(train_size=16, val_size=6, test_size=4).load("val")
    for boxes in shown:
        for position, both in zip((0, 2, 5), boxes, strict=True):
            truth, guess = (
                json.loads((files / both[name]["path"]).read_text()) for name in ("ground_truth", "predictions")
            )
            assert truth["class_labels"] == guess["class_labels"] == {"1": "ellipse", "2": "rectangle", "3": "triangle"}
            target = source.read(position)[1]
            corners = [
                [box["position"][side] for side in ("minX", "minY", "maxX", "maxY")] for box in truth["box_data"]
            ]
            assert np.allclose(np.reshape(corners, (-1, 4)), target.boxes.numpy(), atol=0.01)
            assert [box["class_id"] - 1 for box in truth["box_data"]] == target.labels.tolist()
            assert [box["box_caption"] for box in truth["box_data"]] == [CLASSES[i] for i in target.labels]
            assert 0 < len(guess["box_data"]) <= 5
            for box in guess["box_data"]:
                assert box["domain"] == "pixel"
                assert 0 <= box["scores"]["score"] <= 1
                assert box["box_caption"].startswith(CLASSES[box["class_id"] - 1])


def test_the_summary_is_of_the_best_validation(run) -> None:
    _, found, results = run
    values = {row["_step"]: row["val/AP"] for row in rows(found) if "val/AP" in row}
    best = max(values, key=lambda step: values[step])
    told = summary(found)
    assert told["val/AP"] == pytest.approx(values[best])
    assert (told["best/step"], told["best/epoch"]) == (best, best // 2)
    assert told["val/AP"] == pytest.approx(results["val/best"])
    (row,) = [row for row in rows(found) if row["_step"] == best]
    for name in ("val/loss", "val/AP50", "val/AP50/triangle"):  # all of one validation
        assert told[name] == pytest.approx(row[name])
    assert told["test/AP"] == pytest.approx(results["test/AP"])


def test_classes_and_curves_of_the_test(run) -> None:
    folder, found, results = run
    (files,) = folder.glob("wandb/offline-run-*/files")
    last = rows(found)[-1]
    table = json.loads((files / last["test/classes.path"]).read_text())
    assert table["columns"] == ["class", "AP", "AP50", "objects"]
    truth = ShapesData(train_size=16, val_size=6, test_size=4).load("test").ground_truth()
    for label, (name, ap, ap50, objects) in enumerate(table["data"]):
        assert name == CLASSES[label]
        assert objects == int((truth.labels == label).sum())
        for value, key in ((ap, "AP"), (ap50, "AP50")):
            expected = results[f"test/{key}/{name}"]
            assert value is None if expected != expected else value == pytest.approx(expected)
    points = json.loads((files / last["test/pr_curves_table.path"]).read_text())
    assert {row[points["columns"].index("lineKey")] for row in points["data"]} <= set(CLASSES)
    assert len(points["data"]) > 0


def test_system_metrics_are_on(run) -> None:
    assert any("memory_percent" in record["item"] for record in of_type(run[1], "stats"))


def test_checkpoints_are_artifacts_with_aliases(run) -> None:
    """``all``: a version for each new best, then the last one."""
    _, found, _ = run
    models = [artifact for artifact in of_type(found, "artifact") if artifact["type"] == "model"]
    values = {row["_step"]: row["val/AP"] for row in rows(found) if "val/AP" in row}
    better = [step for step in values if all(values[step] > values[s] for s in values if s < step)]
    best = [artifact for artifact in models if "best" in artifact["aliases"]]
    assert [f"step-{step}" in artifact["aliases"] for step, artifact in zip(better, best, strict=True)] == [True] * len(
        best
    )
    assert "last" in models[-1]["aliases"]
    files = [entry["path"] for artifact in models for entry in artifact["manifest"]["contents"]]
    assert files == ["best.ckpt"] * len(best) + ["last.ckpt"]
    about = json.loads(best[-1]["metadata"])
    assert about["monitor"] == "val/AP"
    assert about["score"] == pytest.approx(max(values.values()))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),  # finished
        (ValueError("broken"), 1),  # failed
        (SystemExit(143), 143),  # SIGTERM: preempted
    ],
)
def test_the_end_is_told(error: BaseException | None, code: int, compose: Callable[..., Any], tmp_path: Path) -> None:
    from cvexp.build import open_loggers

    with pytest.raises(type(error)) if error else nullcontext(), open_loggers(compose("logger=wandb")):
        if error:
            raise error
    found = records(tmp_path)
    assert of_type(found, "exit")[-1].get("exit_code", 0) == code
    assert len(of_type(found, "preempting")) == (code == 143)


def test_a_logger_that_is_refused_ends_those_before_it(
    compose: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named after W&B, whose run has begun by then."""
    from hydra.errors import InstantiationException

    from cvexp.build import check_loggers, open_loggers

    config = compose("logger=[wandb,tensorboard]")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"Fix: pip install"):
        check_loggers(config)
    assert not (tmp_path / "wandb").exists(), "asked without opening anything"
    with pytest.raises(InstantiationException), open_loggers(config):
        pass
    assert of_type(records(tmp_path), "exit")[-1]["exit_code"] == 1


# -- W&B: the axis, the end, going on ----------------------------------------------------------------------------------


class Noted:
    """Takes the place of W&B's run and notes what it is told."""

    id = "abc"

    def __init__(self, resumed: bool = False, starting_step: int = 0) -> None:
        self.resumed, self.starting_step = resumed, starting_step
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.artifacts: list[tuple[dict[str, Any], list[str]]] = []
        self.ended: list[int] = []

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, {k: v for k, v in values.items() if k != "trainer/global_step"}))
        assert values["trainer/global_step"] == step

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self.artifacts.append((artifact.metadata, aliases))

    def mark_preempting(self) -> None:
        self.ended.append(-1)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def test_repeated_steps_are_not_sent_again(tmp_path: Path) -> None:
    """W&B had steps 0..9 when the run was killed; it goes on from its checkpoint at step 7, and the test may be new."""
    note = Noted(resumed=True, starting_step=10)
    logger = WandbRun(str(tmp_path), "p", note)
    for step in (7, 8, 9, 10):
        logger.log_metrics({"train/loss": step}, step)
    assert note.logged == [(10, {"train/loss": 10})]
    late = WandbRun(str(tmp_path), "p", (note := Noted(resumed=True, starting_step=10)))
    late.log_metrics({"test/AP": 0.5}, 9)
    assert note.logged == [(10, {"test/AP": 0.5})]


def test_a_new_run_begins_at_its_own_step(tmp_path: Path) -> None:
    note = Noted(resumed=False, starting_step=99)
    WandbRun(str(tmp_path), "p", note).log_metrics({"a": 1}, 0)
    assert note.logged == [(0, {"a": 1})]


def test_a_further_stage_follows_the_first(tmp_path: Path) -> None:
    """A recipe's second trainer counts from 0 again; W&B would drop what falls behind."""
    note = Noted()
    logger = WandbRun(str(tmp_path), "p", note)
    for step in (0, 4, 3):  # 3: out of order within one stage stays at the end
        logger.log_metrics({"a": step}, step)
    logger.log_metrics({"b": 1})  # no step: where we are
    logger.finalize("success")
    for step in (0, 2):
        logger.log_metrics({"c": step}, step)
    assert note.logged == [(0, {"a": 0}), (4, {"a": 4}), (4, {"a": 3}), (4, {"b": 1}), (5, {"c": 0}), (7, {"c": 2})]


def test_the_test_after_training_stays_at_its_step(tmp_path: Path) -> None:
    note = Noted()
    logger = WandbRun(str(tmp_path), "p", note)
    logger.log_metrics({"a": 1}, 4)
    logger.finalize("success")
    logger.log_metrics({"test/AP": 1}, 5)
    assert note.logged[-1] == (5, {"test/AP": 1})


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        (0, [0]),  # finished
        (1, [1]),  # failed
        (143, [-1, 143]),  # SIGTERM: preempted
    ],
)
def test_how_a_run_ended(code: int, ended: list[int], tmp_path: Path) -> None:
    note = Noted()
    WandbRun(str(tmp_path), "p", note).finish(code)
    assert note.ended == ended


class Keeper:
    """What Lightning's ModelCheckpoint says of itself."""

    monitor, best_model_score = "val/AP", torch.tensor(0.25)

    def __init__(self, folder: Path) -> None:
        self.best_model_path = str(folder / "best.ckpt")


@pytest.mark.parametrize(
    ("artifacts", "expected"),
    [
        ("none", []),
        ("best", [["best", "step-6"]]),  # once, when training has ended
        ("all", [["best", "step-3"], ["best", "step-6"], ["last", "step-6"]]),
    ],
)
def test_which_checkpoints_are_uploaded(artifacts: Any, expected: list[list[str]], tmp_path: Path) -> None:
    note = Noted()
    logger = WandbRun(str(tmp_path), "p", note, artifacts)
    for step in (3, 6):
        logger.log_metrics({"val/AP": 0.1}, step)
        (tmp_path / "best.ckpt").write_bytes(bytes(step))
        logger.after_save_checkpoint(Keeper(tmp_path))
        logger.after_save_checkpoint(Keeper(tmp_path))  # nothing new
    (tmp_path / "last.ckpt").write_bytes(b"x")
    logger.finalize("success")
    logger.finalize("success")  # after the test: nothing new
    assert [aliases for _, aliases in note.artifacts] == expected
    for about, aliases in note.artifacts:
        assert about["score"] == (0.25 if "best" in aliases else None)


def test_a_failed_run_uploads_nothing_at_its_end(tmp_path: Path) -> None:
    note = Noted()
    logger = WandbRun(str(tmp_path), "p", note, "best")
    (tmp_path / "best.ckpt").write_bytes(b"x")
    logger.after_save_checkpoint(Keeper(tmp_path))
    logger.finalize("failed")
    assert note.artifacts == []


def test_a_run_goes_on_in_its_folder(begin: Offline, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = begin()
    first.log_metrics({"a": 1.0}, 0)
    first.finish(1)
    kept = (tmp_path / "wandb_run.txt").read_text()
    second = begin()
    second.log_metrics({"a": 2.0}, 1)
    second.finish()
    assert (tmp_path / "wandb_run.txt").read_text() == kept == f"{first.version}\n"
    parts = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(parts) == 2
    found = records(tmp_path)
    (about,) = of_type(found, "run")
    assert about["run_id"] == first.version
    assert about["resume"] is True
    line = sync_command(tmp_path, str(first.version))
    assert line == " ".join(["wandb", "sync", *map(str, parts)])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("a/b", id="a path"),
        pytest.param("x" * 200, id="too long"),
        pytest.param("two\nlines", id="two lines"),
    ],
)
def test_a_file_without_an_id_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "wandb_run.txt").write_text(content)
    with pytest.raises(UserError, match=r"wandb_run\.txt: .* is no id of a W&B run\. Fix: "):
        wandb(str(tmp_path), mode="offline")
    assert not (tmp_path / "wandb").exists()


def test_a_disabled_run_leaves_nothing(tmp_path: Path) -> None:
    logger = wandb(str(tmp_path), mode="disabled")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish()
    assert not (tmp_path / "wandb_run.txt").exists()


def test_no_server_means_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal at the beginning is one line and an offline run, not an error."""
    import wandb as library

    real = library.init

    def refuse(**settings: Any) -> Any:
        if settings["mode"] == "online":
            raise library.errors.CommError("no route to host\nand much more")
        return real(**settings)

    monkeypatch.setattr(library, "init", refuse)
    logger = wandb(str(tmp_path), mode="online")
    logger.finish()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/yolo-voc/2026-01-31_10-00-00", "2026-01-31_10-00-00"),
        ("runs/sweeps/2026-01-31_10-00-00/3", "2026-01-31_10-00-00/3"),  # a sweep's job
    ],
)
def test_names_of_runs(folder: str, name: str) -> None:
    assert run_name(Path(folder)) == name


def test_unknown_artifacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"artifacts=some .*Fix: logger\.wandb\.artifacts=best"):
        wandb(str(tmp_path), artifacts="some")  # type: ignore[arg-type]


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_masks_are_sent_with_their_boxes(begin: Offline, tmp_path: Path) -> None:
    """Drawn masks: truth and a perfect detection have the same map, 0 outside and label + 1 inside."""
    shown = drawn(masks=True)
    target = shown.target
    assert target.masks is not None
    assert len(target) > 0
    crops = []
    for box, mask in zip(target.boxes, target.masks, strict=True):  # each box's mask on a grid of its own pixels
        x1, y1, x2, y2 = (int(v) for v in box)
        crop = mask[y1:y2, x1:x2].float()[None, None]
        crops.append(torch.nn.functional.interpolate(crop, (56, 56), mode="nearest")[0, 0])
    found = Detection(target.boxes, torch.ones(len(target)), target.labels, torch.stack(crops))
    logger = begin()
    logger.show_images("val/images", [Boxed(shown.image, target, found, "one")], CLASSES, 3, 0.5)
    logger.finish()
    (row,) = rows(records(tmp_path))
    assert row["_step"] == 3
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    both = row["val/images.all_masks"][0]
    truth, guess = (np.asarray(Image.open(files / both[name]["path"])) for name in ("ground_truth", "predictions"))
    assert set(np.unique(truth)) == {0, *(label + 1 for label in target.labels.tolist())}
    assert (truth == class_map(target.masks, target.labels)).all()
    assert ((truth > 0) == (guess > 0)).mean() > 0.97


def test_no_object_and_no_detection() -> None:
    """Both sets are there, empty, with their class names."""
    shown = drawn()
    none = torch.zeros(0, dtype=torch.int64)
    empty = Boxed(shown.image, drawn().target, Detection.empty(), "x")
    for name in ("boxes", "labels", "difficult", "crowd", "area"):
        setattr(empty.target, name, getattr(empty.target, name)[none])
    image = image_with_boxes(empty, CLASSES)
    assert {name: boxes._val for name, boxes in image._boxes.items()} == {"ground_truth": [], "predictions": []}


def test_ignored_objects_say_so() -> None:
    shown = drawn()
    shown.target.difficult = torch.ones(len(shown.target), dtype=torch.bool)
    image = image_with_boxes(shown, CLASSES)
    assert all(box["box_caption"].endswith(" (ignored)") for box in image._boxes["ground_truth"]._val)
    assert not any("ignored" in box["box_caption"] for box in image._boxes["predictions"]._val)


def test_large_images_shrink_with_their_boxes() -> None:
    shown = drawn(masks=True)
    height, width = shown.image.shape[1:]
    half = shrunk(shown, max(height, width) // 2)
    assert half.image.shape == (3, height // 2, width // 2)
    assert half.image.dtype == torch.uint8
    assert torch.allclose(half.target.boxes, shown.target.boxes / 2)
    assert torch.allclose(half.found.boxes, shown.found.boxes / 2)
    assert half.target.masks is not None
    assert half.target.masks.shape[1:] == half.image.shape[1:]
    assert shrunk(shown, 4000) is shown


def test_the_surest_mask_is_on_top() -> None:
    masks = torch.tensor([[[True, True, False]], [[False, True, True]]])
    assert class_map(masks, torch.tensor([4, 0])).tolist() == [[5, 5, 1]]
    assert class_map(masks, torch.tensor([255, 0])).tolist() == [[0, 1, 1]], "a byte holds no 256"


def test_tables_as_text() -> None:
    text = markdown(["class", "AP"], [("a|b", 0.5), ("c", float("nan"))])
    assert text.splitlines() == ["| class | AP |", "| --- | --- |", "| a\\|b | 0.5000 |", "| c | none |"]


# -- other loggers -----------------------------------------------------------------------------------------------------

here = partial(importlib.util.find_spec)
needs_tensorboard = pytest.mark.skipif(here("tensorboard") is None, reason="the extra `tensorboard` is not installed")
needs_mlflow = pytest.mark.skipif(
    not (here("mlflow") and here("sqlalchemy")), reason="the extra `mlflow` is not installed"
)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["logger=csv"], {"csv"}),
        (["logger=wandb"], {"csv", "wandb"}),  # csv stays
        (["logger=[csv,mlflow,wandb,tensorboard]"], {"csv", "wandb", "tensorboard", "mlflow"}),  # csv named twice
    ],
)
def test_several_loggers_at_once(words: list[str], names: set[str], compose: Callable[..., Any]) -> None:
    from cvexp.build import SUPPLIED
    from cvexp.config import check_config, check_overrides

    check_overrides(words)
    config = compose(*words)
    check_config(config, supplied=SUPPLIED)
    assert set(config.logger) == names


@pytest.mark.parametrize("module", [tensorboard_module, mlflow_module])
def test_a_missing_package_says_what_to_install(module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = module.__name__.split(".")[-1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf'logger={name}: .*Fix: pip install "cvexp\[{name}\]"'):
        getattr(module, name)(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def everything(logger: Any, step: int) -> None:
    """One of each kind of what can be shown."""
    picture = Captioned(Image.new("RGB", (8, 8), "red"), "red")
    logger.log_metrics({"val/AP": 0.5, "all_pairs/TAR@1e-2": 0.1}, step)
    logger.show_images("val/images", [drawn()], CLASSES, step, 0.3)
    logger.show_pictures("val/pairs", [picture, picture], step)
    logger.show_table("test/classes", ["class", "AP"], [("cat", float("nan")), ("dog", 0.5)], step)
    logger.show_curves("test/pr_curves", Curves("t", "x", "y", {"cat": ([0.0, 1.0], [1.0, 0.5])}), step)
    logger.show_best({"val/AP": 0.5}, step, 1)


@needs_tensorboard
def test_tensorboard_is_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = tensorboard_module.tensorboard(str(tmp_path))
    logger.log_hyperparams({"model": {"size": "tiny"}, "tags": [1, 2]})
    everything(logger, 3)
    everything(logger, 7)
    logger.finish()
    again = tensorboard_module.tensorboard(str(tmp_path))  # killed after step 7, goes on from 5
    again.rewind(5)
    again.log_metrics({"val/AP": 0.6}, 6)
    again.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("val/AP")] == [(3, 0.5), (6, 0.6)]
    assert [e.step for e in events.Images("val/images")] == [3]
    assert {"val/images", "val/pairs/0", "val/pairs/1", "test/pr_curves"} <= set(events.Tags()["images"])
    assert b"none" in events.Tensors("test/classes/text_summary")[0].tensor_proto.string_val[0]


@needs_mlflow
def test_mlflow_is_read_back(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    logger = mlflow_module.mlflow(str(tmp_path / "a_run"), tags={"who": "me"})
    logger.log_hyperparams({"model": {"size": "tiny"}, "epochs": 2, "long": "x" * 999})
    everything(logger, 3)
    logger.finish(1)
    client = MlflowClient(f"sqlite:///{tmp_path / 'a_run/mlflow.db'}")
    run_id = (tmp_path / "a_run/mlflow_run.txt").read_text().strip()
    assert client.get_run(run_id).info.status == "FAILED"
    again = mlflow_module.mlflow(str(tmp_path / "a_run"))
    again.log_hyperparams({"model": {"size": "tiny"}, "epochs": 5, "new": 1})  # a resumed run may train longer
    again.log_metrics({"val/AP": 0.6}, 6)
    again.finish()
    found = client.get_run(run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "a_run")
    params = found.data.params
    assert (params["model.size"], params["epochs"], params["new"], len(params["long"])) == ("tiny", "2", "1", 250)
    assert (found.data.tags["resumed/epochs"], found.data.tags["who"]) == ("5", "me")
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "val/AP")] == [(3, 0.5), (6, 0.6)]
    assert found.data.metrics["best/val/AP"] == 0.5
    assert found.data.metrics["all_pairs/TAR_1e-2"] == 0.1
    files = tmp_path / "a_run/mlflow_artifacts" / run_id / "artifacts"
    kept = {path.relative_to(files).as_posix() for path in files.rglob("*.*")}
    assert kept == {
        "val/images/00000003.png", "val/pairs/00000003.0.png", "val/pairs/00000003.1.png", "test/classes/00000003.json",
        "test/pr_curves/00000003.png",
    }  # fmt: skip
    (tmp_path / "a_run/mlflow_run.txt").write_text("0" * 32)
    with pytest.raises(UserError, match=r"MLflow at sqlite:.*Fix: remove .*mlflow_run\.txt"):
        mlflow_module.mlflow(str(tmp_path / "a_run"))


def test_other_processes_leave_mlflow_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would create the database at the same time."""
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(mlflow_module, "check", lambda: None)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = mlflow_module.mlflow(str(tmp_path))
    assert isinstance(logger, Logger)
    everything(logger, 1)
    assert list(tmp_path.iterdir()) == []
