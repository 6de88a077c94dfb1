"""Face verification and identification over a data set, the same on one process or many.

Collects one embedding per image and judges the split's list of pairs with them (formulas and conventions:
`cvexp.metrics.verification`), all pairs of its images, and who is nearest to whom (`cvexp.metrics.identification`).

How: as `cvexp.metrics.detection`. Each rank keeps its rows by image id on the CPU, outside torchmetrics' states; `gathered`
brings them together once, drops repeated ids and puts them in the truth's order; rank 0 judges and broadcasts. So ranks may
hold any number of images, none included, and images twice, as padded shards do.

In a run of few batches the pairs whose images were not seen are left out, and counted; a figure that cannot be had is NaN.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from cvexp.metrics.face_protocol import (
    Outcome,
    VerificationResult,
    check_truth,
    judge_all_pairs,
    judge_identification,
    judge_pairs,
)
from cvexp.metrics.pair_evidence import PairEvidence
from cvexp.metrics.verification import allowed
from cvexp.types import FaceTruth, Pairs, UserError

if TYPE_CHECKING:
    from cvexp.comparators.comparator import Comparator

Shard: TypeAlias = tuple[NDArray, NDArray]  # image ids int64 [I], embeddings float32 [I, D]


class Verification(Metric):
    """Accuracy, TAR at FAR, AUC and EER of a list of pairs; rank-1 and the same over all pairs of its people's images.

    Call ``set_ground_truth`` once, ``update`` for every batch, give ``comparator`` and ``threshold``, then ``compute`` *on
    every rank*.

    Args:
        fars: the false accept rates at which TAR is reported.
        resamples: bootstrap samples behind the 95 % intervals.
        all_pairs: also verify every image with every other (no distractors), one power of ten further in FAR.
        identification: also look for every image among all others.

    Attributes:
        comparator: turns two embeddings into a score; set by the task, and no part of this module's state.
        threshold: in score units, for a list of one fold; None: the best on the pairs themselves, reported as
            ``best_accuracy``. A list of several folds needs none and uses none.
        truth: of the split that is judged.
        result: the `VerificationResult` of the last ``compute``, on every rank; None before. Survives ``reset``.
        evidence: of these pairs, for intervals and comparisons; None before, and without pairs of both kinds.
    """

    kind: ClassVar[str] = "embedding"
    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(
        self,
        fars: Sequence[float] = (1e-2, 1e-3),
        resamples: int = 1000,
        all_pairs: bool = True,
        identification: bool = True,
    ) -> None:
        super().__init__()
        self.fars = tuple(float(far) for far in fars)
        for far in self.fars:
            allowed(far, 0)
        if resamples < 1:
            raise UserError(f"metric.resamples is {resamples}. Fix: at least 1; 1000 gives steady intervals.")
        self.resamples, self.all_pairs, self.identification = resamples, all_pairs, identification
        self.comparator: Comparator | None = None
        self.threshold: float | None = None
        self.result: VerificationResult | None = None
        self._rows: dict[int, NDArray] = {}
        self.truth = _no_truth()
        self._known_ids: frozenset[int] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """A comparator belongs to the model: kept as a plain attribute, else a checkpoint would hold it twice."""
        if name == "comparator":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def evidence(self) -> PairEvidence | None:
        if self.result is None:
            return None
        return PairEvidence.of(self.truth.pairs, self.result, self.threshold, self.fars)

    def set_ground_truth(self, truth: FaceTruth) -> None:
        """Sets the people and pairs of the split to be judged, and forgets every embedding so far.

        Raises:
            UserError: the truth contradicts itself.
        """
        check_truth(truth)
        self.reset()
        self.result = None
        self.truth, self._known_ids = truth, frozenset(truth.image_ids.tolist())

    def update(self, image_ids: Tensor | Sequence[int], embeddings: Tensor) -> None:
        """Adds a batch: ids ``[B]`` and embeddings ``[B, D]``, any device and precision (kept as float32).

        An image that comes again replaces the former.

        Raises:
            UserError: no ground truth set, an unknown image id, a NaN or infinite number, shapes that do not agree.
        """
        if self._known_ids is None:
            raise UserError("the metric has no ground truth. Fix: call metric.set_ground_truth before metric.update.")
        ids = image_ids.tolist() if isinstance(image_ids, Tensor) else [int(i) for i in image_ids]
        rows = embeddings.detach().float().cpu().numpy()
        former = next(iter(self._rows.values()), None)
        _check_batch(ids, rows, self._known_ids, None if former is None else len(former))
        self._rows |= dict(zip(ids, rows, strict=True))

    def gathered(self) -> Tensor:
        """The embeddings of all ranks, float32 ``[I, D]`` on the CPU in the order of the truth's ``image_ids``.

        A row of NaN is an image that no rank has seen. In several processes this is a collective: every rank must call it.

        Raises:
            UserError: the ranks have embeddings of different lengths.
        """
        mine = np.array(list(self._rows), np.int64), np.array(list(self._rows.values()), np.float32)
        shards = _gather(mine)
        lengths = {rows.shape[1] for ids, rows in shards if len(ids)}
        if len(lengths) > 1:
            raise UserError(f"embeddings of the lengths {sorted(lengths)}. Fix: one model on all processes.")
        known = self.truth.image_ids.numpy()
        order = np.argsort(known)
        embeddings = np.full((len(known), max(lengths, default=0)), np.nan, np.float32)
        for ids, rows in reversed(shards):  # of repeated ones the lowest rank's is kept
            if len(ids):
                embeddings[order[np.searchsorted(known, ids, sorter=order)]] = rows
        return torch.from_numpy(embeddings)

    def pair_embeddings(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the listed pairs whose images were both seen: embeddings ``[N, D]``, ``[N, D]``, and ``same`` bool ``[N]``.

        For ``comparator.fit``. A collective as `gathered`.
        """
        embeddings = self.gathered()
        index, first, second = self._seen_pairs(embeddings)
        return embeddings[first], embeddings[second], self.truth.pairs.same[index]

    def compute(self) -> dict[str, Tensor]:
        """Every figure, float64 0-d on the CPU, the same on every rank; a collective.

        - ``accuracy`` with ``accuracy_low`` and ``accuracy_high`` (95 %; several folds: also ``accuracy_se``, the standard
          error of their mean), or ``best_accuracy`` where the threshold had to be chosen on the same pairs (optimistic);
          ``threshold`` as the measure that a user is shown (several folds: the mean of theirs).
        - ``AUC``, ``EER``, ``TAR@1e-2`` with ``_low`` and ``_high``, ...; ``all_pairs/AUC``, ``all_pairs/TAR@1e-2``, ...
        - ``rank1``: share of the images, of people with two or more, whose nearest among all the tested people's images is
          of the same person; ``rank1_distractors``: among the distractors, too; ``CMC@1``, ``CMC@10``: share of the (probe,
          mate) pairs with the mate so far ahead among all other people's images and the distractors.
        - ``pairs`` that were judged, ``pairs_left_out``, ``images`` that were seen.

        Raises:
            UserError: no ``comparator``, or a comparator that refuses the embeddings.
        """
        embeddings = self.gathered()
        first = _processes() == 1 or dist.get_rank() == 0
        numbers, self.result = _broadcast(self._attempt(embeddings) if first else None)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def reset(self) -> None:
        """Forgets the embeddings; keeps the ground truth, comparator, threshold and the last ``result``."""
        super().reset()
        self._rows = {}

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Not offered: the figures of one batch mean nothing."""
        raise NotImplementedError("call metric.update(image_ids, embeddings) per batch and metric.compute() at the end")

    def _attempt(self, embeddings: Tensor) -> Outcome | Exception:
        """The figures, or why there are none: the other ranks are waiting and must hear of either."""
        try:
            with torch.no_grad():
                return self._judge(embeddings)
        except Exception as error:
            return error

    def _judge(self, embeddings: Tensor) -> Outcome:
        if self.comparator is None:
            raise UserError(
                "metric.comparator is not set. Fix: set it to the model's comparator before metric.compute."
            )
        comparator = copy.deepcopy(self.comparator).cpu()
        if not embeddings.shape[1]:  # no rank has seen an image, so nobody knows the length
            embeddings = embeddings.new_full((len(embeddings), comparator.dim), torch.nan)
        index, first, second = self._seen_pairs(embeddings)
        scores = comparator.score(embeddings[first], embeddings[second]).double().numpy()
        numbers, result = judge_pairs(
            self.truth.pairs, index.numpy(), scores, comparator, self.threshold, self.fars, self.resamples
        )
        seen, stranger = seen_rows(embeddings), self.truth.distractor
        known, labels = embeddings[seen & ~stranger], self.truth.labels[seen & ~stranger]
        if self.all_pairs:
            numbers |= judge_all_pairs(known, labels, comparator.matrix, self.fars, result.notes)
        if self.identification:
            numbers |= judge_identification(known, labels, embeddings[seen & stranger], comparator.matrix)
        return numbers | {"images": float(seen.sum())}, result

    def _seen_pairs(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the pairs with both images: their positions in the list, and the rows of both images."""
        ids, order = self.truth.image_ids.sort()
        rows = [order[torch.searchsorted(ids, side)] for side in (self.truth.pairs.first, self.truth.pairs.second)]
        seen = seen_rows(embeddings)
        index = (seen[rows[0]] & seen[rows[1]]).nonzero().flatten()
        return index, rows[0][index], rows[1][index]

    def _wrap_compute(self, compute: Callable) -> Callable:
        """Unwrapped: torchmetrics would warn on a rank without images, and answer from its cache while others wait."""
        return compute

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        """Nothing: there are no states."""


def _check_batch(ids: list[int], rows: NDArray, known: frozenset[int], length: int | None) -> None:
    if rows.ndim != 2 or len(ids) != len(rows):
        raise UserError(f"{len(ids)} image ids for embeddings of shape {rows.shape}. Fix: one row per image, [B, D].")
    if ids and length not in (None, rows.shape[1]):
        raise UserError(f"embeddings of {rows.shape[1]} numbers after some of {length}. Fix: one model for all images.")
    for image_id in ids:
        if image_id not in known:
            raise UserError(
                f"image id {image_id} is not in the ground truth of {len(known):,} images. Fix: evaluate the split that was "
                "given to metric.set_ground_truth, with the data set's own ids."
            )
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise UserError(
            f"image {ids[int(np.argmin(finite))]}: its embedding is not finite. Fix: lower optimizer.lr or set "
            "trainer.precision=32-true; when evaluating, take an earlier checkpoint."
        )


def seen_rows(embeddings: Tensor) -> Tensor:
    """bool ``[I]``: which images of `Verification.gathered` some rank has seen."""
    return embeddings.isfinite().all(dim=1) if embeddings.shape[1] else torch.zeros(len(embeddings), dtype=torch.bool)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(shard: Shard) -> list[Shard]:
    """Every rank's shard on every rank."""
    if _processes() == 1:
        return [shard]
    gathered: list[Any] = [None] * _processes()
    dist.all_gather_object(gathered, shard)
    return gathered


def _broadcast(outcome: Outcome | Exception | None) -> Outcome:
    """Rank 0's outcome on every rank: returned, or raised."""
    box = [outcome]
    if _processes() > 1:
        dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], tuple):
        return box[0]
    raise box[0] or RuntimeError("rank 0 sent no result")


def _no_truth() -> FaceTruth:
    """For a metric that was never used: it has no image and no pair."""
    none, flags = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    return FaceTruth(none, none, (), flags, Pairs(none, none, flags, none, ""))
