"""Train and measure: ``python -m cvexp.train model=yolo``. Everything else is an override; ``--help`` lists the choices.

Heavy imports happen inside the functions, so that ``--help`` answers in a second.
"""

from __future__ import annotations

import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from cvexp.config import check_config, check_overrides, conf_dir, register_resolvers, report_errors

register_resolvers()

SUPPLIED = {  # what the program itself hands to a component
    "model": {"num_classes"},
    "model.head": {"in_channels", "in_size", "outputs"},
    "model.neck": {"in_channels", "strides"},
    "task": {"model", "optimizer", "metric", "classes", "scheduler"},
    "trainer": {"callbacks", "logger"},
    "optimizer": {"params"},
    "recipe": {"make_trainer", "task", "data"},
}


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

    from cvexp.build import build_model, check_parts, describe, quiet
    from cvexp.results import write_config, write_problems, write_results

    check_config(cfg, supplied=SUPPLIED)
    quiet()
    check_parts(cfg)
    write_config(cfg)

    seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    data.setup("fit")
    data.setup("test")
    write_problems(data.problems, cfg.paths.output)

    model = build_model(cfg.model, num_classes=len(data.class_names))
    task = instantiate(
        cfg.task,
        model=model,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        metric=instantiate(cfg.metric),
        classes=data.class_names,
    )
    task.description = describe(cfg, data.class_names)
    callbacks = [c for c in instantiate(cfg.callbacks).values() if c is not None]
    loggers = [logger for logger in instantiate(cfg.logger).values() if logger is not None]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    make_trainer = partial(instantiate, cfg.trainer, callbacks=callbacks, logger=loggers)

    results = instantiate(cfg.recipe)(make_trainer, task, data)
    return write_results(cfg, results, model, data)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def _run(cfg: DictConfig) -> float | None:
    from cvexp.results import show

    results = train(cfg)
    show(results, cfg)
    return results.get("val/best")


@report_errors
def main() -> None:
    """The command: checks the words of the command line, then lets Hydra compose and run."""
    check_overrides(sys.argv[1:])
    _run()


if __name__ == "__main__":
    main()
