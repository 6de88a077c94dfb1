"""Alarms of an embedding's training: each provoked in a real fit, once by a network that does collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cvexp.callbacks.health import Collapse, states
from cvexp.errors import UserError

NAN = math.nan
HEALTHY = {
    "loss": 0.11,
    "spread": 0.8,
    "active": 1.0,
    "positive_distance": 0.5,
    "negative_distance": 1.7,
    "margin": 0.2,
}


class Logged(LightningModule):
    """Logs one row of values after the other, each every ``log_every_n_steps`` steps as the tasks do."""

    def __init__(self, rows: Sequence[Mapping[str, float]]) -> None:
        super().__init__()
        self.rows, self.model = list(rows), nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        step = self.trainer.global_step + 1
        if step % self.trainer.log_every_n_steps == 0:
            self.log_dict({f"train/{k}": v for k, v in self.rows[step // self.trainer.log_every_n_steps - 1].items()})
        return self.model(batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(folder: Path, callback: Collapse, steps: int, every: int = 1, **options: object) -> Trainer:
    return Trainer(
        max_steps=steps,
        log_every_n_steps=every,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def watch(
    folder: Path, rows: Sequence[Mapping[str, float]], every: int = 1, accumulate: int = 1, **options: object
) -> Collapse:
    """The callback after a fit in which these rows were logged, one each ``every`` steps."""
    callback = Collapse(str(folder), **options)
    steps = len(rows) * every
    loader = DataLoader(TensorDataset(torch.ones(steps * accumulate, 1)), batch_size=1)
    trainer(folder, callback, steps, every, accumulate_grad_batches=accumulate).fit(Logged(rows), loader)
    return callback


def row(**changes: float) -> dict[str, float]:
    return HEALTHY | changes


@pytest.mark.parametrize(
    ("rows", "kinds"),
    [
        ([HEALTHY] * 6, []),  # all is well
        ([{}] * 6, []),  # a task that logs nothing of it
        ([row(spread=0.01)] * 3, ["collapse"]),  # patience is 3
        ([row(spread=0.01)] * 2, []),  # a look too few
        ([*[row(spread=0.01)] * 2, HEALTHY, *[row(spread=0.01)] * 2], []),  # not in a row
        ([row(spread=0.05)] * 6, []),  # at the limit, not below it
        ([row(loss=0.203)] * 3, ["stuck"]),  # within 2 % of the margin
        ([row(loss=0.197)] * 3, ["stuck"]),  # from below too
        ([row(loss=0.205)] * 6, []),  # beyond
        ([row(loss=0.5, margin=0.5)] * 3, ["stuck"]),  # of another margin
        ([row(active=0.0, loss=0.0)] * 3, ["idle"]),
        ([row(active=1e-3)] * 6, []),  # few, but some
        ([row(loss=NAN, spread=0.0)] * 3, []),  # what else is logged means nothing then; another alarm tells of it
        ([row(loss=math.inf, spread=0.0)] * 3, []),
        ([row(spread=0.01, loss=0.2, active=0.0)] * 9, ["collapse"]),  # which explains the others
        ([*[row(loss=0.2)] * 3, *[row(spread=0.0, loss=0.2)] * 3], ["stuck", "collapse"]),  # it came later
        ([*[row(active=0.0)] * 3, HEALTHY, *[row(active=0.0)] * 3], ["idle"]),  # once in a run
    ],
)
def test_alarms(
    rows: list[dict[str, float]], kinds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = watch(tmp_path, rows, patience=3)
    assert list(callback.alarms) == kinds
    said = capsys.readouterr().err
    assert said.count("ALARM at step") == len(kinds)
    file = tmp_path / "alarms.txt"
    assert (file.read_text().splitlines() if kinds else []) == list(callback.alarms.values())
    assert file.exists() == bool(kinds)
    assert {path.name for path in tmp_path.iterdir()} <= {"alarms.txt"}, "nothing half-written"


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({}, []),  # nothing is known
        ({"train/spread": NAN, "train/active": NAN}, []),  # nothing is known either
        ({"train/loss": 0.2, "train/spread": 0.01, "train/margin": 0.2}, ["collapse", "stuck"]),  # the docstring's
        ({"train/loss": 0.0, "train/margin": 0.2, "train/active": 0.0}, ["idle"]),
        ({"train/loss": 0.2}, []),  # no margin to compare with
    ],
)
def test_states(values: dict[str, float], kinds: list[str]) -> None:
    assert states(values, None, 0.05) == kinds


def test_margin_may_be_given(tmp_path: Path) -> None:
    rows = [{"loss": 0.3}] * 2
    assert list(watch(tmp_path, rows, patience=2).alarms) == []
    assert list(watch(tmp_path, rows, patience=2, margin=0.3).alarms) == ["stuck"]


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"spread": 0.013}, ("step 2: all faces get (nearly) the same embedding", "0.013", "sticks at the margin 0.2",
                             "lower optimizer.lr (here 0.01)", "data.batch_size", "init_from=")),
        ({"loss": 0.2}, ("the loss stays at the margin 0.2: 0.2", "lower optimizer.lr (here 0.01)")),
        ({"active": 0.0}, ("Nothing is left to learn", "0.500 within a person, 1.700 between", "identities per batch")),
        ({"active": 0.0, "negative_distance": 0.4}, ("no negative farther than its positive", "fallback=furthest")),
    ],
)  # fmt: skip
def test_words(changes: dict[str, float], texts: tuple[str, ...], tmp_path: Path) -> None:
    callback = watch(tmp_path, [row(**changes)] * 2, patience=2)
    (said,) = callback.alarms.values()
    for text in texts:
        assert text in said


def test_the_miner_is_named_where_it_is_to_blame(tmp_path: Path) -> None:
    from cvexp.ops.mining import Hardest, SemiHard

    for miner, named in ((Hardest(), True), (SemiHard(), False)):
        callback = Collapse(str(tmp_path), patience=1)
        module = Logged([row(spread=0.0)])
        module.model.miner = miner
        trainer(tmp_path, callback, 1).fit(module, DataLoader(TensorDataset(torch.ones(1, 1))))
        assert ("model/miner=semi_hard instead of Hardest" in callback.alarms["collapse"]) is named


@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (4, 1), (2, 3)])
def test_each_logged_step_is_one_look(every: int, accumulate: int, tmp_path: Path) -> None:
    """Neither the steps between two logged ones nor the batches that make one step count."""
    bad = [row(spread=0.0)]
    assert watch(tmp_path, bad * 3, every, accumulate, patience=4).alarms == {}
    callback = watch(tmp_path, bad * 4, every, accumulate, patience=4)
    assert callback.alarms["collapse"].startswith(f"step {4 * every}: ")


def test_all_processes_hear_of_the_first_one_s_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one process would stop and the others wait for it: what the first has found counts, not what this one sees."""
    from lightning.pytorch.strategies import SingleDeviceStrategy

    monkeypatch.setattr(Trainer, "world_size", 2)
    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", lambda self, found, src=0: {"collapse": "all is one"})
    with pytest.raises(UserError, match="stopped at step 1: all is one"):
        watch(tmp_path, [HEALTHY] * 3, stop=True)


def test_stop_ends_training(tmp_path: Path) -> None:
    callback = Collapse(str(tmp_path), patience=2, stop=True)
    fit = trainer(tmp_path, callback, 9)
    loader = DataLoader(TensorDataset(torch.ones(9, 1)))
    with pytest.raises(UserError, match=r"(?s)stopped at step 2: all faces get.*Fix: as advised"):
        fit.fit(Logged([row(spread=0.0)] * 9), loader)
    assert fit.global_step == 2
    assert (tmp_path / "alarms.txt").exists()


def test_a_resumed_run_does_not_repeat_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = watch(tmp_path, [row(spread=0.0)] * 2, patience=2)
    capsys.readouterr()
    second = Collapse(str(tmp_path), patience=2)
    second.load_state_dict(first.state_dict())
    trainer(tmp_path, second, 4).fit(Logged([row(spread=0.0)] * 4), DataLoader(TensorDataset(torch.ones(4, 1))))
    assert second.alarms == first.alarms
    assert "ALARM" not in capsys.readouterr().err
    assert (tmp_path / "alarms.txt").exists(), "it is still this run's"


def test_looks_in_a_row_are_counted_over_a_resume(tmp_path: Path) -> None:
    first = watch(tmp_path, [row(spread=0.0)] * 2, patience=3)
    second = Collapse(str(tmp_path), patience=3)
    second.load_state_dict(first.state_dict())
    trainer(tmp_path, second, 1).fit(Logged([row(spread=0.0)]), DataLoader(TensorDataset(torch.ones(1, 1))))
    assert first.alarms == {}
    assert list(second.alarms) == ["collapse"]


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    callback = Collapse(str(tmp_path), patience=1)
    loader = DataLoader(TensorDataset(torch.ones(1, 1)))
    trainer(tmp_path, callback, 1, fast_dev_run=1).fit(Logged([row(spread=0.0)]), loader)
    assert list(callback.alarms) == ["collapse"]
    assert not (tmp_path / "alarms.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, r"patience=0 is below 1\. Fix"),
        ({"spread": 1.0}, r"spread=1\.0 is not in 0\.\.1\. Fix"),
        ({"spread": NAN}, r"spread=nan"),
    ],
)
def test_refusal(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Collapse("x", **options)


def test_spread_may_be_given(tmp_path: Path) -> None:
    assert list(watch(tmp_path, [row(spread=0.15)] * 2, patience=2, spread=0.2).alarms) == ["collapse"]


# --- a network that does collapse ------------------------------------------------------------------------------------


class Faces(LightningModule):
    """FaceNet on noise with a little of an identity in it."""

    def __init__(self, miner: object, rate: float) -> None:
        from cvexp.comparators.comparator import Comparator
        from cvexp.losses.triplet import Triplet
        from cvexp.models.facenet import FaceNet

        super().__init__()
        torch.manual_seed(0)
        self.model = FaceNet(Small(), miner, Triplet(0.2), Comparator, num_classes=8, dim=16, image_size=8)
        self.rate = rate

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels, ids = batch
        embeddings = self.model(images)
        loss = self.model.losses(embeddings, labels, ids)["triplet"]
        values = self.model.statistics(embeddings.detach(), labels, ids)
        self.log_dict({f"train/{name}": value for name, value in values.items()} | {"train/loss": loss})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.rate)


class Small(nn.Module):
    """Two layers on the pixels of 8 x 8 images, as a backbone of one map."""

    out_channels, strides = (64,), (8,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 64, 8), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU())

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.layers(images.float() / 127.5 - 1)]


def noise(steps: int) -> DataLoader:
    """Batches of 8 people with 4 images of 8 x 8 pixels each: a person's pattern under more than twice as much noise."""
    rng = torch.Generator().manual_seed(0)
    people = torch.randint(0, 256, (8, 1, 3, 8, 8), generator=rng) * 0.3
    images = (people + torch.randint(0, 256, (8, 4 * steps, 3, 8, 8), generator=rng) * 0.7).to(torch.uint8)
    labels = torch.arange(8)[:, None].expand(8, 4 * steps)
    ids = torch.arange(8 * 4 * steps).view(8, -1)
    batches = [tuple(part[:, 4 * k : 4 * k + 4].flatten(0, 1) for part in (images, labels, ids)) for k in range(steps)]
    return DataLoader(batches, batch_size=None)


@pytest.mark.parametrize("name", ["Hardest", "SemiHard"])
def test_hardest_negatives_collapse_and_semi_hard_ones_do_not(name: str, tmp_path: Path) -> None:
    """The same network, images and (large) rate; only the choice of negatives differs."""
    from cvexp.ops import mining

    callback = Collapse(str(tmp_path), patience=3)
    fit = trainer(tmp_path, callback, 40)
    fit.fit(Faces(getattr(mining, name), rate=0.1), noise(40))
    last = {name: float(value) for name, value in fit.callback_metrics.items()}
    if name == "SemiHard":
        assert callback.alarms == {}
        assert last["train/negative_distance"] > 4 * last["train/positive_distance"], "it has learnt"
        return
    assert "collapse" in callback.alarms
    assert set(callback.alarms) <= {"collapse", "stuck"}
    assert "model/miner=semi_hard instead of Hardest" in callback.alarms["collapse"]
    assert last["train/loss"] == pytest.approx(0.2, rel=0.02), "the margin"
    assert max(last["train/positive_distance"], last["train/negative_distance"]) < 0.01
