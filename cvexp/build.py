"""From a checked configuration to objects; shared by the commands."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn

import cvexp
from cvexp.types import UserError

SUPPLIED = {
    "model": {"num_classes"},
    "model.head": {"in_channels", "in_size", "outputs"},
    "model.neck": {"in_channels", "strides"},
    "task": {"model", "optimizer", "metric", "classes", "scheduler"},
    "trainer": {"callbacks", "logger"},
    "optimizer": {"params"},
    "recipe": {"make_trainer", "task", "data"},
}
"""What the commands themselves hand to a component, by node of the configuration."""


def build_model(cfg: DictConfig, num_classes: int) -> nn.Module:
    """The model of ``cfg`` (the node ``model``) for so many classes.

    ``size`` only chooses among the numbers of the YAML; no class sees it.
    """
    node = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    node.pop("size", None)
    model: nn.Module = instantiate(node, num_classes=num_classes)
    return model.to(memory_format=torch.channels_last)  # the layout in which CPU and GPU convolutions are fastest


def check_parts(cfg: DictConfig) -> None:
    """Builds model, optimizer, schedule and metric once without memory, before any data is read.

    Raises:
        UserError: a combination that a constructor refuses, with the constructor's own words.
    """
    if cfg.data.image_size != cfg.model.image_size:
        raise UserError(
            f"data.image_size={cfg.data.image_size} differs from model.image_size={cfg.model.image_size}."
            " Fix: set model.image_size only; the data follows it"
        )
    for name in ("model", "optimizer", "scheduler", "metric", "recipe"):
        try:
            with torch.device("meta"):
                part = build_model(cfg.model, 2) if name == "model" else instantiate(cfg[name])
                if name == "optimizer":
                    part([torch.zeros(1, requires_grad=True)])
        except UserError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            if isinstance(cause, UserError):
                raise cause from None
            raise UserError(f"{name}: {type(cause).__name__}: {cause}. Fix: check the keys below '{name}'") from error


def describe(cfg: DictConfig, classes: list[str]) -> dict[str, Any]:
    """What a checkpoint says about itself: plain Python, so that it loads with ``weights_only=True``."""
    return {
        "version": cvexp.__version__,
        "classes": list(classes),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """The callbacks of ``cfg``, less those that a switch of the trainer makes pointless and Lightning then refuses."""
    callbacks = [callback for callback in instantiate(cfg.callbacks).values() if callback is not None]
    if not cfg.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    if not cfg.trainer.enable_checkpointing or cfg.trainer.fast_dev_run:  # Lightning would save even a dry run's end
        callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
    if not cfg.logger:
        callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
    return callbacks


@contextmanager
def open_loggers(cfg: DictConfig) -> Iterator[list[Logger]]:
    """The loggers of a run, told the resolved configuration; closed whatever happens, so that a sweep's next job starts anew."""
    loggers = [logger for logger in instantiate(cfg.logger).values() if logger is not None]
    try:
        for logger in loggers:
            if not isinstance(logger, CSVLogger):  # config.yaml lies beside metrics.csv already
                logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()


def quiet() -> None:
    """Silences what is no news to a user, each for a reason; everything else is shown."""
    logging.getLogger("lightning.pytorch").propagate = False  # Lightning prints by itself; Hydra would print it again
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(_CHATTER))
    # Our loaders choose their workers on purpose: `shapes` has none because its images are drawn once and kept.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Small data sets have fewer steps in an epoch than log_every_n_steps.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    # Every process computes the same mAP from all detections: there is nothing to average.
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    # The best checkpoint of a run is overwritten in place.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # metrics.csv is written into the run folder, which holds config.yaml already.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    # Lightning 2.6 asks torch 2.15 in a way that torch will drop; nothing a user could change.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).* is deprecated")


_CHATTER = (
    "GPU available",
    "TPU available",
    "HPU available",
    "💡",
    "`Trainer.fit` stopped",
    "Restoring states",
    "Loaded model weights",
    "Loading `train_dataloader`",
)
