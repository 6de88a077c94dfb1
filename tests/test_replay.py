"""``python -m cvexp.replay``: a run that an alarm ended, seen again from its folder alone; the same step as a debug preset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from cvexp.errors import UserError
from cvexp.replay import replay, split_words
from cvexp.train import train

ENDED = (
    "trainer.max_epochs=3", "trainer.log_every_n_steps=1", "optimizer.lr=1e30", "trainer.gradient_clip_val=null",
)  # fmt: skip


@pytest.fixture
def ended(tiny: list[str], tmp_path: Path, compose: Callable[..., DictConfig]) -> Path:
    """The folder of a run whose first update spoils the weights."""
    with pytest.raises(UserError, match=r"stopped at step 2: the loss is nan.*It begins in backbone\.") as caught:
        train(compose(*tiny, *ENDED, "task.backbone_lr=1e-6"))
    assert "weights have grown to" in str(caught.value)
    return tmp_path


def test_replay(
    ended: Path, tiny: list[str], compose: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    first = replay([str(ended)])
    said = capsys.readouterr().out
    assert first["replay/finite"] == 0
    assert "<- first" in said
    assert "step 2 (epoch 0, batch 1), images" in said
    saved = next((ended / "nan").iterdir())
    assert {k: repr(v) for k, v in replay([f"replay={saved}"]).items()} == {k: repr(v) for k, v in first.items()}
    words = [*tiny, *ENDED, "debug=replay", f"replay={ended}"]
    results = train(compose(*words))
    assert results["replay/modules"] == first["replay/modules"]
    with pytest.raises(
        UserError, match=r"Fix: python -m cvexp\.replay"
    ):  # another model: only the command knows the run's
        train(compose(*words, "model=faster_rcnn_fpn"))
    with pytest.raises(UserError, match=r"debug=replay needs the step"):
        train(compose(*tiny, "debug=replay"))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["runs/a"], ("runs/a", [], [])),
        (["replay=runs/a=b", "x.y=1"], ("runs/a=b", [], ["x.y=1"])),
        (["runs/a", "allow_targets=[mine,yours]"], ("runs/a", ["mine", "yours"], [])),
    ],
)
def test_words(words: list[str], found: tuple[str, list[str], list[str]]) -> None:
    assert split_words(words) == found


@pytest.mark.parametrize("words", [[], ["trainer.precision=32"], ["a", "b"]])
def test_one_place_is_needed(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"one run folder or saved step is needed"):
        split_words(words)


def test_a_folder_without_a_saved_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no saved step there .*Fix: give the folder of a run that an alarm"):
        replay([str(tmp_path)])
