"""The training of a deformable part model as a latent support vector machine.

P. Felzenszwalb, R. Girshick, D. McAllester, D. Ramanan, PAMI 2010, sections 4 and 5. Given the latent placements of the objects
the problem is convex, and given the model the placements are found by running it: the two take turns. Of the endless negatives
those are kept in a cache that the present model gets wrong ("data mining").

    components: the objects of a class are split by aspect         roots: a filter for each, objects at their best-fitting places
    parts: placed where the roots have most energy                 latent_1, 2 ...: placements, then rounds of mining and solving
    boxes: a linear function of where the parts are

Each stage leaves an artefact, and one whose artefact is there is skipped. Differences from the release: a hinge that is rounded
over the last tenth of the margin, so that L-BFGS-B (SciPy) converges; every component of a class is a problem of its own, since
each example belongs to one; hard negatives come from all images (`cvexp.models.dpm`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from scipy.optimize import minimize
from torch import Tensor

from cvexp.data.module import collate
from cvexp.models.dpm import DPM, LOWEST_CURVATURE, Chosen, Placed, box_features
from cvexp.ops.batching import pad_targets
from cvexp.recipes.end_to_end import learn, tested
from cvexp.recipes.stages import Stages, in_order, join, keep, processes, share, state_of
from cvexp.types import UserError

ROUNDING = 0.1
"""Share of the margin over which the hinge is a parabola."""


def latent_svm(
    make_trainer: Callable[[], Trainer],
    task: LightningModule,
    data: LightningDataModule,
    C: float = 0.001,  # noqa: N803
    images: int | None = None,
    root_mining: int = 2,
    relabels: int = 8,
    mining: int = 10,
    mined_images: int | None = 200,
    per_image: int = 8,
    cache: int = 24000,
    bias: float = 10.0,
    iterations: int = 100,
    batch: int = 8,
) -> dict[str, float]:
    """Trains a `cvexp.models.dpm.DPM` stage by stage, validates and tests it.

    Args:
        C: weight of the hinges against ``|w|^2 / 2``.
        images: the first so many training images; None: all.
        root_mining: rounds of data mining for the roots alone.
        relabels: how often the objects' placements are looked for anew.
        mining: rounds of data mining for each of these.
        mined_images: images of a round; the next one goes on where it stopped. None: all.
        per_image: negatives that a round takes from an image, of each class.
        cache: examples of a component; beyond it the easiest negatives are dropped.
        bias: the feature that the bias is the weight of; the larger it is, the less it is regularised.
        iterations: of the solver.
        batch: images at once.

    Returns:
        Flat results: everything logged by validation and test, ``train/seconds, train/images``.

    Raises:
        UserError: the model is no DPM.
    """
    model = task.model
    if not isinstance(model, DPM):
        raise UserError(
            f"recipe=latent_svm trains deformable part models, not {type(model).__name__}. Fix: model=dpm, or recipe=end_to_end"
        )
    trainer = make_trainer()
    join(trainer)
    data.setup("fit")
    dry = bool(trainer.fast_dev_run)
    stages = Stages(trainer.default_root_dir, step=dry)
    task.to(trainer.strategy.root_device).eval()
    count = min(len(data.source("train")), 2 if dry else images or len(data.source("train")))
    learner = _Learner(
        model, data.dataset("train", augmented=False), count, batch, C, per_image, cache, bias, iterations,
        mined=min(mined_images or count, count), shown=trainer.progress_bar_callback is not None,
    )  # fmt: skip
    keep(trainer, task, "last.ckpt")  # from now on `resume=` finds a run to go on with
    learner.stage(stages, "components", lambda: learn(task, data))
    learner.stage(stages, "roots", lambda: learner.roots(1 if dry else root_mining))
    if model.part_count:
        learner.stage(stages, "parts", lambda: start_parts(model))
        for turn in range(1, 2 if dry else relabels + 1):
            learner.stage(stages, f"latent_{turn}", lambda: learner.latent(1 if dry else mining))
    learner.stage(stages, "boxes", learner.boxes)
    results: dict[str, float] = {
        "train/seconds": sum(stages.seconds.values()),
        "train/epochs": 0,
        "train/steps": 0,
        "train/images": learner.seen,
    }
    validated = trainer.validate(task, datamodule=data, verbose=False)[0]
    keep(trainer, task)
    results |= {name: float(value) for name, value in validated.items()}
    chosen = getattr(trainer.checkpoint_callback, "monitor", None)
    if chosen in results:
        results["val/best"] = results[chosen]
    return results | tested(trainer, task, data, None)


class Rows(NamedTuple):
    """Examples of an image or several.

    Attributes:
        label, component: int64 ``[n]``; the component without its mirror.
        key: int64 ``[n]``: of a negative a number of its own, so that none is taken twice.
        score: ``[n]`` of the model that found them.
        features: ``[n, D]``: root, parts, negative squares and moves, `bias`.
    """

    label: Tensor
    component: Tensor
    key: Tensor
    score: Tensor
    features: Tensor


def joined(rows: Sequence[Rows]) -> Rows:
    """All of them, in their order."""
    return Rows(*(torch.cat(each) for each in zip(*rows, strict=True)))


@dataclass
class _Learner:
    """What the stages share: the images, the cache of negatives, the solver's settings."""

    model: DPM
    dataset: Any
    count: int
    batch: int
    C: float
    per_image: int
    limit: int
    bias: float
    iterations: int
    mined: int
    shown: bool
    seen: int = 0
    begin: int = 0  # the next image to be mined
    negatives: Rows | None = field(default=None)

    def stage(self, stages: Stages, name: str, make: Callable[[], Any]) -> None:
        """Runs or loads a stage, after which the model has its weights."""

        def made() -> dict[str, Any]:
            make()
            names = self.model.class_parameters
            return state_of({n: v for n, v in self.model.state_dict().items() if n in names}) | {
                "seen": self.seen,
                "begin": self.begin,
            }

        found = stages.artefact(name, made)
        self.seen, self.begin = int(found.pop("seen")), int(found.pop("begin"))
        self.model.load_state_dict(found, strict=False)

    # -- stages --------------------------------------------------------------------------------------------------------

    def roots(self, mining: int) -> None:
        """Objects at the places that fit them best against random places, then data mining; parts stay at nothing."""
        with torch.no_grad():
            for parameter in (self.model.root, self.model.parts, self.model.bias):
                parameter.zero_()
        self.negatives = None
        positives = self.search(range(self.count), "objects", by_score=False)
        self.mine("random places", by_score=False)
        self.solve(positives, roots=True)
        for _ in range(mining):
            self.mine("roots: mining")
            self.solve(positives, roots=True)

    def latent(self, mining: int) -> None:
        """Placements under the present model; then mining and solving in turns."""
        self.negatives = None  # a resumed run has no other either
        positives = self.search(range(self.count), "placements")
        for _ in range(mining):
            self.mine("mining")
            self.solve(positives)

    def boxes(self) -> None:
        """The linear function from the parts' places to the box, by least squares, for each component."""
        rows = self.over_images(range(self.count), "boxes", self._box_rows)
        label, component, features, target = (torch.cat(each) for each in zip(*rows, strict=True))
        for k, e in torch.cartesian_prod(*(torch.arange(n) for n in self.model.box_weights.shape[:2])).tolist():
            mine = (label == k) & (component == e)
            x, y = features[mine].double(), target[mine].double()
            gram = x.T @ x + torch.eye(x.shape[1], dtype=torch.float64)
            weights = torch.linalg.solve(gram, x.T @ y).T
            self.model.box_weights[k, e] = weights.to(self.model.box_weights)

    # -- examples ------------------------------------------------------------------------------------------------------

    def over_images(self, indices: Sequence[int], title: str, look: Callable[[Sequence[int]], list[Any]]) -> list[Any]:
        """``look`` at each image, shared among the processes; what it finds of each, in the order of the images."""
        mine = [indices[i] for i in share(len(indices))]
        found: dict[int, Any] = {}
        chunks = [mine[i : i + self.batch] for i in range(0, len(mine), self.batch)]
        for chunk in track(chunks, title, transient=True, disable=not self.shown or processes()[0] > 0):
            found |= dict(zip(chunk, look(chunk), strict=True))
        self.seen += len(indices)
        return in_order(found)

    def search(self, indices: Sequence[int], title: str, by_score: bool = True) -> Rows:
        """The objects' placements."""
        return joined(self.over_images(indices, title, lambda chunk: list(self._rows(chunk, True, by_score))))

    def mine(self, title: str, by_score: bool = True) -> None:
        """Adds to the cache what of the next images scores above -1 and is not there; the easiest leave a full cache."""
        indices = sorted((self.begin + i) % self.count for i in range(self.mined))
        self.begin = (self.begin + self.mined) % self.count
        rows = joined(self.over_images(indices, title, lambda chunk: list(self._rows(chunk, False, by_score))))
        hard = rows.score > -1 if by_score else torch.ones_like(rows.score, dtype=torch.bool)
        if self.negatives is not None:
            hard &= ~torch.isin(rows.key, self.negatives.key)
        fresh = Rows(*(each[hard] for each in rows))
        self.negatives = fresh if self.negatives is None else joined([self.negatives, fresh])
        rank_zero_info(f"  {title}: {len(fresh.key)} new negatives, {len(self.negatives.key)} in all")

    @torch.no_grad()
    def _look(self, chunk: Sequence[int]) -> tuple:
        """Scores and everything else about a few images."""
        model = self.model
        samples = [self.dataset[0, i] for i in chunk]
        batch = collate(samples, ragged=len({s[0].shape for s in samples}) > 1).to(model.bias.device)
        levels, mixture = model.levels(batch.images), model.mixture()
        return levels, mixture, model.grid(levels), pad_targets(batch.targets), batch.targets

    @torch.no_grad()
    def _rows(self, chunk: Sequence[int], positive: bool, by_score: bool) -> Iterator[Rows]:
        model = self.model
        levels, mixture, grid, objects, _ = self._look(chunk)
        boxes = grid.boxes(mixture.sizes).flatten(1, 2)
        if by_score:
            scores = model.scores(levels, mixture)
        else:  # random: the place that fits best is the only one that counts, and negatives are any
            scores = torch.stack([self._random(i, (*mixture.bias.shape, len(grid.corner))) for i in chunk]).to(boxes)
        overlap, model.overlap = model.overlap, model.overlap if by_score else 1.0
        try:
            found = model.labels(scores, boxes, objects, self.per_image)
        finally:
            model.overlap = overlap
        if positive:
            image, index = found.real.nonzero(as_tuple=True)
            label, place = objects.labels[image, index], found.positive[image, index]
        else:
            image, label, index = found.hard.nonzero(as_tuple=True)
            place = found.negative[image, label, index]
        count = len(grid.corner)
        chosen = Chosen(image, label, place // count, place % count)
        placed = model.place(levels, mixture, chosen, grid)
        features = self.features(placed, chosen, mixture.sizes)
        number = torch.tensor(chunk, device=image.device)[image]
        key = (number * model.num_classes + label) * scores[0, 0].numel() + place
        rows = Rows(label, chosen.component % model.components, key, placed.score, features)
        for i in range(len(chunk)):
            yield Rows(*(each[image == i].cpu() for each in rows))

    @staticmethod
    def _random(index: int, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(index))

    def features(self, placed: Placed, chosen: Chosen, sizes: Tensor) -> Tensor:
        """``[n, D]`` so that the score is the product with the weights of the component that is not mirrored."""
        root, parts, moved = placed.root, placed.parts, placed.moved
        turned = chosen.component >= self.model.components
        if self.model.mirrored:
            width = sizes[chosen.label, chosen.component][:, 1]
            where = turned[:, None, None, None]
            root = torch.where(where, self.model.mirrored_root(root, width), root)
            parts = torch.where(where[..., None], self.model.mirrored_part(parts), parts)
            side = moved.new_tensor([-1.0, 1.0])
            moved = torch.where(turned[:, None, None], moved * side, moved)
        dx, dy = moved.unbind(dim=-1)
        costs = -torch.stack([dx * dx, dx, dy * dy, dy], dim=-1)
        ones = root.new_full((len(root), 1), self.bias)
        return torch.cat([root.flatten(1), parts.flatten(1), costs.flatten(1), ones], dim=1)

    @torch.no_grad()
    def _box_rows(self, chunk: Sequence[int]) -> list[tuple[Tensor, ...]]:
        model = self.model
        levels, mixture, grid, objects, _ = self._look(chunk)
        found = model.labels(model.scores(levels, mixture), grid.boxes(mixture.sizes).flatten(1, 2), objects)
        image, index = found.real.nonzero(as_tuple=True)
        place, count = found.positive[image, index], len(grid.corner)
        chosen = Chosen(image, objects.labels[image, index], place // count, place % count)
        features = box_features(model.place(levels, mixture, chosen, grid))
        root = model.root_boxes(chosen, grid, mixture)
        target = (objects.boxes[image, index] - root) / (root[:, 2:] - root[:, :2]).repeat(1, 2)
        rows = (chosen.label, chosen.component, features, target)
        return [tuple(each[image == i].cpu() for each in rows) for i in range(len(chunk))]

    # -- the convex problem --------------------------------------------------------------------------------------------

    def solve(self, positives: Rows, roots: bool = False) -> None:
        """Every component of every class; then the easiest negatives leave a cache that is too large."""
        assert self.negatives is not None
        model, negatives = self.model, self.negatives
        kept, hinges = [], 0.0
        for k in range(model.num_classes):
            for m in range(model.components):
                good = positives.features[(positives.label == k) & (positives.component == m)]
                mine = (negatives.label == k) & (negatives.component == m)
                bad = negatives.features[mine]
                weights, lowest, free = self.start(k, m, roots)
                x = torch.cat([good, bad]).numpy()
                y = np.concatenate([np.ones(len(good)), -np.ones(len(bad))])
                weights, loss = solve_svm(
                    x[:, free], y, self.C, weights, weights[free], lowest[free], self.iterations, free
                )
                hinges += loss
                self.put(k, m, weights)
                kept.append(_hardest(mine, torch.from_numpy(bad.numpy() @ weights.astype(np.float32)), self.limit))
        rank_zero_info(f"  solved: {len(positives.key)} objects, {len(negatives.key)} negatives, loss {hinges:.4g}")
        self.negatives = Rows(*(each[torch.cat(kept).sort().values] for each in negatives))

    def start(self, k: int, m: int, roots: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The present weights ``[D]`` of a component, their lower bounds, and which of them are to be found."""
        model = self.model
        index, P = k * model.components + m, model.part_count  # noqa: N806
        part = slice(index * P, (index + 1) * P)
        costs = model.deformation[part].detach().cpu().double().clone()
        costs[:, ::2] = costs[:, ::2].abs() + LOWEST_CURVATURE
        pieces = [model.root[index], model.parts[part], costs, model.bias[index] / self.bias]
        weights = torch.cat([each.detach().cpu().double().flatten() for each in pieces]).numpy()
        low = torch.full_like(costs, -torch.inf)
        low[:, ::2] = LOWEST_CURVATURE
        lowest = np.full(len(weights), -np.inf)
        lowest[len(weights) - 1 - low.numel() : len(weights) - 1] = low.flatten().numpy()
        free = np.ones(len(weights), dtype=bool)
        if roots:
            free[model.root[index].numel() : -1] = False
        return weights, lowest, free

    @torch.no_grad()
    def put(self, k: int, m: int, weights: np.ndarray) -> None:
        """The inverse of `start`."""
        model = self.model
        index, P = k * model.components + m, model.part_count  # noqa: N806
        part = slice(index * P, (index + 1) * P)
        pieces = (model.root[index], model.parts[part], model.deformation[part], model.bias[index])
        found = torch.from_numpy(weights).split([each.numel() for each in pieces])
        root, parts, costs, bias = (f.view(p.shape).to(p) for f, p in zip(found, pieces, strict=True))
        costs[:, ::2] -= LOWEST_CURVATURE
        model.root[index], model.parts[part], model.deformation[part] = root, parts, costs
        model.bias[index] = bias * self.bias


def _hardest(mine: Tensor, score: Tensor, limit: int) -> Tensor:
    """Positions in the cache of the ``limit`` highest-scoring ones of a component."""
    places = mine.nonzero()[:, 0]
    return places if len(places) <= limit else places[score.topk(limit).indices]


def rounded_hinge(margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``max(0, 1 - margin)`` with its corner rounded over the last `ROUNDING`, and its derivative.

    Example: margin 0: 0.95 and -1 (the hinge less half of the rounding); 0.95: 0.0125 and -0.5; 1 and more: 0 and 0.
    """
    lack = np.maximum(1 - margin, 0)
    inside = lack < ROUNDING
    return np.where(inside, lack**2 / (2 * ROUNDING), lack - ROUNDING / 2), -np.where(inside, lack / ROUNDING, 1.0)


def solve_svm(
    x: np.ndarray,
    y: np.ndarray,
    C: float,  # noqa: N803
    weights: np.ndarray,
    first: np.ndarray,
    lowest: np.ndarray,
    iterations: int,
    free: np.ndarray,
) -> tuple[np.ndarray, float]:
    """``min |w|^2 / 2 + C sum hinge(y w x)`` with lower bounds of single weights, by L-BFGS-B.

    Args:
        x: ``[n, F]``, the features of the weights that are free.
        y: ``[n]``, 1 or -1.
        weights: ``[D]`` all weights.
        first: ``[F]`` where to begin.
        lowest: ``[F]``.
        free: bool ``[D]``.

    Returns:
        ``[D]`` weights, those that are not free as they were, and the objective.
    """

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = rounded_hinge(y * (x @ w.astype(x.dtype)))
        return 0.5 * float(w @ w) + C * float(value.sum()), w + C * ((slope * y).astype(x.dtype) @ x).astype(np.float64)

    bounds = [(None if np.isinf(low) else low, None) for low in lowest]
    found = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
    out = weights.copy()
    out[free] = found.x
    return out, float(found.fun)


@torch.no_grad()
def start_parts(model: DPM) -> None:
    """Squares of the roots with the most positive energy become parts, one after the other; each takes its energy with it."""
    P, side = model.part_count, model.part_size  # noqa: N806
    for index, size in enumerate(model.sizes.flatten(0, 1).tolist()):
        root = model.root[index, :, : size[0], : size[1]]
        if model.pyramid.part_scale == 2:
            root = F.interpolate(root[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
        energy = root.clamp(min=0).square().sum(dim=0)
        for part in range(P):
            total = F.avg_pool2d(energy[None, None], side, stride=1)[0, 0]
            row, column = divmod(int(total.argmax()), total.shape[1])
            square = (slice(row, row + side), slice(column, column + side))
            model.parts[index * P + part] = root[:, *square]
            energy[square] = 0
            model.anchors[index // model.components, index % model.components, part] = torch.tensor([row, column])
