"""The LightningModule of every embedding model: trains on identities, measures by pairs, keeps the threshold it chose."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cvexp.metrics.verification import accuracy, best_threshold, far_threshold
from cvexp.tasks.task import Task
from cvexp.types import FaceBatch, Pairs, UserError


class EmbeddingTask(Task):
    """Trains and measures an embedding model (contract 8).

    ``model(images)`` gives the embeddings that ``model.losses`` takes, ``model.embed(images)`` those that are compared by
    ``model.comparator``. After a validation the comparator is fitted on the validation pairs and a threshold chosen on them;
    both go into the checkpoint, so that a test (and `cvexp.predict`) decides by what was known before it.

    Args:
        model, optimizer, metric, classes, scheduler, backbone_lr: see `Task`.
        far: the threshold accepts at most this share of the validation's different pairs; None, or a share of less
            than one pair, takes the one of best accuracy.

    Attributes:
        verification: what was chosen in the last validation, plain Python: ``threshold`` (a score), ``shown`` (the same as the
            comparator's measure), ``measure``, ``chosen`` (a sentence); empty before.

    Raises:
        UserError: ``far`` is not between 0 and 1.
    """

    kind: ClassVar[str] = "embedding"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        metric: Any,
        classes: Sequence[str],
        scheduler: Callable[[float], float] | None = None,
        backbone_lr: float = 1.0,
        far: float | None = None,
    ) -> None:
        super().__init__(model, optimizer, metric, classes, scheduler, backbone_lr)
        if far is not None and not 0 < far < 1:
            raise UserError(f"task.far={far} is not between 0 and 1. Fix: task.far=1e-2, or null for the best accuracy")
        self.far = far
        self.verification: dict[str, Any] = {}

    def training_step(self, batch: FaceBatch, batch_idx: int) -> Tensor:
        embeddings = self.model(batch.images)
        if self.logs_this_step:
            values = self.model.statistics(embeddings.detach(), batch.labels, batch.image_ids)
            self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=len(batch))
        return self.total(self.model.losses(embeddings, batch.labels, batch.image_ids), len(batch))

    # -- measuring -----------------------------------------------------------------------------------------------------

    def expect(self, split: str) -> None:
        self.metric.reset()
        self.metric.set_ground_truth(self.trainer.datamodule.source(split).truth())  # type: ignore[attr-defined]
        self.metric.comparator = self.model.comparator
        own = self.verification.get("list") == _fingerprint(self.metric.truth.pairs)  # `evaluate split=val`
        self.metric.threshold = None if own else self.verification.get("threshold")

    def validation_step(self, batch: FaceBatch, batch_idx: int) -> Tensor:
        return self._measure(batch)

    def test_step(self, batch: FaceBatch, batch_idx: int) -> Tensor:
        return self._measure(batch)

    def _measure(self, batch: FaceBatch) -> Tensor:
        embeddings = self.model.embed(batch.images)
        self.metric.update(batch.image_ids, embeddings)
        return embeddings

    def on_validation_epoch_end(self) -> None:
        a, b, same = self.metric.pair_embeddings()
        if not same.any() or same.all():  # a dry run may have met no pair of either kind
            self.report("val", [])
            return
        self.model.comparator.fit(a, b, same)
        self.metric.threshold = None
        self.report("val", ["val/AUC"])
        self._choose()

    def _choose(self) -> None:
        """The threshold by the validation's scores, and the sentence that says so."""
        result = self.metric.result
        pairs = f"the {len(result.same):,} pairs of {self.metric.truth.pairs.name}"
        threshold = math.nan if self.far is None else far_threshold(result.scores, result.same, self.far)
        if math.isnan(threshold):  # not asked for, or not to be had from so few pairs
            threshold = best_threshold(result.scores, result.same)
            chosen = f"best accuracy, {accuracy(result.scores, result.same, threshold):.3f}, on {pairs}"
            if self.far is not None:
                chosen += f", which are too few for a false accept rate of {self.far:g}"
        else:
            chosen = f"false accepts of at most {self.far:g} on {pairs}"
        comparator = self.model.comparator
        self.verification = {
            "threshold": float(threshold),
            "shown": float(comparator.shown(float(threshold))),
            "measure": comparator.measure,
            "chosen": chosen,
            "list": _fingerprint(self.metric.truth.pairs),
        }

    def on_test_epoch_end(self) -> None:
        self.report("test", [])

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cvexp"] = self.description | {"verification": self.verification}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.verification = dict(checkpoint.get("cvexp", {}).get("verification", {}))


def _fingerprint(pairs: Pairs) -> str:
    """Of a list of pairs: a threshold is not judged on the list that it was chosen on."""
    columns = torch.stack([pairs.first, pairs.second, pairs.same.long()]).contiguous().numpy()
    return f"{pairs.name} {hashlib.blake2b(columns.tobytes(), digest_size=8).hexdigest()}"
