"""The latent SVM's convex problem, its stages on a few drawn images, and that a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cvexp.data.shapes import ShapesData
from cvexp.models.dpm import DPM, LOWEST_CURVATURE, Chosen
from cvexp.models.dpm_pyramid import HogPyramid
from cvexp.recipes.latent_svm import _Learner, latent_svm, rounded_hinge, solve_svm, start_parts
from cvexp.recipes.stages import Stages
from cvexp.types import UserError


def test_the_hinge_is_rounded_at_its_corner_alone() -> None:
    value, slope = rounded_hinge(np.array([-1.0, 0.0, 0.9, 0.95, 1.0, 3.0]))
    np.testing.assert_allclose(value, [1.95, 0.95, 0.05, 0.0125, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(slope, [-1, -1, -1, -0.5, 0, 0], atol=1e-12)


def solved(x: list, y: list, C: float, lowest: float = -np.inf) -> np.ndarray:  # noqa: N803
    x = np.array(x, dtype=np.float64)
    size = x.shape[1]
    zero, bound, free = np.zeros(size), np.full(size, lowest), np.ones(size, dtype=bool)
    return solve_svm(x, np.array(y, dtype=float), C, zero, np.maximum(zero, lowest), bound, 200, free)[0]


def test_two_examples_are_separated_with_the_largest_margin() -> None:
    """(2, 0) against (-2, 0): w = (1/2, 0) has both on the margin; the rounding lets them be a little inside of it."""
    w = solved([[2, 0], [-2, 0]], [1, -1], C=100.0)
    np.testing.assert_allclose(w, [0.5, 0], atol=5e-3)


def test_a_small_c_bounds_the_weights() -> None:
    """Both examples inside the margin: w = C sum y x."""
    np.testing.assert_allclose(solved([[2, 0], [0, 1]], [1, -1], C=0.1), [0.2, -0.1], atol=1e-6)


def test_bounds_hold() -> None:
    w = solved([[1.0, -1.0], [-1.0, 1.0]], [1, -1], C=10.0, lowest=0.01)
    assert w[1] == 0.01  # it would be negative
    assert w[0] > 0.9


def test_weights_that_are_not_free_stay() -> None:
    free = np.array([True, False])
    w, _ = solve_svm(np.array([[2.0], [-2.0]]), np.array([1.0, -1]), 1.0, np.array([0.0, 7.0]), np.zeros(1),
                     np.full(1, -np.inf), 50, free)  # fmt: skip
    assert w[1] == 7.0
    assert w[0] > 0.4


def model(mirrored: bool = False, part_scale: int = 1) -> DPM:
    torch.manual_seed(0)
    pyramid = HogPyramid(cell=8, largest=1.4, smallest=0.7, interval=1, part_scale=part_scale, padding=1)
    return DPM(
        pyramid, num_classes=3, components=2, mirrored=mirrored, parts=2, part_size=2, root=4, root_area=9.0, reach=1,
        background=0.4, image_size=96,
    ).eval()  # fmt: skip


def learner(dpm: DPM, count: int = 3) -> _Learner:
    data = ShapesData(train_size=count, val_size=1, test_size=1, augment=None)
    return _Learner(dpm, data.dataset("train", augmented=False), count, 2, 1.0, 4, 30, 10.0, 20, mined=2, shown=False)


@pytest.mark.parametrize("mirrored", [False, True])
@torch.no_grad()
def test_features_times_weights_are_the_score(mirrored: bool) -> None:
    dpm = model(mirrored)
    for parameter in dpm.parameters():
        parameter.normal_()
    work = learner(dpm)
    levels, mixture, grid, _, _ = work._look([0])
    n = len(grid.corner)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(mixture.bias.shape[1]), torch.arange(0, n, 7))
    chosen = Chosen(torch.zeros(len(every), dtype=torch.int64), *every.unbind(dim=1))
    placed = dpm.place(levels, mixture, chosen, grid)
    features = work.features(placed, chosen, mixture.sizes).double()
    weights = torch.stack(
        [torch.from_numpy(work.start(k, e % 2, False)[0]) for _, k, e, _ in zip(*chosen, strict=True)]
    )
    torch.testing.assert_close((features * weights).sum(dim=1).float(), placed.score, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_weights_survive_the_way_to_the_solver_and_back() -> None:
    dpm = model()
    before = {name: value.clone() for name, value in dpm.state_dict().items()}
    work = learner(dpm)
    for k in range(3):
        for m in range(2):
            weights, lowest, free = work.start(k, m, roots=False)
            assert free.all()
            assert (lowest == LOWEST_CURVATURE).sum() == 2 * 2  # two curvatures of two parts
            assert (weights >= lowest).all()
            work.put(k, m, weights)
    for name, value in dpm.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert not work.start(0, 0, roots=True)[2][32 * 16 : -1].any()


@pytest.mark.parametrize("part_scale", [1, 2])
@torch.no_grad()
def test_parts_begin_where_the_root_has_energy(part_scale: int) -> None:
    dpm = model(part_scale=part_scale)
    dpm.sizes[...] = 4
    dpm.root.zero_()
    dpm.root[:, 3, 2:4, 0:2] = 1.0  # lower left
    dpm.root[:, 5, 0:2, 2:4] = 0.5  # upper right
    dpm.root[:, 7] = -9.0  # negative weights are no energy
    start_parts(dpm)
    corner = (dpm.anchors[0, 0].float() + 1) / part_scale
    assert ((corner[0] - torch.tensor([3.0, 1.0])).abs() <= 1).all()
    if part_scale == 1:
        assert dpm.anchors[1, 1].tolist() == [[2, 0], [0, 2]]
        assert (dpm.parts[0, 3] == 1).all()
        assert (dpm.parts[1, 5] == 0.5).all()
    assert len({tuple(place) for place in dpm.anchors[0, 0].tolist()}) == 2  # the energy of the first is gone


def test_negatives_are_hard_and_taken_once() -> None:
    work = learner(model())
    work.mine("random", by_score=False)
    assert work.begin == 2
    first = work.negatives
    assert first is not None
    assert len(first.key.unique()) == len(first.key) == 2 * 3 * 4  # images, classes, of each
    work.begin = 0
    with torch.no_grad():
        work.model.bias.fill_(-5.0)
    work.mine("nothing scores above -1")
    assert len(work.negatives.key) == len(first.key)
    with torch.no_grad():
        work.model.bias.fill_(5.0)
    work.begin = 0
    work.mine("everything does")
    work.begin = 0
    work.mine("the same again")
    assert len(work.negatives.key.unique()) == len(work.negatives.key) > len(first.key)


def test_a_full_cache_keeps_the_hardest() -> None:
    work = learner(model())
    work.mine("random", by_score=False)
    work.limit = 2
    work.solve(work.search(range(3), "objects", by_score=False), roots=True)
    assert work.negatives is not None
    for k in range(3):
        for m in range(2):
            assert ((work.negatives.label == k) & (work.negatives.component == m)).sum() <= 2


def test_stages_learn_and_a_second_run_takes_them_from_the_folder(tmp_path: Path) -> None:
    work = learner(model())
    stages = Stages(tmp_path)
    work.stage(stages, "roots", lambda: work.roots(1))
    work.stage(stages, "parts", lambda: start_parts(work.model))
    work.stage(stages, "latent_1", lambda: work.latent(1))
    work.stage(stages, "boxes", work.boxes)
    assert work.model.box_weights.any()
    assert work.seen > 0

    def never() -> None:
        raise AssertionError("a stage was done again")

    again = learner(model())
    for name in ("roots", "parts", "latent_1", "boxes"):
        again.stage(stages, name, never)
    assert again.seen == work.seen
    for name, value in work.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_run_killed_between_two_stages_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = learner(model())
    whole.roots(1)
    start_parts(whole.model)
    whole.latent(1)
    killed = learner(model())
    stages = Stages(tmp_path)
    killed.stage(stages, "roots", lambda: killed.roots(1))
    resumed = learner(model())
    resumed.stage(stages, "roots", lambda: None)
    start_parts(resumed.model)
    resumed.latent(1)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_another_model_is_refused() -> None:
    task = SimpleNamespace(model=torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"not Linear\. Fix: model=dpm"):
        latent_svm(lambda: None, task, None)  # type: ignore[arg-type, return-value]
