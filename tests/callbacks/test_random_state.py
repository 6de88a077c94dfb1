"""The random state: what is drawn after putting it back is what was drawn after taking it."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from cvexp.callbacks.random_state import begin_anew, random_state, set_random_state


def draw() -> list[float]:
    return [
        *torch.rand(3).tolist(),
        *torch.randn(3).tolist(),
        *np.random.rand(3).tolist(),  # noqa: NPY002
        np.random.randn(),  # noqa: NPY002 - draws two and keeps one
        random.random(),
        random.gauss(0, 1),  # keeps one too
    ]


def test_draws_are_repeated_after_a_checkpoint() -> None:
    draw()
    stream = io.BytesIO()
    torch.save(random_state(), stream)
    first = [draw(), draw()]
    draw()
    stream.seek(0)
    set_random_state(torch.load(stream, weights_only=True))  # tensors and plain Python only
    assert [draw(), draw()] == first


def test_taking_it_changes_nothing() -> None:
    begin_anew(5)
    once = draw()
    begin_anew(5)
    random_state()
    assert draw() == once


def test_beginning_anew_depends_on_the_seed_alone() -> None:
    found = []
    for seed in (1, 2, 1, 2**40):
        begin_anew(seed)
        found.append(draw())
    assert found[0] == found[2]
    assert len({tuple(values) for values in found}) == 3
