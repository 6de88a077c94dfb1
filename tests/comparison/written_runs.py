"""Run folders as a training leaves them, written in a moment: what the tests of comparisons read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cvexp.metrics.evidence import write_evidence
from cvexp.metrics.pair_evidence import PairEvidence

RESULTS = {
    "test/AP": 0.5,
    "test/AP50": 0.7,
    "test/AP/cat": 0.4,
    "test/AP/dog": 0.6,
    "test/images": 40.0,
    "train/steps": 10,
    "train/images": 80,
    "train/seconds": 120.0,
    "model/parameters": 1000,
}
"""Of a detection run: ten steps of eight images in two minutes."""


def write_run(
    folder: Path,
    model: str = "yolo",
    seed: int = 0,
    results: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    words: Sequence[str] = (),
    test: str | None = "aaaa",
    data: str = "shapes",
    curve: Sequence[float] = (),
) -> Path:
    """A run's folder.

    Args:
        results: beside (and instead of) `RESULTS`; None takes one away.
        config: top-level keys beside the usual ones.
        words: overrides beside model, data and seed.
        test: hash of the test set; None: no manifest.
        curve: ``val/AP`` after equal parts of the ten steps.
    """
    folder.mkdir(parents=True)
    whole = {name: value for name, value in {**RESULTS, "seed": seed, **(results or {})}.items() if value is not None}
    (folder / "result.json").write_text(json.dumps(whole))
    base = {
        "seed": seed,
        "monitor": "val/AP",
        "paths": {"output": str(folder)},
        "trainer": {"max_epochs": 2, "devices": 1, "default_root_dir": str(folder)},
        "model": {"_target_": f"cvexp.models.{model}.Net", "width": len(model)},
        "data": {"_target_": "cvexp.data.shapes.ShapesData", "seed": seed, "num_workers": 0},
        "optimizer": {"lr": 0.001},
        "weights": f"{folder}/start.pt",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(base | dict(config or {})))
    if test is not None:
        overrides = [f"model={model}", f"data={data}", f"seed={seed}", *words]
        splits = {"train": {"images": 8, "hash": "tttt"}, "test": {"images": 40, "hash": test}}
        manifest = {"format": 1, "overrides": overrides, "data": splits, "platform": {"cpu": "chip", "cores": 2}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if curve:
        last = [round((i + 1) * 10 / len(curve)) - 1 for i in range(len(curve))]
        rows = "".join(f"{i},{step},{value},\n" for i, (step, value) in enumerate(zip(last, curve, strict=True)))
        (folder / "metrics.csv").write_text("epoch,step,val/AP,test/AP\n" + rows)
    return folder


def write_face_run(folder: Path, right: Sequence[bool], model: str = "facenet", seed: int = 0, **more: Any) -> Path:
    """A verification run with evidence: 20 pairs of one person, then as many of two, judged ``right`` or not."""
    correct = np.array(right)
    plain = dict.fromkeys([name for name in RESULTS if name.startswith("test/")])
    results = {**plain, "test/accuracy": float(correct.mean()), "test/AUC": 0.9}
    write_run(folder, model, seed, results | more.pop("results", {}), **more)
    n = len(correct)
    same = np.arange(n) < n // 2
    scores = np.linspace(1, 0, n)
    pairs = PairEvidence(np.arange(n), scores, same, np.zeros(n, np.int64), correct, (0.1,), "faces-1")
    write_evidence(folder / "evidence.npz", pairs)
    return folder


def judged(count: int, wrong: Sequence[int]) -> list[bool]:
    """So many pairs, all right but some."""
    return [i not in wrong for i in range(count)]
