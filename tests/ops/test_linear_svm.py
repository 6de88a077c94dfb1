"""The SVM against closed forms and its duality gap; hard negatives as R-CNN's release takes and forgets them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from cvexp.ops.linear_svm import Machine, Miner, duality_gap, train_svm


def problem(seed: int, rows: int = 400, columns: int = 20, positives: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    positive = np.arange(rows) < positives
    x[positive, :3] += 1.0
    return x * 20 / np.linalg.norm(x, axis=1).mean(), positive


def primal(machine: Machine, x: np.ndarray, positive: np.ndarray, cost: float, weight: float, bias: float) -> float:
    """The objective as it stands in the paper's appendix, the last feature's weight in the norm."""
    w = np.append(machine.weight, machine.bias / bias)
    y = np.where(positive, 1.0, -1.0)
    slack = np.maximum(0, 1 - y * (np.c_[x, np.full(len(x), bias)] @ w))
    return float(w @ w / 2 + (np.where(positive, weight, 1.0) * cost * slack).sum())


@pytest.mark.parametrize(
    ("x", "positive", "cost", "weight"),
    [
        ([[1.0], [-1.0]], [True, False], 100.0, 1.0),  # the margin is reached by w = 1
        ([[2.0], [-2.0]], [True, False], 100.0, 0.5),  # twice as far: half of it
        ([[1.0], [-1.0]], [True, False], 0.1, 0.2),  # C too small: both at their bound, w = C + C
        ([[1.0]], [True], 0.1, 0.1),  # one example
    ],
)
def test_closed_forms(x: list, positive: list, cost: float, weight: float) -> None:
    machine = train_svm(np.array(x), np.array(positive), cost, 1.0, bias=1e-9)
    assert machine.weight == pytest.approx([weight], rel=1e-3)


def test_a_positive_costs_twice() -> None:
    x = np.array([[1.0], [1.0]])  # of either side at one place: the dearer one wins
    machine = train_svm(x, np.array([True, False]), cost=0.1, positive_weight=2.0, bias=1e-9)
    assert machine.weight == pytest.approx([0.2 - 0.1], rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("columns", "cost"), [(20, 1e-3), (600, 1e-3), (20, 1.0)])  # tall, wide, hard
def test_the_gap_is_small_and_honest(seed: int, columns: int, cost: float) -> None:
    x, positive = problem(seed, columns=columns)
    machine = train_svm(x, positive, cost)
    assert 0 <= machine.gap < 1e-3
    best = primal(machine, x, positive, cost, 2.0, 10.0)
    rng = np.random.default_rng(seed)
    for step in (1e-1, 1e-2, 1e-3):  # no neighbour is better by more than the gap allows
        near = Machine(
            machine.weight + step * rng.normal(size=columns) * np.abs(machine.weight).mean(),
            machine.bias * (1 + step * rng.normal()), machine.alpha, 0,
        )  # fmt: skip
        assert primal(near, x, positive, cost, 2.0, 10.0) >= best * (1 - machine.gap)


def test_a_bad_solution_has_a_large_gap() -> None:
    x, positive = problem(0)
    signed = torch.from_numpy(x * np.where(positive, 1.0, -1.0)[:, None])
    nothing, upper = torch.zeros(len(x), dtype=torch.float64), torch.full((len(x),), 1e-3, dtype=torch.float64)
    assert (
        duality_gap(signed, torch.zeros(20, dtype=torch.float64), nothing, upper) == 1.0
    )  # nothing done yet: P = sum C, D = 0


@pytest.mark.parametrize("columns", [20, 600])
def test_the_solution_obeys_its_conditions(columns: int) -> None:
    """Beyond the margin alpha is 0, within it its upper bound C, and in between the example lies on the margin."""
    x, positive = problem(1, columns=columns)
    machine = train_svm(x, positive, 1e-3, tolerance=1e-9)
    margin = machine.scores(x) * np.where(positive, 1.0, -1.0)
    upper = np.where(positive, 2e-3, 1e-3)
    assert machine.gap <= 1e-9
    assert ((machine.alpha > 0) & (machine.alpha < upper)).all()
    assert machine.alpha[margin > 1.01].max(initial=0.0) < 1e-6
    assert (upper - machine.alpha)[margin < 0.99].max(initial=0.0) < 1e-6
    assert (margin > 1.01).any()
    assert (margin < 0.99).any()


# -- hard negatives ----------------------------------------------------------------------------------------------------


def images(count: int, rows: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(rows, 8)) * 5, np.arange(rows) + 1000 * i) for i in range(count)]


def show(miner: Miner, features: np.ndarray, keys: np.ndarray, negative: np.ndarray | None = None) -> int:
    among = np.ones(len(keys), dtype=bool) if negative is None else negative
    return miner.add(features, keys, among, miner.scores(features))


def objects() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(40, 8)) * 5 + np.array([6.0, 6, 0, 0, 0, 0, 0, 0])


def test_the_first_image_gives_all_its_negatives_and_trains() -> None:
    miner = Miner(objects())
    features, keys = images(1, 50)[0]
    allowed = np.arange(50) % 2 == 0  # the others are objects or lie over one
    assert show(miner, features, keys, allowed) == 25
    assert miner.trainings == 1
    assert (miner.keys % 2 == 0).all()
    assert miner.machine.gap < 1e-3


def test_later_images_give_those_above_the_margin_and_none_twice() -> None:
    miner = Miner(objects())
    first, second = images(2, 200)
    show(miner, *first)
    hard = miner.scores(second[0]) > -1.0001
    before = set(miner.keys.tolist())
    assert 0 < hard.sum() < 200  # else nothing is tested
    assert show(miner, *second) == hard.sum()
    assert set(miner.keys.tolist()) - before == set(second[1][hard].tolist())
    assert show(miner, *second) == 0  # all that are hard are known
    assert miner.trainings == 1  # fewer than `retrain`


@pytest.mark.parametrize(("retrain", "trainings"), [(0, 2), (10_000, 1)])
def test_enough_new_negatives_train_again(retrain: int, trainings: int) -> None:
    miner = Miner(objects(), retrain=retrain)
    for each in images(2, 200):
        show(miner, *each)
    assert miner.trainings == trainings


def test_easy_negatives_are_forgotten_after_a_training_only() -> None:
    miner = Miner(objects())
    features, keys = images(1, 300)[0]
    show(miner, features, keys)
    scores = miner.scores(features)
    assert (scores < -1.2).any()
    assert miner.keys.tolist() == keys[scores >= -1.2].tolist()
    assert len(miner.negatives) == len(miner.keys)


def test_forgetting_does_not_change_the_machine() -> None:
    """Beyond the margin a negative has no say: the solution without the forgotten ones is the same."""
    miner = Miner(objects())
    show(miner, *images(1, 300)[0])
    before = miner.machine.weight
    miner.train()
    assert miner.machine.weight == pytest.approx(before, abs=2e-2 * np.abs(before).max())


def test_after_the_last_pass_no_hard_negative_is_unknown() -> None:
    miner = Miner(objects() + 4.0, retrain=20, solve=partial(train_svm, cost=0.1))  # far and dear enough for a margin
    every = images(6, 150)
    for _ in range(20):
        added = sum(show(miner, *each) for each in every)
        miner.train()
        if not added:
            break
    assert added == 0
    outside = np.concatenate([features[~np.isin(keys, miner.keys)] for features, keys in every])
    assert len(outside) > 10
    assert miner.scores(outside).max() < -1 + 0.01  # the machine is as exact as its gap


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [(np.zeros((0, 8)), 50), (np.ones((3, 8)), 0)],  # a class without objects; images without a negative
)
def test_nothing_to_learn_from_is_no_machine(positives: np.ndarray, negatives: int) -> None:
    miner = Miner(positives)
    features, keys = images(1, 50)[0]
    show(miner, features, keys, np.arange(50) < negatives)
    miner.train()
    assert miner.machine is None
    assert miner.trainings == 0
