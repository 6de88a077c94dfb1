"""From a checked configuration to objects; shared by the commands."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from hydra.utils import get_class, get_object, instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import DictConfig, OmegaConf
from torch import nn

import cvexp
from cvexp.callbacks.freeze import Freeze
from cvexp.config.messages import listing, suggest
from cvexp.loggers.shown import Shows
from cvexp.types import UserError

SUPPLIED = {
    "model": {"num_classes"},
    "model.head": {"in_channels", "in_size", "outputs", "size", "num_classes"},
    "model.neck": {"in_channels", "strides"},
    "model.rpn": {"in_channels", "anchors"},
    "model.comparator": {"dim"},
    "model.miner": {"margin"},
    "task": {"model", "optimizer", "metric", "classes", "scheduler"},
    "trainer": {"callbacks", "logger"},
    "optimizer": {"params"},
    "recipe": {"make_trainer", "task", "data"},
    "instead": {"make_trainer", "task", "data"},
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


def build_optimizer(cfg: DictConfig) -> Any:
    """The partial of the optimizer; where `scaled_lr` gives another learning rate, the log says how it came about."""
    lr = scaled_lr(cfg)
    if lr is None:
        return instantiate(cfg.optimizer)
    rank_zero_info(
        f"learning rate {lr:g} = optimizer.lr {cfg.optimizer.lr:g} * batch {cfg.data.batch_size}"
        f" * accumulated {cfg.trainer.accumulate_grad_batches} / nominal batch {cfg.lr_scaling.nominal_batch}"
    )
    return instantiate(cfg.optimizer, lr=lr)


def scaled_lr(cfg: DictConfig) -> float | None:
    """``optimizer.lr`` by the linear rule of Goyal et al., arXiv 1706.02677: k times the batch, k times the rate.

    ``lr * batch_size * accumulate_grad_batches / nominal_batch``; the batch is that of all processes together already.

    Returns:
        None without ``lr_scaling.nominal_batch``.

    Raises:
        UserError: a nominal batch below 1, or an optimizer without ``lr``.
    """
    nominal = cfg.lr_scaling.nominal_batch
    if nominal is None:
        return None
    if not isinstance(nominal, int) or isinstance(nominal, bool) or nominal < 1:
        raise UserError(
            f"lr_scaling.nominal_batch={nominal} is not a whole number from 1. Fix: lr_scaling.nominal_batch=16, or null"
        )
    if cfg.optimizer.get("lr") is None:
        raise UserError(
            f"lr_scaling.nominal_batch={nominal} scales optimizer.lr, which has no value. Fix: set optimizer.lr"
        )
    return float(cfg.optimizer.lr * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches / nominal)


def check_parts(cfg: DictConfig) -> None:
    """Builds every part of the run once without memory, before any data is read.

    Raises:
        UserError: a combination that a constructor refuses, with the constructor's own words.
    """
    check_kinds(cfg)
    check_monitor(cfg)
    check_loggers(cfg)
    scaled_lr(cfg)
    if cfg.data.image_size != cfg.model.image_size:
        raise UserError(
            f"data.image_size={cfg.data.image_size} differs from model.image_size={cfg.model.image_size}."
            " Fix: set model.image_size only; the data follows it"
        )
    for name in ("model", "optimizer", "scheduler", "metric", "recipe", "instead", "data", "task", "callbacks"):
        try:
            with torch.device("meta"):
                part = _try_part(cfg, name)
        except UserError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            if isinstance(cause, UserError):
                raise cause from None
            raise UserError(f"{name}: {type(cause).__name__}: {cause}. Fix: check the keys below '{name}'") from error
        if "proposals" in getattr(part, "external", ()) and cfg.data.get("proposals") is None:
            raise UserError(
                f"data.proposals=null: {type(part).__name__} classifies regions that come from elsewhere."
                " Fix: data.proposals=selective_search (edge_boxes, segments, sliding_window, constant)"
            )
        if getattr(part, "square", False) and cfg.data.get("pad", "square") != "square":
            raise UserError(f"data.pad={cfg.data.pad}: {type(part).__name__} needs square images. Fix: data.pad=square")


def _try_part(cfg: DictConfig, name: str) -> Any:
    """One part of the run, built as the run will build it."""
    if name == "model":
        model = build_model(cfg.model, 2)
        Freeze(cfg.freeze.patterns, cfg.freeze.unfreeze_at).check(model)
        return model
    if name == "task":  # with nothing to train and to measure
        return instantiate(cfg.task, model=nn.Identity(), optimizer=None, scheduler=None, metric=None, classes=[])
    part = instantiate(cfg.get(name))
    if name == "optimizer":
        part([torch.zeros(1, requires_grad=True)])
    return part


def check_kinds(cfg: DictConfig) -> None:
    """Model, task, data, metric and callbacks are of one kind: boxes or identities.

    Raises:
        UserError: which of them is not.
    """
    task = get_class(cfg.task._target_)
    wanted = getattr(task, "kind", None)
    for node in (cfg.model, cfg.data, cfg.metric, *cfg.callbacks.values()):
        part = get_object(node._target_) if node else None
        kind = getattr(part, "kind", None)  # one's own need not say it
        if None not in (kind, wanted) and kind != wanted:
            raise UserError(
                f"{part.__name__} is for {kind}, {task.__name__} for {wanted}. Fix: with data=shapes, voc, coco ..."
                " model=yolo, faster_rcnn_fpn ...; with data=faces or drawn_faces model=facenet; task, metric and"
                " callbacks follow the model"
            )


def check_monitor(cfg: DictConfig) -> None:
    """Checks what can be known of ``monitor`` and ``early_stopping`` before training.

    Raises:
        UserError: a mode that is none, or the wrong one for a known name; a test score; a patience below 1.
    """
    name, mode, patience = str(cfg.monitor), cfg.monitor_mode, cfg.early_stopping.patience
    if mode not in ("max", "min"):
        raise UserError(f"monitor_mode={mode} is neither max nor min. Fix: monitor_mode=max for scores, min for losses")
    if name.startswith("test/"):
        raise UserError(
            f"monitor={name}: nothing may be chosen by the test, which comes after training. Fix: monitor=val/{name[5:]}"
        )
    low, high = re.search(r"loss|/EER", name), re.search(r"/(AP|AR|AUC|TAR|CMC|rank1|(best_)?accuracy)", name)
    right = "min" if low else "max" if high else mode
    if mode != right:
        raise UserError(
            f"monitor={name} with monitor_mode={mode} would keep the worst checkpoint. Fix: monitor_mode={right}"
        )
    if patience is not None and (not isinstance(patience, int) or isinstance(patience, bool) or patience < 1):
        raise UserError(
            f"early_stopping.patience={patience} is not a whole number from 1. Fix: early_stopping.patience=5, or null for never"
        )


class Monitor(Callback):
    """Refuses a monitored name that nobody logs, at the first validation, and says why training ended early.

    Args:
        name: of a logged value.
        patience: of early stopping.
    """

    def __init__(self, name: str, patience: int | None = None) -> None:
        self.name, self.patience, self.validations = name, patience, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run may have been stopped early before, and may have another patience now."""
        for stopper in trainer.early_stopping_callbacks:
            assert isinstance(stopper, EarlyStopping)
            stopper.patience = self.patience or stopper.patience
            if stopper.wait_count >= stopper.patience:
                trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the checkpoints, which Lightning calls last.

        Raises:
            UserError: the name is not among what was logged so far.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validations += 1
        known = [str(name) for name in trainer.callback_metrics]
        if self.validations == 1 and self.name not in known:
            fix = suggest(self.name, known) or "choose one of them"
            if self.name.startswith("train/"):
                fix += f"; train/ values come every trainer.log_every_n_steps={trainer.log_every_n_steps} steps"
            raise UserError(f"monitor={self.name} is not logged; there are: {listing(known, 20)}. Fix: {fix}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for stopper in trainer.early_stopping_callbacks if not trainer.fast_dev_run else ():
            assert isinstance(stopper, EarlyStopping)
            if stopper.stopping_reason_message:
                reason = stopper.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
                rank_zero_info(f"early stopping after {stopper.stopped_epoch + 1} epochs: {reason}")
            elif self.validations <= stopper.patience:
                rank_zero_info(
                    f"early stopping had no say: {self.validations} validation(s), patience {stopper.patience};"
                    " trainer.check_val_every_n_epoch and trainer.val_check_interval say how often there is one"
                )


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
    if cfg.early_stopping.patience is not None:
        options = {"mode": cfg.monitor_mode, "check_on_train_epoch_end": False}  # after each validation instead
        callbacks.append(EarlyStopping(cfg.monitor, **options, **cfg.early_stopping))
    choosing = cfg.trainer.enable_checkpointing and any(isinstance(c, ModelCheckpoint) for c in callbacks)
    if choosing or cfg.early_stopping.patience is not None:
        callbacks.insert(0, Monitor(cfg.monitor, cfg.early_stopping.patience))
    if not cfg.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    if not cfg.trainer.enable_checkpointing or cfg.trainer.fast_dev_run:  # Lightning would save even a dry run's end
        callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
    if not cfg.logger:
        callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
    return callbacks


def check_loggers(cfg: DictConfig) -> None:
    """Whether the loggers' packages are there; they are opened, which has effects, only when the data is known.

    Raises:
        UserError: one is missing.
    """
    for node in cfg.logger.values():
        if node:
            module = import_module(get_object(node._target_).__module__)
            getattr(module, "check", lambda: None)()


@contextmanager
def open_loggers(cfg: DictConfig) -> Iterator[list[Logger]]:
    """The loggers of a run, told the resolved configuration; closed whatever happens, so that a sweep's next job starts anew.

    A run that raises is marked as failed, one that a signal ended by its exit code.
    """
    loggers: list[Logger] = []
    code = 1
    try:
        loggers.extend(instantiate(node) for node in cfg.logger.values() if node is not None)  # one by one
        for logger in loggers:
            if not isinstance(logger, CSVLogger):  # config.yaml lies beside metrics.csv already
                logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        yield loggers
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, Shows):
                logger.finish(code)


def quiet() -> None:
    """Silences what is no news to a user, each for a reason; everything else is shown."""
    if logging.getLogger().handlers:  # Hydra's; Lightning's own would print everything again
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(_CHATTER))
    # Our loaders choose their workers on purpose: `shapes` has none because its images are drawn once and kept.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Ours begin where the run stopped: `cvexp.callbacks.last` tells them.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    # Small data sets have fewer steps in an epoch than log_every_n_steps.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    # Every process computes the same mAP from all detections: there is nothing to average.
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    # Frozen parts of a backbone are, so that their norms keep their statistics.
    warnings.filterwarnings("ignore", message="Found .* module\\(s\\) in eval mode at the start of training")
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
    "Restored all states",
    "Loaded model weights",
    "Loading `train_dataloader`",
)
