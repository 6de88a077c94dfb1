"""The commands as a user types them: what they print, what they leave behind, how they refuse."""

from __future__ import annotations

import csv
import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cvexp.config import conf_dir
from cvexp.sweeps.ledger import Ledger

HEAVY = ("torch", "torchvision", "lightning", "wandb", "timm", "matplotlib")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python process without a terminal."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)


def train(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run("-m", "cvexp.train", *words, cwd=cwd)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def assert_refused(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    """Exit code 2 and a short message that holds the texts, without a traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= 8
    for text in texts:
        assert text in done.stderr


# --- train: what needs no training -----------------------------------------------------------------------------------


def test_help_lists_the_groups_without_torch(tmp_path: Path) -> None:
    code = f"""
        import atexit, runpy, sys
        sys.argv = ["train", "--help"]
        atexit.register(lambda: print("loaded:", [m for m in {HEAVY} if m in sys.modules], file=sys.stderr))
        runpy.run_module("cvexp.train", run_name="__main__", alter_sys=True)
    """
    done = run("-c", "\n".join(row.strip() for row in code.splitlines()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stderr
    groups = {path.parent.relative_to(conf_dir()).as_posix() for path in conf_dir().rglob("*.yaml")} - {
        ".",
        "hydra",
        "hydra/sweeper",
        "ablation",
    }
    listed = {row.split(":")[0] for row in done.stdout.splitlines() if ": " in row}
    assert groups <= listed
    assert list(tmp_path.iterdir()) == [], "help leaves nothing behind"


@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("trainer.max_epoch=3", ("trainer.max_epoch=3", "did you mean 'trainer.max_epochs'")),  # a misspelled key
        ("modle=yolo", ("unknown key 'modle'", "did you mean 'model'")),  # a misspelled group
        ("model=yollo", ("no option 'yollo'", "did you mean 'yolo'")),  # a misspelled option
    ],
)
def test_misspelled_word_is_refused_before_anything_is_read(word: str, texts: tuple[str, ...], tmp_path: Path) -> None:
    done = train("data=voc", "data.root=nowhere", word, cwd=tmp_path)
    assert_refused(done, *texts)
    assert "nowhere" not in done.stderr, "the data were not looked for"
    assert list(tmp_path.iterdir()) == [], "no run was begun"


def test_data_that_are_not_there_are_refused(compose: Callable[..., Any]) -> None:
    from cvexp.train import train as train_here
    from cvexp.types import UserError

    with pytest.raises(UserError, match="nowhere"):
        train_here(compose("data=voc", "data.root=nowhere", "trainer.accelerator=cpu"))


def test_cfg_prints_the_job_and_runs_nothing(tmp_path: Path) -> None:
    done = train("--cfg", "job", "trainer.max_epochs=3", "data=voc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert printed["trainer"]["max_epochs"] == 3
    assert printed["data"]["_target_"] == "cvexp.data.voc.VOCData"
    assert list(tmp_path.iterdir()) == []


# --- train -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Path, str]:
    """The folder of a tiny run and what it printed; two steps of training, so the scores are near 0."""
    folder = tmp_path_factory.mktemp("trained")
    words = [word for word in tiny if word != "callbacks.report=null"]
    done = train(*words, "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


@pytest.fixture
def checkpoint(trained: tuple[Path, str]) -> Path:
    return trained[0] / "checkpoints" / "best.ckpt"


def test_run_leaves_its_files(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    names = ("result.json", "metrics.csv", "config.yaml", "report.html", "predictions.png", "checkpoints/best.ckpt")
    assert (folder / "figures" / "errors.svg").stat().st_size > 0
    for name in (*names, "figures/pr_curves.png"):
        assert (folder / name).stat().st_size > 0
        assert str(folder / name) in printed, "the user is told where it is"
    assert f"python -m cvexp.predict ckpt={folder / 'checkpoints' / 'best.ckpt'}" in printed
    content = results(folder)
    assert content["train/steps"] == 2  # 16 images in batches of 8
    assert content["data/classes"] == 3
    assert {"test/AP", "test/AP50", "val/best", "train/seconds", "model/parameters", "seed"} <= content.keys()
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["image_size"] == config["model"]["image_size"], "interpolations are resolved"


def test_debug_step_runs_through_and_saves_no_checkpoint(tmp_path: Path, tiny: list[str]) -> None:
    done = train(*tiny, "debug=step", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["train/steps"] == 1
    assert list(tmp_path.rglob("*.ckpt")) == []


def test_a_sweep_leaves_its_folder_with_the_jobs_in_it(tmp_path: Path, tiny: list[str]) -> None:
    """One job, as each takes seconds; several, killed and resumed, are in tests/sweeps and tests/test_sweep.py."""
    done = train("-m", *tiny, "seed=3", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = sorted(path.parent for path in tmp_path.rglob("result.json"))
    assert [job.relative_to(tmp_path).as_posix() for job in jobs] == ["sweep/0"]
    assert results(jobs[0])["seed"] == 3
    (job,) = Ledger(tmp_path / "sweep").jobs()
    assert (job.state, job.attempts, job.value) == ("finished", 1, results(jobs[0])["val/best"])
    assert job.result == results(jobs[0])
    assert (tmp_path / "sweep" / "leaderboard.html").stat().st_size > 1000
    assert "1 job: 1 finished" in done.stdout


# --- evaluate --------------------------------------------------------------------------------------------------------


def scores(content: dict[str, Any], split: str) -> dict[str, float]:
    return {name: value for name, value in content.items() if name.startswith(f"{split}/AP")}


def test_evaluate_repeats_the_test(
    checkpoint: Path, trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cvexp.evaluate import main

    monkeypatch.setattr(sys, "argv", ["evaluate", f"ckpt={checkpoint}"])
    main()
    printed = capsys.readouterr().out
    again = results(trained[0] / "evaluate-test")
    assert scores(again, "test") == scores(results(trained[0]), "test")
    assert len(scores(again, "test")) > 3
    assert str(trained[0] / "evaluate-test" / "result.json") in printed


def test_evaluate_measures_another_split(checkpoint: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    from cvexp.evaluate import evaluate

    _, folder = evaluate([f"ckpt={checkpoint}", "split=val", f"output={tmp_path / 'val'}"])
    assert folder == tmp_path / "val"
    assert results(folder)["val/AP"] == pytest.approx(results(trained[0])["val/best"])
    assert scores(results(folder), "test") == {}


# --- predict ---------------------------------------------------------------------------------------------------------

# Name and size (width, height) of the pictures that are predicted.
PICTURES = {
    "wide.png": (120, 60),
    "tall one.jpg": (60, 130),  # a space in the name
    "deep/wide.png": (96, 96),  # the same name in another folder
    "größe.JPG": (40, 40),  # not ASCII, capital ending
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name, (width, height) in PICTURES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    return folder


def test_predict_writes_pictures_and_tables(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    words = [f"ckpt={checkpoint}", "source=pictures", "threshold=0.005", "output=out", "device=cpu", "batch_size=3"]
    done = run("-m", "cvexp.predict", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 image(s)" in done.stdout

    drawn = tmp_path / "out" / "pictures"
    assert {path.relative_to(drawn).as_posix() for path in drawn.rglob("*") if path.is_file()} == set(PICTURES)
    assert {name: Image.open(drawn / name).size for name in PICTURES} == PICTURES

    content = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert {image["file_name"]: (image["width"], image["height"]) for image in content["images"]} == PICTURES
    assert [category["name"] for category in content["categories"]] == ["ellipse", "rectangle", "triangle"]
    assert content["annotations"], "at this threshold even two steps of training find something"
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        assert min(x, y) >= 0
        assert x + width <= sizes[row["image_id"]][0] + 0.01
        assert y + height <= sizes[row["image_id"]][1] + 0.01
        assert row["score"] >= 0.005

    with (tmp_path / "out" / "detections.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "class", "score", "x1", "y1", "x2", "y2"]
    assert len(rows) == len(content["annotations"])
    assert {row["image"] for row in rows} <= set(PICTURES)


def test_predict_takes_one_picture_or_a_pattern(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    from cvexp.predict import predict

    for source, names in (("wide.png", ["wide.png"]), ("**/*.png", ["deep/wide.png", "wide.png"])):
        words = [f"source={pictures / source}", f"output={tmp_path / 'out'}", "device=cpu"]
        done = predict([f"ckpt={checkpoint}", *words])
        assert done["images"] == len(names)
        content = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
        assert [image["file_name"] for image in content["images"]] == names


def test_load_predicts_from_python(checkpoint: Path, pictures: Path) -> None:
    import cvexp

    predictor = cvexp.load(checkpoint, device="cpu")
    assert predictor.classes == ["ellipse", "rectangle", "triangle"]
    found = predictor.predict(pictures / "wide.png")
    assert len(found.boxes) == len(found.scores) == len(found.labels) > 0
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    again = predictor.predict(Image.open(pictures / "wide.png"))
    assert (found.boxes == again.boxes).all(), "a path and its picture are the same thing"


# --- refusals of evaluate and predict --------------------------------------------------------------------------------


def refusal(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints on stderr when it refuses, run here rather than in a process of its own."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"cvexp.{module}").main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    return said


@pytest.mark.parametrize(
    ("module", "words", "texts"),
    [
        ("evaluate", ["split=test"], ("ckpt= is missing", "usage: python -m cvexp.evaluate")),
        ("evaluate", ["ckpt=nope.ckpt"], ("ckpt=nope.ckpt", "no such file")),
        ("evaluate", ["ckpt={ckpt}", "split=tset"], ("split=tset", "train, val, test")),
        ("evaluate", ["ckpt={ckpt}", "data.rooot=x"], ("data.rooot", "from the command line")),  # an unknown key
        ("evaluate", ["ckpt={ckpt}", "metric.max_detection=[1]"], ("did you mean 'metric.max_detections'",)),
        ("evaluate", ["ckpt={ckpt}", "data.batch_size=many"], ("data.batch_size", "'many'")),  # a wrong type
        ("evaluate", ["ckpt={ckpt}", "model._target_=os.system"], ("os.system",)),  # not on the allow-list
        ("evaluate", ["ckpt={ckpt}", "words"], ("'words'", "key=value")),
        ("predict", ["source=x.png"], ("ckpt= is missing", "usage: python -m cvexp.predict")),
        ("predict", ["ckpt={ckpt}"], ("source= is missing",)),
        ("predict", ["ckpt={ckpt}", "source=nowhere"], ("source=nowhere", "no such image or folder")),
        ("predict", ["ckpt={ckpt}", "source={empty}"], ("no picture in this folder",)),
        ("predict", ["ckpt=nope.ckpt", "source={picture}"], ("ckpt=nope.ckpt", "no such file")),
        ("predict", ["ckpt={ckpt}", "source={text}"], ("text.png",)),  # not a picture, whatever its ending says
        ("predict", ["ckpt={ckpt}", "source={picture}", "treshold=0.5"], ("did you mean 'threshold'",)),
        ("predict", ["ckpt={ckpt}", "source={picture}", "threshold=2"], ("threshold=2", "from 0 to 1")),
        ("predict", ["ckpt={ckpt}", "source={picture}", "threshold=nan"], ("threshold=nan", "from 0 to 1")),
        ("predict", ["ckpt={ckpt}", "source={picture}", "batch_size=0"], ("batch_size=0", "whole number")),
    ],
)
def test_refusal(
    module: str,
    words: list[str],
    texts: tuple[str, ...],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    places = {"ckpt": checkpoint, "empty": tmp_path / "empty"}
    places |= {name: tmp_path / f"{name}.png" for name in ("text", "picture")}
    monkeypatch.chdir(tmp_path)
    said = refusal(module, [word.format(**places) for word in words], monkeypatch, capsys)
    for text in texts:
        assert text in said
    assert not (tmp_path / "predictions").exists(), "nothing is written"


@pytest.mark.parametrize("module", ["evaluate", "predict"])
@pytest.mark.parametrize("words", [[], ["--help"]])
def test_usage(
    module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, *words])
    importlib.import_module(f"cvexp.{module}").main()
    assert capsys.readouterr().out.startswith(f"usage: python -m cvexp.{module} ckpt=")


class Bomb:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def bombs(folder: Path, trap: Path) -> Iterator[Path]:
    """A plain pickle, and a file in torch's own format with everything that a checkpoint of cvexp has."""
    import torch

    plain, dressed = folder / "plain.ckpt", folder / "dressed.ckpt"
    plain.write_bytes(pickle.dumps(Bomb(trap)))
    torch.save({"state_dict": {}, "cvexp": {"config": Bomb(trap), "classes": ["a"]}}, dressed)
    yield from (plain, dressed)


@pytest.mark.parametrize("module", ["evaluate", "predict"])
def test_pickle_is_not_run(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    trap = tmp_path / "sprung"
    for path in bombs(tmp_path, trap):
        words = [f"ckpt={path}", *([f"source={tmp_path / 'picture.png'}"] if module == "predict" else [])]
        said = refusal(module, words, monkeypatch, capsys)
        assert path.name in said
        assert not trap.exists()
    pickle.loads((tmp_path / "plain.ckpt").read_bytes())
    assert trap.is_dir(), "the bomb works, so the refusal above meant something"


@pytest.mark.slow
def test_messages_of_a_run_are_shown_once(tmp_path: Path, tiny: list[str]) -> None:
    """Hydra and Lightning both have handlers: what a run has to say comes neither twice nor not at all."""
    done = train(*tiny, "freeze.patterns=[backbone.*]", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("frozen: ") == 1
    assert "INFO" not in done.stdout + done.stderr
