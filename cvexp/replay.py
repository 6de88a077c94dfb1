"""Repeat the step at which a loss was NaN: ``python -m cvexp.replay <run folder>``.

The file that the alarm has saved holds the run's configuration, the weights and the batch; any key of the configuration can be
overridden, to see whether the step would then be finite (``trainer.precision=32-true``, ``model.loss.lambda_coord=1``).
"""

from __future__ import annotations

import sys
from typing import Any

from cvexp.config import check_config, parse_overrides, report_errors
from cvexp.errors import UserError

USAGE = """usage: python -m cvexp.replay <run folder or saved step> [allow_targets=<your package>] [key=value ...]

Repeats the step that an alarm of callbacks.not_finite has saved (nan/step_<number>.pt) and prints what went into every module
and came out, the loss terms and the gradient norms. Nothing is trained. Keys of the run's configuration can be overridden,
for instance trainer.precision=32-true trainer.accelerator=cpu."""


def replay(words: list[str]) -> dict[str, float]:
    """Runs the command with ``words``.

    Returns:
        See `cvexp.callbacks.replay.replay_step`.

    Raises:
        UserError: a word or the file cannot be used.
    """
    from functools import partial

    from hydra.utils import instantiate
    from omegaconf import DictConfig, OmegaConf

    from cvexp.build import SUPPLIED, quiet
    from cvexp.callbacks.replay import replay_step
    from cvexp.callbacks.step_file import find_step, read_step
    from cvexp.config.foreign import check_slots, read_foreign, tamed
    from cvexp.inference import rebuild_model

    places, packages, rest = split_words(words)
    path = find_step(places)
    content = read_step(path)
    plain = tamed(read_foreign(content["cvexp"]["config"], path, ("model", "data", "task", "trainer")))
    check_slots(plain, path, packages)
    config = OmegaConf.create(parse_overrides(rest, plain))
    assert isinstance(config, DictConfig)
    check_config(config, origin=lambda _: f"in {path} or on the command line", supplied=SUPPLIED, extra=packages)
    quiet()
    model = rebuild_model(content, config, path)
    task = instantiate(config.task, model=model, optimizer=None, metric=None, classes=content["cvexp"]["classes"])
    make_trainer = partial(
        instantiate, config.trainer, callbacks=[], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        devices=1, num_nodes=1, strategy="auto", default_root_dir=str(path.parent),
    )  # fmt: skip
    return replay_step(make_trainer, task, None, str(path))


def split_words(words: list[str]) -> tuple[str, list[str], list[str]]:
    """The place, the packages of ``allow_targets=`` and the overrides.

    Raises:
        UserError: not exactly one place.
    """
    places = [word.removeprefix("replay=") for word in words if "=" not in word or word.startswith("replay=")]
    if len(places) != 1:
        raise UserError(f"one run folder or saved step is needed, given: {places or 'none'}.\n{USAGE}")
    named = [word.removeprefix("allow_targets=") for word in words if word.startswith("allow_targets=")]
    packages = [name for text in named for name in text.strip("[]").split(",")]
    rest = [word for word in words if "=" in word and not word.startswith(("replay=", "allow_targets="))]
    return places[0], packages, rest


@report_errors
def main() -> None:
    """The command."""
    words: list[Any] = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    replay(words)


if __name__ == "__main__":
    main()
