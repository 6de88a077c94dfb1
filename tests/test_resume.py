"""A run that was cut off and goes on ends as one that was not, bit for bit; which run goes on, and what may differ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig
from resuming import MODELS, QUICK, CutError, cut_words, last, rows, train_here, unequal

from cvexp.errors import UserError
from cvexp.resume import (
    Change,
    differences,
    locked,
    make_way,
    merged,
    only_one,
    plan,
    refuse,
    run_folder,
    run_folders,
    stored_words,
)

Compose = Callable[..., DictConfig]
Whole = Callable[..., tuple[Path, dict[str, Any]]]
TESTED = ("test/", "val/")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """``whole("yolo", ...)``: folder and results of an uninterrupted run with these words, trained once."""
    kept: dict[tuple[str, ...], tuple[Path, dict[str, Any]]] = {}

    def run(model: str, *words: str) -> tuple[Path, dict[str, Any]]:
        key = (model, *words)
        if key not in kept:
            folder = tmp_path_factory.mktemp("whole")
            kept[key] = folder, train_here(folder, *MODELS[model], *QUICK, *words)
        return kept[key]

    return run


def goes_on(folder: Path, *words: str) -> dict[str, Any]:
    return train_here(folder, *words, f"resume={folder}/checkpoints/last.ckpt")


def assert_equal_runs(a: tuple[Path, dict[str, Any]], b: tuple[Path, dict[str, Any]]) -> None:
    assert list(unequal(last(a[0]), last(b[0]))) == []
    assert rows(a[0]) == rows(b[0])
    best = [torch.load(run[0] / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for run in (a, b)]
    assert list(unequal(*best)) == []
    scores = [{n: repr(v) for n, v in run[1].items() if n.startswith(TESTED) and "seconds" not in n} for run in (a, b)]
    assert scores[0] == scores[1]


# --- bit for bit -----------------------------------------------------------------------------------------------------

# Cut where, after how many of the 12 steps (4 in an epoch, saved after every third and between epochs).
MOMENTS = [
    pytest.param("on_train_batch_end", 5, id="in the second epoch"),
    pytest.param("on_train_batch_start", 8, id="before an epoch is saved", marks=pytest.mark.slow),
    pytest.param("on_train_batch_end", 12, id="after the last step", marks=pytest.mark.slow),
    pytest.param("on_validation_batch_end", 8, id="in a validation"),
    pytest.param("on_validation_end", 4, id="after a validation"),
    pytest.param("on_train_epoch_end", 8, id="between epochs", marks=pytest.mark.slow),
    pytest.param("on_train_end", 12, id="at the end of training", marks=pytest.mark.slow),
    pytest.param("on_test_start", 12, id="before the test"),
    pytest.param("on_test_batch_end", 12, id="in the test", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("moment", "step"), MOMENTS)
def test_cut_off_anywhere(moment: str, step: int, whole: Whole, tmp_path: Path) -> None:
    words = [*MODELS["yolo"], *QUICK]
    with pytest.raises(CutError):
        train_here(tmp_path, *words, *cut_words(moment, step))
    assert_equal_runs(whole("yolo"), (tmp_path, goes_on(tmp_path, *words)))


@pytest.mark.parametrize("model", [pytest.param("faster_rcnn_fpn", marks=pytest.mark.slow), "facenet"])
def test_cut_off_within_an_epoch(model: str, whole: Whole, tmp_path: Path) -> None:
    """Random samples of proposals by number of the draw; random negatives by the process's random numbers."""
    words = [*MODELS[model], *QUICK]
    with pytest.raises(CutError):
        train_here(tmp_path, *words, *cut_words("on_train_batch_end", 8))
    assert last(tmp_path)["position"]["batch"] == 3
    assert_equal_runs(whole(model), (tmp_path, goes_on(tmp_path, *words)))


# Each a way in which the counting could go wrong.
SETTINGS = [
    pytest.param(("data.num_workers=2",), 7, id="workers read ahead"),
    pytest.param(
        ("trainer.val_check_interval=2", "callbacks.last.steps=2"), 7, id="saved after a validation in mid-epoch"
    ),
    pytest.param(("trainer.accumulate_grad_batches=2", "callbacks.last.steps=1"), 4, id="two batches to a step"),
    pytest.param(("trainer.max_epochs=-1", "trainer.max_steps=10"), 7, id="ends by steps", marks=pytest.mark.slow),
    pytest.param(("model.head.dropout=0.5",), 7, id="dropout", marks=pytest.mark.slow),
    pytest.param(
        ("callbacks.ema=null", "optimizer=sgd"), 7, id="without averaging, with momentum", marks=pytest.mark.slow
    ),
    pytest.param(
        ("freeze.patterns=[backbone.*]", "freeze.unfreeze_at=0.5"), 5, id="frozen until step 6", marks=pytest.mark.slow
    ),
    pytest.param(("trainer.check_val_every_n_epoch=2",), 7, id="an epoch without validation", marks=pytest.mark.slow),
    pytest.param(
        ("early_stopping.patience=1", "monitor=val/loss", "monitor_mode=min"),
        7,
        id="may stop early",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("words", "step"), SETTINGS)
def test_cut_off_with_other_settings(words: tuple[str, ...], step: int, whole: Whole, tmp_path: Path) -> None:
    every = [*MODELS["yolo"], *QUICK, *words]
    with pytest.raises(CutError):
        train_here(tmp_path, *every, *cut_words("on_train_batch_end", step))
    assert_equal_runs(whole("yolo", *words), (tmp_path, goes_on(tmp_path, *every)))


def test_cut_off_twice(whole: Whole, tmp_path: Path) -> None:
    words = [*MODELS["yolo"], *QUICK]
    with pytest.raises(CutError):
        train_here(tmp_path, *words, *cut_words("on_train_batch_end", 4))
    with pytest.raises(CutError):
        goes_on(tmp_path, *words, *cut_words("on_validation_start", 8))
    assert_equal_runs(whole("yolo"), (tmp_path, goes_on(tmp_path, *words)))


def test_back_to_the_best_checkpoint(whole: Whole, tmp_path: Path) -> None:
    """Every checkpoint of a training says where it stands: from the best one, the epochs after it are repeated."""
    words = [*MODELS["yolo"], *QUICK]
    train_here(tmp_path, *words)
    best = tmp_path / "checkpoints" / "best.ckpt"
    step = torch.load(best, weights_only=True)["position"]["step"]
    results = train_here(tmp_path, *words, f"resume={best}")
    assert_equal_runs(whole("yolo"), (tmp_path, results))
    assert step in (4, 8, 12)


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "number", "code", "position"),
    [
        pytest.param("on_train_batch_end", signal.SIGTERM, 143, (0, 2, False), id="in an epoch: before the next step"),
        pytest.param("on_validation_start", signal.SIGTERM, 143, (0, 4, True), id="in a validation: as if not begun"),
        pytest.param("on_train_batch_end", signal.SIGINT, 130, (0, 2, False), id="Ctrl-C"),
    ],
)
def test_a_signal_saves(
    moment: str, number: int, code: int, position: tuple[int, int, bool], whole: Whole, tmp_path: Path
) -> None:
    words = [*MODELS["yolo"], *QUICK, "callbacks.last.steps=null", "callbacks.last.minutes=null"]
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        train_here(tmp_path, *words, *cut_words(moment, 2, number))
    assert end.value.code == code
    assert signal.getsignal(number) == before
    saved = last(tmp_path)["position"]
    assert (saved["epoch"], saved["batch"], saved["validating"]) == position
    goes = goes_on(tmp_path, *words)
    assert_equal_runs(whole("yolo", *words[-2:]), (tmp_path, goes))


def test_a_signal_after_the_last_step(tmp_path: Path) -> None:
    """When nothing is left to be looked at before the test: it is not lost, and the test is for the next start."""
    words = [*MODELS["yolo"], *QUICK]
    with pytest.raises(SystemExit) as end:
        train_here(tmp_path, *words, *cut_words("on_train_epoch_end", 12, signal.SIGTERM))
    assert end.value.code == 143
    assert not (tmp_path / "result.json").exists()
    assert (last(tmp_path)["position"]["epoch"], last(tmp_path)["position"]["batch"]) == (3, 0)
    goes_on(tmp_path, *words)
    assert (tmp_path / "result.json").exists()


def test_a_signal_in_the_test_ends_at_once(tmp_path: Path) -> None:
    words = [*MODELS["yolo"], *QUICK]
    with pytest.raises(SystemExit) as end:
        train_here(tmp_path, *words, *cut_words("on_test_batch_end", 12, signal.SIGTERM))
    assert end.value.code == 143
    assert not (tmp_path / "result.json").exists()
    goes_on(tmp_path, *words)
    assert (tmp_path / "result.json").exists()


# --- the command -----------------------------------------------------------------------------------------------------


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    """``python -m cvexp.train`` in a folder, a group of processes of its own."""
    line = [sys.executable, "-m", "cvexp.train", *words]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, cwd=folder, start_new_session=True, **options)


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_killed_and_resumed_by_the_same_words(whole: Whole, tmp_path: Path) -> None:
    """SIGKILL after the first save, ``resume=auto`` with the same words; then there is nothing left to do."""
    words = [*MODELS["yolo"], *QUICK, "resume=auto", "hydra.run.dir=run"]
    first = command(tmp_path, *words)
    wait_for(tmp_path / "run/checkpoints/last.ckpt")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "run/result.json").exists()
    second = command(tmp_path, *words)
    out = second.communicate(timeout=120)[0]
    assert second.returncode == 0, out
    assert "going on with run" in out
    results = json.loads((tmp_path / "run/result.json").read_text())
    a, b = whole("yolo")[0], tmp_path / "run"
    assert list(unequal(last(a), last(b))) == []
    assert rows(a) == rows(b)
    assert results["train/steps"] == 12
    third = command(tmp_path, *words)
    out = third.communicate(timeout=60)[0]
    assert third.returncode == 0
    assert "run has ended" in out
    assert "test/AP" in out


@pytest.mark.slow
def test_a_signal_to_the_whole_group(tmp_path: Path) -> None:
    """As a scheduler sends it: loader workers leave it to the training process, which saves."""
    words = [*MODELS["yolo"], *QUICK, "data.num_workers=2", "trainer.max_epochs=1000", "hydra.run.dir=run"]
    run = command(tmp_path, *words)
    wait_for(tmp_path / "run/checkpoints/last.ckpt")
    os.killpg(run.pid, signal.SIGTERM)
    out = run.communicate(timeout=60)[0]
    assert run.returncode == 143, out
    assert "stopped by SIGTERM after step" in out
    assert f"To go on: python -m cvexp.train resume={tmp_path / 'run'}" in out
    assert "Traceback" not in out
    assert last(tmp_path / "run")["position"]["step"] > 0
    assert json.loads((tmp_path / "run/manifest.json").read_text())["overrides"] == words[:-1]


# --- what may change -------------------------------------------------------------------------------------------------


def test_more_epochs_stretch_the_schedule(whole: Whole, tmp_path: Path, said: list[str]) -> None:
    """12 of 24 steps are done; the learning rate goes on from the middle of the longer curve, and the run is tested anew."""
    words = [*MODELS["yolo"], *QUICK]
    train_here(tmp_path, *words)
    results = goes_on(tmp_path, *words, "trainer.max_epochs=6")
    assert results["train/steps"] == 24
    (line,) = [text for text in said if "steps in all" in text]
    assert line.startswith(
        "12 -> 24 steps in all: 12 are done, so the schedule stands at 50% instead of 100%; learning rate "
    )
    rates = [float(row["lr/head"]) for row in rows(tmp_path) if "lr/head" in row]
    assert len(rates) == 24
    assert rates[12] > 10 * rates[11]
    assert json.loads((tmp_path / "result_at_12.json").read_text())["train/steps"] == 12
    uninterrupted = [
        float(row["lr/head"]) for row in rows(whole("yolo", "trainer.max_epochs=6")[0]) if "lr/head" in row
    ]
    assert rates[12:] == pytest.approx(uninterrupted[12:])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is told on the screen."""
    lines: list[str] = []
    for name in ("last.rank_zero_info",):
        monkeypatch.setattr(f"cvexp.callbacks.{name}", lines.append)
    return lines


def test_fewer_epochs_than_are_done(tmp_path: Path) -> None:
    words = [*MODELS["yolo"], *QUICK]
    with pytest.raises(CutError):
        train_here(tmp_path, *words, *cut_words("on_train_batch_end", 9))
    with pytest.raises(
        UserError, match=r"2 epochs are done, trainer\.max_epochs=1 lies before\. Fix: trainer\.max_epochs=2"
    ):
        goes_on(tmp_path, *words, "trainer.max_epochs=1")


def test_another_number_of_processes_is_told(tmp_path: Path, said: list[str]) -> None:
    """A checkpoint of two processes, made by repeating the random state of one."""
    words = [*MODELS["yolo"], *QUICK]
    with pytest.raises(CutError):
        train_here(tmp_path, *words, *cut_words("on_train_batch_end", 5))
    content = last(tmp_path)
    content["position"]["random"] *= 2
    torch.save(content, tmp_path / "checkpoints/last.ckpt")
    goes_on(tmp_path, *words)
    assert any(line.startswith("2 -> 1 processes: the global batches and their order stay the same") for line in said)


def test_what_decides_the_result_may_not_change(compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = compose(*MODELS["yolo"], *QUICK)
    config.paths.output = str(tmp_path / "run")
    from cvexp.results import write_config

    write_config(config)
    assert differences(tmp_path / "run", compose(*MODELS["yolo"], *QUICK)) == []
    other = compose(
        *MODELS["yolo"], *QUICK, "optimizer.lr=0.5", "trainer.max_epochs=9", "logger=wandb", "data.num_workers=3"
    )
    changes = differences(tmp_path / "run", other)
    assert [str(change) for change in changes if not change.allowed] == ["optimizer.lr: 0.001 -> 0.5"]
    assert {"trainer.max_epochs", "data.num_workers", "logger.wandb.project"} <= {change.key for change in changes}
    with pytest.raises(UserError, match=r"1 key\(s\) differ.*optimizer\.lr: 0\.001 -> 0\.5.*Fix: .*init_from="):
        refuse(tmp_path / "run", changes)


def test_other_data_is_refused(tmp_path: Path) -> None:
    """The annotations are not those that the run began with."""
    words = [*MODELS["yolo"], *QUICK]
    with pytest.raises(CutError):
        train_here(tmp_path, *words, *cut_words("on_train_batch_end", 5))
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    content["data"]["val"]["hash"] = "0" * 32
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the data of 'val' is not what the run began with .*4 -> 4 images.*Fix: "):
        goes_on(tmp_path, *words)


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("trainer.max_epochs", True),
        ("trainer.devices", True),
        ("callbacks.pictures.images", True),
        ("callbacks.ema.decay", False),  # decides the result
        ("callbacks.freeze.patterns", False),
        ("model.size", False),
        ("data.batch_size", False),  # the position counts batches
        ("trainer.accumulate_grad_batches", False),
        ("trainer.gradient_clip_val", False),
        ("seed", False),
        ("data.root", True),  # the data may have moved; its hash is compared
    ],
)
def test_the_rule(key: str, allowed: bool) -> None:
    assert Change(key, 1, 2).allowed is allowed


# --- which run -------------------------------------------------------------------------------------------------------


def fake_run(
    folder: Path, config: DictConfig, *, ended: bool = False, age: float = 0, words: tuple[str, ...] = ()
) -> Path:
    """A folder that looks like a run's."""
    from cvexp.results import write_config

    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(b"")
    os.utime(checkpoint, (time.time() - age,) * 2)
    config.paths.output = str(folder)
    write_config(config)
    (folder / "manifest.json").write_text(json.dumps({"overrides": list(words)}))
    if ended:
        (folder / "result.json").write_text("{}")
    return folder


WORDS = ("model=yolo", "model.size=tiny", "data=shapes")


@pytest.fixture
def runs(tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of three runs the newest has another seed, the second has ended, the third had been stopped."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "yolo-shapes"
    fake_run(folder / "c", compose(*WORDS, "seed=9"), words=(*WORDS, "seed=9"))
    fake_run(folder / "b", compose(*WORDS, "seed=1"), ended=True, age=10, words=(*WORDS, "seed=1"))
    fake_run(folder / "a", compose(*WORDS), age=20, words=WORDS)
    return folder


def test_auto_finds_the_run_of_this_configuration(runs: Path) -> None:
    found = plan([*WORDS, "resume=auto"])
    assert found.folder == Path("runs/yolo-shapes/a")
    checkpoint = runs / "a/checkpoints/last.ckpt"
    assert found.argv == [*WORDS, f"resume='{checkpoint}'", f"hydra.run.dir='{runs / 'a'}'"]
    assert plan([*WORDS, "seed=9", "resume=auto"]).folder == Path("runs/yolo-shapes/c")


def test_auto_leaves_a_run_that_has_ended(runs: Path) -> None:
    found = plan([*WORDS, "seed=1", "resume=auto"])
    assert found.ended
    assert "has ended" in found.note
    longer = plan([*WORDS, "seed=1", "resume=auto", "trainer.max_epochs=99"])
    assert not longer.ended
    assert longer.note == "going on with runs/yolo-shapes/b; changed: trainer.max_epochs: 12 -> 99"
    assert "trainer.max_epochs=99" in longer.argv


def test_auto_begins_where_there_is_none(runs: Path) -> None:
    found = plan(["--config-dir", str(runs), *WORDS, "seed=5", "resume=auto"])
    assert found.folder is None
    assert found.argv == ["--config-dir", str(runs), *WORDS, "seed=5"]
    assert "differs: seed: 9 -> 5" in found.note


def test_auto_passes_over_a_run_that_goes_on(runs: Path) -> None:
    code = (
        "import time; from pathlib import Path; from cvexp.resume import only_one\n"
        f"with only_one(Path({str(runs / 'a')!r})): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert locked(runs / "a")
        found = plan([*WORDS, "resume=auto"])
        assert found.folder is None
        assert "differs" in found.note  # the newest is told
        with (
            pytest.raises(UserError, match=rf"another process trains there \(process {holder.pid} on"),
            only_one(runs / "a"),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert not locked(runs / "a")  # the system let go of it
    assert plan([*WORDS, "resume=auto"]).folder is not None


def test_a_folder_needs_no_other_words(runs: Path) -> None:
    found = plan([f"resume={runs / 'a'}"])
    assert found.argv[:3] == list(WORDS)
    typed = plan(["data.num_workers=1", f"resume={runs / 'a'}", "trainer.max_epochs=40"])
    assert typed.argv[:5] == [*WORDS, "data.num_workers=1", "trainer.max_epochs=40"]
    again = plan(typed.argv)  # as the further processes of a run read it
    assert again.argv == typed.argv


def test_a_hydra_run_dir_is_the_only_candidate(runs: Path) -> None:
    assert plan([*WORDS, "resume=auto", f"hydra.run.dir={runs / 'a'}"]).folder == runs / "a"
    assert plan([*WORDS, "resume=auto", "hydra.run.dir=elsewhere"]).folder is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["resume=nowhere"], "resume=nowhere: no such file or folder", id="nothing there"),
        pytest.param(
            ["resume=runs"], r"runs has no config\.yaml\. Fix: one of its runs: runs/yolo-shapes/c", id="above the runs"
        ),
        pytest.param(["resume=runs/yolo-shapes/a", "seed=4"], r"seed: 0 -> 4", id="another seed"),
        pytest.param(["-m", "resume=auto", "seed=1,2"], "continues one run", id="a sweep"),
        pytest.param(["resume=auto", "sed=1"], "did you mean 'seed'", id="a misspelled word"),
        pytest.param(
            ["resume=runs/yolo-shapes/a/checkpoints/best.ckpt"], "there is no .*best.ckpt", id="no such checkpoint"
        ),
    ],
)
def test_what_cannot_go_on(runs: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(words)


def test_without_resume_nothing_is_looked_for() -> None:
    words = ["model=yolo", "--help"]
    assert plan(words).argv == words
    assert plan(["resume=null", "model=yolo"]).folder is None


LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])


@pytest.mark.parametrize("text", ["a: [", pytest.param(LAUGHS, id="references that multiply to 9 ** 11 values")])
def test_a_broken_configuration_file(text: str, runs: Path) -> None:
    (runs / "a/config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read .*Fix: "):
        plan([f"resume={runs / 'a'}"])


@pytest.mark.parametrize(
    ("stored", "typed", "expected"),
    [
        ([], [], []),
        (["model=yolo", "seed=1"], ["seed=2"], ["model=yolo", "seed=2"]),
        (["+callbacks.a=1"], ["++callbacks.a=2"], ["++callbacks.a=2"]),  # the same key
        (["~callbacks.ema"], [], ["~callbacks.ema"]),
        (["model.size=tiny"], ["model=yolo"], ["model.size=tiny", "model=yolo"]),  # another key
    ],
)
def test_typed_words_take_the_place_of_stored_ones(stored: list[str], typed: list[str], expected: list[str]) -> None:
    assert merged(stored, typed) == expected


def test_stored_words(tmp_path: Path) -> None:
    assert stored_words(tmp_path) == []
    (tmp_path / ".hydra").mkdir()
    words = ["model=yolo", "resume=auto", "hydra.run.dir=x", "hydra/launcher=basic"]
    (tmp_path / ".hydra/overrides.yaml").write_text(yaml.safe_dump(words))
    assert stored_words(tmp_path) == ["model=yolo"]
    (tmp_path / "manifest.json").write_text(json.dumps({"overrides": ["model=facenet"]}))
    assert stored_words(tmp_path) == ["model=facenet"]
    resumed = {"overrides": ["model=facenet"], "resumed": [{"overrides": ["model=facenet", "trainer.max_epochs=9"]}]}
    (tmp_path / "manifest.json").write_text(json.dumps(resumed))  # what it was extended by stays
    assert stored_words(tmp_path) == ["model=facenet", "trainer.max_epochs=9"]
    foreign = ["model=facenet", "allow_targets=[os]", "--config-dir=/tmp", "-m"]  # what a folder may not bring along
    (tmp_path / "manifest.json").write_text(json.dumps({"overrides": foreign}))
    assert stored_words(tmp_path) == ["model=facenet"]
    (tmp_path / "manifest.json").write_text("{")  # broken: Hydra's own record
    assert stored_words(tmp_path) == ["model=yolo"]


def test_run_folders_are_the_newest_first(runs: Path) -> None:
    assert [folder.name for folder in run_folders(runs.parent)] == ["c", "b", "a"]
    assert run_folder(runs / "a") == run_folder(runs / "a/checkpoints/last.ckpt") == runs / "a"
    assert run_folders(runs / "nowhere") == []


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_new_run_does_not_overwrite_another(tmp_path: Path) -> None:
    make_way(tmp_path, resumed=False)
    for name in ("wandb_run.txt", "alarms.txt"):
        (tmp_path / name).write_text("old")
    make_way(tmp_path, resumed=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds a run already.*Fix: resume="):
        make_way(tmp_path, resumed=False)


def test_an_earlier_result_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"train/steps": 7}))
    (tmp_path / "wandb_run.txt").write_text("id")
    make_way(tmp_path, resumed=True)
    assert {path.name for path in tmp_path.iterdir()} == {"result_at_7.json", "wandb_run.txt"}


def test_only_one_leaves_nothing_behind(tmp_path: Path) -> None:
    with only_one(tmp_path / "run"):
        assert (tmp_path / "run/.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert list((tmp_path / "run").iterdir()) == []


def test_from_python_a_checkpoint_is_named(compose: Compose, tmp_path: Path) -> None:
    from cvexp.train import train

    with pytest.raises(UserError, match=r"resume=auto: no such checkpoint.*Fix: "):
        train(compose(*WORDS, "resume=auto"))
    fake_run(tmp_path / "run", compose(*WORDS))
    for word in ("callbacks.last=null", "trainer.enable_checkpointing=false", "debug=step"):
        config = compose(*WORDS, word, f"resume={tmp_path / 'run/checkpoints/last.ckpt'}")
        with pytest.raises(UserError, match=r"nothing can go on without"):
            train(config)
