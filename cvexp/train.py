"""Train and measure: ``python -m cvexp.train model=yolo``. Everything else is an override; ``--help`` lists the choices.

Heavy imports happen inside the functions, so that ``--help`` answers in a second.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from cvexp import launch, resume
from cvexp.config import check_config, check_overrides, conf_dir, register_resolvers, report_errors
from cvexp.resume import Change
from cvexp.sweeps import job, outcome
from cvexp.sweeps import plan as sweeps

register_resolvers()


def train(cfg: DictConfig) -> dict[str, Any]:
    """Trains and tests what ``cfg`` describes.

    Returns:
        The flat results that ``result.json`` holds too.

    Raises:
        UserError: configuration or data cannot be used.
    """
    from cvexp.build import SUPPLIED, check_parts, quiet
    from cvexp.resume import check_resumed, make_way, only_one

    check_config(cfg, supplied=SUPPLIED, extra=cfg.allow_targets)
    quiet()
    check_parts(cfg)
    changes = None if cfg.resume is None else check_resumed(cfg)
    folder = Path(cfg.paths.output)
    with only_one(folder):
        make_way(folder, resumed=changes is not None)
        return _train(cfg, changes)


def _train(cfg: DictConfig, changes: list[Change] | None) -> dict[str, Any]:
    """`train` in a folder that is its own; ``changes`` of a run that goes on."""
    from functools import partial

    from hydra.utils import instantiate
    from lightning.pytorch import seed_everything

    from cvexp.build import build_callbacks, build_model, build_optimizer, describe, open_loggers
    from cvexp.manifest import check_data, typed_overrides, write_manifest
    from cvexp.results import write_config, write_problems, write_results
    from cvexp.transfer import known_people, read_weights, transfer

    weights = None if cfg.init_from is None else read_weights(cfg.init_from)
    write_config(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    known = known_people(weights, data)
    data.setup("fit")
    data.setup("test")
    if known:
        data.check_classes(known)
    write_problems(data.problems, cfg.paths.output)
    if changes is not None:
        check_data(data, cfg.paths.output)
    write_manifest(cfg, data, overrides=typed_overrides(), argv=sys.argv, resumed=cfg.resume, changes=changes or ())

    model = build_model(cfg.model, num_classes=len(data.class_names))
    if weights is not None:
        transfer(model, weights, data.class_names, Path(cfg.paths.output))
    task = instantiate(
        cfg.task,
        model=model,
        optimizer=build_optimizer(cfg),
        scheduler=instantiate(cfg.scheduler),
        metric=instantiate(cfg.metric),
        classes=data.class_names,
    )
    task.description = describe(cfg, data.class_names) | ({"known": known} if known else {})
    if getattr(data, "proposals", None) is not None and (learnt := data.proposals.state()):
        task.description["proposals"] = learnt  # who predicts makes the same ones
    with open_loggers(cfg) as loggers:
        make_trainer = partial(instantiate, cfg.trainer, callbacks=build_callbacks(cfg), logger=loggers)
        results = instantiate(cfg.get("instead") or cfg.recipe)(make_trainer, task, data)
    return write_results(results, model, data, cfg, task.metric)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
@report_errors
def _run(cfg: DictConfig) -> float | None:
    if found := job.ledger_of(cfg):
        return job.run(cfg, *found)
    if launch.needed(cfg):
        return launch.run(cfg)
    from cvexp.results import show

    with launch.rank(), outcome.told():
        results = train(cfg)
    show(results, Path(cfg.paths.output))
    return results.get("val/best")


@report_errors
def main() -> None:
    """The command: looks for a run to go on with, checks the words of the command line, then lets Hydra compose and run."""
    with outcome.told():
        if not _planned():
            return
    _run()


def _planned() -> bool:
    """Puts the words in the place of ``sys.argv`` by which Hydra composes what is to be run; False where there is nothing."""
    swept = sweeps.plan(sys.argv[1:])
    if swept.note:
        print(swept.note, file=sys.stderr)
    plan = resume.plan(swept.argv)
    if plan.note and resume.first_process() and launch.PARENT not in os.environ:  # told by the starter
        print(plan.note, file=sys.stderr)
    if plan.ended:
        _show_ended(plan.folder)
        return False
    sys.argv[1:] = plan.argv
    check_overrides(sys.argv[1:])
    return True


def _show_ended(folder: Path) -> None:
    """The results of a run that has nothing left to do."""
    from cvexp.results import show

    show(json.loads((folder / "result.json").read_text(encoding="utf-8")), folder)


if __name__ == "__main__":  # as a module of its name, so that a launcher's workers find what they are to run
    from cvexp.train import main as importable

    importable()
