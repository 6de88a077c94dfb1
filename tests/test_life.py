"""The life of a face run at tiny size: what it leaves behind, that a checkpoint is enough, that two processes equal one."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from kinds import models_of
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from cvexp import load
from cvexp.build import SUPPLIED, build_model, check_parts
from cvexp.config import Composer, check_config, check_overrides, conf_dir
from cvexp.data.drawn_faces import DrawnFacesData
from cvexp.errors import UserError
from cvexp.evaluate import evaluate
from cvexp.inference import Embedder
from cvexp.predict import predict
from cvexp.train import train

Compose = Callable[..., DictConfig]
Run = tuple[Path, dict[str, Any]]

# Small and on one processor; shared by every run here.
QUICK = (
    "model.size=tiny",
    "data.num_workers=0",
    "metric.resamples=50",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
)
# Eight people to train on (six steps), four to validate on, five to test on: about a second.
DRAWN = (
    *QUICK,
    "data=drawn_faces",
    "data.train_identities=8",
    "data.val_identities=4",
    "data.test_identities=5",
    "data.train_images=12",
    "data.val_images=4",
    "data.test_images=4",
    "data.batch_size=16",
    "data.pairs=20",
)
TINY = ("model=facenet", *DRAWN, "optimizer.lr=1e-2")
NO_PICTURES = "callbacks.pictures=null"  # where they are not the point: they take longer than the training


def _train(folder: Path, *overrides: str) -> dict[str, Any]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return train(hydra.compose("train", [*overrides, f"paths.output={folder}"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One tiny training: its folder and results."""
    folder = tmp_path_factory.mktemp("run")
    return folder, _train(folder, *TINY)


# Everything that can be chosen, chosen otherwise; a comparator that learns from the validation pairs.
OTHERWISE = (
    *TINY,
    "model/backbone=timm",
    "model.backbone.name=test_resnet",
    "model/miner=hardest",
    "model/comparator=siamese",
    "metric.fars=[0.1]",
    "task.far=0.1",
    "monitor=val/best_accuracy",
    "callbacks.health=null",
)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training with every component chosen on the command line."""
    folder = tmp_path_factory.mktemp("other")
    return folder, _train(folder, *OTHERWISE)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model that nothing trains, with random weights; 103 pixels are the fewest that it takes."""
    folder = tmp_path_factory.mktemp("measured")
    return folder, _train(folder, "model=face_resnet29", *DRAWN, "model.image_size=103")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's faces as PNG files, a folder for each person."""
    folder = tmp_path_factory.mktemp("album")
    source = drawn_test().source("test")
    for index, name in enumerate(source.names):
        path = folder / name.rpartition("_")[0] / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(source.read(index)[0].permute(1, 2, 0).numpy()).save(path)
    return folder


def drawn_test() -> DrawnFacesData:
    """The test of `DRAWN`, 5 people with 4 images and 20 + 20 pairs."""
    return DrawnFacesData(image_size=64, test_identities=5, test_images=4, pairs=20)


def best(run: Run) -> Path:
    return run[0] / "checkpoints" / "best.ckpt"


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def verification(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint knows of its validation."""
    return torch.load(checkpoint, weights_only=True)["cvexp"]["verification"]


def logged(folder: Path) -> dict[str, list[float]]:
    """Every column of ``metrics.csv`` with its values."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def scores(results: dict[str, Any], split: str = "test") -> dict[str, Any]:
    """What was measured, under names without the split; NaN compares equal."""
    return {
        name.removeprefix(f"{split}/"): None if math.isnan(value) else value
        for name, value in results.items()
        if name.startswith(f"{split}/") and not name.endswith(("seconds_per_image", "batch_size"))  # what it cost
    }


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind(run: Run) -> None:
    folder, results = run
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
        "alarms.txt",
        "git.diff",
    }
    pictures = {"roc.png", "embedding_map.png", "pairs.png"}
    tables = {"config.yaml", "manifest.json", "metrics.csv", "result.json", "evidence.npz"}
    assert files == {*pictures, *tables, "checkpoints/best.ckpt", "checkpoints/last.ckpt"}  # nothing half-written
    assert all((folder / name).stat().st_size > 0 for name in files)
    for name in pictures:
        assert min(Image.open(folder / name).size) > 200, name
    saved = json.loads((folder / "result.json").read_text())
    assert all(isinstance(value, int | float) for value in saved.values())  # flat
    assert saved == {name: value for name, value in results.items() if value == value}  # JSON has no NaN
    assert {"val/best", "test/accuracy", "test/AUC", "test/EER", "test/all_pairs/AUC", "test/rank1", "seed"} <= set(
        saved
    )
    assert (saved["data/classes"], saved["test/images"], saved["test/pairs"]) == (8, 20, 40)
    assert (saved["train/steps"], saved["train/images"]) == (6, 96)
    assert "${" not in (folder / "config.yaml").read_text()


def test_losses_and_diagnostics_are_logged_by_name(run: Run) -> None:
    columns = logged(run[0])
    train_columns = {name.removeprefix("train/") for name in columns if name.startswith("train/")}
    diagnostics = {"triplets", "active", "semi_hard", "positive_distance", "negative_distance", "spread", "margin"}
    assert train_columns == {"loss", "loss_triplet", "gradient_norm", *diagnostics}
    assert all(len(columns[f"train/{name}"]) == 6 for name in train_columns), "every step"
    assert columns["train/loss"] == columns["train/loss_triplet"]  # the one loss; diagnostics are no part of it
    assert min(columns["train/loss"]) > 0
    for name in ("active", "semi_hard"):  # shares
        assert all(0 <= value <= 1 for value in columns[f"train/{name}"]), name
    assert all(0 < value <= 1 for value in columns["train/spread"])  # of a sphere
    for name in ("positive_distance", "negative_distance"):  # squared, on the unit sphere
        assert all(0 < value <= 4 for value in columns[f"train/{name}"]), name
    assert {"val/AUC", "val/EER", "val/best_accuracy", "val/threshold", "val/all_pairs/AUC", "val/rank1"} <= set(
        columns
    )
    assert any(name.startswith("lr/") for name in columns)


def test_the_checkpoint_that_is_kept_is_the_monitored_one(run: Run, other: Run) -> None:
    for (folder, results), name in ((run, "val/AUC"), (other, "val/best_accuracy")):
        assert results["val/best"] == max(logged(folder)[name])


def test_a_run_repeats_by_seed(run: Run, tmp_path: Path) -> None:
    again = _train(tmp_path, *TINY, NO_PICTURES)
    assert scores(again) == scores(run[1])
    assert verification(tmp_path / "checkpoints/best.ckpt") == verification(best(run))
    first, second = weights(run[0]), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    before, after = logged(run[0]), logged(tmp_path)
    assert before["train/loss"] == after["train/loss"]  # the same triplets in every step


def test_another_seed_is_another_run(run: Run, tmp_path: Path) -> None:
    results = _train(tmp_path, *TINY, NO_PICTURES, "seed=1")
    first, second = weights(run[0]), weights(tmp_path)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert results["test/pairs"] == run[1]["test/pairs"]
    assert verification(tmp_path / "checkpoints/best.ckpt") != verification(best(run))


# --- the checkpoint --------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_plain_and_keeps_the_threshold(run: Run) -> None:
    about = torch.load(best(run), weights_only=True)["cvexp"]  # refuses anything but tensors and plain Python
    assert about["classes"] == [f"train_{k:04d}" for k in range(8)]
    assert about["config"]["model"]["_target_"] == "cvexp.models.facenet.FaceNet"
    assert type(about["config"]) is dict
    chosen = about["verification"]
    assert {"threshold", "shown", "measure", "chosen"} <= set(chosen)
    assert all(type(value) in (float, str) for value in chosen.values())
    assert chosen["threshold"] == -chosen["shown"] < 0  # a score rises with likeness, a distance falls
    assert chosen["shown"] == pytest.approx(run[1]["test/threshold"], abs=1e-6)  # the test's is the validation's
    assert chosen["measure"] == "squared distance"
    accuracy = logged(run[0])["val/best_accuracy"][-1]
    assert chosen["chosen"].startswith(f"best accuracy, {accuracy:.3f}, on the 40 pairs of 4 drawn people")


def test_a_false_accept_rate_that_was_asked_for(other: Run) -> None:
    """0.1 of 20 different pairs are two."""
    chosen = verification(best(other))
    assert chosen["chosen"].startswith("false accepts of at most 0.1 on the 40 pairs of 4 drawn people")
    assert "test/TAR@1e-1" in other[1]
    assert "test/TAR@1e-2" not in other[1]


@pytest.mark.parametrize("name", ["run", "other", "measured"])
def test_evaluate_rebuilds_everything_from_the_checkpoint(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """To the last digit, with weights of a comparator that were fitted on the validation, and of a network never trained."""
    trained: Run = request.getfixturevalue(name)
    results, output = evaluate([f"ckpt={best(trained)}", f"output={tmp_path}"])
    assert output == tmp_path
    assert scores(results) == scores(trained[1])
    assert len(scores(results)) >= 15
    assert {"roc.png", "embedding_map.png", "pairs.png", "result.json"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("name", ["run", "other"])
def test_evaluate_the_validation(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What the checkpoint was chosen by, figure for figure: also with weights of a comparator that were fitted on it."""
    trained: Run = request.getfixturevalue(name)
    results, _ = evaluate([f"ckpt={best(trained)}", f"output={tmp_path}", "split=val", NO_PICTURES])
    assert not scores(results)
    columns = logged(trained[0])
    then = {name: columns[name][-1] for name in columns if name.startswith("val/")}
    assert scores(results, "val") == scores(then, "val")
    assert (then["val/images"], then["val/pairs"]) == (16, 40)


def test_evaluate_on_the_training_people_and_other_rates(run: Run, tmp_path: Path) -> None:
    words = [f"ckpt={best(run)}", f"output={tmp_path}", "split=train", "metric.fars=[0.05]", NO_PICTURES]
    results, _ = evaluate(words)
    assert results["train/images"] == 96
    assert "train/TAR@5e-2" in results
    assert results["train/threshold"] == run[1]["test/threshold"]


# --- predict ---------------------------------------------------------------------------------------------------------


def test_compare_decides_every_pair_as_the_test_did(run: Run, album: Path) -> None:
    """`load(ckpt).compare` of the test's 40 pairs, read from files: right as often as the test says, by its threshold."""
    embedder, source = load(best(run), device="cpu"), drawn_test().source("test")
    assert isinstance(embedder, Embedder)
    files = [album / name.rpartition("_")[0] / name for name in source.names]
    pairs = source.pairs
    answers = [
        embedder.compare(files[a], files[b]) for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    ]
    right = [answer.same is same for answer, same in zip(answers, pairs.same.tolist(), strict=True)]
    assert sum(right) / 40 == pytest.approx(run[1]["test/accuracy"], abs=1e-6)
    assert {answer.same for answer in answers} == {True, False}, "else the threshold is not tried"
    assert {answer.threshold for answer in answers} == {verification(best(run))["shown"]}
    assert {answer.chosen for answer in answers} == {verification(best(run))["chosen"]}


@pytest.mark.parametrize("name", ["run", "measured"])
def test_predict_against(name: str, request: pytest.FixtureRequest, album: Path, tmp_path: Path) -> None:
    """The verdict is `compare`'s, by the checkpoint's threshold, unless another one is typed."""
    run: Run = request.getfixturevalue(name)
    a, b = (album / "test_0000" / f"test_0000_000{k}.png" for k in (0, 1))
    answer = load(best(run), device="cpu").compare(a, b)
    words = [f"ckpt={best(run)}", "device=cpu", f"source={a}", f"against={b}", f"output={tmp_path / 'out'}"]
    done = predict(words)
    assert done["verdicts"] == ["same person" if answer.same else "different"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pair.png", "matches.json", "matches.csv"}
    content = json.loads((tmp_path / "out/matches.json").read_text())
    kept = verification(best(run))
    assert (content["threshold"], content["measure"]) == (kept["shown"], "squared distance")
    assert content["chosen"] == kept["chosen"]
    assert content["sources"][0]["matches"][0]["value"] == pytest.approx(answer.value, rel=1e-5)
    for threshold, verdict in ((answer.value * 1.01, "same person"), (answer.value * 0.99, "different")):
        assert predict([*words, f"threshold={threshold}"])["verdicts"] == [verdict]


@pytest.mark.parametrize("name", ["run", "other"])
def test_predict_gallery(name: str, request: pytest.FixtureRequest, album: Path, tmp_path: Path) -> None:
    """All 20 faces, each against the 19 others: who is nearest is right as often as the test's rank 1."""
    trained: Run = request.getfixturevalue(name)
    words = ["device=cpu", f"source={album}", f"gallery={album}", f"output={tmp_path}", "top=1"]
    done = predict([f"ckpt={best(trained)}", *words])
    assert done["images"] == 20
    content = json.loads((tmp_path / "matches.json").read_text())
    assert content["threshold"] == verification(best(trained))["shown"]
    right = 0
    for source, verdict in zip(content["sources"], done["verdicts"], strict=True):
        (nearest,) = source["matches"]
        assert verdict == (nearest["person"] if nearest["within"] else "unknown")
        right += nearest["person"] == source["file_name"].partition("/")[0]
    assert right / 20 == pytest.approx(trained[1]["test/rank1"], abs=1e-6)
    assert len(list((tmp_path / "matches").rglob("*.png"))) == 20


# --- a model brings its task, data, metric, callbacks and monitor; the command line wins -------------------------------

FACENET = ("model=facenet",)
RESNET29 = ("model=face_resnet29", "model.size=tiny")  # base has weights in a file
CHOICES: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (
        FACENET,
        {
            "task._target_": "cvexp.tasks.embedding.EmbeddingTask",
            "data._target_": "cvexp.data.drawn_faces.DrawnFacesData",
            "metric._target_": "cvexp.metrics.verification_metric.Verification",
            "recipe._target_": "cvexp.recipes.end_to_end",
            "callbacks.pictures._target_": "cvexp.callbacks.face_pictures.FacePictures",
            "callbacks.health._target_": "cvexp.callbacks.health.Collapse",
            "callbacks.best.monitor": "val/AUC",
            "data.image_size": 64,
            "budget.minutes": 4,
        },
    ),
    (
        RESNET29,  # is only measured
        {
            "task._target_": "cvexp.tasks.embedding.EmbeddingTask",
            "recipe._target_": "cvexp.recipes.test_only",
            "data._target_": "cvexp.data.drawn_faces.DrawnFacesData",
            "data.image_size": 150,
            "monitor": "val/AUC",
        },
    ),
    (
        ("model=yolo",),  # nothing of the faces stays
        {
            "task._target_": "cvexp.tasks.detection.DetectionTask",
            "data._target_": "cvexp.data.shapes.ShapesData",
            "metric._target_": "cvexp.metrics.detection.DetectionMAP",
            "callbacks.health": None,
            "monitor": "val/AP",
        },
    ),
    # data: another set of faces with its own batch and without the drawn ones' four minutes; the rest stays
    (
        (*FACENET, "data=faces"),
        {
            "data._target_": "cvexp.data.faces.FacesData",
            "data.batch_size": 128,
            "data.image_size": 64,
            "budget.minutes": None,
            "task._target_": "cvexp.tasks.embedding.EmbeddingTask",
            "monitor": "val/AUC",
        },
    ),
    (("data=faces", *FACENET), {"data._target_": "cvexp.data.faces.FacesData"}),  # in any order
    ((*FACENET, "metric.fars=[0.1,0.2]"), {"metric.fars": [0.1, 0.2]}),
    ((*FACENET, "monitor=val/best_accuracy"), {"callbacks.best.monitor": "val/best_accuracy"}),
    ((*FACENET, "callbacks.health=null"), {"callbacks.health": None}),
    ((*FACENET, "run=default", "monitor=val/rank1"), {"monitor": "val/rank1"}),
    ((*FACENET, "recipe=test_only"), {"recipe._target_": "cvexp.recipes.test_only"}),
    ((*FACENET, "model.image_size=96"), {"data.image_size": 96}),  # one source
    ((*FACENET, "budget.minutes=1"), {"budget.minutes": 1}),
    (
        (*FACENET, "model/miner=hardest", "model/comparator=cosine", "model/loss=triplet", "model.loss.margin=0.5"),
        {
            "model.miner._target_": "cvexp.ops.mining.Hardest",
            "model.comparator._target_": "cvexp.comparators.cosine.Cosine",
            "model.loss.margin": 0.5,
        },
    ),
    (
        (*FACENET, "model/backbone=timm", "model.backbone.name=test_resnet"),
        {"model.backbone._target_": "cvexp.backbones.timm.Timm", "model.backbone.name": "test_resnet"},
    ),
]


@pytest.mark.parametrize(("words", "expected"), CHOICES, ids=[" ".join(words) for words, _ in CHOICES])
def test_who_chooses_what(words: tuple[str, ...], expected: dict[str, Any], compose: Compose) -> None:
    cfg = compose(*words)
    check_config(cfg, supplied=SUPPLIED)
    check_parts(cfg)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert {name: _at(plain, name) for name in expected} == expected


def _at(node: Any, name: str) -> Any:
    """The value of a dotted key; None where it is not there."""
    for part in name.split("."):
        node = (node or {}).get(part)
    return node


def test_the_chosen_parts_are_built(compose: Compose) -> None:
    model = build_model(compose(*OTHERWISE).model, num_classes=8)
    assert [type(part).__name__ for part in (model.backbone, model.miner, model.comparator)] == [
        "Timm",
        "Hardest",
        "Siamese",
    ]
    assert model.embedding.in_features == model.backbone.out_channels[-1]


# Words; what the refusal says. Each in vain before any data is read or anything written.
REFUSALS = [
    pytest.param(["model=yolo", "data=faces"], r"FacesData is for embedding, DetectionTask for detection\. Fix: .*facenet",
                 id="a detector on faces"),
    pytest.param(["model=facenet", "data=shapes"], r"ShapesData is for detection, EmbeddingTask for embedding\. Fix",
                 id="a face model on boxes"),
    pytest.param(["model=face_resnet29", "model.size=tiny", "data=voc"], r"VOCData is for detection.*Fix",
                 id="a measured face model on boxes"),
    pytest.param(["model=facenet", "task=detection"], r"FaceNet is for embedding, DetectionTask for detection\. Fix",
                 id="another task"),
    pytest.param(["model=facenet", "model/loss=focal"], r"BinaryFocal is for logit.*distances\. Fix: model/loss=triplet",
                 id="a loss of logits"),
    pytest.param(["model=facenet", "model/loss=giou"], r"IoULoss is for boxes.*Fix: model/loss=triplet",
                 id="a loss of boxes"),
    pytest.param(["model=facenet", "data.image_size=80"], r"data\.image_size=80 differs from model\.image_size=64.*Fix",
                 id="the size of the data alone"),
    pytest.param(["model=facenet", "model.dim=0"], r"embeddings of length 0\. Fix: model\.dim", id="no embedding"),
    pytest.param(["model=facenet", "monitor=val/EER"], r"val/EER with monitor_mode=max.*Fix: monitor_mode=min",
                 id="the worst checkpoint"),
    pytest.param(["model=facenet", "metric.fars=[2]"], r"metric\.fars: 2.* Fix", id="a rate above 1"),
    pytest.param(["model=facenet", "metric=coco"], r"DetectionMAP is for detection, EmbeddingTask for embedding\. Fix",
                 id="a metric of boxes"),
    pytest.param(["model=yolo", "metric=verification"], r"Verification is for embedding, DetectionTask for detection\. Fix",
                 id="a metric of pairs"),
    pytest.param(["model=facenet", "callbacks=default"], r"Pictures is for detection, EmbeddingTask for embedding\. Fix",
                 id="pictures of boxes"),
    pytest.param(["model=facenet", "model/comparator=weighted_chi_square"],
                 r"WeightedChiSquare is for features that are not negative.*Fix: model/comparator=squared_l2",
                 id="a comparator of features behind a rectifier"),
    pytest.param(["model=face_resnet29", "model.size=tiny", "model.image_size=64"],
                 r"model\.image_size=64: .*Fix: model\.image_size=150", id="too small an image"),
    pytest.param(["model=facenet", "data.batch_size=130"],
                 r"data\.batch_size=130 is not a multiple.*=4\. Fix: data\.batch_size=128", id="no people times images"),
    pytest.param(["model=facenet", "data=faces", "data.batch_size=130"], r"data\.batch_size=130 is not a multiple.*Fix",
                 id="the same on photographs"),
    pytest.param(["model=facenet", "task.far=2"], r"task\.far=2 is not between 0 and 1\. Fix", id="an impossible rate"),
    pytest.param(["model=facenet", "callbacks.health.patience=0"], r"patience=0 is below 1\. Fix", id="no patience"),
]  # fmt: skip


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads data fails the test."""

    def read(self: Any, stage: str) -> None:
        raise AssertionError(f"{type(self).__name__}.setup was called")

    for name in ("cvexp.data.face_module.FaceData", "cvexp.data.faces.FacesData", "cvexp.data.module.DetectionData"):
        monkeypatch.setattr(get_class(name), "setup", read)


@pytest.mark.parametrize(("words", "message"), REFUSALS)
def test_what_does_not_go_together(words: list[str], message: str, no_data: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        _train(tmp_path, *words)
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model=facenet", "model/comparator=cosin"],
            "'model/comparator' has no option 'cosin'.*did you mean 'cosine'",
        ),
        (["model=facenet", "model/miner=hard"], "'model/miner' has no option 'hard'.*did you mean.*hardest"),
        (["model=yolo", "model/comparator=cosine"], "model/comparator.*fix: "),  # a detector has no such slot
        (["model=face_resnet29", "model/miner=hardest"], "model/miner.*fix: "),  # nor has a model without training
    ],
)
def test_choices_that_there_are_not(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_overrides(words)
    assert re.search(message, str(caught.value), flags=re.DOTALL), caught.value


def test_data_would_be_read_otherwise(no_data: None, tmp_path: Path) -> None:
    """The guard of the test before works."""
    with pytest.raises(AssertionError, match=r"DrawnFacesData\.setup was called"):
        _train(tmp_path, *TINY)


def test_a_name_that_validation_does_not_log(tmp_path: Path) -> None:
    """`accuracy` is the test's, by a threshold chosen before; a validation has `best_accuracy`."""
    with pytest.raises(UserError, match=r"monitor=val/accuracy is not logged.*Fix: did you mean 'val/best_accuracy'"):
        _train(tmp_path, *TINY, "monitor=val/accuracy", "trainer.limit_train_batches=1")
    assert not list(tmp_path.rglob("*.ckpt"))


# --- one's own folder ------------------------------------------------------------------------------------------------


def test_a_folder_of_one_s_own(tmp_path: Path) -> None:
    """As conf/data/faces.yaml says: a folder for each person, some of them set aside for validation and test."""
    source = DrawnFacesData(image_size=64, train_identities=14, train_images=4).source("train")
    for index, name in enumerate(source.names):
        path = tmp_path / "faces" / source.people[source.labels[index]] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(index)[0].permute(1, 2, 0).numpy()).save(path)
    own = ("data=faces", f"data.root={tmp_path / 'faces'}", "data.identities=null", "data.val_pairs=null",
           "data.test_pairs=null", "data.val_identities=3", "data.test_identities=3", "data.batch_size=16",
           "data.pairs=15")  # fmt: skip
    results = _train(tmp_path / "run", "model=facenet", *QUICK, *own)
    assert (results["data/classes"], results["test/images"], results["test/pairs"]) == (8, 12, 30)
    again, _ = evaluate([f"ckpt={tmp_path / 'run/checkpoints/best.ckpt'}", f"output={tmp_path / 'again'}", NO_PICTURES])
    assert scores(again) == scores(results)


# --- dry runs --------------------------------------------------------------------------------------------------------


def test_debug_step_saves_nothing_but_the_configuration(tmp_path: Path) -> None:
    results = _train(tmp_path, *TINY, "debug=step")
    assert results["train/steps"] == 1
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("config.yaml", "result.json", "metrics.csv", "manifest.json", "git.diff"),
    }


def test_the_end_by_the_clock_has_a_threshold(tmp_path: Path) -> None:
    """A budget of a hundredth of a second: a step or two, and all the same a validation, which chooses the threshold."""
    words = ("budget.minutes=0.0001", "trainer.max_epochs=50", "trainer.check_val_every_n_epoch=50")
    results = _train(tmp_path, *TINY, NO_PICTURES, *words)
    assert results["train/steps"] < 5
    assert {"val/best", "test/accuracy"} <= set(results)
    kept = verification(tmp_path / "checkpoints/best.ckpt")
    assert kept["shown"] == pytest.approx(results["test/threshold"], abs=1e-6)


# --- nothing is trained ----------------------------------------------------------------------------------------------


def test_what_a_measurement_leaves_behind(measured: Run) -> None:
    folder, results = measured
    assert {"config.yaml", "result.json", "roc.png", "embedding_map.png", "pairs.png"} <= {
        path.name for path in folder.iterdir()
    }
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["best.ckpt"]
    assert not {name for name in results if name.startswith("train/")}
    assert {"val/AUC", "val/best_accuracy", "test/AUC", "test/accuracy", "test/rank1"} <= set(results)
    kept = verification(best(measured))  # chosen by its one validation
    assert kept["shown"] == pytest.approx(results["test/threshold"], rel=1e-6)
    assert kept["shown"] == pytest.approx(results["val/threshold"], rel=1e-6)
    assert kept["shown"] > 4, "not on the unit sphere"


def test_a_measured_model_is_not_trained(tmp_path: Path) -> None:
    words = ("model=face_resnet29", *DRAWN, "model.image_size=103", "recipe=end_to_end")
    with pytest.raises(UserError, match=r"has no loss\. Fix: recipe=test_only"):
        _train(tmp_path, *words)


# --- two processes ---------------------------------------------------------------------------------------------------

# No batch norm anywhere (its statistics are a process' own), no augmentation, plain SGD: 12 steps over two epochs.
COMPARABLE = (
    *TINY,
    "model/backbone=vgg16",
    "model.norm=false",
    "model.miner.choose=random",  # by image ids, the same whoever mines
    "optimizer=sgd",
    "optimizer.lr=5e-2",
    "scheduler=constant",
    "callbacks.ema=null",
    "data.augment=null",
    "trainer.max_epochs=2",
)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The global batches are the same and triplets are mined among the images of both: the same weights, the same test."""
    words = ["trainer.devices=2", "trainer.strategy=ddp", f"paths.output={tmp_path / 'two'}"]
    done = subprocess.run(
        [sys.executable, "-m", "cvexp.train", *COMPARABLE, *words],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stdout + done.stderr
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    one = _train(tmp_path / "one", *COMPARABLE, NO_PICTURES)
    assert two["train/steps"] == one["train/steps"] == 12
    known = {name: value for name, value in scores(one).items() if value is not None}
    assert scores(two) == pytest.approx(known, abs=1e-4)
    assert len(known) >= 12
    _train(tmp_path / "start", *COMPARABLE, NO_PICTURES, "recipe=test_only")
    start, first, second = weights(tmp_path / "start", "best"), weights(tmp_path / "one"), weights(tmp_path / "two")
    assert first.keys() == second.keys() == start.keys()
    moved = max(float((first[name] - start[name]).abs().max()) for name in first if first[name].is_floating_point())
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert apart < 1e-4
    assert apart < moved / 1000, "training has changed more than that"
    kept, ours = (verification(tmp_path / name / "checkpoints/best.ckpt") for name in ("two", "one"))
    assert kept["threshold"] == pytest.approx(ours["threshold"], abs=1e-4)
    for name in ("roc.png", "embedding_map.png", "pairs.png"):
        assert np.asarray(Image.open(tmp_path / "two" / name)).std() > 0


# --- eight people by heart -------------------------------------------------------------------------------------------


def trained_models() -> list[str]:
    """The embedding models that are trained, not only measured."""
    return [name for name in models_of("embedding") if _recipe(name) != "test_only"]


def _recipe(model: str) -> str | None:
    return Composer().defaults([f"model={model}"]).overrides.known_choices["recipe"]


BY_HEART = ("debug=overfit", "optimizer.lr=3e-3")


@pytest.mark.slow
@pytest.mark.parametrize("model", trained_models())
def test_eight_people_are_learnt_by_heart(tmp_path: Path, model: str) -> None:
    """1,000 pairs of each kind of their 160 images, and all pairs."""
    others = ("data.", "trainer.max_epochs=", "optimizer.")  # what debug=overfit and the case choose
    quick = (word for word in QUICK if not word.startswith(others))
    results = _train(tmp_path, f"model={model}", *quick, *BY_HEART)
    assert results["data/classes"] == 8
    assert results["test/images"] == 160  # themselves
    assert results["test/best_accuracy"] > 0.95  # the test is the validation
    assert results["test/AUC"] > 0.99
    assert results["test/all_pairs/AUC"] > 0.99
