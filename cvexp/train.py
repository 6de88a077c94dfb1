"""Train and measure: ``python -m cvexp.train model=yolo``. Everything else is an override; ``--help`` lists the choices.

Heavy imports happen inside the functions, so that ``--help`` answers in a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from cvexp.config import check_config, check_overrides, conf_dir, register_resolvers, report_errors

register_resolvers()


def train(cfg: DictConfig) -> dict[str, Any]:
    """Trains and tests what ``cfg`` describes.

    Returns:
        The flat results that ``result.json`` holds too.

    Raises:
        UserError: configuration or data cannot be used.
    """
    from functools import partial

    from hydra.utils import instantiate
    from lightning.pytorch import seed_everything

    from cvexp.build import (
        SUPPLIED,
        build_callbacks,
        build_model,
        build_optimizer,
        check_parts,
        describe,
        open_loggers,
        quiet,
    )
    from cvexp.results import write_config, write_problems, write_results
    from cvexp.transfer import known_people, read_weights, transfer

    check_config(cfg, supplied=SUPPLIED, extra=cfg.allow_targets)
    quiet()
    check_parts(cfg)
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
    with open_loggers(cfg) as loggers:
        make_trainer = partial(instantiate, cfg.trainer, callbacks=build_callbacks(cfg), logger=loggers)
        results = instantiate(cfg.recipe)(make_trainer, task, data)
    return write_results(results, model, data, cfg)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
@report_errors
def _run(cfg: DictConfig) -> float | None:
    from cvexp.results import show

    results = train(cfg)
    show(results, Path(cfg.paths.output))
    return results.get("val/best")


@report_errors
def main() -> None:
    """The command: checks the words of the command line, then lets Hydra compose and run."""
    check_overrides(sys.argv[1:])
    _run()


if __name__ == "__main__":
    main()
