"""``manifest.json``: what it says of a run, what its hashes notice and what not, and that nothing breaks or leaks."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import cvexp
from cvexp.data.drawn_faces import DrawnFacesData
from cvexp.data.faces import FacesData
from cvexp.data.module import DetectionData
from cvexp.data.records import Record, RecordSource
from cvexp.data.shapes import ShapesData
from cvexp.errors import UserError
from cvexp.manifest import command_line, read_manifest, record, typed_overrides, write_manifest
from cvexp.manifest import source_code as code
from cvexp.manifest.hashes import config_hash, data_hash, data_state
from cvexp.manifest.machine import device_count, device_state, environment, versions
from cvexp.manifest.source_code import git_state

Compose = Callable[..., DictConfig]
SHAPES = ("model=yolo", "data=shapes", "data.train_size=6", "data.val_size=3", "data.test_size=2")
COMMAND = ["train.py", "model=yolo"]


@pytest.fixture
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if cvexp came from a wheel."""
    monkeypatch.setattr(record, "git_state", lambda package: None)


def shapes(**options: Any) -> ShapesData:
    return ShapesData(**{"train_size": 6, "val_size": 3, "test_size": 2} | options)


def write(cfg: DictConfig, data: Any, **options: Any) -> dict[str, Any]:
    """Writes the manifest and reads it back."""
    write_manifest(cfg, data, **{"overrides": list(SHAPES), "argv": COMMAND} | options)
    return read_manifest(cfg.paths.output)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_run_of_objects(compose: Compose, tmp_path: Path) -> None:
    cfg = compose(*SHAPES, "seed=7", "trainer.precision=bf16-mixed", "trainer.devices=2", "trainer.accelerator=cpu")
    found = write(cfg, instantiate(cfg.data))
    assert (found["seed"], found["precision"], found["cvexp"]) == (7, "bf16-mixed", cvexp.__version__)
    assert (found["overrides"], found["resumed"]) == (list(SHAPES), [])
    assert torch.__version__.startswith(found["versions"]["torch"].partition("+")[0])
    assert {
        "torch",
        "torchvision",
        "lightning",
        "hydra-core",
        "omegaconf",
        "torchmetrics",
        "timm",
        "numpy",
        "hotcoco",
    } == set(found["versions"])
    assert found["device"] == {"accelerator": "cpu", "processes": 2, "nodes": 1}
    assert found["platform"]["cores"] >= 1
    assert found["platform"]["cpu"]
    assert found["platform"]["threads"] == torch.get_num_threads()
    assert found["platform"]["memory_gib"] > 0.1
    assert found["config"] == config_hash(cfg)
    assert [found["data"][split]["images"] for split in ("train", "val", "test")] == [6, 3, 2]
    assert len({found["data"][split]["hash"] for split in found["data"]}) == 3
    assert found["started"].endswith("+00:00")
    assert {p.name for p in tmp_path.iterdir()} <= {"manifest.json", "git.diff"}  # nothing half-written


def test_a_run_of_faces(compose: Compose, no_git: None) -> None:
    words = (
        "model=facenet",
        "data.train_identities=3",
        "data.val_identities=2",
        "data.test_identities=2",
        "data.pairs=4",
    )
    cfg = compose(*words, "data.train_images=2", "data.val_images=3", "data.test_images=2", "data.batch_size=8")
    found = write(cfg, instantiate(cfg.data))
    assert "git" not in found
    assert {n: v for n, v in found["data"]["val"].items() if n != "hash"} == {
        "images": 6, "people": 2, "distractors": 0, "same_pairs": 4, "different_pairs": 4,
    }  # fmt: skip
    assert found["data"]["test"]["same_pairs"] == 2  # two people with two images have one each


def test_what_was_chosen_from_each_group(compose: Compose) -> None:
    """The model's own choices too; nothing of Hydra's, and nothing where Hydra did not start the run."""
    from hydra.core.hydra_config import HydraConfig

    words = ["model=yolo", "data=voc", "optimizer=sgd", "model/backbone=timm"]
    cfg = compose(*words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    try:
        found = record.choices()
    finally:
        HydraConfig.instance().cfg = None
    assert found.items() >= {"model": "yolo", "data": "voc", "optimizer": "sgd", "recipe": "end_to_end"}.items()
    assert found["model/backbone"] == "timm"
    assert [group for group, name in found.items() if group.startswith("hydra") or name == "None"] == []
    assert record.choices() == {}


def test_words_are_kept_as_typed(compose: Compose) -> None:
    """Resolved, they would name this run's folder in another run's."""
    from hydra.core.hydra_config import HydraConfig

    words = [*SHAPES, "callbacks.best.dirpath=${paths.output}/x"]
    cfg = compose(*words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    try:
        found = typed_overrides()
    finally:
        HydraConfig.instance().cfg = None
    assert found[: len(words)] == words
    assert typed_overrides() == []
    assert json.loads(json.dumps(found)) == found


def test_only_the_first_process_writes(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    write_manifest(compose(*SHAPES), shapes(), overrides=[], argv=COMMAND)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvexp.manifest.machine.PACKAGES", ("torch", "no-such-package"))
    assert set(versions()) == {"torch"}


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], ""),  # nothing known
        (["pytest", "-k", "a b"], "pytest -k 'a b'"),  # another program
        (["bench.py", "x"], "python bench.py x"),
        ([str(Path(cvexp.__file__).parent / "train.py"), "model=yolo"], "python -m cvexp.train model=yolo"),
        (["a.py", "data.classes=[cat, dog]"], "python a.py 'data.classes=[cat, dog]'"),
        (["a.py", "name=it's $HOME"], """python a.py 'name=it'"'"'s $HOME'"""),  # a shell must not touch it
    ],
)
def test_the_command_can_be_pasted(argv: list[str], line: str) -> None:
    assert command_line(argv) == line
    if argv:
        assert shlex.split(line)[-1] == argv[-1]


def test_what_a_shell_cannot_say_in_utf8_is_kept(compose: Compose, no_git: None) -> None:
    """A byte that is no text arrives as a lone surrogate."""
    found = write(compose(*SHAPES), shapes(), argv=["a.py", os.fsdecode(b"name=\xff")])
    assert os.fsencode(found["command"]) == b"python a.py 'name=\xff'"


def test_no_secret_is_told(compose: Compose, monkeypatch: pytest.MonkeyPatch, no_git: None, tmp_path: Path) -> None:
    secrets = {
        "WANDB_API_KEY": "s3cret-a",
        "AWS_SECRET_ACCESS_KEY": "s3cret-b",
        "CVEXP_TOKEN": "s3cret-c",
        "HOME": "/s3cret-d",
    }
    told = {"CVEXP_DATA": "/where/s3cret-e/sets", "CVEXP_X": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    for name, value in (secrets | told).items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_MODE", "CVEXP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    found = write(compose(*SHAPES), shapes())
    assert found["environment"] == told | {"CVEXP_DATA": ".../sets"}
    text = (tmp_path / "manifest.json").read_text()
    assert "s3cret" not in text
    assert str(tmp_path) not in text  # no absolute path either
    assert environment({}) == {}


@pytest.mark.parametrize(
    ("devices", "here", "count"),
    [
        ("auto", 1, 1), ("auto", 8, 8), (-1, 8, 8), ("-1", 8, 8),  # all
        (2, 8, 2), ("2", 8, 2),  # a number
        ([0, 3], 8, 2), ("0,3", 8, 2), ("3,", 8, 1),  # a choice
        ("many", 4, 4), (None, 1, 1),  # Lightning tells what is wrong
    ],
)  # fmt: skip
def test_devices(devices: Any, here: int, count: int) -> None:
    assert device_count(devices, here) == count
    assert device_count(OmegaConf.create({"d": devices}).d, here) == count


def test_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = OmegaConf.create({"accelerator": "cpu", "devices": 2, "num_nodes": 3})
    monkeypatch.setenv("WORLD_SIZE", "99")  # left by another run in this process
    assert device_state(trainer) == {"accelerator": "cpu", "processes": 6, "nodes": 3}
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # torchrun knows better
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert device_state(trainer)["processes"] == 4


# --- source code -----------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository with one commit."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    package = tmp_path / "repository" / "cvexp"
    (package / "models").mkdir(parents=True)
    (package.parent / "conf").mkdir()
    for name in ("cvexp/__init__.py", "cvexp/models/one.py", "conf/train.yaml", "notes.txt"):
        (package.parent / name).write_text("a = 1\n")
    (package.parent / ".gitignore").write_text("*.log\nignored.py\n")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-qm", "first")
    return package


def test_a_clean_tree(package: Path) -> None:
    commit = git(package, "rev-parse", "HEAD").strip()
    assert git_state(package) == ({"commit": commit, "branch": "main", "dirty": False}, None)
    git(package, "checkout", "-q", "--detach")
    assert git_state(package) == ({"commit": commit, "branch": None, "dirty": False}, None)


def test_a_changed_tree(package: Path) -> None:
    top = package.parent
    (package / "models/one.py").write_text("a = 2\n")
    state, diff = git_state(package) or ({}, None)
    assert state["dirty"] is True
    assert state["diff_file"] == "git.diff"
    assert "-a = 1\n+a = 2\n" in str(diff)
    (top / "notes.txt").write_text("b\n")  # tracked files count wherever they lie
    second, _ = git_state(package) or ({}, None)
    git(top, "add", "notes.txt")
    third, _ = git_state(package) or ({}, None)
    assert state["diff"] != second["diff"] == third["diff"], "staged or not is no difference"


@pytest.mark.parametrize(
    ("name", "content", "counts"),
    [
        ("cvexp/models/mine.py", "a = 1\nb = 2\n", True),  # the model that a student wrote today
        ("conf/mine.yaml", "a: 1", True),  # without a last line's end
        ("cvexp/empty.py", "", True),
        ("cvexp/models/größe.py", "ä = 1\n", True),  # a name that git quotes
        ("cvexp/run.log", "x\n", False),  # ignored
        ("cvexp/ignored.py", "x\n", False),
        ("cvexp/picture.bin", "x\n", False),  # no source
        ("elsewhere/mine.py", "x\n", False),  # not the package's
    ],
)
def test_new_files(name: str, content: str, counts: bool, package: Path) -> None:
    """The diff brings the file back, byte for byte."""
    path = package.parent / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    state, diff = git_state(package) or ({}, None)
    assert state["dirty"] is counts
    if counts:
        path.unlink()
        (package.parent / "patch").write_text(str(diff))
        git(package.parent, "apply", "patch")
        assert path.read_text() == content


def test_a_long_diff_is_told_by_its_hash(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "models/one.py").write_text("a = 2\n")
    short, _ = git_state(package) or ({}, None)
    monkeypatch.setattr(code, "DIFF_BYTES", 100)
    state, diff = git_state(package) or ({}, "x")
    assert diff is None
    assert state == short | {"diff_file": None}


def test_without_a_repository(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    assert git_state(tmp_path / "plain") is None
    inside = package.parent / "site-packages" / "cvexp"  # installed below somebody's repository, who does not track it
    inside.mkdir(parents=True)
    (inside / "__init__.py").touch()
    assert git_state(inside) is None
    assert git_state(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", "")
    assert git_state(package) is None


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "__init__.py").touch()
    git(tmp_path, "add", ".")
    assert git_state(tmp_path) is None


def test_a_git_that_hangs_costs_seconds_only(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(code, "GIT_SECONDS", 0.2)
    assert git_state(package) is None


def test_a_hook_s_environment_does_not_mislead(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    assert git_state(package) is not None


def test_the_diff_lies_beside(compose: Compose, package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = compose(*SHAPES)
    monkeypatch.setattr(record, "git_state", lambda _: git_state(package))
    (package / "models/one.py").write_text("a = 2\n")
    assert write(cfg, shapes())["git"]["dirty"] is True
    assert "+a = 2" in (tmp_path / "git.diff").read_text()
    git(package, "checkout", "-q", ".")
    assert write(cfg, shapes())["git"]["dirty"] is False
    assert not (tmp_path / "git.diff").exists(), "an older run's would be taken for this one's"


# --- configuration ---------------------------------------------------------------------------------------------------


def test_what_the_configuration_s_hash_notices(compose: Compose, tmp_path: Path) -> None:
    first = config_hash(compose(*SHAPES))
    for same in (
        f"paths.output={tmp_path}/b",
        "paths.runs=elsewhere",
        "logger=[]",
        f"resume={tmp_path}/checkpoints/last.ckpt",
    ):
        if same.startswith("logger"):
            cfg = compose(*SHAPES)
            cfg.logger = {}
        else:
            cfg = compose(*SHAPES)
            OmegaConf.update(cfg, same.partition("=")[0], same.partition("=")[2])
        assert config_hash(cfg) == first, same
    for word in ("seed=1", "optimizer.lr=0.5", "callbacks.best.filename=x", "data.val_size=4"):
        assert config_hash(compose(*SHAPES, word)) != first, word


def test_folders_count_by_their_place_below_the_data(compose: Compose) -> None:
    words = ("model=yolo", "data=voc")
    first = config_hash(compose(*words, "paths.data=/a/b"))
    assert config_hash(compose(*words, "paths.data=/c")) == first
    assert config_hash(compose(*words, "paths.data=/c", "data.root=/c/voc/VOCdevkit/VOC2012")) == first
    assert config_hash(compose(*words, "paths.data=/c", "data.root=/c/other")) != first
    assert config_hash(compose(*words, "paths.data=/c", "data.root=/cc/voc/VOCdevkit/VOC2012")) != first  # only alike


# --- data of objects -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Given(DetectionData):
    """A data set of given records, the same for all splits."""

    records: list[Record]
    classes: tuple[str, ...] = ("cat", "dog")

    def load(self, split: str) -> RecordSource:
        return RecordSource(self.records, list(self.classes))


def records(folder: Path) -> list[Record]:
    """Three images of 40 x 30 pixels: two objects, none, one."""
    folder.mkdir(exist_ok=True)
    made = []
    for index, boxes in enumerate(([(1, 2, 11, 12), (5, 5, 9, 9)], [], [(0, 0, 40, 30)])):
        path = folder / f"{index}.bin"
        path.write_bytes(b"x" * (100 + index))
        array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        flags = np.zeros(len(boxes), dtype=bool)
        labels = np.arange(len(boxes), dtype=np.int64)
        made.append(Record(path, 40, 30, array, labels, flags, flags.copy(), np.full(len(boxes), 16.0)))
    return made


def hashed(made: list[Record], **options: Any) -> str:
    return data_hash(Given(records=made, **options), "train")


def changed_object(made: list[Record], **values: Any) -> list[Record]:
    """With another value for the first object of the first image."""
    kept = {name: getattr(made[0], name).copy() for name in values}
    for name, value in values.items():
        kept[name][0] = value
    return [replace(made[0], **kept), *made[1:]]


CHANGES: dict[str, Callable[[list[Record]], list[Record]]] = {
    "a label": lambda made: changed_object(made, labels=1),
    "a box, by the least that a float64 can tell": lambda made: changed_object(
        made, boxes=[np.nextafter(1.0, 2.0), 2, 11, 12]
    ),
    "difficult": lambda made: changed_object(made, difficult=True),
    "crowd": lambda made: changed_object(made, crowd=True),
    "an area": lambda made: changed_object(made, area=17.0),
    "the order of images": lambda made: made[::-1],
    "the order of objects": lambda made: [
        replace(made[0], boxes=made[0].boxes[::-1], labels=made[0].labels[::-1]), *made[1:]
    ],
    "an image less": lambda made: [made[0], made[2]],  # the empty one
    "an object in the next image": lambda made: [
        replace(made[0], boxes=made[0].boxes[:1], labels=made[0].labels[:1], difficult=made[0].difficult[:1],
                crowd=made[0].crowd[:1], area=made[0].area[:1]),
        replace(made[1], boxes=made[0].boxes[1:], labels=made[0].labels[1:], difficult=made[0].difficult[1:],
                crowd=made[0].crowd[1:], area=made[0].area[1:]),
        made[2],
    ],
    "a size": lambda made: [replace(made[0], width=41), *made[1:]],
    "an id": lambda made: [replace(made[0], image_id=9), *made[1:]],
    "masks": lambda made: [replace(r, masks=[b"1"] * len(r.labels)) for r in made],
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_the_hash_notices(name: str, tmp_path: Path) -> None:
    made = records(tmp_path)
    assert hashed(CHANGES[name](made)) != hashed(made)


def test_the_hash_notices_masks_classes_names_and_files(tmp_path: Path) -> None:
    made = records(tmp_path)
    first = hashed(made)
    assert hashed(made) == first
    assert hashed(made, classes=("cat", "dogs")) != first
    assert hashed(made, classes=("dog", "cat")) != first
    masked = [replace(r, masks=[b"12"] * len(r.labels)) for r in made]
    assert hashed([replace(masked[0], masks=[b"1", b"22"]), *masked[1:]]) != hashed(masked)
    (tmp_path / "0.bin").write_bytes(b"x" * 99)
    resized = hashed(made)
    assert resized != first
    (tmp_path / "0.bin").unlink()
    assert hashed(made) not in (first, resized)  # and does not fail
    assert hashed([replace(made[0], path=tmp_path / "other.bin"), *made[1:]]) != hashed(made)


def test_the_hash_does_not_know_the_folder_or_the_loader(tmp_path: Path) -> None:
    first = hashed(records(tmp_path / "a"))
    assert hashed(records(tmp_path / "b"), batch_size=2, num_workers=1, seed=5) == first


def test_the_first_images_for_debugging(tmp_path: Path) -> None:
    made = records(tmp_path)
    assert hashed(made, overfit=2) == hashed(made[:2]) != hashed(made)


def test_counts_of_objects(tmp_path: Path) -> None:
    made = changed_object(records(tmp_path), difficult=True, crowd=True)
    found = data_state(Given(records=made))
    assert [{n: v for n, v in found[s].items() if n != "hash"} for s in ("train", "val", "test")] == [
        {"images": 3, "objects": 3, "ignored": 1}
    ] * 3


@pytest.mark.parametrize(
    ("change", "splits"),
    [
        ({}, set()),
        ({"draw_seed": 1}, {"train", "val", "test"}),
        ({"image_size": 128}, {"train", "val", "test"}),
        ({"masks": True}, {"train", "val", "test"}),
        ({"val_size": 4}, {"val"}),  # growing a split leaves the others
        ({"seed": 1, "batch_size": 2, "num_workers": 1}, set()),  # not what the data is
    ],
)
def test_drawn_objects(change: dict[str, Any], splits: set[str]) -> None:
    first, second = data_state(shapes()), data_state(shapes(**change))
    assert {split for split in first if first[split]["hash"] != second[split]["hash"]} == splits


def test_nothing_is_drawn_for_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvexp.data.shapes.draw", None)
    monkeypatch.setattr("cvexp.data.drawn_faces.draw", None)
    data_state(shapes())
    data_state(DrawnFacesData())


def test_another_kind_of_data_module_says_nothing() -> None:
    assert data_state(object()) == {}


# --- data of faces ---------------------------------------------------------------------------------------------------


def album(folder: Path) -> FacesData:
    """Four people with two images each; all are trained on but two."""
    for person in range(4):
        for index in range(1, 3):
            path = folder / f"P{person}" / f"P{person}_{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 40, 3), 40 * person + index, dtype=np.uint8)).save(path)
    lists = folder.parent / "lists"
    lists.mkdir(exist_ok=True)
    (lists / "train.txt").write_text("P0\nP1\n")
    (lists / "val.txt").write_text("1\nP0\t1\t2\nP0\t1\tP1\t1\n")
    (lists / "test.txt").write_text("2\nP2\t1\t2\nP3\t1\t2\nP2\t1\tP3\t1\nP2\t2\tP3\t2\n")
    files = {name: str(lists / f"{word}.txt") for name, word in LISTS.items()}
    return FacesData(root=str(folder), batch_size=4, images_per_identity=2, **files)


LISTS = {"identities": "train", "val_pairs": "val", "test_pairs": "test"}


def test_faces_in_files(tmp_path: Path) -> None:
    first = data_state(album(tmp_path / "a"))
    assert first == data_state(album(tmp_path / "b"))  # another folder
    assert {n: v for n, v in first["test"].items() if n != "hash"} == {
        "images": 4, "people": 2, "distractors": 0, "same_pairs": 2, "different_pairs": 2,
    }  # fmt: skip
    painted = album(tmp_path / "c")
    Image.fromarray(np.full((40, 40, 3), 99, dtype=np.uint8)).save(tmp_path / "c/P2/P2_0001.png")  # one pixel value
    assert differing(first, data_state(painted)) == {"test"}
    listed = album(tmp_path / "d")
    path = Path(str(listed.test_pairs))
    path.write_text(path.read_text().replace("P2\t2\tP3\t2", "P2\t2\tP3\t1"))  # one pair
    assert differing(first, data_state(listed)) == {"test"}
    named = album(tmp_path / "e")
    (tmp_path / "e/P1").rename(tmp_path / "e/P9")  # one name
    Path(str(named.identities)).write_text("P0\nP9\n")
    path = Path(str(named.val_pairs))
    path.write_text(path.read_text().replace("P1", "P9"))
    for file in (tmp_path / "e/P9").iterdir():
        file.rename(file.with_name(file.name.replace("P1", "P9")))
    assert differing(first, data_state(named)) == {"train", "val"}


def differing(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    return {split for split in first if first[split]["hash"] != second[split]["hash"]}


@pytest.mark.parametrize(
    ("change", "splits"),
    [
        ({}, set()),
        ({"draw_seed": 1}, {"train", "val", "test"}),
        ({"train_images": 3}, {"train"}),
        ({"test_identities": 4}, {"test"}),
        ({"pair_seed": 1}, {"val", "test"}),  # nobody asks pairs of the training
        ({"seed": 1, "batch_size": 8}, set()),
    ],
)
def test_drawn_faces(change: dict[str, Any], splits: set[str]) -> None:
    base = {f"{split}_{what}": 6 for split in ("train", "val", "test") for what in ("identities", "images")}
    first, second = (data_state(DrawnFacesData(**base | more)) for more in ({"pairs": 5}, {"pairs": 5} | change))
    assert differing(first, second) - ({"train"} if "pair_seed" in change else set()) == splits


def test_real_data(data_root: Path, compose: Compose, no_git: None) -> None:
    """VOC's format, with unusable boxes that are left out."""
    cfg = compose("model=yolo", "data=bccd", f"paths.data={data_root}")
    data = instantiate(cfg.data)
    first = data_state(data)
    assert first["train"]["objects"] > first["train"]["images"] > 100
    assert data_state(instantiate(cfg.data)) == first


# --- a run that goes on ----------------------------------------------------------------------------------------------


def checkpoint(folder: Path, **position: Any) -> Path:
    path = folder / "last.ckpt"
    torch.save({"state_dict": {"w": torch.ones(3)}, "position": position, "global_step": 1, "epoch": 1}, path)
    return path


@dataclass
class Changed:
    """As `cvexp.resume.Change`."""

    key: str
    old: Any
    new: Any


def test_a_resume_is_added_and_the_rest_stays(
    compose: Compose,
    no_git: None,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = compose(*SHAPES, "trainer.accelerator=cpu", "trainer.devices=1")
    start = write(cfg, shapes())
    cfg.resume = str(checkpoint(tmp_path_factory.mktemp("x"), step=12, epoch=2, batch=3))
    cfg.trainer.devices = 2
    monkeypatch.setattr("cvexp.manifest.record.versions", lambda: start["versions"] | {"torch": "99.0"})
    second = write(cfg, shapes(), resumed=cfg.resume, argv=["train.py", "resume=auto"], overrides=["a=1"])
    assert {n: v for n, v in second.items() if n != "resumed"} == {n: v for n, v in start.items() if n != "resumed"}
    (entry,) = second["resumed"]
    assert (entry["step"], entry["epoch"], entry["processes"]) == (12, 2, 2)
    assert (entry["command"], entry["overrides"]) == ("python train.py resume=auto", ["a=1"])
    assert entry["time"] >= start["started"]
    assert set(entry["changes"]) == {"versions/torch", "config"}  # trainer.devices
    assert entry["changes"]["versions/torch"] == [start["versions"]["torch"], "99.0"]
    cfg.trainer.devices = 1
    changed = shapes()
    changed.source("train").names[0] = "other.png"
    third = write(cfg, changed, resumed=cfg.resume, changes=[Changed("trainer.max_epochs", 3, 6)])
    assert third["resumed"][0] == entry
    assert set(third["resumed"][1]["changes"]) == {"versions/torch", "data/train/hash", "config/trainer.max_epochs"}
    assert third["resumed"][1]["changes"]["config/trainer.max_epochs"] == [3, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json"}


def test_going_on_in_silence_changes_nothing(
    compose: Compose, no_git: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The checkpoint's path stands in the configuration of a run that goes on; that is no change."""
    cfg = compose(*SHAPES)
    write(cfg, shapes())
    cfg.resume = str(checkpoint(tmp_path_factory.mktemp("x"), step=1, epoch=0))
    assert write(cfg, shapes(), resumed=cfg.resume)["resumed"][0]["changes"] == {}


def test_the_source_code_changed(
    compose: Compose, package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = compose(*SHAPES)
    monkeypatch.setattr(record, "git_state", lambda _: git_state(package))
    write(cfg, shapes())
    (package / "models/one.py").write_text("a = 2\n")
    changes = write(cfg, shapes(), resumed=tmp_path / "none.ckpt")["resumed"][0]["changes"]
    assert changes["git/dirty"] == [False, True]
    assert changes["git/diff"][0] is None
    monkeypatch.setattr(record, "git_state", lambda _: None)
    changes = write(cfg, shapes(), resumed=tmp_path / "none.ckpt")["resumed"][1]["changes"]
    assert changes["git/commit"][1] is None


@pytest.mark.parametrize("content", [None, b"", b"garbage"])  # missing, empty, broken: Lightning tells what is wrong
def test_a_checkpoint_that_tells_nothing(content: bytes | None, compose: Compose, no_git: None, tmp_path: Path) -> None:
    cfg = compose(*SHAPES)
    write(cfg, shapes())
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    (entry,) = write(cfg, shapes(), resumed=path)["resumed"]
    assert (entry["step"], entry["epoch"]) == (None, None)


def test_an_older_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"global_step": 5, "epoch": 2}, path)
    assert record.position(path) == {"step": 5, "epoch": 2}


BROKEN = [
    ("", "not JSON"),  # a full disk
    ('{"format": 1,', "not JSON"),  # cut off
    ("\x00\x01", "not JSON"),
    ("[]", "not a manifest"),
    ("{}", "not a manifest"),
    ('{"format": "1"}', "not a manifest"),
    ('{"format": 1}', "is missing or broken"),
    ('{"format": 2}', "known is up to 1"),
]


@pytest.mark.parametrize(("content", "text"), BROKEN)
def test_a_broken_manifest(content: str, text: str, compose: Compose, no_git: None, tmp_path: Path) -> None:
    """It is refused where it is read; a run that goes on sets it aside."""
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"manifest\.json.*{text}.*Fix: "):
        read_manifest(tmp_path)
    found = write(compose(*SHAPES), shapes(), resumed=tmp_path / "none.ckpt")
    assert found["started"] is None
    assert len(found["resumed"]) == 1
    assert (tmp_path / "manifest.broken.json").read_text() == content


@pytest.mark.parametrize("part", ["resumed", "versions", "data", "command"])
def test_a_part_of_the_wrong_kind(part: str, compose: Compose, no_git: None, tmp_path: Path) -> None:
    content = write(compose(*SHAPES), shapes()) | {part: 1}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{part} is missing or broken"):
        read_manifest(tmp_path)


def test_no_manifest(compose: Compose, no_git: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read \(No such file.*Fix: "):
        read_manifest(tmp_path)
    found = write(
        compose(*SHAPES), shapes(), resumed=tmp_path / "none.ckpt"
    )  # of a run that began before there were any
    assert found["started"] is None
    assert not (tmp_path / "manifest.broken.json").exists()


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not JSON"):
        read_manifest(tmp_path)
