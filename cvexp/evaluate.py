"""Measure a checkpoint: ``python -m cvexp.evaluate ckpt=runs/.../best.ckpt``, or the detections of any other tool:
``python -m cvexp.evaluate detections=dets.json annotations=gt.json``.

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
           [ablation=nms] [allow_targets=<your package>] [key=value ...]
   or: python -m cvexp.evaluate detections=<JSON> annotations=<JSON> [output=<folder>] [masks=true] [images=<folder>]
           [max_detections=[1,10,100]] [iou_thresholds=null] [size_limits=[1024,9216]] [unknown=error|skip]

Measures a checkpoint that cvexp.train wrote. The checkpoint holds its whole configuration; any of its keys can be
overridden, for instance data.root=/elsewhere data.num_workers=0 metric.difficult=count trainer.accelerator=cpu; parts too:
model/nms=soft_gaussian. ablation=nms measures it with every kind of NMS.

The second form scores what any other tool has found, in COCO's results format (a list of image_id, category_id, bbox, score;
segmentation with masks=true), with the same numbers and pictures; images= shows the worst and best of them."""


def evaluate(words: list[str]) -> tuple[dict[str, Any], Path]:
    """Runs the command with ``words``.

    Returns:
        The flat results that ``result.json`` holds too, and the folder it was written to.

    Raises:
        UserError: a word, the checkpoint or the data cannot be used.
    """
    from omegaconf import DictConfig, OmegaConf

    from cvexp.build import SUPPLIED, quiet
    from cvexp.config.foreign import check_slots, read_foreign, tamed
    from cvexp.config.groups import apply_groups
    from cvexp.inference import read_checkpoint, rebuild_model, told
    from cvexp.results import write_problems, write_results

    own, rest = split_words(words, {"ckpt", "split", "output", "allow_targets"})
    if "ckpt" not in own:
        raise UserError(f"ckpt= is missing.\n{USAGE}")
    split = own.get("split", "test")
    if split not in ("train", "val", "test"):
        raise UserError(f"split={split}: choose from train, val, test. Fix: split=test")
    packages = own.get("allow_targets", "").strip("[]").split(",")
    content = read_checkpoint(own["ckpt"])
    about = content["cvexp"]
    foreign = read_foreign(about["config"], own["ckpt"], ("model", "data", "task", "metric", "trainer"))
    rest, chosen = apply_groups(rest, foreign)
    plain = tamed(chosen)
    check_slots(plain, own["ckpt"], packages)
    config = OmegaConf.create(parse_overrides(rest, plain))
    assert isinstance(config, DictConfig)
    check_config(config, origin=lambda _: f"in {own['ckpt']} or on the command line", supplied=SUPPLIED, extra=packages)
    default = Path(own["ckpt"]).expanduser().resolve().parent.parent / f"evaluate-{split}"
    config.paths.output = own.get("output", str(default))

    quiet()
    model = rebuild_model(content, config, own["ckpt"])
    data = _built(config, "data", own["ckpt"])
    if OmegaConf.select(config, "data.classes", default=0) is None:
        data.classes = list(about["classes"])  # the checkpoint's, whatever the data's training list says today
    data.tested = split
    if getattr(data, "proposals", None) is not None and about.get("proposals"):
        with told(own["ckpt"], "data"):
            data.proposals.load_state(about["proposals"])
    known = about.get("known", about["classes"])  # of people also those of the checkpoints that it began with
    if hasattr(data, "trained"):
        data.trained = known
    data.setup("test")
    try:
        data.check_classes(known)
    except UserError as error:
        raise UserError(f"ckpt={own['ckpt']}: {error}") from None
    write_problems(data.problems, config.paths.output)
    metric = _built(config, "metric", own["ckpt"])
    task = _built(config, "task", own["ckpt"], model=model, optimizer=None, metric=metric, classes=about["classes"])
    with told(own["ckpt"], "task"):
        task.on_load_checkpoint(content)
    options = {"logger": False, "enable_checkpointing": False, "default_root_dir": config.paths.output}
    trainer = _built(config, "trainer", own["ckpt"], callbacks=_pictures(config, own["ckpt"]), **options)
    tested = trainer.test(task, datamodule=data, verbose=False)[0]
    results = {name.replace("test/", f"{split}/"): float(value) for name, value in tested.items()}
    if (findings := getattr(metric, "findings", None)) is not None:
        results[f"{split}/detections_per_image"] = len(findings.det_scores) / max(len(findings.image_ids), 1)
    return write_results(results, model, data, config, task.metric), Path(config.paths.output)


def _built(config: Any, part: str, ckpt: str, **given: Any) -> Any:
    """A part of the configuration as an object."""
    from hydra.utils import instantiate

    from cvexp.inference import told

    with told(ckpt, part):
        return instantiate(config[part], **given)


def _pictures(config: Any, ckpt: str) -> list[Any]:
    """The callbacks that draw; only they are built, as what a checkpoint names may write files."""
    from hydra.utils import get_class, instantiate

    from cvexp.callbacks.face_pictures import FacePictures
    from cvexp.callbacks.pictures import Pictures
    from cvexp.callbacks.report import Report
    from cvexp.inference import told

    with told(ckpt, "callbacks"):
        nodes = [node for node in (config.get("callbacks") or {}).values() if node and node.get("_target_")]
        drawing = [node for node in nodes if issubclass(get_class(node._target_), Pictures | FacePictures | Report)]
        found = [instantiate(node) for node in drawing]
    for callback in found:
        callback.folder = Path(config.paths.output)  # the configuration names the folder of the training
    return found


@report_errors
def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    from cvexp.results import show

    if any(word.startswith("detections=") for word in words):
        from cvexp.evaluate_detections import evaluate_detections

        show(*evaluate_detections(words))
        return
    own, rest = split_words(words, {"ckpt", "output", "ablation"})
    if "ablation" in own:
        from cvexp.ablation import run_ablation

        run_ablation(own.get("ckpt"), own["ablation"], rest, own.get("output"))
        return
    show(*evaluate(words))


def split_words(words: list[str], names: set[str]) -> tuple[dict[str, str], list[str]]:
    """The command's own ``name=value`` words and the others."""
    own = dict(word.split("=", 1) for word in words if "=" in word and word.split("=", 1)[0] in names)
    return own, [word for word in words if word.split("=", 1)[0] not in own]


if __name__ == "__main__":
    main()
