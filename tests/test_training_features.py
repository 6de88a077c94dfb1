"""What a run can be told to do, at tiny size: choosing, stopping, scaling, freezing, beginning with weights."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import cvexp.build
from cvexp.build import Monitor, build_callbacks, build_optimizer, check_parts, scaled_lr
from cvexp.callbacks.ema import EMA
from cvexp.config import check_config, check_overrides
from cvexp.errors import UserError
from cvexp.train import train

Compose = Callable[..., object]
QUICK = ("callbacks.pictures=null", "trainer.log_every_n_steps=1")


def run(folder: Path, *words: str) -> dict:
    """A run with the real configuration; its files lie in ``folder``."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from cvexp.config import conf_dir

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return train(hydra.compose("train", [*QUICK, *words, f"paths.output={folder}"]))


def column(folder: Path, name: str) -> list[float]:
    """The values of ``metrics.csv`` in the order of logging."""
    with (folder / "metrics.csv").open() as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row.get(name)]


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a run logs."""
    lines: list[str] = []
    monkeypatch.setattr(cvexp.build, "rank_zero_info", lines.append)
    return lines


# --- the trainer's own -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The folder of a run without any option."""
    folder = tmp_path_factory.mktemp("plain")
    run(folder, *tiny)
    return folder


@pytest.fixture(scope="module")
def checkpoint(plain: Path) -> Path:
    return plain / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize(
    ("words", "steps", "matters"),
    [
        (["trainer.precision=bf16-mixed"], 2, True),  # half the bits in the convolutions
        (["trainer.accumulate_grad_batches=2"], 1, True),  # two batches of 8 make a step
        (["trainer.gradient_clip_val=0.001"], 2, True),
        (["callbacks.ema=null"], 2, True),  # no average
        (["trainer.devices=auto", "trainer.strategy=auto", "trainer.accelerator=auto"], 2, False),  # the same numbers
    ],
    ids=["precision", "accumulation", "clipping", "no-average", "auto"],
)
def test_options(tmp_path: Path, tiny: list[str], plain: Path, words: list[str], steps: int, matters: bool) -> None:
    """Each runs to the end, with a validation loss that is the sum of its terms; none is ignored in silence."""
    if not matters and torch.cuda.is_available():
        pytest.skip("auto takes the GPUs here, with other numbers than a CPU's")
    results = run(tmp_path, *tiny, *words)
    assert results["train/steps"] == steps
    assert {"test/AP", "val/best"} <= results.keys()
    (loss,) = column(tmp_path, "val/loss")
    terms = sum(column(tmp_path, f"val/loss_{name}")[0] for name in ("xy", "wh", "object", "noobject", "class"))
    assert 0 < loss < math.inf
    assert loss == pytest.approx(terms, rel=1e-4)
    name = "model.head.predict.bias"
    old, new = (state(folder / "checkpoints" / "last.ckpt")[name] for folder in (plain, tmp_path))
    assert torch.equal(old, new) is not matters


def test_the_average_can_be_left_away(compose: Compose) -> None:
    for words, there in (([], True), (["callbacks.ema=null"], False)):
        assert any(isinstance(c, EMA) for c in build_callbacks(compose(*words))) is there


# --- monitor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "mode", "choose"),
    [
        ("val/loss", "min", min),
        ("train/loss", "min", None),  # of an epoch's last step; logged in each
    ],
)
def test_the_best_checkpoint_is_chosen_by_any_logged_value(
    tmp_path: Path, tiny: list[str], monitor: str, mode: str, choose: Callable | None
) -> None:
    results = run(tmp_path, *tiny, "trainer.max_epochs=2", f"monitor={monitor}", f"monitor_mode={mode}")
    values = column(tmp_path, monitor)
    assert len(values) >= 2
    assert any(results["val/best"] == pytest.approx(value, rel=1e-5) for value in values)
    if choose is not None:
        assert results["val/best"] == pytest.approx(choose(values), rel=1e-5)
    assert json.loads((tmp_path / "result.json").read_text())["val/best"] == results["val/best"]


def test_a_monitor_that_nobody_logs(tmp_path: Path, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"monitor=val/APP is not logged; there are: .*val/AP50.*Fix: .*'val/AP'"):
        run(tmp_path, *tiny, "debug=step", "monitor=val/APP")  # a dry run of one batch finds it too


def validated(fn: str = "fit", sanity: bool = False) -> SimpleNamespace:
    """A trainer after a validation."""
    metrics = {"val/AP": 0.5, "val/loss": 2.0}
    where = SimpleNamespace(fn=fn)
    return SimpleNamespace(state=where, sanity_checking=sanity, callback_metrics=metrics, log_every_n_steps=50)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("val/APP", r"there are: val/AP, val/loss\. Fix: did you mean 'val/AP'"),
        ("zzz", r"there are: val/AP, val/loss\. Fix: choose one of them$"),  # like nothing there is
        ("train/loss", r"Fix: .*; train/ values come every trainer\.log_every_n_steps=50 steps"),  # came too rarely
    ],
)
def test_the_names_that_there_are(name: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"monitor={name} is not logged; .*{message}"):
        Monitor(name).on_validation_end(validated(), None)


def test_the_monitor_looks_at_the_first_validation_of_training() -> None:
    """One outside of a fit, or before it, proves nothing about what training logs; a later one may lack what it has seen."""
    for trainer in (validated("validate"), validated(sanity=True)):
        Monitor("val/APP").on_validation_end(trainer, None)
    monitor, trainer = Monitor("val/AP"), validated()
    monitor.on_validation_end(trainer, None)
    del trainer.callback_metrics["val/AP"]
    monitor.on_validation_end(trainer, None)
    assert monitor.validations == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["monitor_mode=best"], r"monitor_mode=best is neither max nor min\. Fix: "),
        (["monitor=val/loss"], r"monitor=val/loss with monitor_mode=max would keep the worst.*Fix: monitor_mode=min"),
        (["monitor=val/loss_box"], "keep the worst checkpoint"),  # a part of the loss
        (["monitor_mode=min"], r"monitor=val/AP with monitor_mode=min would keep the worst.*Fix: monitor_mode=max"),
        (["monitor=val/AR100", "monitor_mode=min"], "keep the worst checkpoint"),
        (["monitor=test/AP"], r"nothing may be chosen by the test.*Fix: monitor=val/AP"),
        (["early_stopping.patience=0"], r"early_stopping\.patience=0 is not a whole number from 1\. Fix: "),
        (["early_stopping.patience=2.5"], r"early_stopping\.patience=2\.5"),
        (["early_stopping.patience=true"], r"early_stopping\.patience=True"),  # a bool is an int in Python
        (["lr_scaling.nominal_batch=0"], r"lr_scaling\.nominal_batch=0 is not a whole number.*Fix: "),
        (["lr_scaling.nominal_batch=many"], r"lr_scaling\.nominal_batch=many"),
        (["lr_scaling.nominal_batch=16", "~optimizer.lr"], r"scales optimizer\.lr, which has no value\. Fix: "),
        (["freeze.patterns=[backbne.*]"], r"'backbne\.\*' matches no parameter.*Fix: 'backbone\.\*'"),
        (["freeze.patterns=['*']"], "leaves no parameter to train"),
        (["freeze.patterns=[head.*]", "freeze.unfreeze_at=3"], r"unfreeze_at=3 must lie between 0 and 1"),
        (["freeze.unfreeze_at=0.5"], "nothing is frozen"),
        (["scheduler.warmup=500"], r"scheduler\.warmup=500 must be a share"),
    ],
)
def test_what_is_refused_before_any_data_is_read(
    tiny: list[str], compose: Compose, words: list[str], message: str
) -> None:
    cfg = compose(*tiny, *words)
    check_config(cfg, supplied=cvexp.build.SUPPLIED)
    with pytest.raises(UserError, match=message):
        check_parts(cfg)


@pytest.mark.parametrize(
    "word",
    [
        "early_stopping.patience=5",
        "early_stopping.min_delta=0.001",
        "monitor=val/AP50",
        "freeze.patterns=[backbone.*,neck.*]",
        "freeze.unfreeze_at=0.25",
        "lr_scaling.nominal_batch=16",
        "init_from=runs/x/best.ckpt",
        "scheduler=linear",
    ],
)
def test_the_words_of_the_command_line(word: str) -> None:
    check_overrides([word])


def test_one_source_for_the_monitor(compose: Compose) -> None:
    words = ["monitor=val/loss", "monitor_mode=min", "early_stopping.patience=2", "early_stopping.min_delta=0.5"]
    callbacks = build_callbacks(compose("trainer.accelerator=cpu", *words))
    (best,) = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
    (stop,) = [c for c in callbacks if isinstance(c, EarlyStopping)]
    assert (best.monitor, best.mode) == (stop.monitor, stop.mode) == ("val/loss", "min")
    assert (stop.patience, stop.min_delta) == (2, -0.5)
    assert isinstance(callbacks[0], Monitor)


def test_early_stopping_is_off_by_default(compose: Compose) -> None:
    assert not any(isinstance(c, EarlyStopping) for c in build_callbacks(compose()))


def test_nothing_is_monitored_where_nothing_is_chosen(compose: Compose) -> None:
    """A metric of one's own need not log ``val/AP`` when no checkpoint is kept."""
    assert not any(isinstance(c, Monitor) for c in build_callbacks(compose("trainer.enable_checkpointing=false")))


# --- early stopping --------------------------------------------------------------------------------------------------


STOP = ("monitor=val/images", "early_stopping.patience=2")  # a value that never gets better


def test_early_stopping_counts_validations(tmp_path: Path, tiny: list[str], said: list[str]) -> None:
    """The first validation is the best one; after two more that are no better training ends, and is tested."""
    results = run(tmp_path, *tiny, "trainer.max_epochs=9", *STOP)
    assert results["train/epochs"] == 3
    assert "test/AP" in results
    (line,) = said
    assert line.startswith("early stopping after 3 epochs: Monitored metric val/images did not improve in the last 2")


def test_early_stopping_with_a_validation_every_other_epoch(tmp_path: Path, tiny: list[str]) -> None:
    """Validations after epochs 2 and 4: patience is a number of validations, not of epochs."""
    words = ["trainer.check_val_every_n_epoch=2", "monitor=val/images", "early_stopping.patience=1"]
    results = run(tmp_path, *tiny, "trainer.max_epochs=9", *words)
    assert results["train/epochs"] == 4
    assert len(column(tmp_path, "val/images")) == 2


def test_early_stopping_within_an_epoch(tmp_path: Path, tiny: list[str]) -> None:
    """A validation after each of an epoch's two steps: the third one, in the second epoch, ends training."""
    results = run(tmp_path, *tiny, "trainer.max_epochs=9", "trainer.val_check_interval=1", *STOP)
    assert len(column(tmp_path, "val/images")) == 3
    assert results["train/steps"] == 3


def test_an_improving_value_stops_nothing(tmp_path: Path, tiny: list[str], said: list[str]) -> None:
    words = ["monitor=val/loss", "monitor_mode=min", "early_stopping.patience=1", "trainer.max_epochs=2"]
    assert run(tmp_path, *tiny, *words)["train/epochs"] == 2
    assert said == []


def test_a_budget_that_ends_before_patience_does(tmp_path: Path, tiny: list[str], said: list[str]) -> None:
    """The clock ends the run with its one validation, and the log says that early stopping had nothing to compare."""
    words = ["budget.minutes=0.0001", "trainer.max_epochs=-1", "trainer.check_val_every_n_epoch=1000", *STOP]
    results = run(tmp_path, *tiny, *words)
    assert results["train/steps"] < 5
    assert "val/best" in results
    (line,) = said
    assert line.startswith("early stopping had no say: 1 validation(s), patience 2")


# --- learning rate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        ([], None),  # off
        (["lr_scaling.nominal_batch=16"], 1e-3),  # the batch that it is meant for
        (["lr_scaling.nominal_batch=64"], 2.5e-4),  # a quarter of it
        (["lr_scaling.nominal_batch=16", "trainer.accumulate_grad_batches=4"], 4e-3),
        (
            ["lr_scaling.nominal_batch=256", "data.batch_size=8192", "optimizer=sgd", "optimizer.lr=0.1"],
            3.2,
        ),  # the paper's
        (
            ["lr_scaling.nominal_batch=16", "trainer.devices=8", "trainer.strategy=ddp"],
            1e-3,
        ),  # the batch is everybody's
    ],
)
def test_the_linear_rule(compose: Compose, said: list[str], words: list[str], lr: float | None) -> None:
    cfg = compose("data.batch_size=16", "optimizer.lr=1e-3", *words)
    assert scaled_lr(cfg) == (None if lr is None else pytest.approx(lr))
    optimizer = build_optimizer(cfg)([torch.zeros(1, requires_grad=True)])
    assert optimizer.defaults["lr"] == pytest.approx(lr or 1e-3)
    assert len(said) == (lr is not None)


def test_the_scaled_rate_is_trained_with_and_logged(tmp_path: Path, tiny: list[str], said: list[str]) -> None:
    run(tmp_path, *tiny, "lr_scaling.nominal_batch=4", "scheduler=constant", "task.backbone_lr=0.5")
    assert said == ["learning rate 0.002 = optimizer.lr 0.001 * batch 8 * accumulated 1 / nominal batch 4"]
    rates = {value for name in _columns(tmp_path) if name.startswith("lr/") for value in column(tmp_path, name)}
    assert rates == {0.002, 0.001}  # the head's, and half of it for the backbone


def _columns(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open() as stream:
        return next(csv.reader(stream))


# --- freezing --------------------------------------------------------------------------------------------------------


def test_unfreezing_is_reachable_from_the_command_line(tmp_path: Path, tiny: list[str]) -> None:
    results = run(tmp_path, *tiny, "freeze.patterns=[backbone.*]", "freeze.unfreeze_at=0.5")
    assert results["model/trainable_parameters"] == results["model/parameters"]


# --- init_from -------------------------------------------------------------------------------------------------------


def test_a_frozen_run_begins_with_the_weights_of_another(tmp_path: Path, tiny: list[str], checkpoint: Path) -> None:
    """Everything is read; the frozen backbone ends as it was read, statistics included, the head is trained on."""
    results = run(tmp_path, *tiny, f"init_from={checkpoint}", "seed=5", "freeze.patterns=[backbone.*]")
    old, new = state(checkpoint), state(tmp_path / "checkpoints" / "last.ckpt")
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert not [name for name in moved if name.startswith("model.backbone.")]
    assert {"model.head.predict.weight", "model.head.predict.bias"} <= moved
    assert (tmp_path / "init_from.txt").read_text().startswith(f"init_from={checkpoint}: copied 38 of 38 tensors")
    assert results["model/trainable_parameters"] < results["model/parameters"]


def test_other_classes_of_the_same_number(tmp_path: Path, tiny: list[str], checkpoint: Path) -> None:
    """Renamed in the checkpoint: three other classes, so the last layer is fresh and the body is taken."""
    content = torch.load(checkpoint, weights_only=True)
    content["cvexp"]["classes"] = ["RBC", "WBC", "Platelets"]
    torch.save(content, tmp_path / "cells.ckpt")
    run(tmp_path, *tiny, f"init_from={tmp_path / 'cells.ckpt'}", "optimizer.lr=0", "callbacks.ema=null")
    old, new = state(checkpoint), state(tmp_path / "checkpoints" / "last.ckpt")
    moved = {
        name
        for name in old
        if "running" not in name and "tracked" not in name and not torch.equal(old[name], new[name])
    }
    assert moved == {"model.head.predict.weight", "model.head.predict.bias"}, "the others were read, and stood still"
    text = (tmp_path / "init_from.txt").read_text()
    assert "copied 36 of 38 tensors" in text
    assert "classes: ['RBC', 'WBC', 'Platelets'] in the file, ['ellipse', 'rectangle', 'triangle'] in the data" in text
    assert "  head.predict.weight: classes differ" in text


def test_another_network_is_refused(tmp_path: Path, tiny: list[str], checkpoint: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: not one parameter fits this model\. The file has fc\.weight"):
        run(tmp_path / "run", *tiny, f"init_from={tmp_path / 'other.pt'}")


@pytest.mark.parametrize("name", ["nope.ckpt", "text.ckpt"])
def test_a_bad_file_is_found_before_the_data_are_read(tmp_path: Path, compose: Compose, name: str) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    cfg = compose("data=voc", "data.root=nowhere", "trainer.accelerator=cpu", f"init_from={tmp_path / name}")
    with pytest.raises(UserError, match=rf"init_from=.*{name}: ") as refused:
        train(cfg)
    assert "nowhere" not in str(refused.value)
    assert not (tmp_path / "config.yaml").exists(), "no run was begun"
