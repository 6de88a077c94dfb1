"""The state of the random number generators that a training step draws from, as a checkpoint can hold it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Of torch (CPU and, where there is one, the current GPU), NumPy and Python: tensors and plain Python."""
    name, keys, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the one that others draw from
    version, words, normal = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(place), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(words, dtype=torch.int64), normal],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    name, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), place, has_gauss, gauss))  # noqa: NPY002
    version, words, normal = state["python"]
    random.setstate((version, tuple(words.tolist()), normal))


def begin_anew(seed: int) -> None:
    """Other, but repeatable random numbers on every process: ``seed`` differs between them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
