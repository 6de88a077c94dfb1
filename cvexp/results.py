"""What a run leaves behind and what it tells its user: configuration, result table, where to look."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn

from cvexp.data.records import Problem


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_config(cfg: DictConfig) -> None:
    """``config.yaml``: the whole configuration, every interpolation resolved."""
    write_text(Path(cfg.paths.output) / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))


def write_problems(problems: dict[str, list[Problem]], folder: str) -> None:
    """``data_problems.txt`` and one line on the screen, when ``data.on_bad=skip`` left something out."""
    lines = [f"{split}: {problem}" for split, found in problems.items() for problem in found]
    if lines:
        path = Path(folder) / "data_problems.txt"
        write_text(path, "\n".join(lines) + "\n")
        Console(stderr=True).print(f"skipped {len(lines)} bad object(s) or image(s) in the data, listed in {path}")


def write_results(cfg: DictConfig, results: dict[str, float], model: nn.Module, data: Any) -> dict[str, Any]:
    """``result.json``: one flat dictionary, also returned."""
    seconds, steps = results.get("train/seconds", 0.0), results.get("train/steps", 0)
    flat: dict[str, Any] = {
        **results,
        "train/images_per_second": steps * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches / max(seconds, 1e-9),
        "model/parameters": sum(p.numel() for p in model.parameters()),
        "model/trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data/classes": len(data.class_names),
        "data/skipped": sum(len(found) for found in data.problems.values()),
        "seed": cfg.seed,
    }
    plain = {name: value for name, value in flat.items() if value == value}  # JSON has no NaN: a class without objects
    write_text(Path(cfg.paths.output) / "result.json", json.dumps(plain, indent=2, sort_keys=True) + "\n")
    return flat


def show(results: dict[str, Any], cfg: DictConfig) -> None:
    """The table of results and where to look."""
    table = Table(title="test results" if "test/AP" in results else "results", show_header=True)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name in ("test/AP", "test/AP50", "test/AP75", "test/APs", "test/APm", "test/APl", "test/AR100", "val/best"):
        if name in results:
            table.add_row(name, f"{results[name]:.4f}")
    for name in sorted(n for n in results if n.startswith("test/AP50/")):
        table.add_row(name, f"{results[name]:.4f}")
    table.add_row("train/seconds", f"{results.get('train/seconds', 0):.1f}")
    table.add_row("train/images_per_second", f"{results['train/images_per_second']:.1f}")
    table.add_row("model/parameters", f"{results['model/parameters']:,}")
    console = Console()
    console.print(table)
    folder = Path(cfg.paths.output)
    places = {
        "results": "result.json", "curves over time": "metrics.csv", "configuration": "config.yaml",
        "precision-recall": "pr_curves.png", "pictures": "predictions.png", "best checkpoint": "checkpoints/best.ckpt",
        "profile": "fit-profile.txt",
    }  # fmt: skip
    for label, name in places.items():
        if (folder / name).exists():
            console.print(f"{label:>18}: {folder / name}", soft_wrap=True, highlight=False)
    if (folder / "checkpoints/best.ckpt").exists():
        best = folder / "checkpoints/best.ckpt"
        console.print(f"\nNext: python -m cvexp.predict ckpt={best} source=<image, folder or glob>", soft_wrap=True, highlight=False)
