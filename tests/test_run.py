"""The life of a run at tiny size: what it leaves behind, that it repeats by seed, that a checkpoint is enough."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kinds import models_of

from cvexp import load
from cvexp.config import conf_dir
from cvexp.errors import UserError
from cvexp.evaluate import evaluate
from cvexp.predict import predict
from cvexp.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Path, dict]:
    """One tiny training: its folder and results."""
    folder = tmp_path_factory.mktemp("run")
    return folder, _train(folder, [*(w for w in tiny if w != "callbacks.report=null"), "trainer.log_every_n_steps=1"])


def _train(folder: Path, overrides: list[str]) -> dict:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return train(hydra.compose("train", [*overrides, f"paths.output={folder}"]))


def test_what_a_run_leaves_behind(run) -> None:
    folder, results = run
    for name in ("config.yaml", "metrics.csv", "result.json", "figures/pr_curves.png", "predictions.png"):
        assert (folder / name).stat().st_size > 0, name
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not list(folder.rglob("*.part*"))  # nothing half-written
    saved = json.loads((folder / "result.json").read_text())
    assert {"test/AP", "test/AP50", "test/AP75", "train/seconds", "model/parameters", "seed"} <= set(saved)
    assert saved["test/AP50"] == results["test/AP50"]
    assert saved["metric/settings"].startswith("COCO; at most 100 detections per image and class")
    assert all(isinstance(value, int | float | str) for value in saved.values())  # flat
    assert {"test/definitions/voc07", "test/errors/missed/dAP", "test/F1/best"} <= set(saved)
    assert "${" not in (folder / "config.yaml").read_text()


def test_losses_by_name_and_learning_rate_are_logged(run) -> None:
    with (run[0] / "metrics.csv").open() as stream:
        columns = set(next(csv.reader(stream)))
    for split in ("train", "val"):
        assert {f"{split}/loss{name}" for name in ("", "_xy", "_wh", "_object", "_noobject", "_class")} <= columns
    assert {"val/AP", "val/AP50"} <= columns
    assert any(name.startswith("lr/") for name in columns)


def test_a_run_repeats_by_seed(run, tmp_path: Path, tiny: list[str]) -> None:
    again = _train(tmp_path, tiny)
    first = torch.load(run[0] / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    second = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert again["test/AP"] == run[1]["test/AP"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_is_another_run(run, tmp_path: Path, tiny: list[str]) -> None:
    _train(tmp_path, [*tiny, "seed=1"])
    first = torch.load(run[0] / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    second = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_checkpoint_is_plain_and_tells_its_story(run) -> None:
    content = torch.load(
        run[0] / "checkpoints/best.ckpt", weights_only=True
    )  # refuses anything but tensors and plain Python
    about = content["cvexp"]
    assert about["classes"] == ["ellipse", "rectangle", "triangle"]
    assert about["config"]["model"]["_target_"] == "cvexp.models.yolo.v1.YOLOv1"
    assert type(about["config"]) is dict


def test_evaluate_rebuilds_everything_from_the_checkpoint(run, tmp_path: Path) -> None:
    folder, results = run
    measured, output = evaluate([f"ckpt={folder / 'checkpoints/best.ckpt'}", f"output={tmp_path}"])
    assert output == tmp_path
    scores = {name for name in results if name.startswith("test/A")}
    assert scores == {name for name in measured if name.startswith("test/A")}
    assert len(scores) >= 12
    for name in scores:  # to the last digit; NaN (no object of that size) stays NaN
        assert measured[name] == results[name] or (measured[name] != measured[name] and results[name] != results[name])
    assert (tmp_path / "figures" / "pr_curves.png").exists()


def test_evaluate_another_split_and_metric(run, tmp_path: Path) -> None:
    best = run[0] / "checkpoints/best.ckpt"
    measured, _ = evaluate([f"ckpt={best}", f"output={tmp_path}", "split=val"])
    assert "val/AP" in measured
    assert "test/AP" not in measured


def test_load_and_predict_in_a_new_process_give_the_same(run) -> None:
    """The detections of a checkpoint do not depend on the process that trained it."""
    best = run[0] / "checkpoints/best.ckpt"
    image = torch.randint(0, 256, (3, 70, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    here = load(best, device="cpu").predict(image)
    assert len(here) > 0
    code = (
        "import torch, cvexp; g = torch.Generator().manual_seed(1);"
        "image = torch.randint(0, 256, (3, 70, 120), dtype=torch.uint8, generator=g);"
        f"d = cvexp.load({str(best)!r}, device='cpu').predict(image); print(d.boxes.sum().item(), d.scores.sum().item())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [float(v) for v in out] == [here.boxes.sum().item(), here.scores.sum().item()]


def test_predictions_are_in_the_pixels_of_the_picture(run) -> None:
    best = run[0] / "checkpoints/best.ckpt"
    found = load(best, device="cpu").predict(torch.randint(0, 256, (3, 70, 120), dtype=torch.uint8))
    assert len(found) > 0
    assert found.boxes[:, 2].max() > 96  # beyond the 96 pixels that the model saw
    assert (found.boxes[:, 2] <= 120).all()
    assert (found.boxes[:, 3] <= 70).all()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        pytest.param("missing.jpg", "image is missing", id="no such file"),
        pytest.param(torch.zeros(3, 8, 8), "uint8", id="a float tensor"),
        pytest.param(torch.zeros(8, 8, dtype=torch.uint8).numpy(), r"uint8 \[H, W, 3\]", id="a grey array"),
    ],
)
def test_what_is_no_picture(run, picture, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(run[0] / "checkpoints/best.ckpt", device="cpu").predict(picture)


def test_predict_keeps_names_and_agrees_with_itself(run, tmp_path: Path) -> None:
    """Two pictures of one name in different folders stay two; JSON and CSV hold the same boxes."""
    from PIL import Image

    for name in ("a/cat.png", "b/cat.png", "b/dog one.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "red").save(tmp_path / "in" / name)
    done = predict(
        [
            f"ckpt={run[0] / 'checkpoints/best.ckpt'}",
            f"source={tmp_path / 'in'}",
            f"output={tmp_path / 'out'}",
            "device=cpu",
            "threshold=0",
        ]
    )
    assert done["images"] == 3
    content = json.loads((tmp_path / "out/detections.json").read_text())
    assert [i["file_name"] for i in content["images"]] == ["a/cat.png", "b/cat.png", "b/dog one.jpg"]
    assert all((tmp_path / "out/pictures" / i["file_name"]).exists() for i in content["images"])
    with (tmp_path / "out/detections.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(content["annotations"]) == done["detections"] > 0
    for row, annotation in zip(rows, content["annotations"], strict=True):
        x, y, width, height = annotation["bbox"]
        assert [float(row[k]) for k in ("x1", "y1", "x2", "y2")] == pytest.approx(
            [x, y, x + width, y + height], abs=0.011
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["source=x"], "ckpt= is missing", id="no checkpoint named"),
        pytest.param(["ckpt=nowhere.ckpt", "source={here}"], r"nowhere.ckpt: no such file", id="checkpoint not there"),
        pytest.param(["ckpt={ckpt}", "source=nowhere"], r"source=nowhere: no such image", id="source not there"),
        pytest.param(["ckpt={ckpt}", "source={empty}"], "no picture in this folder", id="empty folder"),
        pytest.param(
            ["ckpt={ckpt}", "source={here}", "treshold=1"], "did you mean 'threshold'", id="misspelled option"
        ),
        pytest.param(
            ["ckpt={ckpt}", "source={here}", "threshold=2"], "a number from 0 to 1", id="threshold out of range"
        ),
        pytest.param(["ckpt={text}", "source={here}"], "not a checkpoint", id="a text file as checkpoint"),
    ],
)
def test_bad_words_of_predict(run, tmp_path: Path, words: list[str], message: str) -> None:
    from PIL import Image

    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    Image.new("RGB", (9, 9)).save(tmp_path / "here.png")
    places = {
        "ckpt": run[0] / "checkpoints/best.ckpt",
        "here": tmp_path / "here.png",
        "empty": tmp_path / "empty",
        "text": tmp_path / "text.ckpt",
    }
    with pytest.raises(UserError, match=message):
        predict([word.format(**places) for word in words])


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with (tmp_path / "evil.ckpt").open("wb") as stream:
        pickle.dump({"cvexp": Evil()}, stream)
    torch.save({"cvexp": Evil(), "state_dict": {}}, tmp_path / "evil2.ckpt")
    for name in ("evil.ckpt", "evil2.ckpt"):
        with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
            load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_target_outside_the_list_is_not_called(run, tmp_path: Path) -> None:
    content = torch.load(run[0] / "checkpoints/best.ckpt", weights_only=True)
    content["cvexp"]["config"]["model"]["head"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"os\.system"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_debug_step_saves_nothing_but_the_configuration(tmp_path: Path, tiny: list[str]) -> None:
    results = _train(tmp_path, [*tiny, "debug=step"])
    assert results["train/steps"] == 1
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_schedule_follows_the_clock(tmp_path: Path, tiny: list[str]) -> None:
    """A budget of a hundredth of a second: one step, then the end, tested all the same."""
    results = _train(
        tmp_path, [*tiny, "budget.minutes=0.0001", "trainer.max_epochs=50", "trainer.check_val_every_n_epoch=50"]
    )
    assert results["train/steps"] < 5
    assert "test/AP" in results
    assert "val/best" in results  # the end by the clock is validated and saved


def test_without_any_validation_the_final_weights_are_kept(tmp_path: Path, tiny: list[str]) -> None:
    results = _train(tmp_path, [*tiny, "trainer.check_val_every_n_epoch=5"])
    assert "test/AP" in results
    assert (tmp_path / "checkpoints/last.ckpt").exists()


def test_wandb_offline_run_is_read_back(tmp_path: Path, tiny: list[str], compose: Callable) -> None:
    """Losses by name, learning rate and the resolved configuration are in the run's own file, without an account."""
    _train(tmp_path, [*tiny, "logger=wandb", "trainer.log_every_n_steps=1", "logger.wandb.mode=offline"])
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    out = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    for name in ("train/loss_xy", "val/AP50", "test/AP50", "lr/", "cvexp.models.yolo.v1.YOLOv1"):
        assert name in out.stdout, name


OWN = {
    "sliding_window": ["optimizer.lr=3e-3"],  # a small network, from nothing: at 1e-3 0.77
    "dpm": ["recipe.C=20", "recipe.per_image=32"],  # eight images say as much as a set, and no margin is given away
    "dpm_fast": ["recipe.C=20", "recipe.per_image=32"],
    "sppnet": ["recipe.cost=1.0"],  # likewise its SVMs
    "rcnn": ["recipe.cost=1.0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("model", models_of("detection"))
def test_eight_images_are_learnt_by_heart(tmp_path: Path, model: str, tiny: list[str]) -> None:
    others = ("model=", "trainer.max_epochs=", "data.batch_size=")  # what debug=overfit and the case choose
    words = [*(o for o in tiny if not o.startswith(others)), f"model={model}", "debug=overfit", *OWN.get(model, [])]
    assert _train(tmp_path, words)["test/AP50"] > 0.9
