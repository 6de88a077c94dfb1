"""Measure a checkpoint: ``python -m cvexp.evaluate ckpt=runs/.../best.ckpt``.

The checkpoint alone rebuilds model, classes, data settings and metric. ``split=val`` measures another split, and any key of
the checkpoint's configuration can be overridden (``data.root=/elsewhere``, ``metric.difficult=count``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cvexp.config import check_config, parse_overrides, report_errors
from cvexp.errors import UserError

USAGE = """usage: python -m cvexp.evaluate ckpt=<checkpoint> [split=test|val|train] [output=<folder>]
           [allow_targets=<your package>] [key=value ...]

Measures a checkpoint that cvexp.train wrote. The checkpoint holds its whole configuration; any of its keys can be
overridden, for instance data.root=/elsewhere data.num_workers=0 metric.difficult=count trainer.accelerator=cpu."""


def evaluate(words: list[str]) -> tuple[dict[str, Any], Path]:
    """Runs the command with ``words``.

    Returns:
        The flat results that ``result.json`` holds too, and the folder it was written to.

    Raises:
        UserError: a word, the checkpoint or the data cannot be used.
    """
    from hydra.utils import instantiate
    from omegaconf import DictConfig, OmegaConf

    from cvexp.build import SUPPLIED, build_callbacks, quiet
    from cvexp.callbacks.face_pictures import FacePictures
    from cvexp.callbacks.pictures import Pictures
    from cvexp.inference import read_checkpoint, rebuild_model
    from cvexp.results import write_problems, write_results

    own, rest = split_words(words, {"ckpt", "split", "output", "allow_targets"})
    if "ckpt" not in own:
        raise UserError(f"ckpt= is missing.\n{USAGE}")
    split = own.get("split", "test")
    if split not in ("train", "val", "test"):
        raise UserError(f"split={split}: choose from train, val, test")
    packages = own.get("allow_targets", "").strip("[]").split(",")
    content = read_checkpoint(own["ckpt"])
    about = content["cvexp"]
    config = OmegaConf.create(parse_overrides(rest, about["config"]))
    assert isinstance(config, DictConfig)
    check_config(config, origin=lambda _: f"in {own['ckpt']} or on the command line", supplied=SUPPLIED, extra=packages)
    default = Path(own["ckpt"]).expanduser().resolve().parent.parent / f"evaluate-{split}"
    config.paths.output = own.get("output", str(default))

    quiet()
    model = rebuild_model(content, config, own["ckpt"])
    data = instantiate(config.data)
    if OmegaConf.select(config, "data.classes", default=0) is None:
        data.classes = list(about["classes"])  # the checkpoint's, whatever the data's training list says today
    data.tested = split
    known = about.get("known", about["classes"])  # of people also those of the checkpoints that it began with
    if hasattr(data, "trained"):
        data.trained = known
    data.setup("test")
    try:
        data.check_classes(known)
    except UserError as error:
        raise UserError(f"ckpt={own['ckpt']}: {error}") from None
    write_problems(data.problems, config.paths.output)
    task = instantiate(
        config.task, model=model, optimizer=None, metric=instantiate(config.metric), classes=about["classes"]
    )
    task.on_load_checkpoint(content)
    pictures = [callback for callback in build_callbacks(config) if isinstance(callback, Pictures | FacePictures)]
    for callback in pictures:
        callback.folder = Path(config.paths.output)  # the configuration names the folder of the training
    trainer = instantiate(
        config.trainer, callbacks=pictures, logger=False, enable_checkpointing=False,
        default_root_dir=config.paths.output,
    )  # fmt: skip
    tested = trainer.test(task, datamodule=data, verbose=False)[0]
    results = {name.replace("test/", f"{split}/"): float(value) for name, value in tested.items()}
    return write_results(results, model, data, config), Path(config.paths.output)


@report_errors
def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    from cvexp.results import show

    results, folder = evaluate(words)
    show(results, folder)


def split_words(words: list[str], names: set[str]) -> tuple[dict[str, str], list[str]]:
    """The command's own ``name=value`` words and the others."""
    own = dict(word.split("=", 1) for word in words if "=" in word and word.split("=", 1)[0] in names)
    return own, [word for word in words if word.split("=", 1)[0] not in own]


if __name__ == "__main__":
    main()
